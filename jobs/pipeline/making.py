"""Steps ``graph``, ``fingerprints`` and ``train``: the batch jobs, on the tables of the step ``collect``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from jobs.errors import NotYetError
from jobs.pipeline.base import Base, give_up, give_up_rows, go_on, made_with, of_rows, settled
from jobs.pipeline.collect import read_summary, table, users_table
from jobs.pipeline.deliveries import CHOICES, INTERACTIONS, check_unchanged
from jobs.pipeline.feedback import QUERIES
from jobs.pipeline.record import checksums, key_of, output
from jobs.pipeline.step import Context, Outcome, clear_leftovers, is_finished
from jobs.settings import GraphSettings
from ppr.manifest import MANIFEST, file_sha256
from ppr.params import FingerprintParams
from router.encoders import encoder_name


def graph(context: Context) -> Outcome:
    """Build the graph of the interactions, with the ids of the run's base; left out where there are none."""
    collected = context.need("collect")
    interactions = table(collected, INTERACTIONS)
    if interactions is None:
        return Outcome("skipped", facts={"why": "there are no interactions"})
    chosen = context.settings.graph
    how = GraphSettings(engine=chosen.engine, weighted=chosen.weighted, key_type="string")
    digest = file_sha256(interactions)
    base, why = settled(context)
    out = _graph_place(context, digest, how, base)
    kept = is_finished(out)
    if not kept and base is not None:
        why = go_on(context, base, partial(_build, context, interactions, out, how, base.graph))
        if why is not None:
            give_up(context, why)
            base, out = None, _graph_place(context, digest, how, None)
            kept = is_finished(out)
    if not is_finished(out):
        _build(context, interactions, out, how, None)
    facts = {"interactions": digest, "weighted": how.weighted}
    return Outcome("kept" if kept else "done", out.name, {**_counts(out), **facts, **_from(base, why)})


def _graph_place(context: Context, interactions: str, how: GraphSettings, base: Base | None) -> Path:
    """Where the graph lies, or will: a base with the same interactions has it already."""
    if base is not None and base.facts["graph"]["interactions"] == interactions:
        return base.graph
    inputs = {INTERACTIONS: interactions}
    if base is not None:
        inputs["previous"] = base.facts["graph"]["checksum"]
    return output(
        context.work, "graph", key_of("graph", inputs, how.model_dump(mode="json", exclude={"engine"}))
    )


def _build(
    context: Context, interactions: Path, out: Path, how: GraphSettings, previous: Path | None
) -> None:
    from jobs.build_graph import run

    clear_leftovers(out)
    run([interactions], out, how, previous=previous, spark=context.settings.spark)


def fingerprints(context: Context) -> Outcome:
    """Compute the fingerprints, on the engine of the settings: of all nodes, or refresh those of the base."""
    built = context.need_output("graph")
    if built is None:
        return Outcome("skipped", facts={"why": "there is no graph"})
    base, why = of_rows(context)
    out = _fingerprints_place(context, built, base)
    kept = is_finished(out)
    if not kept and base is not None:
        why = go_on(context, base, partial(_refresh, context, built, out, base))
        if why is not None:
            give_up_rows(context, why)
            base, out = None, _fingerprints_place(context, built, None)
            kept = is_finished(out)
    if not is_finished(out):
        from jobs.fingerprints import run

        clear_leftovers(out)
        run(str(built.absolute()), out.absolute(), context.settings)
    facts = {"engine": context.settings.fingerprints.engine, **_what_was_made(out, base)}
    if base is not None and facts["share_recomputed"] == 1.0:
        tolerance = context.settings.refresh.tolerance
        why = f"over half of the rows are new, or may have moved by more than {tolerance:g} since computed"
    return Outcome("kept" if kept else "done", out.name, {**_counts(out), **facts, **_from(base, why)})


def _fingerprints_place(context: Context, graph: Path, base: Base | None) -> Path:
    """Where the fingerprints lie, or will: a base with the same graph has them, if they are good enough."""
    settings = context.settings
    matters = {field.name for field in fields(FingerprintParams)}
    how: dict[str, Any] = settings.fingerprints.model_dump(mode="json", include=matters)
    inputs = {"graph": checksum(graph)}
    if base is not None:
        of_base = base.facts["fingerprints"]
        if graph == base.graph and of_base["largest_bound"] <= settings.refresh.tolerance:
            return base.fingerprints
        inputs["previous"] = of_base["checksum"]
        how["tolerance"] = settings.refresh.tolerance
    return output(context.work, "fingerprints", key_of("fingerprints", inputs, how))


def _refresh(context: Context, graph: Path, out: Path, base: Base) -> None:
    from jobs.refresh import run

    clear_leftovers(out)
    run(graph.absolute(), out.absolute(), context.settings, old=base.fingerprints, old_graph=base.graph)


def _from(base: Base | None, why: str | None) -> dict[str, Any]:
    """What a step went on from; where it was made in full though it might not have been, why."""
    told: dict[str, Any] = {"base": None if base is None else base.run}
    return told if why is None else {**told, "why": f"made in full: {why}"}


def _what_was_made(out: Path, base: Base | None) -> dict[str, Any]:
    """Parameters of a fingerprint store, how much of it was computed for this run, and how exact it is."""
    manifest = _manifest(out)
    told = manifest.get("refresh", {"recomputed": manifest["counts"]["sources"], "rows_changed": None})
    if base is not None and out == base.fingerprints:
        told = {**told, "recomputed": 0, "rows_changed": 0}
    parameters = manifest["parameters"]
    return {
        "parameters": {name: parameters[name] for name in parameters if name not in ("sources", "tolerance")},
        **{name: told[name] for name in ("recomputed", "rows_changed")},
        "share_recomputed": told["recomputed"] / manifest["counts"]["sources"],
        **{name: told.get(name, 0.0) for name in ("largest_bound", "mean_bound")},
    }


def train(context: Context) -> Outcome:
    """Train the router; left out where there are no choices."""
    collected = context.need("collect")
    built, rows = context.need_output("graph"), context.need_output("fingerprints")
    settings = context.settings.pipeline
    choices = table(collected, CHOICES)
    if choices is None or settings.llms is None:
        return Outcome("skipped", facts={"why": "there are no choices of LLMs"})
    queries = table(collected, QUERIES) or settings.queries
    users = users_table(collected, settings)
    tables = {"choices": choices, "llms": settings.llms, "queries": queries, "users": users}
    inputs: dict[str, Any] = {name: checksums(path) for name, path in tables.items()}
    for name, store in (("graph", built), ("fingerprints", rows)):
        inputs[name] = None if store is None else checksum(store)
    chosen = context.settings.router
    how = chosen.model_dump(mode="json", exclude={"device", "checkpoint_every", "stream_bytes"})
    how |= {"encoder": encoder_name(chosen.encoder)}
    key = key_of("train", inputs, how)
    out = output(context.work, "train", key)
    page = out.with_name(f"{key}.html")
    kept = is_finished(out) and page.exists()
    if not kept:
        clear_leftovers(out)
        from jobs.train_router import run
        from router.dataset import RouterFiles

        files = RouterFiles(
            events=choices, llms=settings.llms, queries=queries, users=users, graph=built, fingerprints=rows
        )
        # The feedback's table has no queries but its own: of deliveries, they are texts.
        expected = queries is not None and queries != settings.queries
        run(files, out, chosen, report=page, tell=context.log.info if expected else None)
        try:
            check_unchanged((), {path: inputs[name] for name, path in tables.items() if path is not None})
        except NotYetError:
            shutil.rmtree(out)
            page.unlink()
            raise
    facts = {
        "feedback_until": read_summary(collected)["feedback_until"],
        "made_of": _made_of(context, {name: inputs[name] for name in tables}, how),
    }
    return Outcome("kept" if kept else "done", key, {**_counts(out), **facts})


def _made_of(context: Context, tables: Mapping[str, Any], how: Mapping[str, Any]) -> str:
    """Identity of the data and settings of a candidate, whatever its graph and fingerprints went on from."""
    data = {**tables, INTERACTIONS: context.run.facts("graph").get("interactions")}
    settings = {**made_with(context.settings), "tolerance": context.settings.refresh.tolerance}
    return key_of("candidate", data, {"router": how, **settings})


def checksum(store: Path) -> str:
    """Identity of a store's content."""
    return str(_manifest(store)["checksum"])


def _counts(store: Path) -> dict[str, Any]:
    manifest = _manifest(store)
    return {**manifest["counts"], "checksum": manifest["checksum"]}


def _manifest(store: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((store / MANIFEST).read_text(encoding="utf-8"))
    return manifest
