"""Several builders of one store, and working folders left behind."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest

from ppr.build import build_graph
from ppr.errors import OutputExistsError
from ppr.graph import Graph
from ppr.manifest import new_store


def fill(path: Path, text: str, while_open: Callable[[], None] = lambda: None) -> None:
    with new_store(path) as working:
        (working / "text").write_text(text)
        while_open()
        assert (working / "text").read_text() == text


def test_builders_have_their_own_folders(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(OutputExistsError, match="exists already"):
        fill(store, "slow", while_open=lambda: fill(store, "quick"))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert (store / "text").read_text() == "quick"


def test_folders_of_ended_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = f".store.new-{platform.node()}-"
    abandoned = f"{mine}{ended.pid}-0123abcd"
    others = [f"{mine}x-{ended.pid}-0123abcd", f"{mine}7-{ended.pid}-0123abcd", f"{mine}1-0123abcd"]
    for name in [abandoned, *others]:
        (tmp_path / name).mkdir()
    with new_store(tmp_path / "store"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"store", *others}


def meet(barrier: Barrier, stage: str, done: int) -> None:
    """Wait just before the rename until every builder is there."""
    if (stage, done) == ("checksum", 1):
        barrier.wait(timeout=60)


@pytest.mark.parametrize("in_memory", [False, True])
def test_builders_of_the_same_graph_share_it(tmp_path: Path, in_memory: bool) -> None:
    path = tmp_path / "edges.csv"
    path.write_text("src,dst\n1,2\n2,3\n")
    table = pa.table({"src": [1, 2], "dst": [2, 3]})
    barrier = Barrier(4)

    def build(_: int) -> Graph:
        data = iter(table.to_batches()) if in_memory else path
        return build_graph(data, tmp_path / "graph", progress=lambda s, d, _: meet(barrier, s, d))

    with ThreadPoolExecutor(4) as pool:
        checksums = {graph.checksum for graph in pool.map(build, range(4))}
    assert checksums == {build_graph(table, tmp_path / "alone").checksum}
    assert {path.name for path in tmp_path.iterdir()} == {"alone", "edges.csv", "graph"}


def test_of_builders_of_different_graphs_one_is_refused(tmp_path: Path) -> None:
    tables = [pa.table({"src": [1], "dst": [target]}) for target in (2, 3)]
    expected = [build_graph(table, tmp_path / f"alone-{i}").checksum for i, table in enumerate(tables)]
    barrier = Barrier(2)

    def build(table: pa.Table) -> str | None:
        try:
            return build_graph(
                table, tmp_path / "graph", progress=lambda s, d, _: meet(barrier, s, d)
            ).checksum
        except OutputExistsError:
            return None

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(build, tables))
    assert found.count(None) == 1
    assert all(got in (None, wanted) for got, wanted in zip(found, expected, strict=True))
    assert Graph.open(tmp_path / "graph").checksum in expected
