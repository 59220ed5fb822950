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
``removed.npy``    int32 [r], ids of removed nodes, ascending; where there are any only
``manifest.json``  format, version, parameters, counts, files, checksum
=================  ==============================================================================

Weights are integers within each row, so that sums of them are exact in any order: what a walk draws does
not depend on how an adjacency list is cut. A node without out-edges is *dangling*: walks end there, and
their mass is not handed on to anyone.

Along a graph's lineage (:mod:`ppr.lineage`) ids are append-only, so that a node which is gone keeps its id:
it is *removed*, has no edges and no key, and is found by nobody.
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

from ppr.arrays import check_removed, check_rows, map_array, quantise
from ppr.errors import DataError, StoreError
from ppr.manifest import check_files, describe_files, new_store, read_manifest, write_manifest
from ppr.nodes import REMOVED_FILE, NodeTable, blanked, kind_position, no_nodes

FORMAT = "fairpath-graph"
VERSION = 2
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
    removed
        int32 [r], ids of removed nodes, ascending; empty for a graph that is not a later one of a lineage.
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
    removed: npt.NDArray[np.int32] = field(default_factory=no_nodes)
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
            n_removed = manifest["counts"].get("removed", 0)
        except (KeyError, TypeError) as error:
            raise StoreError(f"{folder}: the manifest lacks {error}") from None
        arrays = {
            name: map_array(folder / f"{name}.npy", dtype, _length(name, n_nodes, n_edges))
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
            removed=map_array(folder / REMOVED_FILE, "<i4", n_removed) if n_removed else no_nodes(),
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
        removed: npt.ArrayLike = (),
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
        removed
            Ids of nodes that are removed, ascending, without edges; their keys are blanked.

        Raises
        ------
        DataError
            An array breaks its rule.
        """
        rows = np.asarray(indptr, dtype=np.int64)
        columns = np.asarray(indices, dtype=np.int64)
        check_rows(rows, columns)
        gone = np.asarray(removed, dtype=np.int32)
        check_removed(gone, rows, columns)
        n_nodes = len(rows) - 1
        cumulative, strength = quantise(rows, weights, len(columns))
        key_array = pa.array(np.arange(n_nodes) if keys is None else keys)
        key_type = pa.int64() if pa.types.is_integer(key_array.type) else pa.large_string()
        if len(key_array) != n_nodes:
            raise DataError(f"'keys' must have {n_nodes} entries (got {len(key_array)})")
        nodes = NodeTable(
            keys=blanked(key_array.cast(key_type), gone),
            kind_ids=np.zeros(n_nodes, np.uint8) if kind_ids is None else np.asarray(kind_ids, np.uint8),
            kinds=tuple(kinds),
            removed=gone,
        )
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
            removed=gone,
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
        """Number of nodes n, removed ones included: ids go from 0 to n - 1."""
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
    def live(self) -> npt.NDArray[np.int32]:
        """Ids of all nodes that are not removed, int32, ascending."""
        return np.delete(np.arange(self.n_nodes, dtype=np.int32), self.removed)

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
        return NodeTable.read(self.path, self.kind_ids, self.kinds, self.removed)

    def keys(self, ids: npt.ArrayLike) -> npt.NDArray[Any]:
        """Keys of dense ids: int64, or objects of str. UnknownNodeError for one that no node has."""
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
        """Ids of the nodes of a kind, int32, ascending, without removed ones."""
        return np.flatnonzero(self.of_kinds([name])).astype(np.int32)

    def of_kinds(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which nodes are of these kinds and not removed, bool [n]. UnknownNodeError for another kind."""
        chosen: npt.NDArray[np.bool_] = np.isin(self.kind_ids, [self.kind_id(name) for name in names])
        chosen[self.removed] = False
        return chosen

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
    folder: Path,
    nodes: NodeTable,
    *,
    directed: bool,
    parameters: dict[str, Any],
    counts: dict[str, int],
    parents: dict[str, str] | None = None,
) -> str:
    """Write the manifest of a store whose arrays and node table are in ``folder``; returns the checksum."""
    arrays = {
        name: map_array(folder / f"{name}.npy", dtype, None)
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
        removed=nodes.removed,
        _nodes=nodes,
    )
    n_removed = len(nodes.removed)
    checksum = content_checksum(graph)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": parameters,
        "parents": parents or {},
        "counts": {
            "nodes": graph.n_nodes,
            "edges": graph.n_edges,
            "dangling": int(np.count_nonzero(graph.indptr[1:] == graph.indptr[:-1])) - n_removed,
            **({"removed": n_removed} if n_removed else {}),
            **counts,
        },
        "kinds": list(nodes.kinds),
        "nodes_per_kind": dict(zip(nodes.kinds, nodes.per_kind.tolist(), strict=True)),
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
