"""Whether the graph is cut into parts, as the command line asks and tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ppr.graph import Graph
from tests.command_line import Result
from tests.oracles.random_graphs import random_graph

ENOUGH = 7_000_000  # bytes of graph and messages


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    random_graph(1, n_nodes=40, weighted=True).save(tmp_path / "graph")
    return tmp_path / "graph"


def test_the_way_chosen_is_told_and_changes_nothing(
    fairpath: Callable[..., Result], graph: Path, tmp_path: Path
) -> None:
    seen = {}
    for name, options in {
        "whole": (),
        "asked": ("--partitioned", "always", "--worker-memory", ENOUGH),
        "small": ("--worker-memory", 100, "--partitioned", "never"),
    }.items():
        done = fairpath("fingerprints", graph, "--out", tmp_path / name, "--n-walks", 50, *options)
        assert done.code == 0, done.err
        seen[name] = done.json
        assert seen[name]["why"] in done.err
    assert [seen[name]["partitioned"] for name in seen] == [False, True, False]
    assert "are within 60% of the" in seen["whole"]["why"]
    assert seen["asked"]["why"] == "asked for: 'partitioned' is 'always'"
    assert len({result["checksum"] for result in seen.values()}) == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--worker-memory", 0), 2, "worker_memory"),
        (("--worker-memory", 100), 3, "'memory_bytes' must be at least"),
        (("--engine", "dask", "--partitioned", "always"), 2, "the local and the Spark engine"),
    ],
)
def test_what_cannot_be_is_refused(
    fairpath: Callable[..., Result],
    graph: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    code: int,
    message: str,
) -> None:
    done = fairpath("fingerprints", graph, "--out", tmp_path / "out", *options)
    assert done.code == code
    assert message in done.err
    assert not (tmp_path / "out").exists()
    assert Graph.open(graph).n_nodes == 40
