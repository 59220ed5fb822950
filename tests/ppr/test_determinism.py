"""Equal bits from any number of threads, any cut into blocks, any order of sources, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ppr.blocks import compute_block
from ppr.fingerprints import FingerprintRun, FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from tests.oracles.naive_packets import naive_row

ROOT = Path(__file__).resolve().parents[2]
PARAMS = FingerprintParams(n_walks=200, top_k=30, seed=5)
SMALL_BLOCKS = 10_000  # predicted moves; the graph falls into some tens of blocks
ARRAYS = ("sources", "indptr", "ids", "scores", "mass", "moves")
JOB = f"""
import sys, time
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams

def progress(done, total):
    if done >= 8:  # two waves are complete, and blocks of the third are being computed
        print(done, total, flush=True)
        time.sleep(600)

graph, out = sys.argv[1:]
params = FingerprintParams(n_walks=200, top_k=30, seed=5)
compute_fingerprints(
    Graph.open(graph), out, params, threads=1, progress=progress, block_moves={SMALL_BLOCKS}
)
"""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Weighted directed graph of 500 nodes with dangling and isolated nodes and one hub, on disk."""
    rng = np.random.default_rng(8)
    n_nodes = 500
    degrees = rng.geometric(0.15, n_nodes) - 1
    degrees[::17] = 0
    degrees[3] = 450  # more than two edges per walk
    rows = [np.sort(rng.choice(n_nodes - 10, degree, replace=False)) for degree in degrees]
    graph = Graph.from_arrays(
        np.concatenate([[0], np.cumsum(degrees)]), np.concatenate(rows), rng.lognormal(size=degrees.sum())
    )
    return graph.save(tmp_path_factory.mktemp("graph") / "graph")


@pytest.fixture(scope="module")
def expected(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> FingerprintStore:
    """One thread, one block."""
    out = tmp_path_factory.mktemp("expected") / "out"
    return compute_fingerprints(graph, out, PARAMS, threads=1, block_moves=1e12)


def assert_same_bits(store: FingerprintStore, expected: FingerprintStore) -> None:
    for name in ARRAYS:
        ours, theirs = getattr(store, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes(), name
    assert store.checksum == expected.checksum


def test_rows_are_those_of_the_rules(graph: Graph, expected: FingerprintStore) -> None:
    """Not only equal among themselves."""
    for source in (0, 3, 17, 250, 499):
        ids, scores, mass = expected.row(source)
        row = naive_row(graph, source, PARAMS)
        assert (ids.tolist(), scores.tobytes(), mass) == (row.ids.tolist(), row.scores.tobytes(), row.mass)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(
    graph: Graph, expected: FingerprintStore, tmp_path: Path, threads: int
) -> None:
    store = compute_fingerprints(graph, tmp_path / "out", PARAMS, threads=threads, block_moves=SMALL_BLOCKS)
    assert_same_bits(store, expected)


@pytest.mark.parametrize(("block_size", "wave_blocks"), [(1, 100), (7, 3), (500, 1)])
def test_any_cut_into_blocks_and_waves(
    graph: Graph, expected: FingerprintStore, tmp_path: Path, block_size: int, wave_blocks: int
) -> None:
    """Blocks of a wave are computed, and stand in its file, in another order than that of the sources."""
    sources = np.arange(graph.n_nodes, dtype=np.int32)
    blocks = np.split(sources, range(block_size, graph.n_nodes, block_size))
    run = FingerprintRun.begin(graph, tmp_path / "out", PARAMS, lambda: blocks, wave_blocks)
    assert run is not None
    rng = np.random.default_rng(block_size)
    with run:
        for index, wave in run.pending_waves():
            shuffled = np.concatenate([rng.permutation(wave[i]) for i in rng.permutation(len(wave))])
            run.write_wave(index, [compute_block(graph, shuffled, PARAMS)])
        assert_same_bits(run.finish(), expected)


def test_any_order_of_sources(graph: Graph, tmp_path: Path, expected: FingerprintStore) -> None:
    shuffled = np.random.default_rng(2).permutation(graph.n_nodes).astype(np.int32)
    assert_same_bits(
        compute_fingerprints(graph, tmp_path / "all", PARAMS, sources=shuffled, block_moves=SMALL_BLOCKS),
        expected,
    )
    some = shuffled[:100]
    assert_same_bits(
        compute_fingerprints(graph, tmp_path / "some", PARAMS, sources=some, block_moves=SMALL_BLOCKS),
        compute_fingerprints(graph, tmp_path / "sorted", PARAMS, sources=np.sort(some), threads=1),
    )


def test_rows_of_some_sources_are_those_of_all(
    graph: Graph, tmp_path: Path, expected: FingerprintStore
) -> None:
    some = np.array([3, 17, 250, 499], np.int32)
    store = compute_fingerprints(graph, tmp_path / "out", PARAMS, sources=some)
    for source in some:
        ids, scores, mass = store.row(source)
        expected_ids, expected_scores, expected_mass = expected.row(source)
        assert ids.tobytes() == expected_ids.tobytes()
        assert scores.tobytes() == expected_scores.tobytes()
        assert mass == expected_mass


def test_killed_run_is_resumed(graph: Graph, expected: FingerprintStore, tmp_path: Path) -> None:
    """Finished waves are kept as they are, whatever the threads and block size of the second attempt."""
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", JOB, str(graph.path), str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        done, total = map(int, process.stdout.readline().split())
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert done < total
    assert not out.exists()
    waves = tmp_path / "out.partial" / "waves"
    complete = [marker.parent for marker in waves.rglob("_SUCCESS")]
    finished = {path: path.stat().st_mtime_ns for wave in complete for path in wave.glob("*.parquet")}
    assert 2 <= len(complete) < total

    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        assert {path: path.stat().st_mtime_ns for path in finished} == finished

    store = compute_fingerprints(graph, out, PARAMS, threads=2, progress=progress, block_moves=10**9)
    assert calls[0] == (done, total)
    assert calls[-1] == (total, total)
    assert_same_bits(store, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
