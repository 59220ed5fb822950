"""Write the rows of a changed graph: copies of the old ones, and the old ones merged with the changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ppr.errors import DataError
from ppr.graph import Graph
from ppr.kernels.changes import merge_changes, row_weights
from ppr.kernels.edges import quantise_rows
from ppr.sorting import NpyWriter


@dataclass(frozen=True, slots=True)
class EdgeChanges:
    """Changes to the edges of a graph.

    Parameters
    ----------
    removed
        int64 [removed], source << 32 | destination, ascending, each once and in the graph.
    added, weights
        int64 and float64 [added], the same; where an edge is there, the weights add up.
    gone
        int32, nodes that lose all their edges, ascending; no edge is added to them.
    n_nodes
        Nodes of the new graph.
    """

    removed: npt.NDArray[np.int64]
    added: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    gone: npt.NDArray[np.int32]
    n_nodes: int


@dataclass(frozen=True, slots=True)
class Written:
    """Number of edges written, of rows that are not as they were, and of those with rounded weights."""

    n_edges: int
    n_changed: int
    n_rounded: int


def write_changed_rows(
    graph: Graph,
    changes: EdgeChanges,
    out: Path,
    *,
    weighted: bool,
    bucket_edges: int,
    name_of: Callable[[int], str],
    progress: Callable[[str, int, int | None], None],
) -> Written:
    """Write ``indptr``, ``indices``, ``strength`` and, where needed, ``cumulative`` of the changed graph.

    Parameters
    ----------
    graph, changes
        The old graph, and what changes.
    out
        Folder of the new store.
    weighted
        Whether any weight may differ from 1.
    bucket_edges
        Edges in memory at a time; a row with more of them is still taken whole.
    name_of
        Name of a node, for messages.
    progress
        Called with the stage, edges done and their number.

    Raises
    ------
    DataError
        The weights of a node add up to infinity.
    """
    rows = _Rows(graph, changes, weighted, name_of)
    n_nodes, size = changes.n_nodes, rows.old_indptr + _before(changes.added, changes.n_nodes)
    total = int(size[-1])
    cuts = np.unique(
        np.concatenate([[0], np.searchsorted(size, np.arange(bucket_edges, total, bucket_edges)), [n_nodes]])
    )
    indptr = np.zeros(n_nodes + 1, dtype=np.int64)
    strength = np.empty(n_nodes)
    n_changed, n_rounded, all_ones = 0, 0, True
    with ExitStack() as files:
        indices_file = files.enter_context(NpyWriter(out / "indices.npy", "<i4"))
        cumulative_file = files.enter_context(NpyWriter(out / "cumulative.npy", "<u4")) if weighted else None
        for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            piece = rows.piece(first, last)
            indptr[first + 1 : last + 1] = indptr[first] + piece.indptr[1:]
            strength[first:last] = piece.strength
            n_changed += piece.n_changed
            n_rounded += piece.n_rounded
            indices_file.append(piece.indices)
            if cumulative_file is not None and piece.cumulative is not None:
                cumulative_file.append(piece.cumulative)
                all_ones = all_ones and _all_ones(piece)
            progress("rows", int(size[last]), total)
    np.save(out / "indptr.npy", indptr)
    np.save(out / "strength.npy", strength)
    if weighted and all_ones:
        (out / "cumulative.npy").unlink()
    return Written(int(indptr[-1]), n_changed, n_rounded)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some rows of the new graph."""

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    cumulative: npt.NDArray[np.uint32] | None
    strength: npt.NDArray[np.float64]
    n_changed: int = 0
    n_rounded: int = 0


class _Rows:
    """The rows of the new graph, a piece at a time."""

    def __init__(
        self, graph: Graph, changes: EdgeChanges, weighted: bool, name_of: Callable[[int], str]
    ) -> None:
        self._graph = graph
        self._changes = changes
        self._weighted = weighted
        self._name_of = name_of
        n_new = changes.n_nodes - graph.n_nodes
        self.old_indptr = np.concatenate([graph.indptr, np.full(n_new, graph.n_edges)])
        self._gone = np.zeros(changes.n_nodes, dtype=np.bool_)
        self._gone[changes.gone] = True

    def piece(self, first: int, last: int) -> _Piece:
        """Rows of the nodes from ``first`` to ``last`` - 1."""
        start, end = self.old_indptr[first], self.old_indptr[last]
        old = _Piece(
            self.old_indptr[first : last + 1] - start,
            self._graph.indices[start:end],
            self._old_cumulative(first, last),
            self._old_strength(first, last),
        )
        changed = self._changed(first, last, old)
        return self._merged(first, last, old, changed) if changed.any() else old

    def _old_strength(self, first: int, last: int) -> npt.NDArray[np.float64]:
        strength = np.zeros(last - first)
        there = self._graph.strength[first:last]
        strength[: len(there)] = there
        return strength

    def _old_cumulative(self, first: int, last: int) -> npt.NDArray[np.uint32] | None:
        """Cumulative weights of old rows, or None for a graph without."""
        if not self._weighted:
            return None
        start, end = self.old_indptr[first], self.old_indptr[last]
        if self._graph.cumulative is not None:
            return self._graph.cumulative[start:end]
        degree = np.diff(self.old_indptr[first : last + 1])
        before = np.repeat(self.old_indptr[first:last], degree)
        ones: npt.NDArray[np.uint32] = (np.arange(start + 1, end + 1) - before).astype(np.uint32)
        return ones

    def _changed(self, first: int, last: int, old: _Piece) -> npt.NDArray[np.bool_]:
        """Which rows of the piece are not as they were."""
        changed = np.zeros(last - first, dtype=np.bool_)
        for keys in (self._changes.removed, self._changes.added):
            changed[(_part(keys, first, last) >> 32) - first] = True
        if len(self._changes.gone):
            changed |= self._gone[first:last] & (np.diff(old.indptr) > 0)
            hit = np.flatnonzero(self._gone[old.indices])
            changed[np.searchsorted(old.indptr, hit, side="right") - 1] = True
        return changed

    def _merged(self, first: int, last: int, old: _Piece, changed: npt.NDArray[np.bool_]) -> _Piece:
        added = _part(self._changes.added, first, last)
        at = int(np.searchsorted(self._changes.added, first << 32))
        weights = np.ones(len(old.indices))
        if old.cumulative is not None:
            row_weights(old.indptr, old.cumulative, old.strength, weights)
        room = len(old.indices) + len(added)
        indptr = np.empty(last - first + 1, dtype=np.int64)
        indices = np.empty(room, dtype=np.int32)
        new_weights = np.empty(room)
        n_edges = merge_changes(
            first,
            old.indptr,
            old.indices,
            weights,
            self._gone,
            _part(self._changes.removed, first, last),
            added,
            self._changes.weights[at : at + len(added)],
            indptr,
            indices,
            new_weights,
        )
        indices, new_weights = indices[:n_edges], new_weights[:n_edges]
        degree = np.diff(indptr)
        n_changed = int(np.count_nonzero(changed))
        if old.cumulative is None:
            return _Piece(indptr, indices, None, degree.astype(np.float64), n_changed)
        cumulative = np.empty(n_edges, dtype=np.uint32)
        strength = np.empty(last - first)
        infinite = quantise_rows(indptr, new_weights, cumulative, strength)
        if infinite >= 0:
            raise DataError(f"{self._name_of(first + infinite)}: the sum of its weights must be finite")
        # Rows without a change keep their bits, whatever recovering their weights may have rounded.
        strength[~changed] = old.strength[~changed]
        kept = np.repeat(~changed, np.diff(old.indptr))
        cumulative[np.repeat(~changed, degree)] = old.cumulative[kept]
        n_rounded = int(np.count_nonzero(changed & _scaled(old) & (degree > 0)))
        return _Piece(indptr, indices, cumulative, strength, n_changed, n_rounded)


def _before(keys: npt.NDArray[np.int64], n_nodes: int) -> npt.NDArray[np.int64]:
    """Number of edges with a source below each node, int64 [n + 1]."""
    return np.searchsorted(keys, np.arange(n_nodes + 1) << 32)


def _part(keys: npt.NDArray[np.int64], first: int, last: int) -> npt.NDArray[np.int64]:
    """Edges with a source from ``first`` to ``last`` - 1."""
    start, end = np.searchsorted(keys, [first << 32, last << 32])
    return keys[start:end]


def _scaled(piece: _Piece) -> npt.NDArray[np.bool_]:
    """Which rows have weights that were not taken as they are: their quantised ones have another sum."""
    assert piece.cumulative is not None
    rows = np.flatnonzero(np.diff(piece.indptr))
    scaled = np.zeros(len(piece.strength), dtype=np.bool_)
    scaled[rows] = piece.cumulative[piece.indptr[rows + 1] - 1] != piece.strength[rows]
    return scaled


def _all_ones(piece: _Piece) -> bool:
    """Whether all weights are 1: a row of as many positive integers as their sum."""
    assert piece.cumulative is not None
    degree = np.diff(piece.indptr)
    rows = np.flatnonzero(degree)
    totals = piece.cumulative[piece.indptr[rows + 1] - 1]
    return bool(np.all(piece.strength == degree) and np.all(totals == degree[rows]))
