"""Build a graph store with Spark, for edge lists that one machine cannot sort or whose keys it cannot hold.

The store is that of :func:`ppr.build.build_graph`, bit for bit. The stages, each a Spark job or two:

1. *Read*: a task reads and checks one file, or some row groups of a Parquet file, as the local builder does,
   and writes the rows in one form.
2. *Number*: the distinct (kind, key) are range-partitioned and sorted; the place of a key in its partition,
   after the partitions before, is its dense id. Spark compares strings by their UTF-8 bytes, as the order
   of ids asks.
3. *Translate*: both ends of the edges are joined with the ids.
4. *Sort*: the edges, in both directions where they have none, are range-partitioned by source, about equal
   numbers to a partition, and sorted by (source, destination, weight). A task merges duplicates as they
   stream by; weights of duplicates arrive in ascending order, so their sum is the local builder's.
5. *Place*: the counts of the partitions before tell each task where its slices of the store's arrays begin.

What a stage leaves lies as Parquet in the working folder, beside the store, not only in Spark's shuffle
files: it is read twice (Spark samples for its ranges, then partitions), and an executor that is lost takes
the work of one stage with it, not of all. At its largest the folder is three to four times the store.
Nothing but counts passes through the driver. It is the driver, though, that seals the store: it streams
through the inputs once and through the store twice for their checksums, writes ``nodes.parquet``, and while
it does, nothing else runs. That is the price of one identity for all builders: SHA-256 of a content has one
order. With the processor's SHA instructions it takes about two thirds of a second per GB, if the storage
keeps up.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col, shiftleft, shiftright

from ppr.arrays import map_array
from ppr.errors import DataError, ParameterError, ResourceError
from ppr.graph import Graph, seal
from ppr.inputs import EdgeTable, KeyType, NodeList
from ppr.lineage import parents_of
from ppr.nodes import NodeTable
from ppr.request import BuildRequest, Progress, SelfLoops
from ppr.spark.blocks import slots
from ppr.spark.building_inputs import ReadRows, plan_reading
from ppr.spark.building_nodes import NumberedNodes, named_keys
from ppr.spark.building_places import PlaceKeys, PlaceRows, RowRange
from ppr.spark.building_tasks import RECEIPT_DDL, MergeRows, NumberKeys
from ppr.spark.failures import readable_errors
from ppr.spark.slices import allocate
from ppr.urls import file_url
from ppr.workers import check_written

TASK_EDGES = 1 << 22
_SMALL_TASK_EDGES = 1 << 16
_ARROW_ROWS = 1 << 16  # per batch between Spark and Python: fewer and larger ones than by default
_POLL_S = 0.5
_Receipt = dict[str, Any]


def build_graph_spark(
    spark: SparkSession,
    inputs: Any,
    out: str | Path,
    *,
    nodes: Any = (),
    self_loops: SelfLoops = "drop",
    key_type: KeyType = "auto",
    previous: Graph | None = None,
    task_edges: int = TASK_EDGES,
    progress: Progress | None = None,
) -> Graph:
    """Build a graph store with Spark, the same as :func:`ppr.build.build_graph` does.

    Parameters
    ----------
    spark
        Classic or Connect session.
    inputs, nodes
        As for the local builder; files must be where the workers see them under the same path. A text or npz
        file is read by one task: several files are faster than a large one.
    out
        Folder of the store, on storage that driver and workers share.
    self_loops, key_type
        As for the local builder.
    previous
        Store that this graph comes after, as for the local builder, where the workers see it.
    task_edges
        Edges that a task sorts, about; Spark spills what does not fit a task's memory.
    progress
        Called with the stage, tasks done, and their number.

    Returns
    -------
    Graph
        The store; one that is there and was built from the same, by any engine, is opened.

    Raises
    ------
    DataError, MissingDataError, OutputExistsError
        As the local builder, with the same messages.
    ResourceError
        A disk is full, the output or the input is not shared, a worker cannot import this package, or Spark
        fails. Nothing is left behind.
    """
    if task_edges < 1:
        raise ParameterError(f"'task_edges' must be positive (got {task_edges})")
    if previous is not None and previous.path is None:
        raise ParameterError("'previous' must be a store (got a graph in memory)")
    request = BuildRequest.of(inputs, nodes, self_loops, key_type, previous)

    def fill(working: Path) -> str:
        report = progress or (lambda *_: None)
        return _Filler(spark, request, working, task_edges, report).fill()

    return request.open_or_build(Path(out).resolve(), fill)


@dataclass(frozen=True, slots=True)
class _Sorted:
    """The merged edges: how many, and where each partition has its own."""

    ranges: tuple[RowRange, ...]
    n_rows: int
    n_loops: int
    n_edges: int
    weighted: bool


@dataclass(frozen=True, slots=True)
class _Filler:
    """Fills the folder of a store, stage by stage."""

    spark: SparkSession
    request: BuildRequest
    store: Path
    task_edges: int
    progress: Progress

    def fill(self) -> str:
        """Write the files of the store; returns its checksum."""
        spill = self.store / "spill"
        spill.mkdir()
        edges, lists = self.request.open_tables(spill)
        with _settings(self.spark, {"spark.sql.execution.arrow.maxRecordsPerBatch": _ARROW_ROWS}):
            read = self._read([*edges, *lists], spill / "read")
            n_tasks = self._n_tasks(2 * read.n_edges)
            with _settings(self.spark, {"spark.sql.shuffle.partitions": n_tasks}):
                numbered = self._number(read, spill / "keys")
                self._translate(read, numbered, spill)
            merged = self._sort(read, numbered, n_tasks, spill)
        self._place(numbered, merged, read, spill)
        shutil.rmtree(spill)
        self.progress("checksum", 0, 1)
        nodes = self._nodes(read, numbered)
        nodes.write_table(self.store)
        checksum = seal(
            self.store,
            nodes,
            directed=any(table.directed for table in edges),
            parameters=self.request.parameters,
            counts={"edges_before_merging": merged.n_rows, "self_loop_rows": merged.n_loops},
            parents=parents_of(self.request.previous),
        )
        self.progress("checksum", 1, 1)
        return checksum

    def _read(self, tables: Sequence[EdgeTable | NodeList], folder: Path) -> ReadRows:
        """First stage: all rows, checked, as Parquet."""
        task = plan_reading(tables, self.request.key_type, folder)
        receipts = self._run_each("read", len(task.pieces), task, folder)
        previous = self.request.previous
        return ReadRows.of(task, tables, receipts, () if previous is None else previous.kinds)

    def _number(self, read: ReadRows, folder: Path) -> NumberedNodes:
        """Second stage: dense ids to the distinct keys, in the order of (kind, key)."""
        folder.mkdir()
        n_parts = self._n_tasks(2 * read.n_edges + read.n_nodes)
        order = ("key",) if len(read.kinds) == 1 else ("kind", "key")
        keys = named_keys(self.spark, read, self.request.previous, folder.parent)
        keys = keys.repartitionByRange(n_parts, *order).sortWithinPartitions(*order)
        numbered = keys.mapInArrow(NumberKeys(str(folder)), RECEIPT_DDL)
        receipts = self._run("number", numbered, n_parts, folder, "*.parquet")
        return NumberedNodes.of(receipts, read.kinds, self.request.previous, folder)

    def _translate(self, read: ReadRows, numbered: NumberedNodes, spill: Path) -> None:
        """Third stage: the edges as dense ids, as Parquet."""
        edges = read.edges(self.spark)
        if edges is None:
            return
        ids = numbered.ids(self.spark, read, spill / "keys", old=self.request.previous is not None)
        for end in ("src", "dst"):
            named = {"key": end, "kind": f"{end}_kind", "id": f"{end}_id"}
            edges = edges.withColumn(named["kind"], read.kind_of_end(end))
            found = ids.select(*(col(old).alias(new) for old, new in named.items()))
            edges = edges.join(found, [named["key"], named["kind"]])
        chosen = ["table", "src_id", "dst_id", *(["weight"] if read.weighted else [])]
        self.progress("translate", 0, 1)
        with readable_errors():
            edges.select(*chosen).write.parquet(f"file://{spill / 'edges'}")
        self.progress("translate", 1, 1)
        if not (spill / "edges" / "_SUCCESS").exists():
            raise ResourceError(f"{spill}: the Spark executors must share this folder with the driver")

    def _sort(self, read: ReadRows, numbered: NumberedNodes, n_parts: int, spill: Path) -> _Sorted:
        """Fourth stage: the edges of each range of sources, sorted and merged."""
        if not read.n_edges:
            return _Sorted((), 0, 0, 0, weighted=False)
        folder = spill / "sorted"
        folder.mkdir()
        weight = ["weight"] if read.weighted else []
        schema = "table int, src_id int, dst_id int" + ", weight double" * read.weighted
        edges = self.spark.read.schema(schema).parquet(file_url(spill / "edges"))
        forward = edges.select(_edge("src_id", "dst_id"), *weight)
        if any(isinstance(table, EdgeTable) and not table.directed for table in read.tables):
            back = edges.where(read.both_ways & (col("src_id") != col("dst_id")))
            forward = forward.unionAll(back.select(_edge("dst_id", "src_id"), *weight))
        rows = forward.repartitionByRange(n_parts, shiftright("edge", 32))
        rows = rows.sortWithinPartitions("edge", *weight)
        keep = self.request.parameters["self_loops"] == "keep"
        merged = rows.mapInArrow(MergeRows(str(folder), keep), RECEIPT_DDL)
        receipts = self._run("sort", merged, n_parts, folder, "*.dst")
        n_loops = sum(receipt["loops"] for receipt in receipts)
        n_rows = sum(receipt["rows"] for receipt in receipts) - (0 if keep else n_loops)
        filled = sorted((r for r in receipts if r["edges"]), key=lambda receipt: receipt["part"])
        first_edges = np.cumsum([0, *(receipt["edges"] for receipt in filled)])
        cuts = [0, *(receipt["first_node"] for receipt in filled[1:]), numbered.n_nodes]
        ranges = tuple(
            RowRange(receipt["part"], first, end, int(first_edge))
            for receipt, first, end, first_edge in zip(filled, cuts, cuts[1:], first_edges, strict=False)
        )
        weighted = any(receipt["weighted"] for receipt in filled)
        return _Sorted(ranges, n_rows, n_loops, int(first_edges[-1]), weighted)

    def _place(self, numbered: NumberedNodes, merged: _Sorted, read: ReadRows, spill: Path) -> None:
        """Last stage: the arrays of the store, each task its slices."""
        n_nodes, n_edges = numbered.n_nodes, merged.n_edges
        arrays = {
            "kinds": ("|u1", n_nodes),
            "order": ("<i4", numbered.n_live),
            "keys": ("|u1", numbered.n_bytes) if read.as_strings else ("<i8", n_nodes),
            "indptr": ("<i8", n_nodes + 1),
            "strength": ("<f8", n_nodes),
            "indices": ("<i4", n_edges),
        }
        if read.as_strings:
            arrays["ends"] = ("<i8", n_nodes + 1)
        if merged.weighted:
            arrays["cumulative"] = ("<u4", n_edges)
        for name, (dtype, length) in arrays.items():
            allocate(self.store / f"{name}.npy", dtype, length)
        if self.request.previous is not None:
            numbered.place_previous(self.request.previous, self.store)
        keys = PlaceKeys(numbered.ranges, str(spill / "keys"), str(self.store))
        self._run_each("place keys", len(keys.parts), keys)
        rows = PlaceRows(merged.ranges, str(spill / "sorted"), str(self.store), merged.weighted)
        receipts = self._run_each("place rows", len(rows.parts), rows)
        infinite = [receipt["infinite"] for receipt in receipts if receipt["infinite"] >= 0]
        if infinite:
            node = self._nodes(read, numbered).name_of(min(infinite))
            raise DataError(f"{node}: the sum of its weights must be finite")

    def _nodes(self, read: ReadRows, numbered: NumberedNodes) -> NodeTable:
        kind_ids = map_array(self.store / "kinds.npy", "|u1", None)
        return NodeTable.read(self.store, kind_ids, read.kinds, numbered.removed)

    def _n_tasks(self, n_rows: int) -> int:
        """Tasks for so many rows: enough for all slots, unless they are few."""
        small = math.ceil(n_rows / _SMALL_TASK_EDGES)
        for_slots = min(small, slots(self.spark)) if small > 1 else 1
        return max(for_slots, math.ceil(n_rows / self.task_edges))

    def _run_each(
        self, stage: str, n: int, task: Callable[..., Any], folder: Path | None = None
    ) -> list[_Receipt]:
        """Run one task for each of n numbers; returns their receipts in this order."""
        if not n:
            return []
        frame = self.spark.range(0, n, 1, n).mapInArrow(task, RECEIPT_DDL)
        receipts = self._run(stage, frame, n, folder, "*/*.parquet")
        return sorted(receipts, key=lambda receipt: receipt["number"])

    def _run(
        self, stage: str, frame: DataFrame, n_tasks: int, folder: Path | None, pattern: str
    ) -> list[_Receipt]:
        """Run a stage, showing how many of its files are there; returns the receipts."""
        with self._shown(stage, n_tasks, folder, pattern), readable_errors():
            receipts = [json.loads(row.receipt) for row in frame.collect()]
        if folder is not None:
            check_written(folder, all((folder / name).is_file() for r in receipts for name in r["files"]))
        return receipts

    @contextmanager
    def _shown(self, stage: str, n_tasks: int, folder: Path | None, pattern: str) -> Iterator[None]:
        """Report progress from the files that appear, since a Spark job says nothing until it ends."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_POLL_S):
                done = 0 if folder is None else len(list(folder.glob(pattern)))
                self.progress(stage, min(done, n_tasks), n_tasks)

        self.progress(stage, 0, n_tasks)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
        self.progress(stage, n_tasks, n_tasks)


@contextmanager
def _settings(spark: SparkSession, wanted: dict[str, int]) -> Iterator[None]:
    """Raise settings of the session to at least these numbers, and set them back."""
    before = {name: spark.conf.get(name, None) for name in wanted}
    try:
        for name, value in wanted.items():
            spark.conf.set(name, max(value, int(spark.conf.get(name) or 0)))
        yield
    finally:
        for name, there in before.items():
            if there is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, there)


def _edge(source: str, destination: str) -> Any:
    """Both ends in one number, which sorts fast."""
    return (shiftleft(col(source).cast("bigint"), 32) + col(destination)).alias("edge")
