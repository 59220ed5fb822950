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
batches, or the file format.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ppr.errors import DataError, OutputExistsError, ParameterError
from ppr.graph import FORMAT, MAX_NODES, VERSION, Graph, seal
from ppr.inputs import (
    EdgeBatch,
    EdgeInput,
    EdgeTable,
    KeyType,
    NodeInput,
    NodeList,
    describe_input,
    open_edges,
    open_nodes,
)
from ppr.keys import DistinctKeys, KeyTranslator
from ppr.manifest import finished, full_disk_is_an_error, new_store
from ppr.nodes import MAX_KINDS, NodeTable
from ppr.sorting import EdgeSpill, write_rows

SelfLoops = Literal["drop", "keep"]
Progress = Callable[[str, int, "int | None"], None]
BUCKET_EDGES = 1 << 22
_GATHER_BYTES = 1 << 24


def build_graph(
    inputs: Any,
    out: str | Path,
    *,
    nodes: Any = (),
    self_loops: SelfLoops = "drop",
    key_type: KeyType = "auto",
    bucket_edges: int = BUCKET_EDGES,
    progress: Progress | None = None,
) -> Graph:
    """Build a graph store.

    Parameters
    ----------
    inputs
        One :class:`EdgeInput` or several, or bare data for one with default options.
    out
        Folder of the store. If a store built from the same input with the same options is there, it is
        opened and nothing is done; for input in memory, the graph is built anew to compare it.
    nodes
        One :class:`NodeInput` or several, or bare data for one, to list nodes that have no edges.
    self_loops
        Drop edges from a node to itself, or keep them.
    key_type
        ``auto`` takes keys as integers if all are, else as strings; or ask for ``int64`` or ``string``.
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
    edge_inputs = _as_inputs(inputs, EdgeInput)
    node_inputs = _as_inputs(nodes, NodeInput)
    if self_loops not in ("drop", "keep"):
        raise ParameterError(f"'self_loops' must be drop or keep (got {self_loops!r})")
    if key_type not in ("auto", "int64", "string"):
        raise ParameterError(f"'key_type' must be auto, int64 or string (got {key_type!r})")
    if bucket_edges < 1:
        raise ParameterError(f"'bucket_edges' must be positive (got {bucket_edges})")
    if not edge_inputs and not node_inputs:
        raise ParameterError("'inputs' must not be empty")
    parameters: dict[str, Any] = {
        "inputs": [describe_input(source) for source in edge_inputs],
        "nodes": [describe_input(source) for source in node_inputs],
        "self_loops": self_loops,
        "key_type": key_type,
    }
    builder = _Builder(edge_inputs, node_inputs, parameters, bucket_edges, progress or (lambda *_: None))
    folder = Path(out)
    there = finished(folder, builder.identity)
    if there is None:
        builder.build(folder)
    elif any(source["files"] is None for source in parameters["inputs"] + parameters["nodes"]):
        builder.compare(folder, there["checksum"])
    return Graph.open(folder, verify=False)


def _as_inputs(given: Any, kind: type[Any]) -> list[Any]:
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    if all(isinstance(item, kind) for item in items):
        return items
    return [kind(given)]


@dataclass(frozen=True, slots=True)
class _Builder:
    edge_inputs: Sequence[EdgeInput]
    node_inputs: Sequence[NodeInput]
    parameters: dict[str, Any]
    bucket_edges: int
    progress: Progress

    @property
    def identity(self) -> dict[str, Any]:
        """What the manifest of a store of the same input and options holds."""
        return {"format": FORMAT, "version": VERSION, "parameters": self.parameters}

    def compare(self, out: Path, checksum: str) -> None:
        """Build beside an existing store and compare the content."""
        with (
            full_disk_is_an_error(out),
            tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.compare-") as folder,
        ):
            twin = Path(folder) / "graph"
            self.build(twin)
            if Graph.open(twin, verify=False).checksum != checksum:
                raise OutputExistsError(f"{out}: exists and was made from other data")

    def build(self, out: Path) -> None:
        """Build the store, which must not be there; if the same appears meanwhile, that one stays."""
        checksum = None
        try:
            with new_store(out) as working:
                checksum = self._fill(working)
        except OutputExistsError:
            there = finished(out, self.identity)
            if there is None or there["checksum"] != checksum:
                raise

    def _fill(self, working: Path) -> str:
        """Write the files of the store; returns its checksum."""
        spill = working / "spill"
        spill.mkdir()
        edges = [
            open_edges(source, f"input {i}", spill / f"input-{i}")
            for i, source in enumerate(self.edge_inputs)
        ]
        lists = [
            open_nodes(source, f"nodes {i}", spill / f"nodes-{i}")
            for i, source in enumerate(self.node_inputs)
        ]
        node_table, translators = self._number_nodes(edges, lists)
        spilled, n_loops = self._translate(edges, translators, len(node_table.keys), spill)
        n_rows = spilled.n_edges
        weighted = write_rows(spilled, working, self.bucket_edges, self._name_of(node_table), self.progress)
        shutil.rmtree(spill)
        if not weighted:
            (working / "cumulative.npy").unlink()
        node_table.write(working)
        self.progress("checksum", 0, 1)
        checksum = seal(
            working,
            node_table,
            directed=any(table.directed for table in edges),
            parameters=self.parameters,
            counts={"edges_before_merging": n_rows, "self_loop_rows": n_loops},
        )
        self.progress("checksum", 1, 1)
        return checksum

    def _number_nodes(
        self, edges: list[EdgeTable], lists: list[NodeList]
    ) -> tuple[NodeTable, dict[str, KeyTranslator]]:
        """First pass: give dense ids to the distinct keys, in the order of (kind, key)."""
        per_kind: dict[str, DistinctKeys] = {}
        for kind, keys in self._all_keys(edges, lists):
            per_kind.setdefault(kind, DistinctKeys()).add(keys)
        if len(per_kind) > MAX_KINDS:
            raise DataError(f"a graph must have at most {MAX_KINDS} node kinds (got {len(per_kind)})")
        as_strings = self.parameters["key_type"] == "string" or any(k.has_strings for k in per_kind.values())
        kinds = sorted(per_kind, key=str.encode)
        keys_of_kind = [per_kind.pop(kind).sorted(as_strings=as_strings) for kind in kinds]
        counts = [len(keys) for keys in keys_of_kind]
        if sum(counts) > MAX_NODES:
            raise DataError(f"a graph must have at most {MAX_NODES} nodes (got {sum(counts)})")
        first_ids = np.cumsum([0, *counts])
        translators = {
            kind: KeyTranslator.of(keys, int(first_id))
            for kind, keys, first_id in zip(kinds, keys_of_kind, first_ids[:-1], strict=True)
        }
        kind_ids = np.repeat(np.arange(len(kinds), dtype=np.uint8), counts)
        return NodeTable(pa.concat_arrays(keys_of_kind), kind_ids, tuple(kinds)), translators

    def _all_keys(self, edges: list[EdgeTable], lists: list[NodeList]) -> Iterator[tuple[str, pa.Array]]:
        key_type: KeyType = self.parameters["key_type"]
        total = _total_rows([*edges, *lists])
        done = 0
        for edge_table in edges:
            start = done
            for batch in edge_table.batches(key_type, weights=False):
                yield edge_table.src_kind, batch.src
                yield edge_table.dst_kind, batch.dst
                done += len(batch.src)
                self.progress("read keys", done, total)
            _refuse_empty(edge_table, done - start)
        for node_list in lists:
            start = done
            for kind, keys in node_list.batches(key_type):
                yield kind, keys
                done += len(keys)
                self.progress("read keys", done, total)
            _refuse_empty(node_list, done - start)

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
                    if loops.any() and self.parameters["self_loops"] == "drop":
                        src, dst = src[~loops], dst[~loops]
                        weight = None if weight is None else weight[~loops]
                    spilled.append(src, dst, weight, both_ways=not table.directed)
                    done += len(batch.src)
                    self.progress("translate", done, total)
        return spilled, n_loops

    @staticmethod
    def _name_of(nodes: NodeTable) -> Callable[[int], str]:
        return lambda node: f"{nodes.kinds[nodes.kind_ids[node]]} {nodes.keys[node].as_py()!r}"


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


def _refuse_empty(table: EdgeTable | NodeList, n_rows: int) -> None:
    if n_rows == 0:
        raise DataError(f"{table.table.name}: empty (no rows)")
