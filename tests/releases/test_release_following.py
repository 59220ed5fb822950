"""A folder that follows an object store, services that follow the folder, and releases that go under them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from router import releases
from router.errors import ParameterError, ResourceError
from router.releases import places
from router.releases.follow import follow
from router.releases.objects import ObjectStore
from router.releases.places import Folder, place_of, rollback
from router.releases.pruning import PruneRule, prune
from router.releases.push import push
from tests.releases.conftest import tree


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@contextmanager
def following(url: str, copy: Path, **options: Any) -> Iterator[list[dict[str, Any]]]:
    """What is noted while a folder follows an object store."""
    stopped, noted = Event(), list[dict[str, Any]]()

    def note(event: str, **about: Any) -> None:
        noted.append({"event": event, **about})

    thread = Thread(
        target=follow, args=(url, copy), kwargs={"every_s": 0.02, "stopped": stopped, "note": note, **options}
    )
    thread.start()
    try:
        yield noted
    finally:
        stopped.set()
        thread.join()


def test_it_follows_and_makes_room(tmp_path, url, published):
    here, copy = tmp_path / "here", tmp_path / "copy"
    with following(url, copy, keep=2) as noted:
        wait_until(lambda: bool(noted))
        assert noted == [
            {
                "event": "nothing to follow",
                "place": place_of(url).shown,
                "reason": "there is no current release",
            }
        ]
        made = []
        for number in range(4):
            made.append(published(here, number).version)
            push(here, url)
            wait_until(lambda: releases.current_version(copy) == made[-1])
        wait_until(lambda: releases.versions(copy) == made[2:])
        rollback(place_of(url))
        wait_until(lambda: releases.current_version(copy) == made[2])
    assert [entry["event"] for entry in noted[1:]] == ["followed"] * 5


def test_trouble_is_noted_once_and_over_when_it_is_over(tmp_path, url, published):
    here, copy = tmp_path / "here", tmp_path / "copy"
    first = published(here, 0).version
    push(here, url)
    second = published(here, 1)
    store = ObjectStore(url)
    with following(url, copy) as noted:
        wait_until(lambda: releases.current_version(copy) == first)
        push(here, url, activate=False)
        name = f"{second.version}/model/weights.safetensors"
        content = tree(second.path)["model/weights.safetensors"]
        store.file_system.pipe_file(store.path(name), content[:-1])
        store.switch(second.version, "activate")
        wait_until(lambda: len(noted) > 1)
        time.sleep(0.2)
        assert len(noted) == 2
        assert f"{name}: must have {len(content)} bytes (got {len(content) - 1})" in noted[1]["reason"]
        assert releases.current_version(copy) == first
        store.file_system.pipe_file(store.path(name), content)
        wait_until(lambda: releases.current_version(copy) == second.version)


def test_what_was_damaged_here_is_fetched_again(tmp_path, url, published):
    here, copy = tmp_path / "here", tmp_path / "copy"
    release = published(here, 0)
    push(here, url)
    with following(url, copy) as noted:
        wait_until(lambda: releases.current_version(copy) == release.version)
        (copy / release.version / "model" / "llms.json").unlink()
        wait_until(lambda: noted[-1]["event"] == "repaired")
    assert tree(copy / release.version) == tree(release.path)


def test_what_was_rolled_back_from_here_is_left_alone(tmp_path, url, published):
    here, copy = tmp_path / "here", tmp_path / "copy"
    made = [published(here, number).version for number in range(3)]
    push(here, url, made[0])
    with following(url, copy) as noted:
        wait_until(lambda: releases.current_version(copy) == made[0])
        push(here, url, made[1])
        wait_until(lambda: releases.current_version(copy) == made[1])
        places.rollback(places.Folder(copy))
        wait_until(lambda: noted[-1]["event"] == "not followed")
        time.sleep(0.1)
        assert noted[-1] == {
            "event": "not followed",
            "release": made[1],
            "reason": "it was rolled back from here",
        }
        assert releases.current_version(copy) == made[0]
        push(here, url, made[2])
        wait_until(lambda: releases.current_version(copy) == made[2])


def test_what_never_works_is_an_error(tmp_path):
    with pytest.raises(ParameterError, match="Protocol not known"):
        follow("nothing://x", tmp_path, every_s=1.0, stopped=Event())
    if find_spec("s3fs") is None:
        with pytest.raises(ResourceError, match="s3fs is not installed"):
            follow("s3://x", tmp_path, every_s=1.0, stopped=Event())


def test_a_service_goes_on_with_a_release_that_was_pruned(tmp_path, published):
    """Its files stay mapped; nothing is opened by its name any more."""
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    from router.service.live import LiveRelease

    made = [published(tmp_path, number).version for number in range(2)]
    places.rollback(places.Folder(tmp_path))
    live = LiveRelease(tmp_path, encoder=None, poll_s=1000.0)
    live.start()
    try:
        serving = live.serving
        wanted = _answers(live)
        for version in (made[1], made[0], made[1]):
            places.activate(places.Folder(tmp_path), version)
        published(tmp_path, 2)
        prune(Folder(tmp_path), PruneRule(keep=1))
        assert releases.versions(tmp_path)[0] == made[1]
        assert live.serving is serving
        assert _answers(live) == wanted
        assert live.reload() == releases.current_version(tmp_path)
    finally:
        live.stop()


def _answers(live: Any) -> str:
    serving = live.serving
    users = ["u01", "u19", None, "u40", "nobody"]
    beliefs = [serving.belief(user) for user in users] + [serving.belief(None, (), {"item-1": 1.0})]
    answers = [
        [serving.scorer.scores(belief.user, None, "code").preference.tolist() for belief in beliefs],
        [serving.recommend(user, None, 3) for user in users],
        serving.lookalike(["u01"], 3),
        [belief.source for belief in beliefs],
        serving.profile("u01", beliefs[0]),
    ]
    return repr(answers)  # where a score is not known it is NaN, which equals nothing
