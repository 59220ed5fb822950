"""Steps ``evaluate`` and ``publish``: a candidate beside the current release, and whether it replaces it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import ConfigurationError
from jobs.pipeline.candidate import Candidate, HeldOut
from jobs.pipeline.collect import HELD_OUT, read_summary, table
from jobs.pipeline.deliveries import CHOICES, INTERACTIONS, check_unchanged
from jobs.pipeline.feedback import QUERIES
from jobs.pipeline.making import checksum
from jobs.pipeline.record import checksums, key_of, output, write_json
from jobs.pipeline.step import Context, Outcome
from ppr.manifest import remove_abandoned
from router.erasure import Erasure, user_digest
from router.releases import Release, current_version, open_release
from router.releases.places import Folder, rolled_back_from

K = 20
EVALUATION = "evaluation.json"
_NODES = "nodes.parquet"
_NAMES = ("model", "graph", "fingerprints")


def evaluate(context: Context) -> Outcome:
    """Judge the candidate and the current release; left out where the candidate is that release."""
    candidate = _candidate(context)
    if candidate is None:
        return Outcome("skipped", facts={"why": "there is no model"})
    current = current_release(context.settings.pipeline.releases)
    made_of = _checksums(candidate)
    if current is not None and _is(current, made_of):
        told = current.manifest["decision"] or {}
        key = told.get("evaluation") if told.get("run") == context.run.name else None
        if key is not None and (output(context.work, "evaluate", key) / EVALUATION).exists():
            return Outcome("kept", key, {"candidate": made_of})  # this run judged it, and published it then
        why = f"nothing new: the candidate is what the current release {current.version} has"
        return Outcome("skipped", facts={"why": why, "candidate": made_of, "current": current.version})
    collected = context.need("collect")
    queries = table(collected, QUERIES) or context.settings.pipeline.queries
    held_out = HeldOut(
        interactions=table(collected, HELD_OUT + INTERACTIONS),
        choices=table(collected, HELD_OUT + CHOICES),
        training_interactions=table(collected, INTERACTIONS),
        training_choices=table(collected, CHOICES),
    )
    inputs: dict[str, Any] = {
        "candidate": made_of,
        "current": None if current is None else current.version,
        "queries": checksums(queries),
        **{name: checksums(getattr(held_out, name)) for name in HeldOut.__slots__},
    }
    key = key_of("evaluate", inputs, {"k": K})
    path = output(context.work, "evaluate", key) / EVALUATION
    kept = path.exists()
    if not kept:
        from jobs.pipeline.evaluation import evaluate as judge

        found = judge(candidate, current, held_out, k=K, queries=queries, tell=context.log.info)
        if queries is not None:
            check_unchanged((), {queries: inputs["queries"]})
        write_json(path, found)
    facts = {"candidate": made_of, "current": inputs["current"]}
    return Outcome("kept" if kept else "done", key, facts)


def publish(context: Context) -> Outcome:
    """Decide by the gate's rule, and publish the candidate if it is to be."""
    candidate = _candidate(context)
    context.need_output("evaluate")
    if candidate is None:
        return Outcome("skipped", facts={"why": "there is no model"})
    root, made_of = context.settings.pipeline.releases, _checksums(candidate)
    current = current_release(root)
    is_current = current is not None and _is(current, made_of)
    if current is not None and is_current:
        before = current.manifest["decision"]
        if before is not None and before.get("run") == context.run.name:
            return Outcome("kept", facts=_facts(before, current.version))
    judged, version = context.run.facts("evaluate"), None if current is None else current.version
    if not is_current and (judged.get("candidate"), judged.get("current")) != (made_of, version):
        raise ConfigurationError(
            f"step 'evaluate' of the run {context.run.name} was done against the release "
            f"{judged.get('current')}, and now {version} is the current one: do it again"
        )
    decision = _decide(context, current, made_of)
    if not decision["publish"]:
        if is_current:
            context.log.info("nothing new", release=version)
        else:
            _refuse(context, decision)
        facts = _facts(decision, version)
        return Outcome("kept" if is_current or facts == context.run.facts("publish") else "done", facts=facts)
    from router.publishing import publish as make_release

    remove_abandoned(root)  # of a run that was killed here: the name of a release has its time in it
    collected = read_summary(context.need("collect"))
    release = make_release(
        root,
        model=candidate.model,
        graph=candidate.graph,
        fingerprints=candidate.fingerprints,
        feedback_until=_time(collected["feedback_until"]),
        erased_until=_time(collected["erased_until"]),
        decision=decision,
    )
    context.log.info("published", release=release.version)
    return Outcome("done", facts=_facts(decision, release.version))


def _facts(decision: Mapping[str, Any], version: str | None) -> dict[str, Any]:
    return {"published": decision["publish"], "release": version, "decision": dict(decision)}


def _decide(context: Context, current: Release | None, made_of: Mapping[str, str]) -> dict[str, Any]:
    """The gate's decision, with which run it is of and what its data are."""
    from jobs.pipeline.gate import Facts, decide

    collected = read_summary(context.need("collect"))
    counts = _counts(collected["description"])
    facts = Facts(
        rolled_back=_was_rolled_back(context, made_of),
        erasures=0 if current is None else n_erased(current, _erasures(collected)),
        candidate_is_current=current is not None and _is(current, made_of),
        drift=_since(current, counts) or drift_of(context),
    )
    decision = {
        "run": context.run.name,
        "until": _end(context, collected).isoformat(),
        "evaluation": context.run.key("evaluate"),
        "data": counts,
        "made_of": context.run.facts("train").get("made_of"),
        **decide(read_evaluation(context) or {}, context.settings.gate, facts).to_json(),
    }
    newer = _newer(current, decision)
    if decision["publish"] and newer is not None:
        reasons = [newer, *decision["reasons"]]
        decision |= {"publish": False, "summary": newer["text"], "reasons": reasons}
    return decision


def _end(context: Context, collected: Mapping[str, Any]) -> datetime:
    """End of what a run knows; of one up to now, whose data may be of yesterday, the end of its rows."""
    newest = _time(collected.get("newest"))
    if context.run.until is not None or newest is None:
        return context.run.until or context.now
    return newest.replace(microsecond=0) + timedelta(seconds=1)


def _refuse(context: Context, decision: Mapping[str, Any]) -> None:
    """Keep the refusal with its reasons, and say so."""
    from router.releases import record_refusal

    record_refusal(context.settings.pipeline.releases, decision)
    for reason in decision["reasons"]:
        if not reason["passed"]:
            context.log.warning("not published", rule=reason["rule"], reason=reason["text"])


def _counts(description: Mapping[str, Any]) -> dict[str, int]:
    """Rows, users, items and queries of a description, as :func:`jobs.pipeline.drift.drift` names them."""
    return {
        f"{part}.{name}": told[name]
        for part, told in description.items()
        if told is not None
        for name in ("rows", "users", "items", "queries")
        if name in told
    }


def _since(current: Release | None, counts: Mapping[str, int]) -> dict[str, Any] | None:
    """How counts differ from those that the current release was made from; None where it does not say.

    The gate is asked about these: after a night of broken data that was refused, the next night's equally
    broken data would not differ from the last run's.
    """
    before = None if current is None else (current.manifest["decision"] or {}).get("data")
    if before is None:
        return None
    changes = {name: (counts.get(name, 0), n) for name, n in before.items()}
    return {
        "counts": {
            name: {"now": now, "before": n, "ratio": now / n if n else None}
            for name, (now, n) in changes.items()
        }
    }


def current_release(root: Path) -> Release | None:
    """The release that services have; None before the first.

    Raises
    ------
    ReleaseError
        It is damaged.
    """
    version = current_version(root)
    return None if version is None else open_release(root, version, verify=False)


def read_evaluation(context: Context) -> dict[str, Any] | None:
    """What the step ``evaluate`` of this run found; None where it found nothing."""
    folder = context.output("evaluate")
    if folder is None:
        return None
    found: dict[str, Any] = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
    return found


def drift_of(context: Context) -> dict[str, Any] | None:
    """How the data differ from those of the run before; None without one."""
    facts = context.run.facts("collect")
    before = facts.get("before")
    if before is None:
        return None
    from jobs.pipeline.drift import drift

    return drift(facts["description"], before["description"])


def n_erased(release: Release, erasures: Mapping[str, Erasure]) -> int:
    """Users of a release whose data it should not have."""
    done = release.erased_until
    since = float("-inf") if done is None else done.timestamp()
    wanted = {
        digest for digest, erasure in erasures.items() if erasure.active or erasure.requested_at > since
    }
    if not wanted:
        return 0
    stores = [release.model, *([] if release.graph is None else [release.graph])]
    users: set[str] = set()
    for folder in stores:
        nodes = pq.read_table(folder / _NODES, columns=["kind", "key"])
        users.update(map(str, nodes.filter(pc.equal(nodes["kind"], "user"))["key"].to_pylist()))
    return sum(user_digest(user) in wanted for user in users)


def _candidate(context: Context) -> Candidate | None:
    model = context.need_output("train")
    if model is None:
        return None
    graph, fingerprints = context.need_output("graph"), context.need_output("fingerprints")
    return Candidate(model=model, graph=graph, fingerprints=fingerprints)


def _checksums(candidate: Candidate) -> dict[str, str]:
    paths = {name: getattr(candidate, name) for name in _NAMES}
    return {name: checksum(path) for name, path in paths.items() if path is not None}


def _is(release: Release, made_of: Mapping[str, str]) -> bool:
    """Whether a release has these stores."""
    return _stores_of(release.manifest) == made_of


def _stores_of(record: Mapping[str, Any]) -> dict[str, str]:
    return {name: store["checksum"] for name, store in record["stores"].items()}


def _was_rolled_back(context: Context, stores: Mapping[str, str]) -> bool:
    """Whether an operator went back from these stores, or from what the same data and settings gave.

    Stores of the same data differ with what their graph and fingerprints went on from.
    """
    place, made_of = Folder(context.settings.pipeline.releases), context.run.facts("train").get("made_of")
    for version in sorted(rolled_back_from(place) & set(place.versions())):
        record = place.record(version)
        of_release = (record["decision"] or {}).get("made_of")
        if _stores_of(record) == stores or (of_release is not None and of_release == made_of):
            return True
    return False


def _newer(current: Release | None, decision: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reason not to publish what knows less than the current release: a run for an earlier interval."""
    of_current = None if current is None else (current.manifest["decision"] or {}).get("until")
    if current is None or of_current is None:
        return None
    if datetime.fromisoformat(of_current) <= datetime.fromisoformat(decision["until"]):
        return None
    text = (
        f"the current release {current.version} knows the data until {of_current}, this run's end earlier "
        "(to publish earlier data, go back first with 'fairpath releases rollback')"
    )
    return {"rule": "newer", "passed": False, "text": text, "numbers": {"until": of_current}}


def _erasures(summary: Mapping[str, Any]) -> dict[str, Erasure]:
    return {digest: Erasure(digest, asked, lifted) for digest, lifted, asked in summary["erasures"]}


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
