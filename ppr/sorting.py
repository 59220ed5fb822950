"""External bucket sort of edges into compressed rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ppr.errors import DataError
from ppr.kernels.edges import merge_duplicates, quantise_rows

_MAX_BUCKETS = (1 << 16) - 1
_BATCH_EDGES = 1 << 20
_DST_MASK = (1 << 32) - 1


class EdgeSpill:
    """Translated edges on disk, in the order they came, with the number of edges per source.

    An edge is one int64, source << 32 | destination, and one float64 weight in a second file.

    Parameters
    ----------
    folder
        Where the files go.
    n_nodes
        Number of nodes n.
    weighted
        Whether there are weights; without, every edge weighs 1.
    """

    def __init__(self, folder: Path, n_nodes: int, *, weighted: bool) -> None:
        self.folder = folder
        self.weighted = weighted
        self.edges_per_source = np.zeros(n_nodes, dtype=np.int64)
        self._files = ExitStack()
        self._keys = self._files.enter_context((folder / "edges.keys").open("wb"))
        self._weights = self._files.enter_context((folder / "edges.weights").open("wb"))

    @property
    def n_edges(self) -> int:
        """Number of edges so far."""
        return int(self.edges_per_source.sum())

    def __enter__(self) -> EdgeSpill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def append(
        self,
        src: npt.NDArray[np.int32],
        dst: npt.NDArray[np.int32],
        weight: npt.NDArray[np.float64] | None,
        *,
        both_ways: bool,
    ) -> None:
        """Add edges; ``both_ways`` adds the opposite ones too, but a self-loop once."""
        self._append(src, dst, weight)
        if both_ways:
            other = src != dst
            self._append(dst[other], src[other], None if weight is None else weight[other])

    def batches(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64] | None]]:
        """All edges, as keys and weights, a batch at a time."""
        with (
            (self.folder / "edges.keys").open("rb") as keys,
            (self.folder / "edges.weights").open("rb") as weights,
        ):
            while len(batch := np.fromfile(keys, np.int64, _BATCH_EDGES)):
                yield batch, np.fromfile(weights, np.float64, _BATCH_EDGES) if self.weighted else None

    def _append(
        self, src: npt.NDArray[np.int32], dst: npt.NDArray[np.int32], weight: npt.NDArray[np.float64] | None
    ) -> None:
        (src.astype(np.int64) << 32 | dst).tofile(self._keys)
        if self.weighted:
            (np.ones(len(src)) if weight is None else weight).tofile(self._weights)
        counts = np.bincount(src)
        self.edges_per_source[: len(counts)] += counts


def write_rows(
    spill: EdgeSpill,
    out: Path,
    bucket_edges: int,
    name_of: Callable[[int], str],
    progress: Callable[[str, int, int | None], None],
) -> bool:
    """Sort spilled edges and write ``indptr``, ``indices``, ``cumulative`` and ``strength``.

    Parameters
    ----------
    spill
        The edges.
    out
        Folder of the store.
    bucket_edges
        Edges sorted in memory at a time; a source with more of them is still one bucket.
    name_of
        Name of a node, for messages.
    progress
        Called with the stage, edges done and their number.

    Returns
    -------
    bool
        Whether some weight is not 1, that is, whether ``cumulative`` is needed.
    """
    n_nodes, n_edges = len(spill.edges_per_source), spill.n_edges
    edges_before = np.concatenate([[0], np.cumsum(spill.edges_per_source)])
    step = max(bucket_edges, -(-n_edges // _MAX_BUCKETS))
    inner_cuts = np.searchsorted(edges_before, np.arange(step, n_edges, step))
    cuts = np.unique(np.concatenate([[0], inner_cuts, [n_nodes]]))
    starts = edges_before[cuts]
    _scatter(spill, cuts, starts, progress)

    indptr = np.zeros(n_nodes + 1, dtype=np.int64)
    strength = np.zeros(n_nodes)
    weighted = False
    with (
        NpyWriter(out / "indices.npy", "<i4") as indices,
        NpyWriter(out / "cumulative.npy", "<u4") as cumulative,
    ):
        for first, last, start, end in zip(cuts[:-1], cuts[1:], starts[:-1], starts[1:], strict=True):
            keys, weights = _sorted_bucket(spill, int(start), int(end - start))
            rows = np.zeros(last - first + 1, dtype=np.int64)
            np.cumsum(np.bincount((keys >> 32) - first, minlength=last - first), out=rows[1:])
            sums = np.empty(len(keys), dtype=np.uint32)
            infinite = quantise_rows(rows, weights, sums, strength[first:last])
            if infinite >= 0:
                raise DataError(f"{name_of(int(first + infinite))}: the sum of its weights must be finite")
            indices.append((keys & _DST_MASK).astype(np.int32))
            cumulative.append(sums)
            indptr[first + 1 : last + 1] = indptr[first] + rows[1:]
            weighted = weighted or bool(np.any(weights != 1.0))
            progress("sort", int(end), n_edges)
    np.save(out / "indptr.npy", indptr)
    np.save(out / "strength.npy", strength)
    return weighted


def _scatter(
    spill: EdgeSpill,
    cuts: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    progress: Callable[[str, int, int | None], None],
) -> None:
    """Copy the edges to ``buckets.keys`` and ``buckets.weights``, those of a bucket together."""
    cursor = starts[:-1].copy()
    done = 0
    with (
        (spill.folder / "buckets.keys").open("wb") as key_file,
        (spill.folder / "buckets.weights").open("wb") as weight_file,
    ):
        for keys, weights in spill.batches():
            bucket = (np.searchsorted(cuts, keys >> 32, side="right") - 1).astype(np.uint16)
            order = np.argsort(bucket, kind="stable")
            counts = np.bincount(bucket, minlength=len(cursor))
            ends = np.cumsum(counts)
            grouped = keys[order]
            grouped_weights = None if weights is None else weights[order]
            for at in np.flatnonzero(counts):
                part = slice(ends[at] - counts[at], ends[at])
                _write_at(key_file, cursor[at], grouped[part])
                if grouped_weights is not None:
                    _write_at(weight_file, cursor[at], grouped_weights[part])
            cursor += counts
            done += len(keys)
            progress("scatter", done, spill.n_edges)
    for name in ("edges.keys", "edges.weights"):
        (spill.folder / name).unlink()


def _write_at(file: IO[bytes], position: int, values: npt.NDArray[Any]) -> None:
    file.seek(int(position) * values.itemsize)
    values.tofile(file)


def _sorted_bucket(
    spill: EdgeSpill, start: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """One bucket's distinct edges in order, with their weights."""
    keys = np.fromfile(spill.folder / "buckets.keys", np.int64, count, offset=8 * start)
    if spill.weighted:
        weights = np.fromfile(spill.folder / "buckets.weights", np.float64, count, offset=8 * start)
        order = np.argsort(keys)
        keys, weights = keys[order], weights[order]
    else:
        keys.sort()
        weights = np.ones(count)
    n_merged = merge_duplicates(keys, weights)
    return keys[:n_merged], weights[:n_merged]


class NpyWriter:
    """Writes a one-dimensional .npy file whose length is known only at the end."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._file = path.open("wb")
        self._dtype = np.dtype(dtype)
        self._length = 0

    def __enter__(self) -> NpyWriter:
        self._write_header()
        return self

    def append(self, values: npt.NDArray[Any]) -> None:
        """Append values of the file's type."""
        values.astype(self._dtype, copy=False).tofile(self._file)
        self._length += len(values)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            # NumPy pads the header so that it keeps its size while the first axis grows.
            self._file.seek(0)
            self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)
