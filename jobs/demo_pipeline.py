"""The demo's pipeline: what was known at the demo's moment is delivered, and becomes a release."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from jobs.demo_data import CHOICES, DELIVERIES, INTERACTIONS
from jobs.demo_files import keep_tables
from jobs.pipeline.record import output
from jobs.pipeline.rows import YEARS_1_TO_9999
from jobs.pipeline.run import run
from jobs.settings import (
    FingerprintSettings,
    GateSettings,
    PipelineSettings,
    RouterSettings,
    Settings,
    SparkSettings,
)
from ppr.errors import OutputExistsError

WORK = "pipeline"
RELEASES = "releases"
CONFIG = "pipeline.toml"
RESTART_PROB = 0.3  # rows that compose well to the answer of any query
# Fixed, not chosen on the test part: small, since the example market is; with more steps the choices that the
# training itself holds out become no likelier.
ROUTER = RouterSettings(encoder="hashing", n_factors=6, n_tastes=8, n_steps=200)
# Names in the demo's folder of what the steps made.
LINKS = {"graph": "graph", "fingerprints": "fingerprints", "train": "router"}
_UNTIMED = "interactions.parquet"
NEXT_UNTIL = "2025-07-01"  # the end of the month after the demo's moment, in the example market
_KEPT_RUNS = 12


def run_pipeline(
    out: Path,
    *,
    interactions: Path,
    choices: tuple[Path, Path] | None,
    until: datetime | None,
    engine: str,
    spark: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Run the pipeline on what was known, quietly; gives its result.

    Parameters
    ----------
    out
        The demo's folder: gets ``pipeline/``, ``releases/``, and links to the outputs of the steps.
    interactions
        What is delivered.
    choices
        Events and LLMs, or None: then there is no router, and no release.
    until
        The demo's moment, or None where it is no time.
    engine, spark
        What computes the fingerprints: ``local`` or ``spark``, and the session.
    seed
        Of all draws.

    Raises
    ------
    OutputExistsError
        The folder holds something else where a link belongs.
    """
    for name in LINKS.values():
        link = out / name
        if (link.exists() or link.is_symlink()) and not link.is_symlink():
            raise OutputExistsError(f"{link}: exists with other data; choose another output or remove it")
    settings = Settings(
        pipeline=PipelineSettings(
            work=out / WORK,
            releases=out / RELEASES,
            interactions=(str(_deliverable(out, interactions)),),
            choices=() if choices is None else (str(choices[0]),),
            llms=None if choices is None else choices[1],
            keep_runs=_KEPT_RUNS,
        ),
        # A demo shows what came of it, good or bad.
        gate=GateSettings(popularity_floor=False, too_few="publish"),
        fingerprints=FingerprintSettings(engine=engine, restart_prob=RESTART_PROB, seed=seed),  # type: ignore[arg-type]
        router=ROUTER.model_copy(update={"seed": seed}),
        spark=SparkSettings(app_name="fairpath-demo", **spark),
    )
    with _quiet():
        result = run(settings, until=until)
    for step, name in LINKS.items():
        key = result["steps"][step].get("key")
        if key is not None:
            _link(out / name, output(Path(WORK), step, key))
    return result


def moment_until(later: pa.Table) -> datetime | None:
    """End of a run for what came before a table; None where that is no past time of whole seconds."""
    if "timestamp" not in later.column_names or not pa.types.is_temporal(later["timestamp"].type):
        return None
    moment = pc.min(later["timestamp"]).cast(pa.timestamp("us")).as_py().replace(tzinfo=UTC)
    return moment if not moment.microsecond and moment <= datetime.now(UTC) else None


def write_config(out: Path, engine: str, seed: int) -> Path:
    """Settings of a pipeline on the deliveries of the example market, for ``fairpath pipeline``."""
    folder, market = out.absolute(), out.absolute() / "market"
    days = [f"{market / DELIVERIES / name}/{{date}}.parquet" for name in (INTERACTIONS, CHOICES)]
    path = out / CONFIG
    path.write_text(
        f"""\
# A pipeline on the example market, which lies below in a delivery for each month:
#   fairpath pipeline --config {path} --until {NEXT_UNTIL}
# conf/pipeline.toml explains the settings.

[pipeline]
work = "{folder / WORK}"
releases = "{folder / RELEASES}"
interactions = ["{market / DELIVERIES / INTERACTIONS}"]
choices = ["{market / DELIVERIES / CHOICES}"]
llms = "{market / "llms.parquet"}"
wait_for = {json.dumps(days)}
keep_runs = {_KEPT_RUNS}

[fingerprints]
engine = "{engine}"
restart_prob = {RESTART_PROB}
seed = {seed}

[router]
encoder = "{ROUTER.encoder}"
n_factors = {ROUTER.n_factors}
n_tastes = {ROUTER.n_tastes}
n_steps = {ROUTER.n_steps}
seed = {seed}
""",
        encoding="utf-8",
    )
    return path


def _deliverable(out: Path, interactions: Path) -> Path:
    """The interactions; without what they call a time, if it is none that a calendar has."""
    table = pq.read_table(interactions)
    if "timestamp" not in table.column_names or pa.types.is_temporal(table["timestamp"].type):
        return interactions
    first, last = YEARS_1_TO_9999
    bounds = pc.min_max(table["timestamp"]).as_py()
    if bounds["min"] >= first and bounds["max"] < last:
        return interactions
    keep_tables(out, {_UNTIMED: table.drop_columns("timestamp")}, made="graph")
    return out / _UNTIMED


def _link(link: Path, target: Path) -> None:
    """Let a link lead to a place, in one step; relative, so that the folder can be moved."""
    if link.is_symlink() and link.readlink() == target:
        return
    working = link.with_name(f".{link.name}.new")
    working.unlink(missing_ok=True)
    working.symlink_to(target)
    working.replace(link)


@contextmanager
def _quiet() -> Iterator[None]:
    """Log warnings only."""
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        yield
    finally:
        structlog.configure(wrapper_class=before)
