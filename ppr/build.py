"""Build a graph store from tables of edges, in two passes and with bounded memory.

The first pass collects the distinct keys of each kind; dense ids are given in the order of (kind, key). The
second translates the edges to dense ids and spills them to disk, then an external bucket sort brings them
into rows: edges are scattered to ranges of sources with about equal numbers of edges, and range by range
sorted, merged, quantised and appended to the store. In memory at any time are the keys, a few arrays of one
number per node, one bucket and one batch, which is gathered to about the size of the keys.

Policies
--------
Duplicate edges
    Their weights are added. In an undirected table, (a, b) and (b, a) are the same edge.
Self-loops
    Dropped by default: an edge from a node to itself says nothing about what is near to it, yet it holds
    walks there. ``keep`` stores it once. Either way the node is in the graph.
Isolated nodes
    In the graph if a node table lists them.
Dangling nodes
    In the graph; walks end there.

The result depends on the content of the input only, not on the order of its rows, their split into files and
batches, or the file format; and, where there is one, on the previous graph, whose dense ids go on (see
:mod:`ppr.lineage`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ppr.errors import ParameterError
from ppr.graph import Graph, seal
from ppr.inputs import EdgeBatch, EdgeTable, KeyType, NodeList
from ppr.keys import DistinctKeys, KeyTranslator
from ppr.lineage import number_nodes, parents_of
from ppr.nodes import NodeTable
from ppr.request import BuildRequest, Progress, SelfLoops, refuse_empty
from ppr.sorting import EdgeSpill, write_rows

BUCKET_EDGES = 1 << 22
_GATHER_BYTES = 1 << 24


def build_graph(
    inputs: Any,
    out: str | Path,
    *,
    nodes: Any = (),
    self_loops: SelfLoops = "drop",
    key_type: KeyType = "auto",
    previous: Graph | None = None,
    bucket_edges: int = BUCKET_EDGES,
    progress: Progress | None = None,
) -> Graph:
    """Build a graph store.

    Parameters
    ----------
    inputs
        One :class:`EdgeInput` or several, or bare data for one with default options. The data may be a
        GraphFrame: see :mod:`ppr.frames`.
    out
        Folder of the store. If a store built from the same input with the same options is there, it is
        opened and nothing is done; for input in memory, the graph is built anew to compare it.
    nodes
        One :class:`NodeInput` or several, or bare data for one, to list nodes that have no edges.
    self_loops
        Drop edges from a node to itself, or keep them.
    key_type
        ``auto`` takes keys as integers if all are, else as strings; or ask for ``int64`` or ``string``. With
        a previous graph, its type.
    previous
        Graph that this one comes after: nodes that it has keep their ids, new ones get the next ids, and
        those that the input does not name are removed.
    bucket_edges
        Edges sorted in memory at a time, 40 bytes each.
    progress
        Called with the stage, what is done, and the total or None where it is not known.

    Raises
    ------
    MissingDataError
        A file, folder or column is missing.
    DataError
        A row breaks a rule: malformed, a null key, a weight that is not positive and finite, ….
    OutputExistsError
        ``out`` is there and was made from other input or with other options.
    ResourceError
        The disk is full or cannot be written.
    """
    if bucket_edges < 1:
        raise ParameterError(f"'bucket_edges' must be positive (got {bucket_edges})")
    request = BuildRequest.of(inputs, nodes, self_loops, key_type, previous)
    return request.open_or_build(out, _Builder(request, bucket_edges, progress or (lambda *_: None)).fill)


@dataclass(frozen=True, slots=True)
class _Builder:
    request: BuildRequest
    bucket_edges: int
    progress: Progress

    def fill(self, working: Path) -> str:
        """Write the files of the store; returns its checksum."""
        spill = working / "spill"
        spill.mkdir()
        edges, lists = self.request.open_tables(spill)
        node_table, translators = self._number_nodes(edges, lists)
        spilled, n_loops = self._translate(edges, translators, len(node_table.keys), spill)
        n_rows = spilled.n_edges
        weighted = write_rows(spilled, working, self.bucket_edges, node_table.name_of, self.progress)
        shutil.rmtree(spill)
        if not weighted:
            (working / "cumulative.npy").unlink()
        node_table.write(working)
        self.progress("checksum", 0, 1)
        checksum = seal(
            working,
            node_table,
            directed=any(table.directed for table in edges),
            parameters=self.request.parameters,
            counts={"edges_before_merging": n_rows, "self_loop_rows": n_loops},
            parents=parents_of(self.request.previous),
        )
        self.progress("checksum", 1, 1)
        return checksum

    def _number_nodes(
        self, edges: list[EdgeTable], lists: list[NodeList]
    ) -> tuple[NodeTable, dict[str, KeyTranslator]]:
        """First pass: give dense ids to the distinct keys."""
        per_kind: dict[str, DistinctKeys] = {}
        for kind, keys in self._all_keys(edges, lists):
            per_kind.setdefault(kind, DistinctKeys()).add(keys)
        as_strings = self.request.key_type == "string" or any(k.has_strings for k in per_kind.values())
        named = {kind: per_kind.pop(kind).sorted(as_strings=as_strings) for kind in list(per_kind)}
        previous = self.request.previous
        nodes, ids = number_nodes(named, None if previous is None else previous.nodes)
        return nodes, {kind: KeyTranslator.of(keys, ids[kind]) for kind, keys in named.items()}

    def _all_keys(self, edges: list[EdgeTable], lists: list[NodeList]) -> Iterator[tuple[str, pa.Array]]:
        key_type = self.request.key_type
        total = _total_rows([*edges, *lists])
        done = 0
        for edge_table in edges:
            start = done
            for batch in edge_table.batches(key_type, weights=False):
                yield edge_table.src_kind, batch.src
                yield edge_table.dst_kind, batch.dst
                done += len(batch.src)
                self.progress("read keys", done, total)
            refuse_empty(edge_table, done - start)
        for node_list in lists:
            start = done
            for kind, keys in node_list.batches(key_type):
                yield kind, keys
                done += len(keys)
                self.progress("read keys", done, total)
            refuse_empty(node_list, done - start)

    def _translate(
        self, edges: list[EdgeTable], translators: dict[str, KeyTranslator], n_nodes: int, spill: Path
    ) -> tuple[EdgeSpill, int]:
        """Second pass: spill the edges as dense ids; returns them and the number of self-loop rows."""
        key_type: KeyType = "int64" if all(t.is_integer for t in translators.values()) else "string"
        spilled = EdgeSpill(spill, n_nodes, weighted=any(table.weighted for table in edges))
        total = _total_rows(edges)
        done = n_loops = 0
        # Each batch costs time in proportion to the number of keys, for a hash table and for counts.
        n_bytes = max(_GATHER_BYTES, sum(t.keys.nbytes for t in translators.values()))
        with spilled:
            for table in edges:
                src_ids, dst_ids = translators[table.src_kind], translators[table.dst_kind]
                for batch in _gathered(table.batches(key_type, weights=True), n_bytes):
                    src, dst, weight = (
                        src_ids.translate(batch.src),
                        dst_ids.translate(batch.dst),
                        batch.weight,
                    )
                    loops = src == dst
                    n_loops += int(np.count_nonzero(loops))
                    if loops.any() and self.request.parameters["self_loops"] == "drop":
                        src, dst = src[~loops], dst[~loops]
                        weight = None if weight is None else weight[~loops]
                    spilled.append(src, dst, weight, both_ways=not table.directed)
                    done += len(batch.src)
                    self.progress("translate", done, total)
        return spilled, n_loops


def _gathered(batches: Iterator[EdgeBatch], n_bytes: int) -> Iterator[EdgeBatch]:
    """The same rows in batches of at least ``n_bytes`` of keys each, except the last."""
    waiting: list[EdgeBatch] = []
    size = 0
    for batch in batches:
        waiting.append(batch)
        size += batch.src.nbytes + batch.dst.nbytes
        if size >= n_bytes:
            yield _joined(waiting)
            waiting, size = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[EdgeBatch]) -> EdgeBatch:
    weight = None
    if any(batch.weight is not None for batch in batches):
        weight = np.concatenate([np.ones(len(b.src)) if b.weight is None else b.weight for b in batches])
    return EdgeBatch(
        src=pa.concat_arrays([batch.src for batch in batches]),
        dst=pa.concat_arrays([batch.dst for batch in batches]),
        weight=weight,
    )


def _total_rows(tables: Sequence[EdgeTable | NodeList]) -> int | None:
    counts = [table.table.n_rows for table in tables]
    return None if None in counts else sum(count for count in counts if count is not None)
