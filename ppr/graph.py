"""The graph store: out-neighbours in compressed rows, memory-mapped, with the node table beside them.

On disk, a folder with

=================  ==============================================================================
``indptr.npy``     int64 [n + 1], bounds of each node's row
``indices.npy``    int32 [m], out-neighbours, ascending within a row, no duplicates
``cumulative.npy``  uint32 [m], inclusive sums of the quantised weights within each row; weighted only
``strength.npy``   float64 [n], sum of each node's out-weights as they were given
``kinds.npy``      uint8 [n], kind of each node
``nodes.parquet``  id, kind, key
``keys.npy`` ...   the same as arrays that are mapped; see :mod:`ppr.nodes`
``manifest.json``  format, version, parameters, counts, files, checksum
=================  ==============================================================================

Weights are integers within each row, so that sums of them are exact in any order: what a walk draws does
not depend on how an adjacency list is cut. A node without out-edges is *dangling*: walks end there, and
their mass is not handed on to anyone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse as sp

from ppr.errors import DataError, StoreError
from ppr.kernels.edges import quantise_rows
from ppr.manifest import check_files, describe_files, new_store, read_manifest, write_manifest
from ppr.nodes import NodeTable, kind_position

FORMAT = "fairpath-graph"
VERSION = 2
MAX_NODES = (1 << 31) - 1
_ARRAYS = {"indptr": "<i8", "indices": "<i4", "cumulative": "<u4", "strength": "<f8", "kinds": "|u1"}


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """A graph with dense int32 node ids, ready to be walked. Immutable; threads may share it.

    Make one with :meth:`open`, :meth:`from_arrays` or :func:`ppr.build.build_graph`.

    Parameters
    ----------
    indptr
        int64 [n + 1].
    indices
        int32 [m], out-neighbours, ascending within a row, no duplicates.
    cumulative
        uint32 [m], inclusive sums of quantised weights within each row, or None where all weights are 1.
    strength
        float64 [n], sum of the original out-weights.
    kind_ids
        uint8 [n], positions in ``kinds``.
    kinds
        Names of the node kinds.
    directed
        Whether any edge was given in one direction only.
    checksum
        SHA-256 of the content, hex: the graph's identity.
    path
        Folder of the store, or None for a graph in memory.
    manifest
        Manifest of the store; empty for a graph in memory.
    """

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    cumulative: npt.NDArray[np.uint32] | None
    strength: npt.NDArray[np.float64]
    kind_ids: npt.NDArray[np.uint8]
    kinds: tuple[str, ...]
    directed: bool
    checksum: str
    path: Path | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    _nodes: NodeTable | None = None

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Graph:
        """Open a store.

        Parameters
        ----------
        path
            Folder of the store.
        verify
            Compare every file and the content with their checksums, which reads all of the store. Without,
            only sizes, types and shapes are checked.

        Raises
        ------
        MissingDataError
            There is no store.
        StoreError
            The store is damaged, truncated, or of another version.
        """
        folder = Path(path)
        manifest = read_manifest(folder, format_name=FORMAT, version=VERSION)
        check_files(folder, manifest, verify=verify)
        try:
            n_nodes, n_edges = manifest["counts"]["nodes"], manifest["counts"]["edges"]
            kinds, weighted = tuple(manifest["kinds"]), bool(manifest["weighted"])
            directed, checksum = bool(manifest["directed"]), str(manifest["checksum"])
        except (KeyError, TypeError) as error:
            raise StoreError(f"{folder}: the manifest lacks {error}") from None
        arrays = {
            name: _map_array(folder / f"{name}.npy", dtype, _length(name, n_nodes, n_edges))
            for name, dtype in _ARRAYS.items()
            if weighted or name != "cumulative"
        }
        graph = cls(
            indptr=arrays["indptr"],
            indices=arrays["indices"],
            cumulative=arrays.get("cumulative"),
            strength=arrays["strength"],
            kind_ids=arrays["kinds"],
            kinds=kinds,
            directed=directed,
            checksum=checksum,
            path=folder,
            manifest=manifest,
        )
        if verify and content_checksum(graph) != checksum:
            raise StoreError(f"{folder}: the content does not match the manifest's checksum")
        return graph

    @classmethod
    def from_arrays(
        cls,
        indptr: npt.ArrayLike,
        indices: npt.ArrayLike,
        weights: npt.ArrayLike | None = None,
        *,
        kind_ids: npt.ArrayLike | None = None,
        kinds: Sequence[str] = ("node",),
        keys: Sequence[int] | Sequence[str] | npt.NDArray[Any] | None = None,
        directed: bool = True,
    ) -> Graph:
        """Graph in memory from compressed rows.

        Parameters
        ----------
        indptr
            Integers [n + 1].
        indices
            Integers [m], ascending within a row, no duplicates.
        weights
            Positive finite numbers [m], or None for an unweighted graph.
        kind_ids
            Integers [n], or None when all nodes are of the first kind.
        kinds
            Names of the node kinds.
        keys
            Integers or strings [n], unique within a kind, or None for the dense ids themselves.
        directed
            What :attr:`directed` shall say.

        Raises
        ------
        DataError
            An array breaks its rule.
        """
        rows = np.asarray(indptr, dtype=np.int64)
        columns = np.asarray(indices, dtype=np.int64)
        _check_rows(rows, columns)
        n_nodes = len(rows) - 1
        cumulative, strength = _quantise(rows, weights, len(columns))
        key_array = pa.array(np.arange(n_nodes) if keys is None else keys)
        key_type = pa.int64() if pa.types.is_integer(key_array.type) else pa.large_string()
        nodes = NodeTable(
            keys=key_array.cast(key_type),
            kind_ids=np.zeros(n_nodes, np.uint8) if kind_ids is None else np.asarray(kind_ids, np.uint8),
            kinds=tuple(kinds),
        )
        if len(nodes.keys) != n_nodes:
            raise DataError(f"'keys' must have {n_nodes} entries (got {len(nodes.keys)})")
        nodes.check()
        graph = cls(
            indptr=rows,
            indices=columns.astype(np.int32),
            cumulative=cumulative,
            strength=strength,
            kind_ids=nodes.kind_ids,
            kinds=nodes.kinds,
            directed=directed,
            checksum="",
            _nodes=nodes,
        )
        object.__setattr__(graph, "checksum", content_checksum(graph))
        return graph

    def save(self, path: str | Path) -> Graph:
        """Write the graph as a store and open that. Fails when there is something at ``path``."""
        folder = Path(path)
        with new_store(folder) as working:
            for name, array in self._stored_arrays():
                np.save(working / f"{name}.npy", array)
            self.nodes.write(working)
            seal(working, self.nodes, directed=self.directed, parameters={}, counts={})
        return Graph.open(folder, verify=False)

    def __repr__(self) -> str:
        what = f"{'directed' if self.directed else 'undirected'}{', weighted' if self.weighted else ''}"
        return f"<Graph of {self.n_nodes} nodes ({', '.join(self.kinds)}), {self.n_edges} edges, {what}>"

    @property
    def n_nodes(self) -> int:
        """Number of nodes n."""
        return len(self.strength)

    @property
    def n_edges(self) -> int:
        """Number of stored edges m; an undirected edge counts twice."""
        return len(self.indices)

    @property
    def weighted(self) -> bool:
        """Whether some weight is not 1."""
        return self.cumulative is not None

    @property
    def out_degree(self) -> npt.NDArray[np.int64]:
        """Out-degree of each node, int64 [n]."""
        return np.diff(self.indptr)

    @cached_property
    def nodes(self) -> NodeTable:
        """The node table, read at its first use."""
        if self._nodes is not None:
            return self._nodes
        assert self.path is not None
        return NodeTable.read(self.path, self.kind_ids, self.kinds)

    def keys(self, ids: npt.ArrayLike) -> npt.NDArray[Any]:
        """Keys of dense ids: int64, or objects of str. UnknownNodeError for an id out of range."""
        return self.nodes.keys_of(ids)

    def ids(self, keys: Sequence[Any] | npt.NDArray[Any], kind: str | None = None) -> npt.NDArray[np.int32]:
        """Dense ids of keys, int32.

        Parameters
        ----------
        keys
            Integers or strings, as the graph has them.
        kind
            Kind to look in; None looks in all and refuses a key that several kinds have.

        Raises
        ------
        UnknownNodeError
            A key or the kind is not in the graph; names the first one.
        ParameterError
            A key is in several kinds and ``kind`` is None.
        """
        return self.nodes.ids_of(keys, kind)

    def kind_id(self, name: str) -> int:
        """Position of a kind in :attr:`kinds`. UnknownNodeError lists the kinds there are."""
        return kind_position(self.kinds, name)

    def nodes_of_kind(self, name: str) -> npt.NDArray[np.int32]:
        """Ids of the nodes of a kind, int32, ascending."""
        return np.flatnonzero(self.kind_ids == self.kind_id(name)).astype(np.int32)

    def weights(self, node: int | None = None) -> npt.NDArray[np.float64]:
        """Weights of a node's out-edges, or of all edges, recovered from the quantised ones, float64."""
        if node is None:
            if self.cumulative is None:
                return np.ones(self.n_edges)
            return self._probabilities() * np.repeat(self.strength, self.out_degree)
        start, end = self.indptr[node], self.indptr[node + 1]
        if self.cumulative is None:
            return np.ones(end - start)
        quantised = np.diff(self.cumulative[start:end].astype(np.int64), prepend=0)
        weights: npt.NDArray[np.float64] = quantised / max(quantised.sum(), 1) * self.strength[node]
        return weights

    def transition(self) -> sp.csr_matrix:
        """Transition matrix of the walks, float64 [n, n]: rows sum to 1, those of dangling nodes to 0."""
        shape = (self.n_nodes, self.n_nodes)
        return sp.csr_matrix((self._probabilities(), self.indices, self.indptr), shape=shape)

    def _probabilities(self) -> npt.NDArray[np.float64]:
        degree = self.out_degree
        if self.cumulative is None:
            return 1.0 / np.repeat(degree, degree).astype(np.float64)
        quantised = np.diff(self.cumulative.astype(np.int64), prepend=0)
        rows = np.flatnonzero(degree)
        starts = self.indptr[rows]
        quantised[starts] = self.cumulative[starts]
        totals = self.cumulative[self.indptr[rows + 1] - 1].astype(np.float64)
        return quantised / np.repeat(totals, degree[rows])

    def _stored_arrays(self) -> list[tuple[str, npt.NDArray[Any]]]:
        """Arrays of the content in their fixed order, without the node table."""
        arrays: list[tuple[str, npt.NDArray[Any]]]
        arrays = [("indptr", self.indptr), ("indices", self.indices), ("strength", self.strength)]
        return arrays if self.cumulative is None else [*arrays, ("cumulative", self.cumulative)]


def content_checksum(graph: Graph) -> str:
    """SHA-256 over the arrays and the node table, hex; independent of file framing."""
    digest = hashlib.sha256()
    for name, array in graph._stored_arrays():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array, dtype=_ARRAYS[name]).data)
    graph.nodes.update_checksum(digest)
    digest.update(b"directed" if graph.directed else b"undirected")
    return digest.hexdigest()


def seal(
    folder: Path, nodes: NodeTable, *, directed: bool, parameters: dict[str, Any], counts: dict[str, int]
) -> str:
    """Write the manifest of a store whose arrays and node table are in ``folder``; returns the checksum."""
    arrays = {
        name: _map_array(folder / f"{name}.npy", dtype, None)
        for name, dtype in _ARRAYS.items()
        if (folder / f"{name}.npy").exists()
    }
    graph = Graph(
        indptr=arrays["indptr"],
        indices=arrays["indices"],
        cumulative=arrays.get("cumulative"),
        strength=arrays["strength"],
        kind_ids=arrays["kinds"],
        kinds=nodes.kinds,
        directed=directed,
        checksum="",
        _nodes=nodes,
    )
    per_kind = np.bincount(graph.kind_ids, minlength=len(nodes.kinds))
    checksum = content_checksum(graph)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": parameters,
        "parents": {},
        "counts": {
            "nodes": graph.n_nodes,
            "edges": graph.n_edges,
            "dangling": int(np.count_nonzero(graph.out_degree == 0)),
            **counts,
        },
        "kinds": list(nodes.kinds),
        "nodes_per_kind": dict(zip(nodes.kinds, per_kind.tolist(), strict=True)),
        "key_type": "int64" if nodes.is_integer else "string",
        "directed": directed,
        "weighted": graph.weighted,
        "files": describe_files(folder),
        "checksum": checksum,
    }
    write_manifest(folder, manifest)
    return checksum


def _length(name: str, n_nodes: int, n_edges: int) -> int:
    if name == "indptr":
        return n_nodes + 1
    return n_edges if name in ("indices", "cumulative") else n_nodes


def _map_array(path: Path, dtype: str, length: int | None) -> npt.NDArray[Any]:
    """Memory-map a one-dimensional array and check its type and length."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(f"{path}: missing from the store") from None
    except (ValueError, EOFError):
        array = _load_empty(path)
    if array.dtype != np.dtype(dtype) or array.ndim != 1 or length not in (None, len(array)):
        raise StoreError(f"{path}: must be {dtype} [{length}] (got {array.dtype} {list(array.shape)})")
    # A plain view: memmap's own methods cost more per slice, and it stays as read-only as it was.
    return array.view(np.ndarray)


def _load_empty(path: Path) -> npt.NDArray[Any]:
    """An array without entries, which cannot be mapped."""
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise StoreError(f"{path}: not a NumPy array ({error})") from None
    array.flags.writeable = False
    return array


def _check_rows(indptr: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> None:
    if indptr.ndim != 1 or len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(indices):
        raise DataError(f"'indptr' must go from 0 to the number of edges {len(indices)}")
    if np.any(np.diff(indptr) < 0):
        raise DataError("'indptr' must not decrease")
    n_nodes = len(indptr) - 1
    if n_nodes > MAX_NODES:
        raise DataError(f"a graph must have at most {MAX_NODES} nodes (got {n_nodes})")
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_nodes:
        raise DataError(
            f"'indices' must be between 0 and {n_nodes - 1} (got {indices.min()}…{indices.max()})"
        )
    row_of = np.repeat(np.arange(n_nodes), np.diff(indptr))
    same_row = row_of[1:] == row_of[:-1]
    wrong = np.flatnonzero(same_row & (np.diff(indices) <= 0))
    if len(wrong):
        raise DataError(f"'indices' must ascend within a row without duplicates (row {row_of[wrong[0]]})")


def _quantise(
    indptr: npt.NDArray[np.int64], weights: npt.ArrayLike | None, n_edges: int
) -> tuple[npt.NDArray[np.uint32] | None, npt.NDArray[np.float64]]:
    """Cumulative quantised weights (None where all are 1) and strengths."""
    if weights is None:
        return None, np.diff(indptr).astype(np.float64)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n_edges,):
        raise DataError(f"'weights' must have {n_edges} entries (got {list(values.shape)})")
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(wrong):
        raise DataError(f"edge {wrong[0]}: 'weight' must be positive and finite (got {values[wrong[0]]})")
    cumulative = np.empty(n_edges, dtype=np.uint32)
    strength = np.empty(len(indptr) - 1)
    row = quantise_rows(indptr, values, cumulative, strength)
    if row >= 0:
        raise DataError(f"node {row}: the sum of its weights must be finite")
    return (None if np.all(values == 1.0) else cumulative), strength
