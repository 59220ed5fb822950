"""What differs between two releases: who and what came and went, parameters, figures."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ppr.manifest import MANIFEST
from ppr.nodes import NODE_FILE, REMOVED_FILE
from router.bundle import ITEM, LLM
from router.releases.overview import figures, n_bytes
from router.releases.places import Place
from router.releases.record import GRAPH, MODEL

_LLMS = "llms.json"
_TIMES = ("created", "feedback_until", "erased_until")


@dataclass(frozen=True, slots=True)
class _Nodes:
    """Keys of the nodes of a store as text, by kind, with their ids; removed nodes are left out."""

    keys: dict[str, pa.Array]
    ids: dict[str, NDArray[np.int64]]
    n: int

    @classmethod
    def read(cls, place: Place, version: str, store: str) -> _Nodes:
        with pq.ParquetFile(pa.BufferReader(place.read(version, f"{store}/{NODE_FILE}"))) as file:
            table = file.read(use_threads=False)  # pyarrow's threads may abort a process that ends soon
        n = len(table)
        if store == GRAPH and place.record(version)["stores"][GRAPH]["counts"].get("removed"):
            gone = pa.array(_array(place, version, REMOVED_FILE))
            table = table.filter(pc.invert(pc.is_in(table["id"], value_set=gone)))
        keys, ids = {}, {}
        kinds = table["kind"].cast(pa.string()).combine_chunks()
        for kind in pc.unique(kinds).to_pylist():
            part = table.filter(pc.equal(kinds, kind))
            keys[kind] = part["key"].cast(pa.large_string()).combine_chunks()
            ids[kind] = part["id"].to_numpy().astype(np.int64)
        return cls(keys, ids, n)


def diff(
    place: Place, before: str, after: str, *, edges: bool = True, names: int = 5, user_names: int = 0
) -> dict[str, Any]:
    """Compare two releases of a place.

    Parameters
    ----------
    place
        Where they are.
    before, after
        Their versions.
    edges
        Compare the edges of the graphs too, which reads both.
    names
        Names given of items and LLMs that came and went, at most.
    user_names
        The same of users and of any other kind of node. None by default: results are kept and passed on.

    Raises
    ------
    ReleaseError
        There is no such release, or it is damaged.
    ResourceError
        The place cannot be reached.
    """
    old, new = place.record(before), place.record(after)
    shown = {ITEM: names}
    both = [name for name in old["stores"] if name in new["stores"]]
    same = {name: old["stores"][name]["checksum"] == new["stores"][name]["checksum"] for name in both}
    found: dict[str, Any] = {
        "before": before,
        "after": after,
        "same_content": same,
        "stores": {"added": sorted(new["stores"].keys() - old["stores"].keys())}
        | {"gone": sorted(old["stores"].keys() - new["stores"].keys())},
        "model": _nodes(place, before, after, MODEL, shown, user_names)
        | {LLM: _llms(place, before, after, names)},
    }
    if GRAPH in both:
        found["graph"] = _nodes(place, before, after, GRAPH, shown, user_names)
        counted = [record["stores"][GRAPH]["counts"]["edges"] for record in (old, new)]
        found["graph"]["edges"] = _edges(place, before, after, counted, known=same[GRAPH], read=edges)
    found["parameters"] = {name: _changed(*_parameters(place, before, after, name)) for name in both}
    found["encoder"] = _changed(old["encoder"], new["encoder"])
    found["times"] = _changed({name: old[name] for name in _TIMES}, {name: new[name] for name in _TIMES})
    was, now = figures(old["metrics"]), figures(new["metrics"])
    found["metrics"] = {
        name: {"before": was.get(name), "after": now.get(name), "difference": _minus(now, was, name)}
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    }
    found["bytes"] = {"before": n_bytes(old), "after": n_bytes(new)}
    return found


def _minus(now: dict[str, float], was: dict[str, float], name: str) -> float | None:
    return now[name] - was[name] if name in now and name in was else None


def _nodes(
    place: Place, before: str, after: str, store: str, names: dict[str, int], others: int
) -> dict[str, Any]:
    """Who and what came and went, by kind."""
    old, new = (_Nodes.read(place, version, store) for version in (before, after))
    nothing = pa.array([], pa.large_string())
    return {
        kind: _came_and_went(
            old.keys.get(kind, nothing), new.keys.get(kind, nothing), names.get(kind, others)
        )
        for kind in {**old.keys, **new.keys}
    }


def _came_and_went(old: pa.Array, new: pa.Array, names: int) -> dict[str, Any]:
    added = new.filter(pc.invert(pc.is_in(new, value_set=old)))
    gone = old.filter(pc.invert(pc.is_in(old, value_set=new)))
    counted = {"before": len(old), "after": len(new), "added": len(added), "gone": len(gone)}
    if not names:
        return counted
    return counted | {
        "added_names": added[:names].to_pylist(),
        "gone_names": gone[:names].to_pylist(),
    }


def _llms(place: Place, before: str, after: str, names: int) -> dict[str, Any]:
    """LLMs that came and went, and what changed of the others."""
    old, new = (
        {llm["name"]: llm for llm in json.loads(place.read(version, f"{MODEL}/{_LLMS}"))}
        for version in (before, after)
    )
    text = pa.large_string()
    found = _came_and_went(
        pa.array(list(old), text), pa.array(list(new), text), max(names, len(old) + len(new))
    )
    changed = {name: _changed(old[name], new[name]) for name in old if name in new}
    return found | {"changed": {name: fields for name, fields in changed.items() if fields}}


def _edges(
    place: Place, before: str, after: str, counted: list[int], *, known: bool, read: bool
) -> dict[str, int | None]:
    """Edges that came and went, as both graphs store them: of an undirected one, both directions."""
    added = gone = 0 if known else None
    if read and not known:
        old, new = (_Nodes.read(place, version, GRAPH) for version in (before, after))
        place_of = _common_ids(old, new)
        total = old.n + new.n
        there = np.sort(_codes(place, before, np.arange(old.n), total))
        found = _codes(place, after, place_of, total)
        at = np.minimum(np.searchsorted(there, found), max(len(there) - 1, 0))
        common = int((there[at] == found).sum()) if len(there) else 0
        added, gone = len(found) - common, len(there) - common
    return {"before": counted[0], "after": counted[1], "added": added, "gone": gone}


def _common_ids(old: _Nodes, new: _Nodes) -> NDArray[np.int64]:
    """Id of each new node among the old ones, where it was one, int64 [n]; else one after them."""
    common = old.n + np.arange(new.n)
    for kind, keys in new.keys.items():
        if kind in old.keys:
            found = pc.fill_null(pc.index_in(keys, value_set=old.keys[kind]), -1).to_numpy()
            common[new.ids[kind]] = np.where(
                found >= 0, old.ids[kind][np.maximum(found, 0)], common[new.ids[kind]]
            )
    return common


def _codes(place: Place, version: str, ids: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """One number for each edge, int64 [m]: the same for the same edge of both graphs."""
    indptr, indices = (_array(place, version, f"{name}.npy") for name in ("indptr", "indices"))
    codes: NDArray[np.int64] = np.repeat(ids, np.diff(indptr)) * total + ids[indices]
    return codes


def _array(place: Place, version: str, name: str) -> NDArray[Any]:
    """An array of a release's graph."""
    content = io.BytesIO(place.read(version, f"{GRAPH}/{name}"))
    array: NDArray[Any] = np.load(content, allow_pickle=False)
    return array


def _parameters(place: Place, before: str, after: str, store: str) -> tuple[Any, Any]:
    old, new = (
        json.loads(place.read(version, f"{store}/{MANIFEST}"))["parameters"] for version in (before, after)
    )
    return old, new


def _changed(old: Any, new: Any, prefix: str = "") -> dict[str, list[Any]]:
    """Values that differ, before and after, by their path with dots."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = dict[str, list[Any]]()
        for name in {**old, **new}:
            path = f"{prefix}.{name}" if prefix else str(name)
            found |= _changed(old.get(name), new.get(name), path)
        return found
    return {} if old == new else {prefix: [old, new]}
