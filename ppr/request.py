"""What a graph is to be built from, and by which rules: the same for every engine that builds it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppr.errors import DataError, OutputExistsError, ParameterError
from ppr.frames import is_graph_frame, open_graph_frame
from ppr.graph import FORMAT, VERSION, Graph
from ppr.inputs import (
    EdgeInput,
    EdgeTable,
    KeyType,
    NodeInput,
    NodeList,
    describe_input,
    open_edges,
    open_nodes,
)
from ppr.lineage import check_key_type, parents_of
from ppr.manifest import finished, full_disk_is_an_error, new_store

SelfLoops = Literal["drop", "keep"]
Progress = Callable[[str, int, "int | None"], None]
Fill = Callable[[Path], str]
"""Writes the files of a store into a folder; returns the checksum."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """Inputs and options of a graph, checked, and their identity.

    Parameters
    ----------
    edge_inputs, node_inputs
        The inputs.
    parameters
        Their descriptions and the options, as the manifest stores them.
    previous
        Graph whose dense ids go on, or None.
    """

    edge_inputs: Sequence[EdgeInput]
    node_inputs: Sequence[NodeInput]
    parameters: dict[str, Any]
    previous: Graph | None

    @classmethod
    def of(
        cls, inputs: Any, nodes: Any, self_loops: SelfLoops, key_type: KeyType, previous: Graph | None
    ) -> BuildRequest:
        """Check the arguments of :func:`ppr.build.build_graph`.

        Raises
        ------
        ParameterError
            An option breaks its rule, or there is no input.
        """
        edge_inputs = as_inputs(inputs, EdgeInput)
        node_inputs = as_inputs(nodes, NodeInput)
        if self_loops not in ("drop", "keep"):
            raise ParameterError(f"'self_loops' must be drop or keep (got {self_loops!r})")
        if key_type not in ("auto", "int64", "string"):
            raise ParameterError(f"'key_type' must be auto, int64 or string (got {key_type!r})")
        if not edge_inputs and not node_inputs:
            raise ParameterError("'inputs' must not be empty")
        if previous is not None:
            check_key_type(key_type, previous.nodes)
        parameters: dict[str, Any] = {
            "inputs": [describe_input(source) for source in edge_inputs],
            "nodes": [describe_input(source) for source in node_inputs],
            "self_loops": self_loops,
            "key_type": key_type,
        }
        return cls(edge_inputs, node_inputs, parameters, previous)

    @property
    def identity(self) -> dict[str, Any]:
        """What the manifest of a store of the same input and options holds."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "parameters": self.parameters,
            "parents": parents_of(self.previous),
        }

    @property
    def key_type(self) -> KeyType:
        """How keys are read: as asked for, or as the previous graph has them."""
        if self.previous is None:
            asked: KeyType = self.parameters["key_type"]
            return asked
        return "int64" if self.previous.nodes.is_integer else "string"

    def open_tables(self, staging: Path) -> tuple[list[EdgeTable], list[NodeList]]:
        """Open all inputs, as tables of edges and lists of nodes; a GraphFrame gives both.

        Parameters
        ----------
        staging
            Folder for what can be read once only.
        """
        edges: list[EdgeTable] = []
        lists: list[NodeList] = []
        for i, source in enumerate(self.edge_inputs):
            tables, vertices = open_edge_tables(source, f"input {i}", staging / f"input-{i}")
            edges += tables
            lists += vertices
        for i, listed in enumerate(self.node_inputs):
            lists.append(open_nodes(listed, f"nodes {i}", staging / f"nodes-{i}"))
        return edges, lists

    def open_finished(self, out: Path) -> Graph | None:
        """The store at ``out`` if it was made from the same files; None where that takes a build to tell.

        Raises
        ------
        OutputExistsError
            ``out`` is there and was made from other input or with other options.
        """
        described = self.parameters["inputs"] + self.parameters["nodes"]
        if finished(out, self.identity) is None or any(source["files"] is None for source in described):
            return None
        return Graph.open(out, verify=False)

    def open_or_build(self, out: str | Path, fill: Fill) -> Graph:
        """Open the store at ``out`` if it was made from the same; build it if nothing is there.

        Raises
        ------
        OutputExistsError
            ``out`` is there and was made from other input or with other options.
        """
        described = self.parameters["inputs"] + self.parameters["nodes"]
        return open_or_fill(Path(out), self.identity, described, fill)


def open_edge_tables(source: EdgeInput, name: str, staging: Path) -> tuple[list[EdgeTable], list[NodeList]]:
    """Tables of an input's edges; of a GraphFrame, one per pair of kinds, and the list of its vertices."""
    if is_graph_frame(source.data):
        tables, vertices = open_graph_frame(source, name, staging)
        return tables, [vertices]
    return [open_edges(source, name, staging)], []


def open_or_fill(
    out: Path, identity: dict[str, Any], described: Sequence[dict[str, Any]], fill: Fill
) -> Graph:
    """Open the graph at ``out`` if it has this identity; make it if nothing is there.

    Parameters
    ----------
    out
        Folder of the store.
    identity
        What its manifest holds.
    described
        Descriptions of the inputs; where one is not made of files, a graph that is there is made anew beside
        it and compared.
    fill
        Makes it.

    Raises
    ------
    OutputExistsError
        ``out`` is there and was made from other input or with other options.
    """
    there = finished(out, identity)
    if there is None:
        _build(out, identity, fill)
    elif any(source["files"] is None for source in described):
        _compare(out, identity, there["checksum"], fill)
    return Graph.open(out, verify=False)


def _compare(out: Path, identity: dict[str, Any], checksum: str, fill: Fill) -> None:
    """Build beside an existing store and compare the content."""
    with (
        full_disk_is_an_error(out),
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.compare-") as folder,
    ):
        twin = Path(folder) / "graph"
        _build(twin, identity, fill)
        if Graph.open(twin, verify=False).checksum != checksum:
            raise OutputExistsError(f"{out}: exists and was made from other data")


def _build(out: Path, identity: dict[str, Any], fill: Fill) -> None:
    """Build the store, which must not be there; if the same appears meanwhile, that one stays."""
    checksum = None
    try:
        with new_store(out) as working:
            checksum = fill(working)
    except OutputExistsError:
        there = finished(out, identity)
        if there is None or there["checksum"] != checksum:
            raise


def as_inputs(given: Any, kind: type[Any]) -> list[Any]:
    """What a caller gave as one input, several, or bare data for one, as a list of inputs."""
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    if all(isinstance(item, kind) for item in items):
        return items
    return [kind(given)]


def refuse_empty(table: EdgeTable | NodeList, n_rows: int) -> None:
    """Raise DataError where a table has no rows."""
    if n_rows == 0:
        raise DataError(f"{table.table.name}: empty (no rows)")
