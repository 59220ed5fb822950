"""The local engine: what it stores, how it reports, how it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import ppr.local
from ppr.blocks import compute_block
from ppr.errors import OutputExistsError, ParameterError, UnknownNodeError
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from tests.oracles.random_graphs import random_graph

PARAMS = FingerprintParams(n_walks=200, top_k=20)
GRAPH = random_graph(1, n_nodes=120, weighted=True)
SMALL_BLOCKS = 4_000  # predicted moves; the graph falls into some tens of blocks


@pytest.mark.parametrize("sources", [None, np.array([40, 3, 119, 1], np.int32)])
def test_store_holds_the_rows_of_the_block_function(tmp_path: Path, sources: Any) -> None:
    store = compute_fingerprints(
        GRAPH, tmp_path / "out", PARAMS, sources=sources, threads=2, block_moves=SMALL_BLOCKS
    )
    wanted = np.arange(120, dtype=np.int32) if sources is None else np.sort(sources)
    expected = compute_block(GRAPH, wanted, PARAMS)
    assert store.sources.tolist() == wanted.tolist()
    for row in expected.to_pylist():
        ids, scores, mass = store.row(row["source"])
        assert ids.tolist() == row["ids"]
        assert scores.tobytes() == np.array(row["scores"], np.float32).tobytes()
        assert mass == row["mass"]
    assert store.moves.tolist() == expected["moves"].to_pylist()
    store.validate(GRAPH)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_counts_blocks_wave_by_wave(tmp_path: Path, threads: int) -> None:
    calls: list[tuple[int, int]] = []
    compute_fingerprints(
        GRAPH,
        tmp_path / "out",
        PARAMS,
        threads=threads,
        block_moves=SMALL_BLOCKS,
        progress=lambda done, total: calls.append((done, total)),
    )
    total = calls[0][1]
    assert total > 8 * threads
    assert calls == [(min(done, total), total) for done in range(0, total + 4 * threads, 4 * threads)]


def test_finished_output_is_left_alone(tmp_path: Path) -> None:
    first = compute_fingerprints(GRAPH, tmp_path / "out", PARAMS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    calls: list[int] = []
    again = compute_fingerprints(
        GRAPH, tmp_path / "out", PARAMS, progress=lambda done, total: calls.append(done)
    )
    assert again.checksum == first.checksum
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    ("graph", "params", "sources"),
    [
        (GRAPH, FingerprintParams(n_walks=200, top_k=20, seed=1), None),
        (GRAPH, PARAMS, np.array([1, 2], np.int32)),
        (random_graph(2, n_nodes=120, weighted=True), PARAMS, None),
    ],
    ids=["parameters", "sources", "graph"],
)
def test_output_of_another_run_is_not_touched(
    tmp_path: Path, graph: Graph, params: FingerprintParams, sources: Any
) -> None:
    first = compute_fingerprints(GRAPH, tmp_path / "out", PARAMS)
    with pytest.raises(OutputExistsError):
        compute_fingerprints(graph, tmp_path / "out", params, sources=sources)
    first.validate(GRAPH)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threads": 0}, ParameterError, r"'threads' must be positive \(got 0\)"),
        ({"sources": np.array([120])}, ParameterError, "'sources' must be node ids from 0 to 119"),
        ({"sources": np.array([4, 4])}, ParameterError, "'sources' must be distinct"),
        ({"sources": np.array([], np.int32)}, ParameterError, "'sources' must name at least one node"),
        (
            {"params": FingerprintParams(target_kinds=("film",))},
            UnknownNodeError,
            "film",
        ),
    ],
)
def test_bad_input_leaves_nothing_behind(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compute_fingerprints(GRAPH, tmp_path / "out", **({"params": PARAMS} | arguments))
    assert list(tmp_path.iterdir()) == []


def failing_at(source: int, error: Exception) -> Callable[..., pa.Table]:
    def compute(graph: Graph, sources: Any, params: FingerprintParams) -> pa.Table:
        if source in sources:
            raise error
        return compute_block(graph, sources, params)

    return compute


def test_failed_block_stops_the_run_and_keeps_finished_waves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppr.local, "compute_block", failing_at(90, MemoryError("no more")))
    with pytest.raises(MemoryError, match="no more"):
        compute_fingerprints(GRAPH, tmp_path / "out", PARAMS, threads=2, block_moves=SMALL_BLOCKS)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    calls: list[int] = []
    store = compute_fingerprints(
        GRAPH, tmp_path / "out", PARAMS, progress=lambda done, total: calls.append(done)
    )
    assert 0 < calls[0] < calls[-1]
    assert store.checksum == compute_fingerprints(GRAPH, tmp_path / "fresh", PARAMS).checksum
