"""The last steps of a graph built on Spark: workers write their slices of the store's arrays."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ppr.kernels.edges import accumulate, add_weights, quantise_rows
from ppr.spark.building_tasks import Batches, edges_name, new_keys, parquet_name, receipt, task_at
from ppr.spark.slices import SliceWriter
from ppr.spark.text import string_bytes, string_lengths

_BATCH_EDGES = 1 << 20
_BATCH_NODES = 1 << 20


@dataclass(frozen=True)
class Cell:
    """Where the new keys that a partition has of a kind begin in the store: their ids and their bytes."""

    first_id: int
    first_byte: int


@dataclass(frozen=True)
class KeyRange:
    """A partition of the sorted keys: its number, where it begins in ``order``, and its cells by kind."""

    part: int
    first_place: int
    cells: dict[int, Cell]


@dataclass(frozen=True)
class RowRange:
    """A partition of the edges: its number, the nodes whose rows it holds, and where its edges begin."""

    part: int
    first_node: int
    end_node: int
    first_edge: int


@dataclass(frozen=True)
class PlaceKeys:
    """Write ``keys``, ``ends``, ``kinds`` and ``order`` for the partitions whose positions arrive.

    Parameters
    ----------
    parts
        The partitions.
    keys
        Folder of the partitions' files.
    store
        Folder of the store, with the arrays allocated.
    """

    parts: tuple[KeyRange, ...]
    keys: str
    store: str

    def __call__(self, batches: Batches) -> Batches:
        """Write slices; a receipt a partition."""
        with task_at(self.store) as store:
            for batch in batches:
                for number in batch.column("id").to_pylist():
                    self._place(self.parts[number], store)
                    yield receipt(number=number)

    def _place(self, part: KeyRange, store: Path) -> None:
        with pq.ParquetFile(Path(self.keys, parquet_name(part.part))) as file, ExitStack() as files:
            order = files.enter_context(SliceWriter(store / "order.npy", part.first_place))
            cells = {kind: _NewKeys(cell, store, files) for kind, cell in part.cells.items()}
            names = [name for name in file.schema_arrow.names if name in ("kind", "key", "old")]
            for batch in file.iter_batches(_BATCH_NODES, columns=names):
                kinds, new = batch.column("kind").to_numpy(), new_keys(batch)
                ids = np.zeros(len(kinds), dtype=np.int32) if new.all() else _old_ids(batch)
                for kind in np.unique(kinds).tolist():
                    chosen = new & (kinds == kind)
                    ids[chosen] = cells[kind].place(batch.column("key").filter(pa.array(chosen)), kind)
                order.append(ids)


class _NewKeys:
    """Writes the keys of a cell."""

    def __init__(self, cell: Cell, store: Path, files: ExitStack) -> None:
        self._id, self._byte = cell.first_id, cell.first_byte
        self._store = store
        self._files = files
        self._arrays: dict[str, SliceWriter] = {}

    def place(self, keys: pa.Array, kind: int) -> npt.NDArray[np.int32]:
        """Write the next keys; returns their ids."""
        first_id = self._id
        self._id += len(keys)
        self._append("kinds", first_id, np.full(len(keys), kind))
        if pa.types.is_int64(keys.type):
            self._append("keys", first_id, keys.to_numpy())
        else:
            ends = self._byte + np.cumsum(string_lengths(keys))
            self._append("ends", first_id + 1, ends)
            self._append("keys", self._byte, string_bytes(keys))
            self._byte = int(ends[-1]) if len(ends) else self._byte
        return np.arange(first_id, self._id, dtype=np.int32)

    def _append(self, name: str, start: int, values: npt.NDArray[Any]) -> None:
        if name not in self._arrays:
            self._arrays[name] = self._files.enter_context(SliceWriter(self._store / f"{name}.npy", start))
        self._arrays[name].append(values)


def _old_ids(batch: pa.RecordBatch) -> npt.NDArray[np.int32]:
    """Ids in the previous graph, int32, 0 where a key is not there."""
    ids: npt.NDArray[np.int32] = pc.fill_null(batch.column("old"), 0).to_numpy().copy()
    return ids


@dataclass(frozen=True)
class PlaceRows:
    """Quantise the rows of the partitions whose positions arrive and write them into the store.

    In memory are a batch of edges, one of nodes, and two numbers for each source of a partition: a row
    that is longer than a batch is read twice, for its sum and for its quantised weights.

    Parameters
    ----------
    parts
        The partitions.
    edges
        Folder of the partitions' files.
    store
        Folder of the store, with the arrays allocated.
    weighted
        Whether ``cumulative`` is written.
    batch_edges
        Edges in memory at a time.
    """

    parts: tuple[RowRange, ...]
    edges: str
    store: str
    weighted: bool
    batch_edges: int = _BATCH_EDGES

    def __call__(self, batches: Batches) -> Batches:
        """Write slices; a receipt names the first node whose weights have no finite sum, or -1."""
        with task_at(self.store) as store:
            for batch in batches:
                for number in batch.column("id").to_pylist():
                    yield receipt(number=number, infinite=self._place(self.parts[number], store))

    def _place(self, part: RowRange, store: Path) -> int:
        folder = Path(self.edges)
        sources = np.fromfile(folder / edges_name(part.part, "src"), np.int64)
        degrees = np.fromfile(folder / edges_name(part.part, "degree"), np.int64)
        with ExitStack() as files:
            indptr = files.enter_context(SliceWriter(store / "indptr.npy", part.first_node + 1))
            strengths = files.enter_context(SliceWriter(store / "strength.npy", part.first_node))
            rows = _Rows(folder, part, store, self.weighted, self.batch_edges, files)
            for first in range(part.first_node, part.end_node, _BATCH_NODES):
                end = min(first + _BATCH_NODES, part.end_node)
                within = slice(*np.searchsorted(sources, [first, end]))
                bounds = np.zeros(end - first + 1, dtype=np.int64)
                bounds[1 + sources[within] - first] = degrees[within]
                np.cumsum(bounds, out=bounds)
                indptr.append(part.first_edge + rows.done + bounds[1:])
                strength = np.zeros(end - first)
                infinite = rows.place(bounds, strength)
                if infinite >= 0:
                    return first + infinite
                strengths.append(strength)
        return -1


class _Rows:
    """Copies a partition's edges into the store, quantised, in the order of its rows."""

    def __init__(
        self, folder: Path, part: RowRange, store: Path, weighted: bool, batch_edges: int, files: ExitStack
    ) -> None:
        self.done = 0
        self._dst = folder / edges_name(part.part, "dst")
        self._weight = folder / edges_name(part.part, "weight")
        self._batch_edges = batch_edges
        self._indices = files.enter_context(SliceWriter(store / "indices.npy", part.first_edge))
        self._cumulative: SliceWriter | None = None
        if weighted:
            self._cumulative = files.enter_context(SliceWriter(store / "cumulative.npy", part.first_edge))

    def place(self, bounds: npt.NDArray[np.int64], strength: npt.NDArray[np.float64]) -> int:
        """Place the next rows and fill in their strengths; the first row without a finite sum, or -1."""
        first = 0
        while first < len(strength):
            fit = np.searchsorted(bounds, bounds[first] + self._batch_edges, side="right") - 1
            last = min(max(first + 1, int(fit)), len(strength))
            rows = bounds[first : last + 1] - bounds[first]
            if rows[-1] <= self._batch_edges:
                infinite = self._place_short(rows, strength[first:last])
            else:
                infinite = self._place_long(int(rows[-1]), strength[first:last])
            if infinite >= 0:
                return first + infinite
            first = last
        return -1

    def _place_short(self, rows: npt.NDArray[np.int64], strength: npt.NDArray[np.float64]) -> int:
        """Several rows at once."""
        n_edges = int(rows[-1])
        cumulative = np.empty(n_edges, dtype=np.uint32)
        infinite: int = quantise_rows(rows, self._weights(self.done, n_edges), cumulative, strength)
        if infinite < 0:
            self._append(n_edges, cumulative)
        return infinite

    def _place_long(self, n_edges: int, strength: npt.NDArray[np.float64]) -> int:
        """One row, piece by piece."""
        total, integers = 0.0, True
        pieces = [(at, min(self._batch_edges, n_edges - at)) for at in range(0, n_edges, self._batch_edges)]
        for at, n in pieces:
            total, integers = add_weights(self._weights(self.done + at, n), total, integers)
        if not np.isfinite(total):
            return 0
        strength[0] = total
        running = np.int64(0)
        for _, n in pieces:
            cumulative = np.empty(n, dtype=np.uint32)
            running = accumulate(self._weights(self.done, n), total, integers, running, cumulative)
            self._append(n, cumulative)
        return -1

    def _weights(self, start: int, n_edges: int) -> npt.NDArray[np.float64]:
        return np.fromfile(self._weight, np.float64, n_edges, offset=8 * start)

    def _append(self, n_edges: int, cumulative: npt.NDArray[np.uint32]) -> None:
        self._indices.append(np.fromfile(self._dst, np.int32, n_edges, offset=4 * self.done))
        if self._cumulative is not None:
            self._cumulative.append(cumulative)
        self.done += n_edges
