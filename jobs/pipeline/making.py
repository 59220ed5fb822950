"""Steps ``graph``, ``fingerprints`` and ``train``: the batch jobs, on the tables of the step ``collect``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jobs.errors import NotYetError
from jobs.pipeline.collect import read_summary, table, users_table
from jobs.pipeline.deliveries import CHOICES, INTERACTIONS, check_unchanged
from jobs.pipeline.feedback import QUERIES
from jobs.pipeline.record import checksums, key_of, output
from jobs.pipeline.step import Context, Outcome, clear_leftovers, is_finished
from jobs.settings import GraphSettings
from ppr.manifest import MANIFEST, file_sha256
from router.encoders import encoder_name


def graph(context: Context) -> Outcome:
    """Build the graph of the interactions; left out where there are none."""
    collected = context.need("collect")
    interactions = table(collected, INTERACTIONS)
    if interactions is None:
        return Outcome("skipped", facts={"why": "there are no interactions"})
    how = GraphSettings(weighted=context.settings.graph.weighted, key_type="string")
    key = key_of("graph", {INTERACTIONS: file_sha256(interactions)}, how.model_dump(mode="json"))
    out = output(context.work, "graph", key)
    kept = is_finished(out)
    if not kept:
        clear_leftovers(out)
        from jobs.build_graph import run

        run([interactions], out, how)
    return Outcome("kept" if kept else "done", key, _counts(out))


def fingerprints(context: Context) -> Outcome:
    """Compute the fingerprints of all nodes, on the engine of the settings."""
    built = context.need_output("graph")
    if built is None:
        return Outcome("skipped", facts={"why": "there is no graph"})
    chosen = context.settings.fingerprints
    how = chosen.model_dump(mode="json", exclude={"engine", "threads"})
    key = key_of("fingerprints", {"graph": checksum(built)}, how)
    out = output(context.work, "fingerprints", key)
    kept = is_finished(out)
    if not kept:
        clear_leftovers(out)
        from jobs.fingerprints import run

        run(str(built.absolute()), out.absolute(), context.settings)
    return Outcome("kept" if kept else "done", key, {**_counts(out), "engine": chosen.engine})


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
    key = key_of("train", inputs, how | {"encoder": encoder_name(chosen.encoder)})
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
    summary = read_summary(collected)
    return Outcome(
        "kept" if kept else "done", key, {**_counts(out), "feedback_until": summary["feedback_until"]}
    )


def checksum(store: Path) -> str:
    """Identity of a store's content."""
    return str(_manifest(store)["checksum"])


def _counts(store: Path) -> dict[str, Any]:
    manifest = _manifest(store)
    return {**manifest["counts"], "checksum": manifest["checksum"]}


def _manifest(store: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((store / MANIFEST).read_text(encoding="utf-8"))
    return manifest
