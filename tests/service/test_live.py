"""Which release is served: switched whole or not at all, and the old one stays on any doubt."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event as Flag

import numpy as np
import pytest
import structlog

from router import releases
from router.encoders import EncoderIdentity
from router.errors import NotReadyError, ReleaseError
from router.publishing import publish
from router.releases import places
from router.service import live as live_module
from router.service.live import LiveRelease
from tests.choice_files import user_graph
from tests.service.synthetic import ENCODER, write_synthetic

ITEMS = [f"item-{i}" for i in range(12)]
VERSIONS = {"a": ("one", "two", "three"), "b": ("red", "green", "blue", "grey")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models with other LLMs and other numbers."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, llms) in enumerate(VERSIONS.items()):
        write_synthetic(folder / name, llms=llms, items=ITEMS, seed=seed)
    return {name: folder / name for name in VERSIONS}


@pytest.fixture
def root(tmp_path: Path, models: dict[str, Path]) -> Path:
    """Releases of both, the first is current."""
    folder = tmp_path / "releases"
    for name in ("b", "a"):
        publish(folder, model=models[name], activate=name == "a")
    return folder


@pytest.fixture
def versions(root: Path) -> dict[str, str]:
    """Versions of the two, by name."""
    current = releases.current_version(root)
    return {"a": str(current), "b": next(v for v in releases.versions(root) if v != current)}


@pytest.fixture
def follow(root: Path) -> Iterator[Callable[..., LiveRelease]]:
    """Starts following the root; stopped at the end."""
    started = []

    def start(**options: object) -> LiveRelease:
        live = LiveRelease(root, **{"encoder": ENCODER, "poll_s": 0.02, **options})  # type: ignore[arg-type]
        started.append(live)
        live.start()
        return live

    yield start
    for live in started:
        live.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_switch_is_followed(root, versions, follow):
    switches = []
    live = follow(on_switch=lambda *names: switches.append(names))
    assert live.status() == {"version": versions["a"], "refused": None}
    first = live.serving
    places.activate(places.Folder(root), versions["b"])
    wait_until(lambda: live.serving.version == versions["b"])
    wait_until(lambda: len(switches) == 2)
    assert switches == [(None, versions["a"]), (versions["a"], versions["b"])]
    assert first.scorer.scores(first.scorer.population, None).preference.size == 3  # still answers
    assert live.rollback() == versions["a"]
    assert live.serving.version == releases.current_version(root) == versions["a"]
    with pytest.raises(ReleaseError, match="there is no release before"):
        live.rollback()


def test_a_rollback_skips_what_cannot_be_served(tmp_path, root, versions, follow):
    live = follow()
    write_synthetic(tmp_path / "other", encoder=EncoderIdentity("hashing", 1, 32))
    other = publish(root, model=tmp_path / "other", new_encoder=True).version
    wait_until(lambda: live.status()["refused"] is not None)
    places.activate(places.Folder(root), versions["b"], new_encoder=True)
    assert live.reload() == versions["b"]
    assert places.earlier_versions(places.Folder(root))[0] == other
    assert live.rollback() == live.serving.version == releases.current_version(root) == versions["a"]
    history = (root / "history.jsonl").read_text()
    with pytest.raises(ReleaseError, match="there is no release before"):
        live.rollback()
    assert (root / "history.jsonl").read_text() == history


def test_a_rollback_to_nothing_that_can_be_served_changes_nothing(root, versions, follow):
    live = follow()
    places.activate(places.Folder(root), versions["b"])
    live.reload()
    damage_embedding(root / versions["a"])
    with pytest.raises(ReleaseError, match=r"user.npy: checksum does not match"):
        live.rollback()
    assert live.serving.version == releases.current_version(root) == versions["b"]


def test_several_follow_one_rollback(root, versions, follow):
    one, other = follow(), follow()
    places.activate(places.Folder(root), versions["b"])
    assert one.reload() == other.reload() == versions["b"]
    one.rollback()
    wait_until(lambda: other.serving.version == versions["a"])


def test_reload_of_the_same_is_nothing(root, versions, follow):
    live = follow()
    serving = live.serving
    assert live.reload() == versions["a"]
    assert live.serving is serving


def damage_embedding(release: Path) -> None:
    file = release / "model" / "embeddings" / "user.npy"
    content = file.read_bytes()
    file.unlink()  # the file is a link: the store that it came from stays whole
    file.write_bytes(content[:-1] + b"\x7f")


def cut_weights(release: Path) -> None:
    file = release / "model" / "weights.safetensors"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-8])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "altered": (damage_embedding, "user.npy: checksum does not match"),
    "truncated": (cut_weights, "weights.safetensors: must have"),
    "missing": (lambda path: (path / "model" / "llms.json").unlink(), "llms.json: missing"),
    "no record": (lambda path: (path / "release.json").unlink(), "there is no release"),
    "half a record": (lambda path: (path / "release.json").write_text('{"format": '), "cannot be read"),
    "another record": (lambda path: (path / "release.json").write_text("{}"), "the record is damaged"),
    "no folder": (shutil.rmtree, "there is no release"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_release_is_refused_and_the_old_one_stays(root, versions, follow, damage):
    refusals = []
    live = follow(on_refused=lambda *why: refusals.append(why))
    act, message = DAMAGES[damage]
    act(root / versions["b"])
    (root / "CURRENT").write_text(f"{versions['b']}\n")
    wait_until(lambda: bool(refusals))
    with pytest.raises(ReleaseError, match=message):
        live.reload()
    status = live.status()
    assert status["version"] == versions["a"]
    assert status["refused"]["version"] == versions["b"]
    assert message in status["refused"]["reason"]
    assert live.serving.recommend("ann", None, 2)
    (root / "CURRENT").write_text(f"{versions['a']}\n")
    wait_until(lambda: live.status()["refused"] is None)
    assert len(refusals) <= 2  # told once by the thread, once more by the reload, not at every look


@pytest.mark.parametrize("content", [None, "", "\n", "../x\n", "nothing\n", "20261124T0000", b"\xff\xff"])
def test_a_current_that_names_no_release(root, versions, follow, content):
    live = follow()
    (root / "CURRENT").unlink()
    if content is not None:
        (root / "CURRENT").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ReleaseError, match=r"CURRENT|there is no release"):
        live.reload()
    assert live.status()["version"] == live.serving.version == versions["a"]
    assert live.status()["refused"]["reason"]
    places.activate(places.Folder(root), versions["b"])
    assert live.reload() == versions["b"]


def test_a_release_of_another_encoder(tmp_path, root, versions, follow):
    live = follow()
    write_synthetic(tmp_path / "other", encoder=EncoderIdentity("hashing", 1, 32))
    with pytest.raises(ReleaseError, match="train with that one, or publish with --new-encoder"):
        publish(root, model=tmp_path / "other")
    assert releases.current_version(root) == versions["a"]
    assert len(releases.versions(root)) == 2
    other = publish(root, model=tmp_path / "other", new_encoder=True)
    with pytest.raises(
        ReleaseError, match=r"hashing \(version 1, 32 dimensions\), cannot be used with hashing"
    ):
        live.reload()
    assert live.serving.version == versions["a"]
    assert (
        follow(encoder=None).serving.version == other.version
    )  # where nothing encodes, requests bring vectors


def test_a_model_without_finite_scores(tmp_path, root, versions, follow, models, monkeypatch):
    live = follow()
    places.activate(places.Folder(root), versions["b"])
    monkeypatch.setattr(
        "router.scorer.Scorer.updated_user",
        lambda self, user, events: type(user)(user.vector * np.nan, user.spread),
    )
    with pytest.raises(ReleaseError, match="scores are not finite"):
        live.reload()
    assert live.serving.version == versions["a"]


def test_a_bug_in_a_callback_ends_nothing(root, versions, follow):
    def fail(before: str | None, after: str) -> None:
        if before is not None:
            raise RuntimeError("a bug")

    live = follow(on_switch=fail)
    with structlog.testing.capture_logs() as logs:
        for name in "ba":
            places.activate(places.Folder(root), versions[name])
            wait_until(lambda name=name: live.serving.version == versions[name])
        wait_until(lambda: len(logs) == 2)
    assert live.status()["refused"] is None


def test_nothing_to_serve_at_the_start(root, versions, follow):
    for name in ("CURRENT", releases.HISTORY):
        (root / name).unlink()
    live = follow()
    with pytest.raises(NotReadyError, match="there is no CURRENT"):
        _ = live.serving
    places.activate(places.Folder(root), versions["b"])
    wait_until(lambda: live.status()["version"] == versions["b"])
    with pytest.raises(NotReadyError, match="not started"):
        _ = LiveRelease(root, encoder=None).serving


@pytest.mark.parametrize("damage", [*DAMAGES, "CURRENT"])
def test_a_start_beside_a_damaged_release_takes_the_last_good_one(root, versions, follow, damage):
    """As when a worker is started again in the place of one that had the old release open."""
    places.activate(places.Folder(root), versions["b"])
    if damage == "CURRENT":
        (root / "CURRENT").write_text("?\n")
        shutil.rmtree(root / versions["b"])
    elif damage == "altered":  # which a start does not see
        (root / versions["b"] / "model" / "weights.safetensors").unlink()
    else:
        DAMAGES[damage][0](root / versions["b"])
    live = follow()
    assert live.status()["version"] == live.serving.version == versions["a"]
    assert live.status()["refused"]["reason"]


def test_a_release_that_was_completed_later(root, versions, follow, monkeypatch):
    monkeypatch.setattr(live_module, "_RETRY_S", 0.1)
    live = follow()
    file = root / versions["b"] / "model" / "llms.json"
    file.rename(file.with_suffix(".later"))
    (root / "CURRENT").write_text(f"{versions['b']}\n")
    wait_until(lambda: live.status()["refused"] is not None)
    assert live.serving.version == versions["a"]
    file.with_suffix(".later").rename(file)
    wait_until(lambda: live.serving.version == versions["b"])
    assert live.status() == {"version": versions["b"], "refused": None}


def test_a_start_compares_sizes_only(root, versions, follow):
    """Bytes were compared when the release was published and switched to."""
    damage_embedding(root / versions["a"])
    assert follow().serving.version == versions["a"]


def test_a_graph_of_another_model(tmp_path, root, versions, follow):
    """As if a hand had put it there."""
    live = follow()
    graph = user_graph().save(tmp_path / "graph")
    write_synthetic(tmp_path / "other", parents={"graph": graph.checksum})
    made = publish(root, model=tmp_path / "other", graph=graph.path)
    shutil.rmtree(made.path / "graph")
    shutil.copytree(root / versions["a"] / "model", made.path / "graph")
    with pytest.raises(ReleaseError, match="does not match the record"):
        live.reload()
    assert live.serving.version == versions["a"]


def test_no_request_sees_a_mixture(root, versions, follow):
    """Threads ask without end while the release is switched: each answer is wholly one version's."""
    live = follow(poll_s=0.005)
    wanted = {}
    for name in "ab":
        places.activate(places.Folder(root), versions[name])
        live.reload()
        serving = live.serving
        preference = serving.scorer.scores(serving.belief("bob").user, None, "code").preference
        wanted[serving.version] = (serving.catalogue.names, preference, serving.recommend("bob", None, 3))
    stopped = Flag()

    def ask() -> int:
        answers = 0
        while not stopped.is_set():
            serving = live.serving
            names, preference, items = wanted[serving.version]
            assert serving.catalogue.names == names
            found = serving.scorer.scores(serving.belief("bob").user, None, "code").preference
            np.testing.assert_array_equal(found, preference)
            assert serving.recommend("bob", None, 3) == items
            answers += 1
        return answers

    with ThreadPoolExecutor(3) as pool:
        askers = [pool.submit(ask) for _ in range(3)]
        try:
            for turn in range(12):
                places.activate(places.Folder(root), versions["ab"[turn % 2]])
                wait_until(lambda turn=turn: live.serving.version == versions["ab"[turn % 2]])
        finally:
            stopped.set()
        assert min(asker.result() for asker in askers) > 10
