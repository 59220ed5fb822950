"""A graph store from another one and changes to it, without the tables that the other was built from.

The rows of the old store are read once, in order: those without a change are copied as they are, in long
runs, those with one are merged with it. In memory are the changes, the keys, and a few arrays of one number
per node, about 60 bytes and twice the key in all, and one bucket of edges; so changes that do not fit in
memory are for :func:`ppr.build.build_graph`.

Policies
--------
Directions
    As for a build: the kinds of a table tell whether its edges lead both ways. In a graph where all do, those
    of a table between nodes of one kind do too, unless the input says otherwise.
Added edges
    A node that is not there becomes a new one. Weights add up, those of rows given twice and those of an edge
    that is there, as if its rows had been in the tables of a build: in an unweighted graph, an edge given
    again weighs 2, and the graph becomes weighted.
Removed edges
    Go whatever they weigh. Their nodes stay, without edges if these were the last.
Removed nodes
    Go with all their edges; see :mod:`ppr.lineage`.
Self-loops
    As in the graph before: dropped and counted, or kept; a graph in memory keeps them.
Weights
    Rows without a change keep their bits. In a row with one, weights are recovered from the quantised ones:
    exactly where all of the old row are integers (1 included) with a sum below 2^32, else each to 2^-31 of
    the old row's sum. So a light edge may be far off once a very heavy one beside it goes; such rows are
    counted.

So the changed graph is the one that :func:`ppr.build.build_graph` makes of all resulting edges and nodes
after the same graph: bit for bit where no row is rounded.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ppr.build import BUCKET_EDGES
from ppr.change_tables import ChangedEdges, ReadEdges, edges_of, read_edges, read_nodes
from ppr.changed_rows import EdgeChanges, write_changed_rows
from ppr.errors import DataError, ParameterError
from ppr.graph import FORMAT, VERSION, Graph, seal
from ppr.inputs import EdgeInput, NodeInput, describe_input
from ppr.kernels.changes import find_edges
from ppr.kernels.edges import merge_duplicates
from ppr.keys import DistinctKeys
from ppr.lineage import number_nodes, parents_of
from ppr.nodes import NodeTable
from ppr.request import Progress, as_inputs, open_or_fill


def change_graph(
    graph: Graph,
    out: str | Path,
    *,
    added: Any = (),
    removed: Any = (),
    removed_nodes: Any = (),
    bucket_edges: int = BUCKET_EDGES,
    progress: Progress | None = None,
) -> Graph:
    """Make a graph store of a graph and changes to it.

    Parameters
    ----------
    graph
        The graph before.
    out
        Folder of the new store. If a store made of the same graph by the same changes is there, it is opened
        and nothing is done; for changes in memory, it is made anew to compare it.
    added, removed
        Edges: one :class:`ppr.inputs.EdgeInput` or several, or bare data for one with default options; also
        GraphFrames, whose vertices are nodes of the new graph if added, and not looked at if removed. Nor are
        the weights of removed edges.
    removed_nodes
        Nodes: one :class:`ppr.inputs.NodeInput` or several, or bare data for one. A node whose kind neither
        the table nor the input names is looked for in all kinds.
    bucket_edges
        Edges in memory at a time, 50 bytes each; a row with more of them is still taken whole.
    progress
        Called with the stage, what is done, and the total or None where it is not known.

    Returns
    -------
    Graph
        The new graph. Its manifest's ``counts`` say what has changed: ``nodes_added``, ``nodes_removed``,
        ``edges_added``, ``edges_removed`` (with those of removed nodes; an undirected edge counts twice),
        ``rows_changed``, ``rows_rounded`` (those with weights known to 2^-31 of their sum before only),
        ``opposites_left`` (edges that stay while the removed tables name just their opposite), and
        ``self_loop_rows`` (rows of added and removed edges from a node to itself).

    Raises
    ------
    ParameterError
        No change is given.
    MissingDataError
        A file, folder or column is missing.
    DataError
        A row breaks a rule of its table; or one of these, before anything is written: a removed edge is not
        there, or removed twice; an edge is both added and removed; a removed edge or node names a node that
        is not there; a removed node is listed twice, or gets an edge.
    OutputExistsError
        ``out`` is there and was made otherwise.
    ResourceError
        The disk is full or cannot be written.
    """
    if bucket_edges < 1:
        raise ParameterError(f"'bucket_edges' must be positive (got {bucket_edges})")
    changes = _Changes(
        as_inputs(added, EdgeInput), as_inputs(removed, EdgeInput), as_inputs(removed_nodes, NodeInput)
    )
    described = changes.described()
    if not any(described.values()):
        raise ParameterError("a change must be given: 'added', 'removed' or 'removed_nodes'")
    # A graph that was not built keeps the self-loops that it was given.
    self_loops = graph.manifest.get("parameters", {}).get("self_loops", "keep")
    parameters = {**described, "self_loops": self_loops}
    identity = {"format": FORMAT, "version": VERSION, "parameters": parameters, "parents": parents_of(graph)}
    changer = _Changer(graph, changes, parameters, bucket_edges, progress or (lambda *_: None))
    return open_or_fill(Path(out), identity, list(chain(*described.values())), changer.fill)


@dataclass(frozen=True, slots=True)
class _Changes:
    added: Sequence[EdgeInput]
    removed: Sequence[EdgeInput]
    removed_nodes: Sequence[NodeInput]

    def described(self) -> dict[str, list[dict[str, Any]]]:
        """Descriptions of the inputs."""
        return {
            "added": [describe_input(source) for source in self.added],
            "removed": [describe_input(source) for source in self.removed],
            "removed_nodes": [describe_input(source) for source in self.removed_nodes],
        }


@dataclass(frozen=True, slots=True)
class _Changer:
    graph: Graph
    changes: _Changes
    parameters: dict[str, Any]
    bucket_edges: int
    progress: Progress

    def fill(self, working: Path) -> str:
        """Write the files of the store; returns its checksum."""
        graph = self.graph
        staging = working / "staging"
        self.progress("read changes", 0, None)
        gone = read_nodes(self.changes.removed_nodes, "removed nodes", graph, staging)
        removing = read_edges(self.changes.removed, "removed", graph, staging, weights=False)
        adding = read_edges(self.changes.added, "added", graph, staging, weights=True)
        keep_loops = self.parameters["self_loops"] == "keep"
        removed = edges_of(removing, graph.nodes, keep_loops=keep_loops)
        _check_removed(removed, graph)
        _refuse_gone(adding, graph.nodes, gone)
        nodes = _number(adding, graph.nodes, gone)
        added = edges_of(adding, nodes, keep_loops=keep_loops)
        _refuse_both(added, removed, graph.nodes)
        n_merged = merge_duplicates(added.keys, added.weights)
        keys, weights = added.keys[:n_merged], added.weights[:n_merged]
        there = np.empty(n_merged, dtype=np.bool_)
        find_edges(graph.indptr, graph.indices, keys, there)
        if staging.exists():
            shutil.rmtree(staging)

        edges = EdgeChanges(removed.keys, keys, weights, gone, len(nodes.keys))
        weighted = graph.weighted or bool(there.any() or np.any(weights != 1.0))
        written = write_changed_rows(
            graph,
            edges,
            working,
            weighted=weighted,
            bucket_edges=self.bucket_edges,
            name_of=nodes.name_of,
            progress=self.progress,
        )
        nodes.write(working)
        n_new = n_merged - int(np.count_nonzero(there))
        self.progress("checksum", 0, 1)
        checksum = seal(
            working,
            nodes,
            directed=graph.directed or any(table.directed for table in adding.tables + removing.tables),
            parameters=self.parameters,
            counts={
                "nodes_added": len(nodes.keys) - graph.n_nodes,
                "nodes_removed": len(gone),
                "edges_added": n_new,
                "edges_removed": graph.n_edges + n_new - written.n_edges,
                "rows_changed": written.n_changed,
                "rows_rounded": written.n_rounded,
                "opposites_left": _opposites_left(removed, graph, gone),
                "self_loop_rows": removed.n_loops + added.n_loops,
            },
            parents=parents_of(graph),
        )
        self.progress("checksum", 1, 1)
        return checksum


def _check_removed(removed: ChangedEdges, graph: Graph) -> None:
    """Refuse removed edges that are not there, or removed twice."""
    there = np.empty(len(removed.keys), dtype=np.bool_)
    find_edges(graph.indptr, graph.indices, removed.keys, there)
    at = removed.first_of(~there)
    if at is not None:
        raise removed.error(at, f"{_edge(removed, at, graph.nodes)} is not there")
    again = np.zeros(len(removed.keys), dtype=np.bool_)
    again[1:] = removed.keys[1:] == removed.keys[:-1]
    at = removed.first_of(again)
    if at is not None:
        rule = f"{_edge(removed, at, graph.nodes)} is removed twice (before in {removed.place(at - 1)})"
        raise removed.error(at, rule)


def _refuse_both(added: ChangedEdges, removed: ChangedEdges, nodes: NodeTable) -> None:
    """Refuse edges that are both added and removed."""
    at = removed.first_of(np.isin(removed.keys, added.keys))
    if at is not None:
        other = int(np.searchsorted(added.keys, removed.keys[at]))
        rule = f"{_edge(removed, at, nodes)} is both removed and added (in {added.place(other)})"
        raise removed.error(at, rule)


def _refuse_gone(adding: ReadEdges, nodes: NodeTable, gone: npt.NDArray[np.int32]) -> None:
    """Refuse added edges and vertices that name a node which is removed."""
    if not len(gone):
        return
    for table_name, kind, keys in adding.vertices:
        ids = nodes.find(keys, kind)
        wrong = np.flatnonzero(np.isin(ids, gone))
        if len(wrong):
            name = nodes.name_of(int(ids[wrong[0]]))
            raise DataError(f"{table_name}: a removed node must not be among them (got {name})")
    for table, first_row, batch in adding.batches:
        for keys, kind in ((batch.src, table.src_kind), (batch.dst, table.dst_kind)):
            ids = nodes.find(keys, kind)
            wrong = np.flatnonzero(np.isin(ids, gone))
            if len(wrong):
                rule = f"a removed node must get no edge (got {nodes.name_of(int(ids[wrong[0]]))})"
                raise adding.places.error(first_row + int(wrong[0]), rule)


def _opposites_left(removed: ChangedEdges, graph: Graph, gone: npt.NDArray[np.int32]) -> int:
    """Number of edges that stay though their opposite is removed."""
    src, dst = removed.src, removed.dst
    opposites = dst << 32 | src
    there = np.empty(len(opposites), dtype=np.bool_)
    find_edges(graph.indptr, graph.indices, opposites, there)
    going = np.isin(opposites, removed.keys) | np.isin(src, gone) | np.isin(dst, gone)
    return int(np.count_nonzero(there & ~going))


def _number(adding: ReadEdges, nodes: NodeTable, gone: npt.NDArray[np.int32]) -> NodeTable:
    """Nodes of the graph and those that added edges bring."""
    per_kind: dict[str, DistinctKeys] = {}
    for kind, keys in adding.named():
        per_kind.setdefault(kind, DistinctKeys()).add(keys)
    as_strings = not nodes.is_integer
    named = {kind: per_kind[kind].sorted(as_strings=as_strings) for kind in per_kind}
    return number_nodes(named, nodes, gone)[0]


def _edge(edges: ChangedEdges, at: int, nodes: NodeTable) -> str:
    return f"the edge from {nodes.name_of(int(edges.src[at]))} to {nodes.name_of(int(edges.dst[at]))}"
