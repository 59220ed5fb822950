"""Steps ``report`` and ``notify``: what the run did, for a person and for whoever wants to be told.

Both work for a run of which a step failed, too: then they say which, and why.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.pipeline.record import PAGE, REPORT, STEPS, key_of, output, write_json
from jobs.pipeline.releasing import drift_of, read_evaluation
from jobs.pipeline.retention import clear_away
from jobs.pipeline.step import Context, Outcome

_MADE = STEPS[: STEPS.index("report")]
_TIMEOUT_S = 10.0
_TRIES = 3
_CHANGING = ("started", "seconds", "peak_bytes", "state")  # of a step, from one run of it to the next


def report(context: Context) -> Outcome:
    """Write ``report.json`` and its page, and remove the outputs that no run needs any more."""
    content = contents(context)
    steps = [{name: one[name] for name in one if name not in _CHANGING} for one in content["steps"]]
    same = {name: content[name] for name in content if name not in ("started", "seconds", "steps")}
    key = key_of("report", {"report": same, "steps": steps}, {})
    path, page = context.run.folder / REPORT, context.run.folder / PAGE
    kept = context.run.key("report") == key and path.exists() and page.exists()
    if not kept:
        from jobs.pipeline.page import write_page

        write_json(path, content)
        write_page(page, content)
    # What a failed run has no record of any more, the next one may need.
    removed = {} if content["state"] == "failed" else clear_away(context)
    return Outcome("kept" if kept else "done", key, {"page": str(page), "state": content["state"], **removed})


def notify(context: Context) -> Outcome:
    """Tell the URL of the settings how the run went; that it does not answer is no failure of the run."""
    url = context.settings.pipeline.notify_url
    if url is None:
        return Outcome("skipped", facts={"why": "there is no 'notify_url'"})
    key = context.run.key("report")
    if key is not None and context.run.key("notify") == key:
        return Outcome("kept", key)
    content = contents(context)
    told = {name: content[name] for name in ("run", "until", "state", "seconds", "error")}
    told["release"] = context.run.facts("publish").get("release")
    told["summary"] = (content["decision"] or {}).get("summary")
    told["report"] = str((context.run.folder / PAGE).absolute())
    problem = _post(url.get_secret_value(), told)
    if problem is not None:
        context.log.warning("nobody was notified", reason=problem)
        return Outcome("skipped", facts={"why": problem})
    return Outcome("done", key)


def contents(context: Context) -> dict[str, Any]:
    """Content of ``report.json``; :mod:`jobs.pipeline.page` describes it."""
    run = context.run
    collected, published = run.facts("collect"), run.facts("publish")
    decision = published.get("decision")
    failed = next((step for step in _MADE if run.steps.get(step, {}).get("state") == "failed"), None)
    done = [run.steps[step] for step in _MADE if step in run.steps]
    return {
        "run": run.name,
        "until": None if run.until is None else run.until.isoformat(),
        "started": min((one["started"] for one in done), default=None),
        "seconds": round(sum(one["seconds"] for one in done), 3),
        "state": _state(failed, published),
        "error": None if failed is None else {"step": failed, **run.steps[failed]["error"]},
        "deliveries": _deliveries(collected),
        "collected": {
            name: collected.get(name)
            for name in ("tables", "retired_llms", "feedback_left_out", "feedback_until", "erasures", "late")
        },
        "description": collected.get("description"),
        "drift": None if failed == "collect" else drift_of(context),
        "before": (collected.get("before") or {}).get("run"),
        "fingerprints": _fingerprints(context),
        "evaluation": read_evaluation(context),
        "decision": decision,
        "release": published.get("release"),
        "steps": [_step(context, step) for step in _MADE if step != "ready"],
        "releases": _releases(context.settings.pipeline.releases),
    }


def _state(failed: str | None, published: Mapping[str, Any]) -> str:
    if failed is not None:
        return "failed"
    if "decision" not in published:
        return "done"
    if published["published"]:
        return "published"
    rules = {reason["rule"] for reason in published["decision"]["reasons"]}
    return "nothing new" if "nothing new" in rules or published.get("nothing_new") else "refused"


def _deliveries(collected: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for one in collected.get("deliveries", ()):
        named = {name: one.get(name, 0) for name in ("name", "kind", "rows", "later", "erased")}
        rows.append({**named, "kept": named["rows"] - named["later"] - named["erased"]})
    return rows


def _fingerprints(context: Context) -> dict[str, Any] | None:
    """What the fingerprints go on from, and how exact they are; None where there are none."""
    made, graph = context.run.facts("fingerprints"), context.run.facts("graph")
    if not context.run.done("fingerprints") or "checksum" not in made:
        return None
    return {
        "base": made["base"],
        "why": made.get("why") or graph.get("why"),
        "rows": made["sources"],
        "nodes": made["nodes"],
        "removed_nodes": graph.get("removed", 0),
        "tolerance": context.settings.refresh.tolerance,
        **{name: made[name] for name in ("recomputed", "rows_changed", "largest_bound", "mean_bound")},
    }


def _step(context: Context, step: str) -> dict[str, Any]:
    record = context.run.steps.get(step)
    if record is None:
        return {"step": step, "state": "not run", "seconds": None, "peak_bytes": None, "bytes": None}
    key = record.get("key")
    folder = None if key is None else output(context.work, step, key)
    state = "not run" if record["state"] == "skipped" else record["state"]
    return {
        "step": step,
        "key": key,
        "state": state,
        "why": record.get("facts", {}).get("why"),
        "started": record["started"],
        "seconds": record["seconds"],
        "peak_bytes": record["peak_bytes"],
        "bytes": None if folder is None else _bytes(folder),
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _releases(root: Path) -> list[dict[str, Any]]:
    from router.errors import ReleaseError
    from router.releases import current_version, open_release, versions

    found = []
    for version in versions(root):
        try:
            manifest = open_release(root, version, verify=False).manifest
        except ReleaseError:
            continue  # 'fairpath releases' tells about it
        size = sum(store["bytes"] for store in manifest["stores"].values())
        told = {"version": version, "created": manifest["created"], "bytes": size}
        found.append({**told, "current": version == current_version(root)})
    return found


def _post(url: str, told: Mapping[str, Any]) -> str | None:
    """Send it, some times if need be; what was wrong, without the URL, which may be a secret."""
    try:
        import httpx
    except ModuleNotFoundError:
        return "httpx is not installed (pip install 'fairpath[serve]')"
    problem = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(2.0 ** (attempt - 1))
        try:
            answer = httpx.post(url, json=dict(told), timeout=_TIMEOUT_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = f"'notify_url' cannot be reached ({type(error).__name__})"
            continue
        if answer.is_success:
            return None
        problem = f"'notify_url' answered {answer.status_code}"
        if answer.is_client_error and answer.status_code not in (408, 425, 429):
            break
    return problem
