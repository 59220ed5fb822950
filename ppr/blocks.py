"""The unit of work of every engine: ``(graph, block of sources, parameters) -> Arrow table``.

Blocks are planned to cost about the same, so that no worker waits for another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from ppr.errors import ParameterError
from ppr.graph import Graph
from ppr.kernels.packets import ONE, STOP_BITS
from ppr.kernels.slots import new_scratch
from ppr.kernels.topk import new_rank_space, walk_rows
from ppr.nodes import first_removed
from ppr.params import FingerprintParams

FINGERPRINT_SCHEMA = pa.schema(
    [
        pa.field("source", pa.int32(), nullable=False),
        pa.field("ids", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
        pa.field("scores", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
        pa.field("mass", pa.float64(), nullable=False),
        pa.field("moves", pa.int64(), nullable=False),
    ]
)
"""Columns of a fingerprint table; see :func:`compute_block`."""

DEFAULT_BLOCK_MOVES = 12_000_000
"""Predicted cost of a block in moves: under half a second of one core, and tens of megabytes of rows."""

_ROW_MOVES = 1000.0  # what a row costs beside its walks: ranking, writing; it also bounds the rows of a block
_PREDICTED_STEPS = 24
_QUICK_EDGES = 100_000_000  # sweeps over so many in all take half a second, and are always made
_SETTLED = 0.01  # relative growth of the expected walk lengths in a sweep
_FIRST_SLOTS = 1 << 14
_FIRST_EDGES = 1 << 14
_FIRST_ROW_SPACE = 1 << 18


def compute_block(graph: Graph, sources: NDArray[np.int32], params: FingerprintParams) -> pa.Table:
    """Fingerprints of a block of sources.

    Parameters
    ----------
    graph
        The graph; shared by all threads.
    sources
        Dense node ids, int32 [b]; rows come back in this order.
    params
        What the rows contain.

    Returns
    -------
    pa.Table
        One row per source, of :data:`FINGERPRINT_SCHEMA`: ``scores`` = c * visits / R, not normalised,
        descending, ties by ascending id; ``mass`` is the sum over all nodes before any truncation or
        restriction; ``moves`` counts the edges that were handed mass.

    Raises
    ------
    ParameterError
        A source is not a node id.
    UnknownNodeError
        A target kind is not in the graph.

    Notes
    -----
    The kernel releases the GIL. Unbiased: the expectation of a score is the exact value of
    :func:`ppr.exact.exact_ppr`. A walk ends at a dangling node.
    """
    sources = _check_ids(graph, sources).astype(np.int32)
    n_sources = sources.size
    if n_sources == 0:
        return FINGERPRINT_SCHEMA.empty_table()
    arrays = kernel_arrays(graph)
    kernel_params = (
        round(params.restart_prob * (1 << STOP_BITS)),
        params.n_walks,
        params.seed,
        -1 if params.max_steps is None else params.max_steps,
    )
    limit = -1 if params.top_k is None else params.top_k
    row = (limit, allowed_kinds(graph, params), params.exclude_neighbors)
    lengths, masses, moves = (np.zeros(n_sources, np.int64) for _ in range(3))
    ids_parts: list[NDArray[np.int32]] = []
    scores_parts: list[NDArray[np.float32]] = []
    slots, edges = min(graph.n_nodes, _FIRST_SLOTS), _FIRST_EDGES
    scratch, rank_space = new_scratch(slots, edges), new_rank_space(slots)
    space = _FIRST_ROW_SPACE
    position = 0
    while position < n_sources:
        ids, scores = np.empty(space, np.int32), np.empty(space, np.float32)
        position, used, scratch_is_full = walk_rows(
            arrays,
            _read_only(graph.kind_ids),
            sources,
            position,
            kernel_params,
            row,
            scratch,
            rank_space,
            (lengths, masses, moves, ids, scores),
        )
        ids_parts.append(ids[:used])
        scores_parts.append(scores[:used])
        if scratch_is_full:
            slots, edges = min(graph.n_nodes, 4 * slots), 4 * edges
            scratch, rank_space = new_scratch(slots, edges), new_rank_space(slots)
        elif used == 0:
            space *= 4  # a single row needs more
    return fingerprint_table(
        sources, lengths, np.concatenate(ids_parts), np.concatenate(scores_parts), masses / ONE, moves
    )


def fingerprint_table(
    sources: NDArray[np.int32],
    lengths: NDArray[np.int64],
    ids: NDArray[np.int32],
    scores: NDArray[np.float32],
    mass: NDArray[np.float64],
    moves: NDArray[np.int64],
) -> pa.Table:
    """Table of :data:`FINGERPRINT_SCHEMA` from rows of the given lengths, one behind the other."""
    offsets = np.zeros(sources.size + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    fields = [FINGERPRINT_SCHEMA.field(name).type for name in ("ids", "scores")]
    return pa.Table.from_arrays(
        [
            pa.array(sources),
            pa.ListArray.from_arrays(offsets, ids, type=fields[0]),
            pa.ListArray.from_arrays(offsets, scores, type=fields[1]),
            pa.array(mass),
            pa.array(moves),
        ],
        schema=FINGERPRINT_SCHEMA,
    )


def compile_kernels() -> None:
    """Compile the walk kernels, or load them from numba's cache, by walking a graph of one node."""
    graph = Graph.from_arrays(np.zeros(2, np.int64), np.empty(0, np.int32))
    compute_block(graph, np.zeros(1, np.int32), FingerprintParams(n_walks=1))


def kernel_arrays(graph: Graph) -> tuple[NDArray[Any], ...]:
    """A graph as the kernels take it: indptr, indices, and cumulative, which is empty where unweighted."""
    return tuple(_read_only(array) for array in (graph.indptr, graph.indices, graph.cumulative))


def _read_only(array: NDArray[Any] | None) -> NDArray[Any]:
    """A view that the kernels may not write, so that they are compiled for one type, mapped or in memory."""
    view = np.empty(0, np.uint32) if array is None else array.view()
    view.flags.writeable = False
    return view


def allowed_kinds(graph: Graph, params: FingerprintParams) -> NDArray[np.bool_]:
    """Which kinds a row may contain, bool [kinds], or empty for all.

    Raises
    ------
    UnknownNodeError
        A target kind is not in the graph.
    """
    if not params.target_kinds:
        return np.zeros(0, np.bool_)
    allowed = np.zeros(len(graph.kinds), np.bool_)
    allowed[[graph.kind_id(kind) for kind in params.target_kinds]] = True
    return allowed


def expected_moves(params: FingerprintParams) -> float:
    """Moves that independent walks from a node make where they meet no dangling node."""
    continue_prob = 1.0 - params.restart_prob
    length = continue_prob / params.restart_prob
    if params.max_steps is not None:
        length *= 1.0 - continue_prob**params.max_steps
    return length * params.n_walks


def predicted_moves(graph: Graph, params: FingerprintParams) -> NDArray[np.float64]:
    """Moves that independent walks from each node would make, float64 [n]: R times the expected walk length.

    The length solves h = (1 - c) * (1 + P h), 0 at dangling nodes; a few sweeps are enough to balance blocks.
    """
    sweeps = _PREDICTED_STEPS if params.max_steps is None else min(_PREDICTED_STEPS, params.max_steps)
    continue_prob = 1.0 - params.restart_prob
    length: NDArray[np.float64] = np.zeros(graph.n_nodes)
    grown = 0.0
    for _ in range(sweeps):
        longer = _longer_by_a_step(graph.indptr, graph.indices, length, continue_prob)
        growth, before = longer - length, grown
        length, grown = longer, float(growth.sum())
        if grown <= _SETTLED * float(length.sum()):
            return length * params.n_walks
    if params.max_steps != sweeps and before > 0.0:
        # Rare restarts: the growth shrinks by about the same factor in each further sweep.
        further = math.inf if params.max_steps is None else params.max_steps - sweeps
        factor = min(grown / before, continue_prob)
        length = length + growth * factor * (1.0 - factor**further) / (1.0 - factor)
    moves: NDArray[np.float64] = length * params.n_walks
    return moves


@njit(cache=True, nogil=True)
def _longer_by_a_step(indptr, indices, length, continue_prob):  # type: ignore[no-untyped-def]
    """One sweep of the expected walk length, as if unweighted."""
    longer = np.zeros_like(length)
    for v in range(length.size):
        degree = indptr[v + 1] - indptr[v]
        if degree > 0:
            total = 0.0
            for e in range(indptr[v], indptr[v + 1]):
                total += length[indices[e]]
            longer[v] = continue_prob * (1.0 + total / degree)
    return longer


def plan_blocks(
    graph: Graph,
    sources: Sequence[int] | NDArray[np.integer] | None,
    params: FingerprintParams,
    *,
    block_moves: float = DEFAULT_BLOCK_MOVES,
) -> list[NDArray[np.int32]]:
    """Cut the sources, sorted by id, into contiguous blocks of about equal predicted moves.

    Parameters
    ----------
    sources
        Dense ids in any order, without repetition, or None for all nodes that are not removed.
    block_moves
        Predicted cost per block, in moves (a source is never split); a row counts as some moves too.

    Raises
    ------
    ParameterError
        A source is out of range, removed, or named twice.
    """
    wanted = graph.live if sources is None else check_sources(graph, sources)
    if wanted.size == 0:
        return []
    cost = _ROW_MOVES + _moves_to_plan_with(graph, wanted, params)
    upto = np.cumsum(cost)
    n_blocks = min(wanted.size, max(1, int(np.ceil(upto[-1] / block_moves))))
    cuts = np.searchsorted(upto, upto[-1] * np.arange(1, n_blocks) / n_blocks, side="left") + 1
    return [block for block in np.split(wanted, np.unique(cuts)) if block.size]


def _moves_to_plan_with(
    graph: Graph, sources: NDArray[np.int32], params: FingerprintParams
) -> NDArray[np.float64]:
    """Moves of each source, predicted; equal ones where a prediction takes longer than the walks."""
    equal = expected_moves(params)
    if _PREDICTED_STEPS * graph.n_edges > max(sources.size * equal, _QUICK_EDGES):
        return np.full(sources.size, equal)
    return predicted_moves(graph, params)[sources]


def check_sources(graph: Graph, sources: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int32]:
    """Sources sorted by id, int32, checked to be in range and distinct."""
    ids = np.unique(_check_ids(graph, sources))
    if ids.size != len(sources):
        raise ParameterError(f"'sources' must be distinct (got {len(sources)} with {ids.size} distinct)")
    return ids.astype(np.int32)


def _check_ids(graph: Graph, sources: Sequence[int] | NDArray[np.integer]) -> NDArray[np.integer]:
    ids = np.asarray(sources)
    if ids.size == 0:
        return ids.astype(np.int32)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ParameterError(f"'sources' must be integers (got {ids.dtype})")
    if ids.min() < 0 or ids.max() >= graph.n_nodes:
        bad = ids.min() if ids.min() < 0 else ids.max()
        raise ParameterError(f"'sources' must be node ids from 0 to {graph.n_nodes - 1} (got {bad})")
    gone = first_removed(ids, graph.removed)
    if gone is not None:
        raise ParameterError(f"'sources' must not be removed nodes (got {gone})")
    return ids
