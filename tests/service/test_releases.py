"""Releases on disk: whole or not there, switched in one step, and what is damaged is refused."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from jobs.errors import ConfigurationError
from jobs.publish import run as publish_job
from ppr.graph import Graph
from router import releases
from router.errors import BundleError, MissingDataError, ParameterError, ReleaseError
from router.publishing import publish
from router.releases import places
from tests.choice_files import fingerprints_of, user_graph
from tests.service.synthetic import write_synthetic

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    graph = user_graph().save(folder / "graph")
    fingerprints = fingerprints_of(graph, folder / "fingerprints")
    users = [f"u{i:02d}" for i in range(20)]
    parents = {"graph": graph.checksum, "fingerprints": fingerprints.checksum, "events": "ab" * 32}
    items = [f"item-{i}" for i in range(12)]
    write_synthetic(folder / "model", users=users, items=items, parents=parents)
    return {name: folder / name for name in ("model", "graph", "fingerprints")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "releases"


def several(root: Path, model: Path, n: int) -> list[str]:
    """Releases that differ in how much feedback their model is said to have learned from; none is current."""
    moments = [NOON + timedelta(seconds=i) for i in range(n)]
    return [publish(root, model=model, feedback_until=at, now=at, activate=False).version for at in moments]


def test_layout_and_record(stores, root):
    release = publish(root, **stores, now=NOON, feedback_until=NOON)
    assert (root / "CURRENT").read_text() == f"{release.version}\n"
    assert release.version == f"20261124T120000Z-{release.manifest['digest']}"
    record = json.loads((root / release.version / "release.json").read_text())
    assert record == release.manifest
    assert record["created"] == record["verified"] == "2026-11-24T12:00:00+00:00"
    assert release.feedback_until == NOON.timestamp()
    assert record["encoder"]["name"] == "hashing"
    for name, source in stores.items():
        assert (
            record["stores"][name]["checksum"]
            == json.loads((source / "manifest.json").read_text())["checksum"]
        )
        copies = [path for path in (release.path / name).rglob("*") if path.is_file()]
        assert record["stores"][name]["bytes"] == sum(path.stat().st_size for path in copies)
        assert all(path.stat().st_nlink > 1 for path in copies)  # links, not copies
    assert (release.model, release.graph) == (release.path / "model", release.path / "graph")
    assert release.fingerprints == release.path / "fingerprints"


def test_the_same_again_is_the_release_there_is(stores, root):
    first = publish(root, **stores, now=NOON)
    again = publish(root, **stores, now=NOON + timedelta(days=1))
    assert again == first
    assert releases.versions(root) == [first.version]
    assert len((root / "history.jsonl").read_text().strip().splitlines()) == 1


def test_copies_where_links_cannot_be(stores, root, monkeypatch):
    def refuse(*args: object) -> None:
        raise OSError("cross-device")

    monkeypatch.setattr("router.publishing.os.link", refuse)
    release = publish(root, **stores)
    assert all(path.stat().st_nlink == 1 for path in release.path.rglob("*") if path.is_file())
    release.check(verify=True)


def test_publishing_at_once_from_threads_makes_one_release(stores, root):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: publish(root, **stores, now=NOON), range(4)))
    assert {release.version for release in made} == {releases.current_version(root)}
    assert {path.name for path in root.iterdir()} == {".lock", "CURRENT", "history.jsonl", made[0].version}


def test_a_model_alone(stores, root):
    release = publish(root, model=stores["model"], activate=False)
    assert (release.graph, release.fingerprints) == (None, None)
    assert release.feedback_until is None
    assert releases.current_version(root) is None
    places.activate(places.Folder(root), release.version)
    assert releases.current_version(root) == release.version


def test_switches_against_a_stack(stores, root):
    """Rollback goes back along what was active; a release that was rolled back from is not gone back to."""
    names = several(root, stores["model"], 4)
    rng = np.random.default_rng(0)
    stack: list[str] = []
    for _ in range(40):
        assert places.earlier_versions(places.Folder(root))[:1] == stack[-2:-1]
        if rng.random() < 0.5 and len(stack) > 1:
            stack.pop()
            assert places.rollback(places.Folder(root)) == stack[-1]
        else:
            version = names[rng.integers(len(names))]
            stack = [other for other in stack if other != version] + [version]
            places.activate(places.Folder(root), version)
        assert releases.current_version(root) == stack[-1]


def test_rollback_skips_what_was_removed_and_ends(stores, root):
    names = several(root, stores["model"], 3)
    for version in names:
        places.activate(places.Folder(root), version)
    shutil.rmtree(root / names[1])
    assert places.rollback(places.Folder(root)) == names[0]
    with pytest.raises(ReleaseError, match=f"no release before {names[0]}"):
        places.rollback(places.Folder(root))


def test_a_line_of_history_that_broke_off(stores, root):
    names = several(root, stores["model"], 2)
    places.activate(places.Folder(root), names[0])
    with (root / "history.jsonl").open("a") as file:
        file.write('\n{"version": "2026')
    places.activate(places.Folder(root), names[1])
    assert next(iter(places.earlier_versions(places.Folder(root))), None) == names[0]
    (root / "CURRENT").write_text(f"{names[0]}\n")  # the switch back was killed before its line
    assert next(iter(places.earlier_versions(places.Folder(root))), None) is None


def test_each_file_missing_truncated_or_altered(stores, root, tmp_path):
    """Sizes tell the first two at every start; the last takes the hashes."""
    version = publish(root, **stores, activate=False).version
    names = [path.relative_to(root) for path in (root / version).rglob("*") if path.is_file()]
    assert len(names) > 30
    for name in names:
        damaged = tmp_path / "damaged"
        shutil.copytree(root, damaged)
        file = damaged / name
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ReleaseError):
            releases.open_release(damaged, version, verify=True)
        with pytest.raises(ReleaseError):
            places.activate(places.Folder(damaged), version)
        for cut in (content[:-1], content[: len(content) // 2], b""):
            file.write_bytes(cut)
            if file.name == "release.json" and cut.strip().endswith(b"}"):
                continue  # only the newline is gone
            with pytest.raises(ReleaseError):
                releases.open_release(damaged, version, verify=False)
        file.unlink()
        with pytest.raises(ReleaseError):
            releases.open_release(damaged, version, verify=False)
        assert releases.current_version(damaged) is None
        shutil.rmtree(damaged)


def test_a_store_put_in_anothers_place(stores, root, tmp_path):
    release = publish(root, model=stores["model"])
    shutil.rmtree(release.model)
    write_synthetic(release.model, seed=9)
    with pytest.raises(ReleaseError, match=r"manifest.json: does not match the record"):
        releases.open_release(root, release.version, verify=False)


@pytest.mark.parametrize("version", ["../x", "a/b", "", ".hidden", "x\n", "x" * 200])
def test_versions_that_are_no_names(root, version):
    root.mkdir()
    with pytest.raises(ReleaseError, match="not the name of a release"):
        releases.open_release(root, version, verify=False)
    (root / "CURRENT").write_text(f"{version}\n")
    with pytest.raises(ReleaseError, match=r"CURRENT: (not the name of a release|is empty)"):
        releases.current_version(root)


def test_current_that_cannot_be_read(root):
    root.mkdir()
    assert releases.current_version(root) is None
    (root / "CURRENT").write_bytes(b"\xff\xfe")
    with pytest.raises(ReleaseError, match="cannot be read"):
        releases.current_version(root)
    nobody = "20200101T000000Z-0123456789ab"
    with pytest.raises(ReleaseError, match=f"there is no release '{nobody}'"):
        releases.open_release(root, nobody, verify=False)


def other_graph(path: Path) -> Graph:
    indptr, indices = np.array([0, 1, 2]), np.array([1, 0])
    return Graph.from_arrays(indptr, indices, kind_ids=[0, 1], kinds=("user", "item"), keys=["u", "i"]).save(
        path
    )


def test_stores_that_do_not_belong_together(stores, root, tmp_path):
    other = other_graph(tmp_path / "graph")
    with pytest.raises(ReleaseError, match="trained with other graph than"):
        publish(root, model=stores["model"], graph=other.path)
    with pytest.raises(BundleError, match="computed from another graph"):
        publish(root, **{**stores, "graph": other.path})
    more = fingerprints_of(Graph.open(stores["graph"]), tmp_path / "fingerprints")
    assert publish(root, **{**stores, "fingerprints": more.path}).fingerprints  # the same rows
    with pytest.raises(ReleaseError, match="must come with the 'graph'"):
        publish(root, model=stores["model"], fingerprints=stores["fingerprints"])
    with pytest.raises(ConfigurationError, match="goes with --graph"):
        publish_job(root, model=stores["model"], fingerprints=stores["fingerprints"])


def test_what_fails_leaves_nothing(stores, root, tmp_path):
    damaged = tmp_path / "model"
    shutil.copytree(stores["model"], damaged)
    file = damaged / "embeddings" / "user.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(BundleError, match=r"user.npy: checksum"):
        publish(root, model=damaged)
    with pytest.raises(MissingDataError, match="no such store"):
        publish(root, model=tmp_path / "nothing")
    assert not root.exists() or not list(root.iterdir())


def test_the_job(stores, root):
    result = publish_job(root, **stores, feedback_until=NOON)
    assert result["current"] == result["release"]
    assert result["feedback_until"] == "2026-11-24T12:00:00+00:00"
    assert set(result["stores"]) == {"model", "graph", "fingerprints"}
    assert json.loads(json.dumps(result)) == result


def test_no_model_has_learned_from_the_future(stores, root):
    with pytest.raises(ParameterError, match="'feedback_until' must not be in the future"):
        publish(root, **stores, now=NOON, feedback_until=NOON + timedelta(seconds=1))
    assert not root.exists()
