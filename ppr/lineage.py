"""Lineage of a graph: dense ids that go on from one graph to the next.

A graph that comes after another keeps the ids of the nodes and kinds that both have; new ones get the next
ids, nodes in the order of (kind, key). A node that the new graph does not name is removed: nobody gets its
id, it has no edges, and its key is blanked, so that no name lives on that was to be forgotten. When the same
key comes back, it is a new node. So the ids in a fingerprint of the old graph mean the same nodes in the new.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ppr.arrays import MAX_NODES
from ppr.errors import DataError, ParameterError, StoreError
from ppr.graph import Graph
from ppr.nodes import MAX_KINDS, NodeTable, blanked

_CHUNK_NODES = 1 << 20


def number_nodes(
    named: Mapping[str, pa.Array],
    previous: NodeTable | None,
    removed: npt.NDArray[np.int32] | None = None,
) -> tuple[NodeTable, dict[str, npt.NDArray[np.int32]]]:
    """Give dense ids to the nodes of a graph.

    Parameters
    ----------
    named
        For each kind its keys, ascending, each once; of the type that ``previous`` has.
    previous
        Nodes of the graph before, or None at a first build.
    removed
        Ids of the nodes of ``previous`` that are removed, besides those that were; None: all that are not
        named.

    Returns
    -------
    nodes : NodeTable
        All nodes, in the order of their ids.
    ids : dict
        For each kind the ids of its keys, int32.

    Raises
    ------
    DataError
        There are too many kinds or nodes.
    """
    kinds = number_kinds(named.keys(), () if previous is None else previous.kinds)
    n_before = 0 if previous is None else len(previous.keys)
    is_named = np.zeros(n_before, dtype=np.bool_)
    n_nodes = n_before
    ids: dict[str, npt.NDArray[np.int32]] = {}
    keys = [] if previous is None else [previous.keys]
    kind_ids = [np.empty(0, np.uint8) if previous is None else previous.kind_ids]
    for kind in sorted(named, key=str.encode):
        found = (
            np.full(len(named[kind]), -1, np.int32) if previous is None else previous.find(named[kind], kind)
        )
        new = found < 0
        is_named[found[~new]] = True
        n_new = int(np.count_nonzero(new))
        if n_nodes + n_new > MAX_NODES:
            raise DataError(f"a graph must have at most {MAX_NODES} nodes (got {n_nodes + n_new})")
        found[new] = np.arange(n_nodes, n_nodes + n_new, dtype=np.int32)
        n_nodes += n_new
        ids[kind] = found
        keys.append(named[kind].filter(pa.array(new)) if n_new < len(new) else named[kind])
        kind_ids.append(np.full(n_new, kinds.index(kind), dtype=np.uint8))
    if previous is None or removed is None:
        gone = np.flatnonzero(~is_named).astype(np.int32)
    else:
        gone = np.union1d(previous.removed, removed).astype(np.int32)
    if previous is not None:
        keys[0] = blanked(previous.keys, gone)
    return NodeTable(pa.concat_arrays(keys), np.concatenate(kind_ids), kinds, gone), ids


def number_kinds(named: Set[str], before: tuple[str, ...]) -> tuple[str, ...]:
    """All kinds in the order of their ids: those of the graph before, then new ones by name.

    Raises
    ------
    DataError
        There are too many.
    """
    kinds = (*before, *sorted(named - set(before), key=str.encode))
    if len(kinds) > MAX_KINDS:
        raise DataError(f"a graph must have at most {MAX_KINDS} node kinds (got {len(kinds)})")
    return kinds


def parents_of(previous: Graph | None) -> dict[str, str]:
    """What the manifest of a graph that comes after ``previous`` says of its parents."""
    return {} if previous is None else {"graph": previous.checksum}


def check_key_type(key_type: str, previous: NodeTable) -> None:
    """Check that keys may be read as the graph before has them; ParameterError for another type."""
    there = "int64" if previous.is_integer else "string"
    if key_type not in ("auto", there):
        raise ParameterError(f"'key_type' must be {there}, as in the previous graph (got {key_type!r})")


def check_successor(old: Graph, new: Graph) -> None:
    """Check that the ids of ``new`` go on from those of ``old``, by the keys themselves.

    Raises
    ------
    StoreError
        A node of ``old`` has another kind or key in ``new``, is missing, or came back from removal.
    """
    if old.checksum == new.checksum:
        return
    where = f"{new.path or 'the new graph'}: does not go on from {old.path or 'the old graph'}"
    before, after = old.nodes, new.nodes
    if before.is_integer != after.is_integer:
        raise StoreError(f"{where} (its keys are of another type)")
    if new.kinds[: len(old.kinds)] != old.kinds:
        raise StoreError(f"{where} (kinds were {', '.join(old.kinds)}, are {', '.join(new.kinds)})")
    if new.n_nodes < old.n_nodes:
        raise StoreError(f"{where} ({old.n_nodes} nodes became {new.n_nodes})")
    back = np.setdiff1d(old.removed, new.removed)
    if len(back):
        raise StoreError(f"{where} (node {back[0]} was removed and is there again)")
    same = np.ones(old.n_nodes, dtype=np.bool_)
    same[new.removed[new.removed < old.n_nodes]] = False
    for start in range(0, old.n_nodes, _CHUNK_NODES):
        part = slice(start, min(start + _CHUNK_NODES, old.n_nodes))
        kept = np.flatnonzero(same[part]) + start
        other_kind = kept[old.kind_ids[kept] != new.kind_ids[kept]]
        if len(other_kind):
            raise StoreError(f"{where} (node {other_kind[0]} is of another kind)")
        at = pa.array(kept)
        was, now = before.keys.take(at), after.keys.take(at)
        if not was.equals(now):
            wrong = next(i for i, (a, b) in enumerate(zip(was, now, strict=True)) if a != b)
            raise StoreError(f"{where} (node {kept[wrong]} has another key)")
