"""Dense ids of a graph built on Spark: from the counts of the partitions of the sorted keys.

A *cell* is what one partition holds of one kind. The new keys of a cell get consecutive ids, since keys are
partitioned by ranges of (kind, key); without a previous graph all keys are new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import broadcast, coalesce, col

from ppr.arrays import MAX_NODES
from ppr.errors import DataError
from ppr.graph import Graph
from ppr.nodes import NODE_FILE, REMOVED_FILE, blanked, no_nodes
from ppr.spark.building_inputs import ReadRows
from ppr.spark.building_places import Cell, KeyRange
from ppr.spark.building_tasks import parquet_name
from ppr.spark.slices import SliceWriter
from ppr.spark.text import string_bytes, string_lengths
from ppr.urls import file_url

_CHUNK_NODES = 1 << 20


def named_keys(spark: SparkSession, read: ReadRows, previous: Graph | None, spill: Path) -> DataFrame:
    """All keys that are named: ``kind`` (its id), ``key`` and, with a previous graph, ``old``, its ids."""
    keys = read.keys(spark)
    if previous is None:
        return keys
    assert previous.path is not None
    there = spark.read.schema(f"id int, kind string, key {read.key_type}")
    nodes = there.parquet(file_url(previous.path.resolve() / NODE_FILE))
    if len(previous.removed):
        pq.write_table(pa.table({"id": previous.removed}), spill / "removed.parquet")
        gone = spark.read.schema("id int").parquet(file_url(spill / "removed.parquet"))
        nodes = nodes.join(gone, "id", "left_anti")
    old = nodes.select(read.kind_ids(col("kind")).alias("kind"), "key", col("id").alias("old"))
    return keys.join(old, ["kind", "key"], "left")


@dataclass(frozen=True, slots=True)
class NumberedNodes:
    """The dense ids of all nodes.

    Parameters
    ----------
    ranges
        Where each partition of the keys has its slices of the store's arrays.
    n_nodes, n_bytes
        Number of nodes, and of the bytes of their keys if these are strings.
    removed
        int32 [r], nodes of the previous graph that nothing names any more.
    """

    ranges: tuple[KeyRange, ...]
    n_nodes: int
    n_bytes: int
    removed: npt.NDArray[np.int32] = field(default_factory=no_nodes)

    @classmethod
    def of(
        cls, receipts: Sequence[dict[str, Any]], kinds: Sequence[str], previous: Graph | None, folder: Path
    ) -> NumberedNodes:
        """Ids from the receipts of :class:`ppr.spark.building_tasks.NumberKeys`.

        Raises
        ------
        DataError
            There are too many nodes.
        """
        receipts = sorted(receipts, key=lambda receipt: receipt["part"])
        removed = no_nodes()
        n_nodes = n_bytes = 0
        if previous is not None:
            removed = _removed(receipts, previous, folder)
            n_nodes, n_bytes = previous.n_nodes, _bytes_of(previous, removed)
        cells: dict[int, dict[int, Cell]] = {receipt["part"]: {} for receipt in receipts}
        by_name = [
            (kinds[kind].encode(), receipt["part"], kind, new, size)
            for receipt in receipts
            for kind, new, size in receipt["cells"]
        ]
        for _, part, kind, new, size in sorted(by_name):
            cells[part][kind] = Cell(n_nodes, n_bytes)
            n_nodes, n_bytes = n_nodes + new, n_bytes + size
        if n_nodes > MAX_NODES:
            raise DataError(f"a graph must have at most {MAX_NODES} nodes (got {n_nodes})")
        first_places = np.cumsum([0, *(receipt["keys"] for receipt in receipts)]).tolist()
        ranges = tuple(
            KeyRange(receipt["part"], place, cells[receipt["part"]])
            for receipt, place in zip(receipts, first_places, strict=False)
        )
        return cls(ranges, n_nodes, n_bytes, removed)

    @property
    def n_live(self) -> int:
        """Number of nodes that are not removed."""
        return self.n_nodes - len(self.removed)

    def ids(self, spark: SparkSession, read: ReadRows, folder: Path, *, old: bool) -> DataFrame:
        """``kind``, ``key`` and ``id`` of each node that is not removed."""
        cells = [
            (part.part, kind, cell.first_id) for part in self.ranges for kind, cell in part.cells.items()
        ]
        first = spark.createDataFrame(cells, "part int, kind int, first int")
        schema = f"part int, at int, kind int, key {read.key_type}" + ", old int" * old
        keys = spark.read.schema(schema).parquet(file_url(folder)).join(broadcast(first), ["part", "kind"])
        new_id = col("first") + col("at")
        return keys.select("kind", "key", (coalesce("old", new_id) if old else new_id).alias("id"))

    def place_previous(self, previous: Graph, store: Path) -> None:
        """Write the previous graph's part of the node table, with the keys of removed nodes blank."""
        is_integer = previous.nodes.is_integer
        first_id = byte = 0
        if len(self.removed):
            np.save(store / REMOVED_FILE, self.removed)
        with ExitStack() as files:
            kinds, keys = (
                files.enter_context(SliceWriter(store / f"{name}.npy", 0)) for name in ("kinds", "keys")
            )
            ends = None if is_integer else files.enter_context(SliceWriter(store / "ends.npy", 1))
            for chunk in _chunks(previous, self.removed):
                kinds.append(previous.kind_ids[first_id : first_id + len(chunk)])
                keys.append(chunk.to_numpy() if ends is None else string_bytes(chunk))
                if ends is not None:
                    places = byte + np.cumsum(string_lengths(chunk))
                    ends.append(places)
                    byte = int(places[-1])
                first_id += len(chunk)


def _removed(receipts: Sequence[dict[str, Any]], previous: Graph, folder: Path) -> npt.NDArray[np.int32]:
    """Nodes of the previous graph that are not among the keys; a byte of memory for each that it has."""
    gone = np.ones(previous.n_nodes, dtype=np.bool_)
    for receipt in receipts:
        with pq.ParquetFile(folder / parquet_name(receipt["part"])) as file:
            for batch in file.iter_batches(columns=["old"]):
                gone[batch.column("old").drop_null().to_numpy()] = False
    return np.flatnonzero(gone).astype(np.int32)


def _chunks(previous: Graph, removed: npt.NDArray[np.int32]) -> Iterator[pa.Array]:
    """Keys of the previous graph, those of removed nodes blank."""
    for start in range(0, previous.n_nodes, _CHUNK_NODES):
        keys = previous.nodes.keys[start : start + _CHUNK_NODES]
        first, end = np.searchsorted(removed, [start, start + len(keys)])
        yield blanked(keys, removed[first:end] - np.int32(start))


def _bytes_of(previous: Graph, removed: npt.NDArray[np.int32]) -> int:
    if previous.nodes.is_integer:
        return 0
    return sum(int(string_lengths(chunk).sum()) for chunk in _chunks(previous, removed))
