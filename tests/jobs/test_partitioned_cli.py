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
        "small": ("--worker-memory", "7MB", "--partitioned", "never"),
    }.items():
        done = fairpath(
            "fingerprints", graph, "--out", tmp_path / name, "--n-walks", 50, "--threads", 3, *options
        )
        assert done.code == 0, done.err
        seen[name] = done.json
        assert seen[name]["why"] in done.err
        line = "walks" if name != "asked" else f"worker_memory={ENOUGH}"
        assert line in done.err
        assert ("parts=3 slots=3" in done.err) == (name == "asked")
    assert [seen[name]["partitioned"] for name in seen] == [False, True, False]
    assert "are within 60% of the" in seen["whole"]["why"]
    assert seen["asked"]["why"] == "asked for: 'partitioned' is 'always'"
    assert len({result["checksum"] for result in seen.values()}) == 1


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("2GB", 2 * 10**9), ("512MiB", 1 << 29), ("1.5g", 15 * 10**8), ("7000000", ENOUGH)]
)
def test_memory_may_have_a_unit(fairpath: Callable[..., Result], text: str, n_bytes: int) -> None:
    for options in (("--worker-memory", text), ("--set", f"fingerprints.worker_memory={text}")):
        for command in (("fingerprints",), ("refresh", "--from", "old", "--from-graph", "before")):
            name, *given = command
            done = fairpath(name, "graph", *given, "--out", "out", *options, "--dry-run")
            assert done.code == 0, done.err
            assert done.json["settings"]["fingerprints"]["worker_memory"]["value"] == n_bytes


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--worker-memory", 0), 2, "'worker_memory' must be at least 6553600 bytes"),
        (("--worker-memory", 6_553_599), 2, "'worker_memory' must be at least 6553600 bytes"),
        (("--worker-memory", "-5"), 2, "'worker_memory' could not parse"),
        (("--worker-memory", "much"), 2, "'worker_memory' could not parse"),
        (("--worker-memory", "2XB"), 2, "'worker_memory' could not interpret byte unit: XB"),
        (("--engine", "dask", "--partitioned", "always"), 2, "the local and the Spark engine"),
        (
            ("--engine", "dask", "--worker-memory", 10**9),
            2,
            "'fingerprints.worker_memory' goes with the local",
        ),
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
