"""Releases to an object store and back: the same bytes or nothing, and what broke off goes on."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from threading import Event

import pytest

from router import releases
from router.errors import ParameterError, ReleaseError, ResourceError
from router.publishing import publish
from router.releases import places
from router.releases.objects import ObjectStore
from router.releases.places import earlier_versions, place_of, rollback, rolled_back_from
from router.releases.pruning import PruneRule, prune
from router.releases.pull import pull
from router.releases.push import push
from router.releases.transfer import StoppedError
from tests.releases.conftest import NOON, tree
from tests.service.synthetic import EncoderIdentity, write_synthetic

NOBODY = "20200101T000000Z-0123456789ab"


def write(url: str, name: str, content: bytes) -> None:
    store = ObjectStore(url)
    store.file_system.pipe_file(store.path(name), content)


def remove(url: str, name: str) -> None:
    store = ObjectStore(url)
    store.file_system.rm_file(store.path(name))


def test_there_and_back(here, copy, url, published):
    release = published(here, 0, decision={"publish": True})
    sent = push(here, url)
    files = tree(release.path)
    size = sum(len(content) for name, content in files.items() if name != "release.json")
    assert (sent.version, sent.switched, sent.moved_bytes, sent.known_bytes) == (
        release.version,
        True,
        size,
        0,
    )
    fetched = pull(url, copy)
    assert (fetched.version, fetched.switched, fetched.moved_bytes) == (release.version, True, size)
    assert tree(copy / release.version) == files
    assert releases.current_version(copy) == release.version
    assert {path.name for path in copy.iterdir()} == {
        ".lock",
        ".pull.lock",
        "CURRENT",
        "history.jsonl",
        release.version,
    }
    for again in (push(here, url), pull(url, copy)):
        assert (again.switched, again.moved_bytes, again.current) == (False, 0, release.version)
    assert [s.action for s in place_of(url).history()] == ["follow"]


def test_what_did_not_change_is_neither_sent_nor_fetched_again(here, copy, url, published):
    published(here, 0)
    first = push(here, url)
    pull(url, copy)
    release = published(here, 1)
    unchanged = sum(
        len(content) for name, content in tree(release.path).items() if not name.startswith(("model", "rel"))
    )
    sent = push(here, url)
    assert sent.known_bytes == 0  # these stores say nothing of their objects' content
    done = pull(url, copy)
    assert done.known_bytes >= unchanged
    assert done.moved_bytes + done.known_bytes > first.moved_bytes
    assert done.moved_bytes < first.moved_bytes - unchanged + 2000
    assert tree(copy / release.version) == tree(release.path)
    assert (copy / release.version / "graph" / "keys.npy").stat().st_nlink == 2
    place_of(url).check(release.version, verify=True)


def test_a_push_that_broke_off_is_not_seen_and_goes_on(here, url, published, monkeypatch):
    old = published(here, 0).version
    push(here, url)
    release = published(here, 1)
    put, sent = ObjectStore.put, list[str]()

    def breaks(self: ObjectStore, source: Path, *names: str) -> None:
        if len(sent) == 5:
            raise ResourceError("the network is gone")
        sent.append(names[-1])
        put(self, source, *names)

    monkeypatch.setattr(ObjectStore, "put", breaks)
    with pytest.raises(ResourceError, match="the network is gone"):
        push(here, url, threads=1)
    place = place_of(url)
    assert (place.versions(), place.current()) == ([old], old)
    with pytest.raises(ReleaseError, match="there is no release"):
        pull(url, here.with_name("copy"), release.version)
    monkeypatch.setattr(
        ObjectStore, "put", lambda self, source, *names: (sent.append(names[-1]), put(self, source, *names))
    )
    push(here, url)
    assert len(sent) == len(set(sent)) > 5
    assert place.current() == release.version
    place.check(release.version, verify=True)


def test_each_object_missing_truncated_or_altered(here, copy, url, published):
    """Nothing of it is seen in the folder until it is repaired."""
    release = published(here, 0)
    push(here, url)
    files = tree(release.path)
    names = [name for name in files if name != "release.json"]
    assert len(names) > 30
    for number, name in enumerate(names):
        content = files[name]
        damages = content[:-1], content[:-1] + bytes([content[-1] ^ 1]), None
        damage = damages[number % 3]
        if damage is None:
            remove(url, f"{release.version}/{name}")
        else:
            write(url, f"{release.version}/{name}", damage)
        with pytest.raises(ReleaseError, match=f"{release.version}/{name}: "):
            pull(url, copy)
        assert releases.versions(copy) == []
        assert releases.current_version(copy) is None
        write(url, f"{release.version}/{name}", content)
        if number % 5 == 0:
            pull(url, copy)
            assert tree(copy / release.version) == files
        shutil.rmtree(copy)


def test_a_record_that_is_damaged(here, copy, url, published):
    release = published(here, 0)
    push(here, url)
    text = (release.path / "release.json").read_bytes()
    for damage in (text[:-10], b"", b"{}", text.replace(b'"feedback_until": null', b'"feedback_until": "x"')):
        write(url, f"{release.version}/release.json", damage)
        with pytest.raises(ReleaseError, match=r"release\.json: "):
            pull(url, copy)
    remove(url, f"{release.version}/release.json")
    with pytest.raises(ReleaseError, match="there is no release"):
        pull(url, copy)
    push(here, url)
    assert pull(url, copy).moved_bytes > 0


def test_what_was_rolled_back_from_is_not_switched_to_again(here, copy, url, published):
    old, new = published(here, 0).version, published(here, 1).version
    push(here, url, old)
    push(here, url, new)
    assert rollback(place_of(url)) == old
    held = push(here, url)
    assert (held.switched, held.current) == (False, old)
    assert held.held_back is not None
    pull(url, copy)
    assert releases.current_version(copy) == old
    assert push(here, url, again=True).switched
    assert pull(url, copy).switched
    places.rollback(places.Folder(copy))  # on this machine only
    held = pull(url, copy)
    assert (held.switched, held.current, releases.current_version(copy)) == (False, old, old)
    assert pull(url, copy, again=True).current == new


def test_a_rollback_travels(here, copy, url, published):
    """A copy goes back with the object store, and does not take that for a judgement of its own."""
    made = [published(here, number).version for number in range(3)]
    for version in made:
        push(here, url, version)
        pull(url, copy)
    assert rollback(place_of(url)) == made[1]
    assert rolled_back_from(place_of(url)) == {made[2]}
    assert pull(url, copy).current == made[1]
    assert next(iter(places.earlier_versions(places.Folder(copy))), None) == made[0]
    assert places.rolled_back_from(places.Folder(copy)) == frozenset()
    place_of(url).switch(made[2], "activate")
    assert pull(url, copy).current == made[2]
    assert next(iter(places.earlier_versions(places.Folder(copy))), None) == made[1]


def test_another_encoder(here, url, tmp_path):
    for dimension in (16, 32):
        write_synthetic(tmp_path / f"m{dimension}", encoder=EncoderIdentity("hashing", 1, dimension))
        publish(here, model=tmp_path / f"m{dimension}", new_encoder=True)
        if dimension == 16:
            push(here, url)
    with pytest.raises(ReleaseError, match=r"made with encoder .* push with --new-encoder"):
        push(here, url)
    assert push(here, url, new_encoder=True).switched


def test_a_damaged_release_is_not_sent(here, url, published):
    release = published(here, 0)
    file = release.path / "model" / "llms.json"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(ReleaseError, match=r"llms\.json: checksum does not match"):
        push(here, url)
    assert place_of(url).versions() == []


def test_nothing_to_move(here, copy, url):
    with pytest.raises(ReleaseError, match="there is no current release"):
        push(here, url)
    with pytest.raises(ReleaseError, match="there is no current release"):
        pull(url, copy)
    with pytest.raises(ReleaseError, match=f"there is no release '{NOBODY}'"):
        pull(url, copy, NOBODY)
    with pytest.raises(ReleaseError, match="not the name of a release"):
        pull(url, copy, "../x")


def test_pulls_at_once_fetch_once(here, copy, url, published):
    release = published(here, 0)
    sent = push(here, url)
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: pull(url, copy), range(3)))
    assert sum(one.moved_bytes for one in done) == sent.moved_bytes
    assert releases.current_version(copy) == release.version
    assert tree(copy / release.version) == tree(release.path)


def test_a_pull_that_was_stopped_goes_on(here, copy, url, published):
    release = published(here, 0)
    sent = push(here, url)
    stopped, seen = Event(), list[int]()

    def tell(done: int, total: int) -> None:
        seen.append(done)
        if done > total // 2:
            stopped.set()

    with pytest.raises(StoppedError):
        pull(url, copy, threads=1, tell=tell, stopped=stopped)
    assert releases.versions(copy) == []
    done = pull(url, copy)
    assert 0 < done.moved_bytes < sent.moved_bytes
    assert done.moved_bytes + done.known_bytes == sent.moved_bytes
    assert seen == sorted(seen)
    assert tree(copy / release.version) == tree(release.path)


def test_a_full_disk_is_known_before(here, copy, url, published, monkeypatch):
    published(here, 0)
    push(here, url)
    free = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(
        ResourceError, match=r"no space left on the disk: \d+ bytes are needed, 1000 are free"
    ):
        pull(url, copy)
    assert releases.versions(copy) == []


def test_pruning_of_an_object_store_clears_a_push_that_broke_off(here, url, published, monkeypatch):
    old, new = published(here, 0), published(here, 1)
    push(here, url, new.version)
    store, later = ObjectStore(url), datetime.now(UTC) + timedelta(days=2)

    def breaks(*args: object, **options: object) -> None:
        raise ResourceError("the network is gone")

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "check_files", breaks)
        with pytest.raises(ResourceError):
            push(here, url, old.version)
    size = sum(store.sizes(old.version).values())
    assert prune(store, PruneRule(keep=1))["leftovers"] == []  # it may be at work
    for dry_run in (True, False):
        found = prune(store, PruneRule(keep=1), now=later, dry_run=dry_run)
        assert (found["leftovers"], found["freed_bytes"]) == ([old.version], size)
    assert store.sizes(old.version) == {}
    assert (store.versions(), store.current()) == ([new.version], new.version)


def test_an_object_store_that_is_followed_after_it_was_pruned(here, copy, url, published):
    made = [published(here, number, day=number).version for number in range(4)]
    for version in made:
        push(here, url, version)
    store = ObjectStore(url)
    removed = prune(store, PruneRule(keep=1), now=NOON)["removed"]
    assert [entry["version"] for entry in removed] == made[:2]
    assert all(entry["freed_bytes"] > 0 for entry in removed)
    assert earlier_versions(store) == [made[2]]
    assert pull(url, copy).current == made[3]
    with pytest.raises(ReleaseError, match=f"there is no release '{made[0]}'"):
        pull(url, copy, made[0])


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/x", "s3fs"), ("gs://bucket/x", "gcsfs")])
def test_drivers_that_are_not_there(here, published, url, package):
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    published(here, 0)
    with pytest.raises(ResourceError, match=f"{url}: {package} is not installed: run pip install {package}"):
        push(here, url)


def test_file_systems_that_are_not_there(here, published):
    published(here, 0)
    with pytest.raises(ParameterError, match="Protocol not known: nothing"):
        push(here, "nothing://x")


def test_no_secret_is_shown(here, published, monkeypatch):
    published(here, 0)
    url = "memory://name:secret@host/x"
    store = ObjectStore(url)
    assert "secret" not in store.shown

    def fails(*args: object, **options: object) -> None:
        raise OSError(f"no answer from {url}")

    monkeypatch.setattr(type(store.file_system), "cat_file", fails)
    with pytest.raises(ResourceError, match="no answer from") as raised:
        push(here, url)
    assert "secret" not in str(raised.value)
