from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ppr.errors import OutputExistsError, ParameterError, StoreError
from ppr.fingerprints import FingerprintStore, merge_stores
from ppr.fingerprints.partial import OutputLock
from ppr.fingerprints.writer import content_checksum
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.manifest import MANIFEST
from ppr.params import FingerprintParams
from ppr.refresh import finished_refresh, plan_refresh, refresh_fingerprints
from ppr.refresh import store as refresh_store
from tests.oracles.changing_graphs import Dense, random_dense
from tests.oracles.fingerprint_runs import file_hashes
from tests.oracles.refreshes import (
    N_NODES,
    NEW,
    OLD,
    PARAMS,
    TOLERANCE,
    refresh,
    walk,
)

pytestmark = pytest.mark.usefixtures("quick_disk")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FingerprintStore:
    return walk(OLD)(None, tmp_path_factory.mktemp("old") / "out")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> FingerprintStore:
    return walk(NEW)(None, tmp_path_factory.mktemp("full") / "out")


def test_a_finished_refresh_is_left_alone(tmp_path: Path, store: FingerprintStore) -> None:
    plan, refreshed = refresh(OLD, store, NEW, tmp_path / "out")
    (tmp_path / "out.partial").mkdir()  # left by a kill between publishing and tidying up
    before = file_hashes(tmp_path / "out")
    assert refresh(OLD, store, NEW, tmp_path / "out")[1].checksum == refreshed.checksum
    assert file_hashes(tmp_path / "out") == before
    assert not (tmp_path / "out.partial").exists()
    found = finished_refresh(tmp_path / "out", store, NEW, TOLERANCE, plan.sources)
    assert found is not None
    assert finished_refresh(tmp_path / "elsewhere", store, NEW, TOLERANCE, plan.sources) is None
    with pytest.raises(OutputExistsError, match=r"'tolerance' there is 0\.3, asked for 0\.29"):
        finished_refresh(tmp_path / "out", store, NEW, 0.29, plan.sources)
    with pytest.raises(OutputExistsError, match="from other input"):
        refresh(OLD, refreshed_of_the_same(tmp_path, store), NEW, tmp_path / "out")
    with pytest.raises(OutputExistsError, match="exists, made by a refresh, not in full"):
        walk(NEW)(None, tmp_path / "out")  # a full run is something else
    (tmp_path / "file").touch()
    with pytest.raises(OutputExistsError, match="is not a store"):
        refresh(OLD, store, NEW, tmp_path / "file")


def refreshed_of_the_same(folder: Path, store: FingerprintStore) -> FingerprintStore:
    """Another store with the same rows."""
    return refresh(OLD, store, OLD, folder / "same")[1]


def test_a_stopped_refresh_goes_on(tmp_path: Path, store: FingerprintStore) -> None:
    plan = plan_refresh(OLD, store, NEW, TOLERANCE)
    expected = refresh_fingerprints(plan, tmp_path / "expected", walk(NEW))
    out = tmp_path / "out"

    def stop_at(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    def stopped(sources: NDArray[np.int32], folder: Path) -> FingerprintStore:
        return compute_fingerprints(
            NEW, folder, PARAMS, sources=sources, threads=1, block_moves=2000, progress=stop_at
        )

    with pytest.raises(KeyboardInterrupt):
        refresh_fingerprints(plan, out, stopped)
    with pytest.raises(OutputExistsError, match=r"unfinished run, made with other parameters \('tolerance'"):
        refresh(OLD, store, NEW, out, 0.29)
    with pytest.raises(OutputExistsError, match="holds an unfinished run, made by a refresh"):
        walk(NEW)(None, out)
    lock = OutputLock(tmp_path / "out.partial")
    with pytest.raises(OutputExistsError, match="another process"):
        refresh_fingerprints(plan, out, walk(NEW))
    lock.release()
    waves = list((tmp_path / "out.partial" / "due.partial" / "waves").iterdir())
    assert len(waves) > 0

    def half_assembled(sources: NDArray[np.int32], folder: Path) -> FingerprintStore:
        (tmp_path / "out.partial" / "store").mkdir()
        (tmp_path / "out.partial" / "store" / "ids.npy").write_bytes(b"half")
        return walk(NEW)(sources, folder)

    refreshed = refresh_fingerprints(plan, out, half_assembled)
    assert file_hashes(refreshed.path) == file_hashes(expected.path)
    assert not (tmp_path / "out.partial").exists()


def test_another_process_was_faster(
    tmp_path: Path, store: FingerprintStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finished between the first look and the lock."""
    plan, expected = refresh(OLD, store, NEW, tmp_path / "expected")
    out = tmp_path / "out"

    def late(partial: Path) -> OutputLock:
        shutil.copytree(expected.path, out)
        return OutputLock(partial)

    monkeypatch.setattr(refresh_store, "OutputLock", late)
    assert refresh_fingerprints(plan, out, walk(OLD)).checksum == expected.checksum
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]


JOB = """
import sys, time
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.refresh import plan_refresh, refresh_fingerprints

def progress(done, total):
    if done >= 2:
        print(done, total, flush=True)
        time.sleep(600)

old, store, new, out = sys.argv[1:]
new, store = Graph.open(new), FingerprintStore.open(store)
plan = plan_refresh(Graph.open(old), store, new, 0.3)
refresh_fingerprints(plan, out, lambda sources, folder: compute_fingerprints(
    new, folder, store.params, sources=sources, threads=1, progress=progress, block_moves=2000
))
"""


def test_a_killed_refresh_goes_on(tmp_path: Path, store: FingerprintStore) -> None:
    OLD.save(tmp_path / "old")
    NEW.save(tmp_path / "new")
    out = tmp_path / "out"
    paths = [tmp_path / "old", store.path, tmp_path / "new", out]
    with subprocess.Popen(
        [sys.executable, "-c", JOB, *map(str, paths)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    _, refreshed = refresh(OLD, store, NEW, out)
    assert file_hashes(out) == file_hashes(refresh(OLD, store, NEW, tmp_path / "expected")[1].path)
    refreshed.validate(NEW)


def test_pairs_that_do_not_belong_together(store: FingerprintStore) -> None:
    with pytest.raises(StoreError, match="computed from another graph"):
        plan_refresh(NEW, store, NEW, TOLERANCE)
    of_other_kinds = Graph.from_arrays(
        NEW.indptr, NEW.indices, kind_ids=1 - NEW.kind_ids, kinds=NEW.kinds, removed=NEW.removed
    )
    with pytest.raises(StoreError, match="does not go on from the old graph"):
        plan_refresh(OLD, store, of_other_kinds, TOLERANCE)
    smaller = random_dense(np.random.default_rng(1), 20, kind="directed", weighted=False).graph()
    with pytest.raises(StoreError, match="nodes became"):
        plan_refresh(OLD, store, smaller, TOLERANCE)
    for tolerance in (-0.1, 2.0, float("nan")):
        with pytest.raises(ParameterError, match=r"'tolerance' must be from 0 to below 2 \(got"):
            plan_refresh(OLD, store, NEW, tolerance)
    nobody = Graph.from_arrays(
        np.zeros(N_NODES + 1, int), [], kind_ids=OLD.kind_ids, kinds=OLD.kinds, removed=OLD.live
    )
    with pytest.raises(StoreError, match="the new graph: has no nodes"):
        plan_refresh(OLD, store, nobody, TOLERANCE)
    with pytest.raises(ParameterError, match="must name at least one node"):
        plan_refresh(OLD, store, NEW, TOLERANCE, sources=np.empty(0, np.int32))
    with pytest.raises(ParameterError, match="'sources'"):
        plan_refresh(OLD, store, NEW, TOLERANCE, sources=np.array([10_000], np.int32))
    with pytest.raises(ParameterError, match="removed"):
        plan_refresh(OLD, store, NEW, TOLERANCE, sources=NEW.removed)


@pytest.mark.parametrize("what", ["graph", "parameters", "sources"])
def test_an_engine_that_computes_something_else(tmp_path: Path, store: FingerprintStore, what: str) -> None:
    plan = plan_refresh(OLD, store, NEW, TOLERANCE)
    wrong: dict[str, Callable[[Any, Path], FingerprintStore]] = {
        "graph": lambda sources, folder: walk(OLD)(sources[:1], folder),
        "parameters": lambda sources, folder: walk(NEW, FingerprintParams(n_walks=7))(sources, folder),
        "sources": lambda sources, folder: walk(NEW)(sources[1:], folder),
    }
    with pytest.raises(StoreError, match=r"another graph|must have the rows that were asked for"):
        refresh_fingerprints(plan, tmp_path / "out", wrong[what])
    assert not (tmp_path / "out").exists()


def test_damage_is_noticed(tmp_path: Path, store: FingerprintStore) -> None:
    _, refreshed = refresh(OLD, store, NEW, tmp_path / "out")
    for value, problem in ((0.31, "must be between 0 and 0.3"), (-1.0, "got -1.0"), (np.nan, "got nan")):
        bounds = refreshed.bounds.copy()
        bounds[4] = value
        np.save(tmp_path / "out" / "bounds.npy", bounds)
        with pytest.raises(StoreError, match="checksum"):
            FingerprintStore.open(tmp_path / "out")
        with pytest.raises(StoreError, match=f"bound of source {refreshed.sources[4]} {problem}|{problem}"):
            FingerprintStore.open(tmp_path / "out", verify=False).validate()
    np.save(tmp_path / "out" / "bounds.npy", refreshed.bounds[1:])
    with pytest.raises(StoreError, match="bounds"):
        FingerprintStore.open(tmp_path / "out", verify=False)
    path = tmp_path / "out" / MANIFEST
    stored = json.loads(path.read_text())
    stored["refresh"]["recomputed"] += 1
    path.write_text(json.dumps(stored))
    with pytest.raises(StoreError, match="does not match its checksum"):
        FingerprintStore.open(tmp_path / "out", verify=False)


def test_rows_of_removed_nodes_are_noticed(tmp_path: Path, full: FingerprintStore) -> None:
    """A store may be valid by itself, and not of its graph."""
    node = int(full.row(int(full.sources[0]))[0][1])
    removed = np.unique([*NEW.removed, node]).astype(np.int32)
    weights = NEW.transition().toarray()
    weights[node], weights[:, node] = 0.0, 0.0
    later = Dense(weights, NEW.kind_ids, tuple(removed.tolist())).graph()
    copied = shutil.copytree(full.path, tmp_path / "copied")
    stored = json.loads((copied / MANIFEST).read_text())
    stored["parents"]["graph"] = later.checksum
    stored["checksum"] = content_checksum(stored)
    (copied / MANIFEST).write_text(json.dumps(stored))
    with pytest.raises(StoreError, match="is of a removed node, or holds one"):
        FingerprintStore.open(copied).validate(later)


def test_refreshed_stores_are_not_merged(tmp_path: Path, store: FingerprintStore) -> None:
    _, refreshed = refresh(OLD, store, NEW, tmp_path / "out")
    with pytest.raises(StoreError, match="was refreshed; merge stores that were not"):
        merge_stores([refreshed.path], tmp_path / "merged")
