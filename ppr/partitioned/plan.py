"""Parts of a graph: ranges of edges of the one store, about equal in bytes.

There is no second format: a part is a slice of ``indptr``, ``indices``, ``cumulative`` and ``kinds``, mapped
by the task that works on it. Rows that are large against a part may be cut: every part that holds a piece of
such a row gets all messages for its node, and hands on what falls to its own edges
(:mod:`ppr.kernels.partitioned`). So no adjacency list has to fit in one place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppr.blocks import expected_moves
from ppr.errors import ParameterError, ResourceError
from ppr.graph import Graph
from ppr.params import FingerprintParams

_BYTES_PER_NODE = 9  # of indptr and kinds
_CUT_SHARE = 0.25  # a row that takes more of a part than this may be cut
_BYTES_PER_MESSAGE = 200  # read, sorted, handed on, grouped and packed
_LEAST_CHUNK, _MOST_CHUNK = 1 << 14, 1 << 21
_ROUND_MESSAGES = 1 << 22  # per part: some seconds of work
_CHUNKS_PER_ROUND = 8  # at most, where memory is small: a batch is merged in as many blocks as parts
DEFAULT_MEMORY_BYTES = 1 << 30
LEAST_MEMORY_BYTES = 2 * _LEAST_CHUNK * _BYTES_PER_MESSAGE


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """How a graph is cut.

    Attributes
    ----------
    cuts
        Part p holds the edges ``cuts[p]`` to ``cuts[p + 1]``, int64 [p + 1].
    first_rows
        First node of which a part holds edges, int64 [p].
    first_nodes
        The rows of the nodes ``first_nodes[p]`` to ``first_nodes[p + 1]`` begin in part p, int64 [p + 1].
    until
        Last part that holds edges of the last node whose row begins in a part, int64 [p].
    weight_before
        Weight that the first row has before the part, int64 [p]; 0 where it begins there or is unweighted.
    weight_cut
        Whole weight of the row that is cut at the part's end, int64 [p]; 0 where none is or unweighted.
    """

    cuts: NDArray[np.int64]
    first_rows: NDArray[np.int64]
    first_nodes: NDArray[np.int64]
    until: NDArray[np.int64]
    weight_before: NDArray[np.int64]
    weight_cut: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.until.size)

    def to_json(self) -> dict[str, list[int]]:
        """The plan, to be stored with a run."""
        return {name: getattr(self, name).tolist() for name in self.__slots__}

    @classmethod
    def from_json(cls, stored: dict[str, list[int]]) -> Parts:
        """The plan that a run was begun with."""
        return cls(**{name: np.asarray(stored[name], np.int64) for name in cls.__slots__})


def plan_parts(graph: Graph, n_parts: int, *, cut_share: float = _CUT_SHARE) -> Parts:
    """Cut a graph into at most ``n_parts`` parts of about equal bytes; fewer where rows are not cut.

    Takes O(parts * log nodes), and touches as many pages of the store.

    Parameters
    ----------
    n_parts
        Parts wanted.
    cut_share
        A row that takes more of a part than this may be cut.

    Raises
    ------
    ParameterError
        ``n_parts`` is not positive.
    """
    if n_parts < 1:
        raise ParameterError(f"'n_parts' must be positive (got {n_parts})")
    per_edge, n_nodes = _bytes_per_edge(graph), graph.n_nodes
    part_bytes = graph_bytes(graph) / n_parts
    places = [(0, 0)]  # (edge, first node whose row begins there or later)
    for number in range(1, n_parts):
        node = _node_at(graph, number * part_bytes)
        begin, end = int(graph.indptr[node]), int(graph.indptr[node + 1])
        edge = begin + int((number * part_bytes - begin * per_edge - node * _BYTES_PER_NODE) / per_edge)
        edge = min(max(edge, begin), end)
        if (end - begin) * per_edge <= cut_share * part_bytes:
            edge = begin if edge - begin < end - edge else end
        place = (edge, node if edge == begin else node + 1)
        if place > places[-1] and place[1] <= n_nodes and place != (graph.n_edges, n_nodes):
            places.append(place)
    places.append((graph.n_edges, n_nodes))
    cuts, first_nodes = (np.array(column, np.int64) for column in zip(*places, strict=True))
    return _describe(graph, cuts, first_nodes)


def _describe(graph: Graph, cuts: NDArray[np.int64], first_nodes: NDArray[np.int64]) -> Parts:
    n_parts = cuts.size - 1
    first_rows = first_nodes[:-1].copy()
    until = np.arange(n_parts)
    before, whole = np.zeros(n_parts, np.int64), np.zeros(n_parts, np.int64)
    for part in range(1, n_parts):
        node, cut = int(first_nodes[part]) - 1, int(cuts[part])
        if node < 0 or not graph.indptr[node] < cut < graph.indptr[node + 1]:
            continue
        first_rows[part] = node
        if graph.cumulative is not None:
            before[part] = graph.cumulative[cut - 1]
            whole[part - 1] = graph.cumulative[graph.indptr[node + 1] - 1]
        # The part in which this row begins is the last one that owns a node before this cut.
        owner = int(np.searchsorted(first_nodes, node, side="right")) - 1
        until[owner] = part
    return Parts(cuts, first_rows, first_nodes, until, before, whole)


def _node_at(graph: Graph, offset: float) -> int:
    """The node whose row, or whose own bytes, lie at ``offset`` of the graph's bytes."""
    per_edge = _bytes_per_edge(graph)
    low, high = 0, graph.n_nodes - 1
    while low < high:
        middle = (low + high + 1) // 2
        if int(graph.indptr[middle]) * per_edge + middle * _BYTES_PER_NODE <= offset:
            low = middle
        else:
            high = middle - 1
    return low


def _bytes_per_edge(graph: Graph) -> int:
    return 4 if graph.cumulative is None else 8


def graph_bytes(graph: Graph) -> int:
    """Bytes of a graph that walks touch."""
    return graph.n_edges * _bytes_per_edge(graph) + graph.n_nodes * _BYTES_PER_NODE


@dataclass(frozen=True, slots=True)
class Sizes:
    """How a run is cut.

    Attributes
    ----------
    n_parts
        Parts of the graph; each is one task of a round.
    batch_sources
        Sources that begin together; a new batch begins in every round.
    chunk_messages
        Messages that a task holds at once.
    rest_messages
        Where no more walks of a batch are left than this, about, one task takes its other steps alone.
    """

    n_parts: int
    batch_sources: int
    chunk_messages: int
    rest_messages: int = 1 << 14


def plan_sizes(
    graph: Graph,
    params: FingerprintParams,
    *,
    memory_bytes: int,
    slots: int,
    n_parts: int | None = None,
    batch_sources: int | None = None,
) -> Sizes:
    """Sizes for workers that may hold ``memory_bytes`` each of graph and messages, beside the interpreter.

    Half of it is for the part, half for messages. What a single source needs comes on top where it is more:
    its messages for a part, about 100 bytes for each of its moves at worst, and its row.

    Parameters
    ----------
    memory_bytes
        Memory of a worker for its part and its messages.
    slots
        Tasks that run at once; there are at least as many parts.
    n_parts, batch_sources
        Instead of what the memory asks for.

    Raises
    ------
    ParameterError
        A size is not positive.
    ResourceError
        The memory is too small for any part.
    """
    for name, value in (
        ("memory_bytes", memory_bytes),
        ("n_parts", n_parts),
        ("batch_sources", batch_sources),
    ):
        if value is not None and value < 1:
            raise ParameterError(f"'{name}' must be positive (got {value})")
    if memory_bytes < LEAST_MEMORY_BYTES:
        raise ResourceError(
            f"a worker may hold {memory_bytes} bytes of graph and messages, but walks over parts need "
            f"{LEAST_MEMORY_BYTES}: give more memory, or fewer workers"
        )
    share = memory_bytes // 2
    chunk = share // _BYTES_PER_MESSAGE
    parts = n_parts or max(slots, math.ceil(graph_bytes(graph) / share))
    round_messages = min(_ROUND_MESSAGES, _CHUNKS_PER_ROUND * chunk)
    batch = batch_sources or max(1, math.ceil(round_messages * parts / expected_moves(params)))
    return Sizes(parts, batch, min(chunk, _MOST_CHUNK))


@dataclass(frozen=True, slots=True, eq=False)
class PartArrays:
    """What a task holds of the graph, in the form of :func:`ppr.kernels.partitioned.advance`.

    Attributes
    ----------
    kernel
        (indptr, indices, cumulative, least node, base, weight before, weight cut).
    kind_ids
        uint8, of the nodes from ``first_own`` on.
    least, first_own, end
        The part holds edges of nodes from ``least`` to ``end``; those from ``first_own`` on begin there.
    """

    kernel: tuple[Any, ...]
    kind_ids: NDArray[np.uint8]
    least: int
    first_own: int
    end: int

    @classmethod
    def load(cls, graph: Graph, parts: Parts, part: int) -> PartArrays:
        """Map a part of a store, or slice a graph in memory."""
        least, first_own = int(parts.first_rows[part]), int(parts.first_nodes[part])
        begin, stop = int(parts.cuts[part]), int(parts.cuts[part + 1])
        end = int(parts.first_nodes[part + 1])
        end = max(end, least + 1) if stop > begin else end
        cumulative = (
            np.empty(0, np.uint32)
            if graph.cumulative is None
            else _slice(graph, "cumulative", graph.cumulative, begin, stop)
        )
        arrays = (
            _slice(graph, "indptr", graph.indptr, least, end + 1),
            _slice(graph, "indices", graph.indices, begin, stop),
            cumulative,
        )
        for array in arrays:  # compiled for one type, mapped or in memory
            array.flags.writeable = False
        kinds = _slice(graph, "kinds", graph.kind_ids, first_own, end)
        kinds.flags.writeable = False
        weights = int(parts.weight_before[part]), int(parts.weight_cut[part])
        return cls((*arrays, least, begin, *weights), kinds, least, first_own, end)


def _slice(graph: Graph, name: str, array: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """A slice that keeps nothing else mapped."""
    if graph.path is None or stop <= start:
        return array[start:stop].view()
    path = Path(graph.path, f"{name}.npy")
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        _, _, dtype = read(file)
        offset = file.tell() + start * dtype.itemsize
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(stop - start,)).view(np.ndarray)
