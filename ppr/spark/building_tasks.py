"""What the workers do when a graph is built on Spark: functions for ``mapInArrow``, pickled by reference.

Each writes files on storage shared with the driver, under names that depend on its piece or partition only,
or into its own slice of an array. A second attempt at a task writes the same bytes. Through the JVM goes
one receipt a task, as JSON.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext

from ppr.errors import PprError
from ppr.kernels.edges import merge_sorted
from ppr.manifest import full_disk_is_an_error, output_of
from ppr.spark.failures import marked
from ppr.spark.text import string_lengths
from ppr.workers import check_shared_folder

RECEIPT_DDL = "receipt string"
_DST_MASK = (1 << 32) - 1
Batches = Iterator[pa.RecordBatch]


@contextmanager
def task_at(folder: str) -> Iterator[Path]:
    """The shared folder that a task writes into; errors become what Spark hands on to the driver.

    Raises
    ------
    RuntimeError
        A marked error of this package, such as a full disk or a folder that is not shared.
    """
    path = Path(folder)
    try:
        check_shared_folder(path)
        with full_disk_is_an_error(output_of(path)):
            yield path
    except PprError as error:
        raise marked(error) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to, renamed to ``path`` at the end; Spark passes over it until then."""
    working = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        yield working
        working.replace(path)
    finally:
        working.unlink(missing_ok=True)


def receipt(**facts: Any) -> pa.RecordBatch:
    """What a task tells the driver."""
    return pa.RecordBatch.from_pydict({"receipt": [json.dumps(facts)]})


def parquet_name(number: int) -> str:
    """Name of the file of a piece or partition."""
    return f"{number:06}.parquet"


@dataclass(frozen=True)
class NumberKeys:
    """Write the keys of a partition, which arrive sorted, with their places among the new ones of their kind.

    Parameters
    ----------
    folder
        Where the file of the partition goes.
    """

    folder: str

    def __call__(self, batches: Batches) -> Batches:
        """Columns ``kind``, ``key`` and perhaps ``old`` in; a receipt with the numbers of each kind out."""
        part = _partition()
        n_keys = 0
        cells: dict[int, list[int]] = {}  # new keys, and their bytes
        with task_at(self.folder) as folder, ExitStack() as files:
            writer: pq.ParquetWriter | None = None
            for batch in batches:
                table = self._numbered(batch, part, cells)
                if writer is None:
                    path = files.enter_context(whole_file(folder / parquet_name(part)))
                    writer = files.enter_context(pq.ParquetWriter(path, table.schema))
                writer.write_table(table)
                n_keys += table.num_rows
        if n_keys:
            found = [[kind, *numbers] for kind, numbers in cells.items()]
            yield receipt(part=part, keys=n_keys, cells=found, files=[parquet_name(part)])

    @staticmethod
    def _numbered(batch: pa.RecordBatch, part: int, cells: dict[int, list[int]]) -> pa.Table:
        keys, kinds, new = batch.column("key"), batch.column("kind").to_numpy(), new_keys(batch)
        sizes = np.zeros(len(keys), np.int64) if pa.types.is_int64(keys.type) else string_lengths(keys)
        at = np.zeros(len(keys), dtype=np.int32)
        for kind in np.unique(kinds).tolist():
            chosen = new & (kinds == kind)
            n_before, n_bytes = cells.setdefault(kind, [0, 0])
            n_new = int(np.count_nonzero(chosen))
            at[chosen] = np.arange(n_before, n_before + n_new, dtype=np.int32)
            cells[kind] = [n_before + n_new, n_bytes + int(sizes[chosen].sum())]
        columns = {name: batch.column(name) for name in batch.schema.names}
        return pa.table({"part": np.full(len(keys), part, np.int32), "at": at, **columns})


def new_keys(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Which keys are not in the previous graph, bool [rows]."""
    if "old" not in batch.schema.names:
        return np.ones(batch.num_rows, dtype=np.bool_)
    new: npt.NDArray[np.bool_] = batch.column("old").is_null().to_numpy(zero_copy_only=False)
    return new


@dataclass(frozen=True)
class MergeRows:
    """Merge the duplicate edges of a partition, which arrive sorted by source, destination and weight.

    The edges' destinations (int32) and weights (float64), and the sources with their degrees (int64 each),
    are written as plain numbers.

    Parameters
    ----------
    folder
        Where the files of the partition go.
    keep_loops
        Whether self-loops are kept.
    """

    folder: str
    keep_loops: bool

    def __call__(self, batches: Batches) -> Batches:
        """Columns ``edge`` (source << 32 | destination) and perhaps ``weight`` in; a receipt out."""
        part = _partition()
        rows = loops = 0
        # The last edge is held back, since more of its duplicates may follow.
        keys, weights = np.empty(0, np.int64), np.empty(0)
        with task_at(self.folder) as folder, EdgeFiles(folder, part) as files:
            for batch in batches:
                new_keys: npt.NDArray[np.int64] = batch.column("edge").to_numpy()
                weighted = "weight" in batch.schema.names
                new = batch.column("weight").to_numpy() if weighted else np.ones(len(new_keys))
                is_loop = new_keys >> 32 == new_keys & _DST_MASK
                rows += len(new_keys)
                loops += int(np.count_nonzero(is_loop))
                if not self.keep_loops:
                    new_keys, new = new_keys[~is_loop], new[~is_loop]
                keys, weights = np.concatenate([keys, new_keys]), np.concatenate([weights, new])
                n_merged = merge_sorted(keys, weights)
                done = max(n_merged - 1, 0)
                files.append(keys[:done], weights[:done])
                keys, weights = keys[done:n_merged], weights[done:n_merged]
            files.append(keys, weights)
            files.finish()
        if rows:
            yield receipt(
                part=part,
                files=[edges_name(part, name) for name in EdgeFiles.NAMES],
                rows=rows,
                loops=loops,
                edges=files.n_edges,
                first_node=files.first_node,
                weighted=files.weighted,
            )


class EdgeFiles:
    """Merged edges of a partition, as files that :class:`ppr.spark.building_places.PlaceRows` reads."""

    NAMES = ("dst", "weight", "src", "degree")

    def __init__(self, folder: Path, part: int) -> None:
        self.n_edges = 0
        self.first_node: int | None = None
        self.weighted = False
        self._source: npt.NDArray[np.int64] = np.empty(0, np.int64)  # the last one, and its edges so far
        self._degree: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._open = ExitStack()
        self._paths = [folder / edges_name(part, name) for name in self.NAMES]

    def __enter__(self) -> EdgeFiles:
        self._dst, self._weight, self._src, self._degrees = (
            self._open.enter_context(self._open.enter_context(whole_file(path)).open("wb"))
            for path in self._paths
        )
        return self

    def append(self, keys: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]) -> None:
        """Append distinct edges."""
        if not len(keys):
            return
        self._dst.write((keys & _DST_MASK).astype(np.int32).data)
        self._weight.write(np.ascontiguousarray(weights).data)
        sources = keys >> 32
        starts = np.flatnonzero(np.diff(sources, prepend=-1))
        degrees = np.diff(starts, append=len(sources))
        found = sources[starts]
        if len(self._source) and found[0] == self._source[0]:
            degrees[0] += self._degree[0]
        else:
            found, degrees = np.concatenate([self._source, found]), np.concatenate([self._degree, degrees])
        self._src.write(found[:-1].data)
        self._degrees.write(degrees[:-1].data)
        self._source, self._degree = found[-1:], degrees[-1:]
        self.n_edges += len(keys)
        self.first_node = int(sources[0]) if self.first_node is None else self.first_node
        self.weighted = self.weighted or bool(np.any(weights != 1.0))

    def finish(self) -> None:
        """Write the last source."""
        self._src.write(self._source.data)
        self._degrees.write(self._degree.data)

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)


def edges_name(part: int, name: str) -> str:
    """Name of a file of a partition's edges."""
    return f"{part:06}.{name}"


def _partition() -> int:
    """Number of this task's partition."""
    context = TaskContext.get()
    assert context is not None
    return context.partitionId()
