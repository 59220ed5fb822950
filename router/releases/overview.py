"""What there is of releases somewhere: all of them in short, one of them in full."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from router.bundle import ITEM, LLM, USER
from router.errors import ReleaseError
from router.releases.history import earlier, rolled_back
from router.releases.local import decisions
from router.releases.places import Folder, Place
from router.releases.record import GRAPH, MODEL

_REFUSALS = 5  # the last ones are listed
_THREADS = 8


def overview(place: Place) -> dict[str, Any]:
    """All releases of a place in short, the newest first; a damaged one with what is wrong.

    Manifests and sizes are compared, not every byte. ``warnings`` say what is wrong with the place itself.

    Raises
    ------
    ResourceError
        The place cannot be reached.
    """
    there = place.versions()
    current, warnings = _current(place, there)
    switches = place.history()
    back, dropped = earlier(switches, current, there), rolled_back(switches, current)
    since = {switch.version: switch.at for switch in switches}
    rows = list[dict[str, Any]]()
    with ThreadPoolExecutor(_THREADS) as pool:
        told = list(pool.map(partial(_told, place), there))
    for version, about in zip(reversed(there), reversed(told), strict=True):
        state = "waiting" if version not in since else "former"
        if version == current:
            state = "current"
        elif back and version == back[0]:
            state = "previous"
        elif version in dropped:
            state = "rolled back"
        rows.append({"version": version, "state": state, "switched_at": since.get(version)} | about)
    refused = [entry for entry in _decisions(place) if entry["version"] is None]
    return {
        "place": place.shown,
        "current": current,
        "previous": back[0] if back else None,
        "warnings": warnings,
        "releases": rows,
        "refusals": refused[-_REFUSALS:],
    }


def whole(place: Place, version: str, *, verify: bool) -> dict[str, Any]:
    """Everything there is to say of one release; every byte of it is compared on request, else sizes.

    Raises
    ------
    ReleaseError
        There is no such release, or it is damaged.
    ResourceError
        The place cannot be reached.
    """
    record = place.record(version)
    place.check(version, verify=verify)
    there = place.versions()
    current, warnings = _current(place, there)
    switches = place.history()
    back = earlier(switches, current, there)
    return {
        "version": version,
        "place": place.shown,
        "current": version == current,
        "previous": version == next(iter(back), None),
        "rolled_back": version in rolled_back(switches, current),
        "compared": "every byte" if verify else "sizes",
        "warnings": warnings,
        "switches": [
            {"at": switch.at, "action": switch.action, "to": switch.version, "from": switch.before}
            for switch in switches
            if version in (switch.version, switch.before)
        ],
        "record": record,
    }


def _current(place: Place, there: list[str]) -> tuple[str | None, list[str]]:
    """The current release, and what is wrong with what names it."""
    mend = "'fairpath releases activate' or 'rollback' says which release is in use"
    try:
        current = place.current()
    except ReleaseError as error:
        return None, [f"{error}: {mend}"]
    if current is not None and current not in there:
        return current, [f"{place.shown}: the current release {current} is not there: {mend}"]
    return current, []


def _told(place: Place, version: str) -> dict[str, Any]:
    """A release in short, or what is wrong with it."""
    try:
        record = place.record(version)
    except ReleaseError as error:
        return {"damaged": str(error)}
    try:
        place.check(version, verify=False)
    except ReleaseError as error:
        return _short(record) | {"damaged": str(error)}
    return _short(record)


def figures(metrics: object, prefix: str = "") -> dict[str, float]:
    """Numbers among the figures of an evaluation, by their path with dots."""
    if isinstance(metrics, bool) or not isinstance(metrics, (dict, int, float)):
        return {}
    if not isinstance(metrics, dict):
        return {prefix: metrics}
    found = dict[str, float]()
    for name, value in metrics.items():
        found |= figures(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def n_bytes(record: dict[str, Any]) -> int:
    """Size of a release."""
    return sum(int(store["bytes"]) for store in record["stores"].values())


def _short(record: dict[str, Any]) -> dict[str, Any]:
    stores = record["stores"]
    counts, graph = stores[MODEL]["counts"], stores.get(GRAPH, {}).get("counts", {})
    metrics, decision = record["metrics"], record["decision"]
    main = {name: metrics[name] for name in ("validation", "items") if name in metrics}
    return {
        "created": record["created"],
        "users": counts.get(USER),
        "items": counts.get(ITEM),
        "llms": counts.get(LLM),
        "edges": graph.get("edges"),
        "bytes": n_bytes(record),
        # Those of baselines and of terms that were tried stand in the record.
        "metrics": {name: value for name, value in figures(main).items() if name.count(".") == 1},
        "feedback_until": record["feedback_until"],
        "erased_until": record["erased_until"],
        "decision": None if decision is None else decision.get("summary", decision),
    }


def _decisions(place: Place) -> list[dict[str, Any]]:
    return decisions(place.root) if isinstance(place, Folder) else []
