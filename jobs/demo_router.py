"""The demo's router: trained on the choices before a moment, judged by later ones and by the planted truth.

One user in ten is kept out of the training, to see how the router does for users it meets later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.demo_choices import (
    POPULAR,
    Baselines,
    ChoiceParts,
    FloatArray,
    Picks,
    baseline_picks,
    choice_parts,
    first_choices,
    fit_baselines,
    gap_closed,
    mean_and_error,
    picks_of,
    split_events,
    user_quality,
)
from jobs.demo_desk import Desk
from jobs.demo_files import keep_tables
from jobs.demo_quality import Quality, Truth
from jobs.pipeline.rows import YEARS_1_TO_9999
from jobs.report import SupportCurves
from jobs.settings import RouterSettings
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from router.dataset.events import Events, read_events
from router.dataset.llms import read_llms
from router.persona.data import Bools, Ints
from router.surroundings import Surroundings

CHOICES = "choices.parquet"
ROUTER = "router"
OURS = "Fairpath, router"
PLANTED = "planted truth"
GAP, FORESEEN = "gap closed", "later choices foreseen"
_SUPPORT = (0, 1, 3, 5, 10)
_HISTORY = {"0": (0, 0), "1": (1, 1), "2": (2, 2), "3-5": (3, 5), "6-10": (6, 10), "11+": (11, np.inf)}
_LEAST_USERS = 5  # in a bin that is shown


@dataclass(frozen=True, slots=True)
class RouterRun:
    """A trained router, and what it did.

    Attributes
    ----------
    path
        Its bundle.
    parts
        The choices.
    desk
        Answers questions with it.
    picks
        What each method picks, by its name.
    quality
        Metrics by method.
    curves
        Quality by the number of choices observed, of users in the training and of newcomers.
    truth
        What is planted, or None.
    """

    path: Path
    parts: ChoiceParts
    desk: Desk
    picks: Mapping[str, Picks]
    quality: Quality
    curves: tuple[SupportCurves, SupportCurves]
    truth: Truth | None

    @property
    def checksum(self) -> str:
        """Identity of the bundle."""
        return self.desk.scorer.bundle.checksum


def prepare_choices(
    out: Path, *, events: Path, llms: Path, moment: float | None, truth: Truth | None, seed: int
) -> ChoiceParts:
    """Split the choices at the moment, and write those to train on beside the demo's other tables.

    Parameters
    ----------
    out
        The demo's folder; gets the choices of the training.
    events, llms
        Tables of the choices and of the LLMs.
    moment
        When the interactions were split; see :func:`jobs.demo_choices.split_events`.
    truth
        What is planted, or None.
    seed
        Of all draws.

    Raises
    ------
    OutputExistsError
        ``out`` holds the router of other data.
    ppr.errors.DataError, router.errors.DataError
        The tables break a rule, or cannot be split.
    """
    names = read_llms(llms)[0].names
    table = read_events(events, names)
    rows = split_events(table, moment, seed)
    parts = choice_parts(table, names, rows, seed, truth)
    in_training = rows[0][~parts.newcomers[table.users[rows[0]]]]
    keep_tables(out, {CHOICES: _events_table(table, in_training, names)}, made=ROUTER)
    return parts


def judge_router(
    bundle: Path,
    parts: ChoiceParts,
    *,
    graph: Graph,
    fingerprints: FingerprintStore,
    truth: Truth | None,
    seed: int,
) -> RouterRun:
    """Judge a router by the later choices, beside the baselines.

    Parameters
    ----------
    bundle
        The router, trained on the choices of :func:`prepare_choices`.
    parts
        The choices.
    graph, fingerprints
        The training graph, and the complete rows of its nodes.
    truth
        What is planted, or None.
    seed
        Of all draws.
    """
    desk = Desk(bundle, parts, Surroundings(graph, fingerprints, RouterSettings().top_k), seed)
    baselines = fit_baselines(parts, seed)
    picks = {**baseline_picks(baselines, parts, parts.earlier), OURS: desk.picks(desk.users)}
    del baselines[POPULAR]  # by task says it all in the curves
    drawn = {name: picked for name, picked in picks.items() if name != POPULAR}
    curves = (_by_history(parts, drawn), _by_support(parts, desk, baselines))
    if parts.utility is not None:
        picks[PLANTED] = picks_of(parts.utility, parts)
    quality = {name: _quality(parts, picked) for name, picked in picks.items()}
    return RouterRun(bundle, parts, desk, picks, quality, curves, truth)


def _events_table(events: Events, rows: Ints, llms: tuple[str, ...]) -> pa.Table:
    """Some of the events, as a table that a training reads."""
    queries = events.queries[rows]
    columns = {
        "user": events.user_keys.cast(pa.large_string()).take(pa.array(events.users[rows])),
        "query": pa.array(events.query_keys[queries]),
        "llm": pa.array(np.array(llms, dtype=object)[events.llms[rows]]),
        "thumbs": pa.array(events.thumbs[rows]),
    }
    if events.query_tasks is not None:
        columns["task"] = pa.array(events.query_tasks[queries])
    if events.offered is not None:
        offered = [[llms[i] for i in np.flatnonzero(row)] for row in events.offered[rows]]
        columns["offered"] = pa.array(offered)
    if events.timestamps is not None and events.timestamps.max() < YEARS_1_TO_9999[1]:
        microseconds = np.rint(events.timestamps[rows] * 1e6).astype(np.int64)
        columns["timestamp"] = pa.array(microseconds).cast(pa.timestamp("us", "UTC"))
    missing_is_null = {name: pa.array(v[rows], from_pandas=True) for name, v in events.measured.items()}
    return pa.table(columns | missing_is_null)


def _quality(parts: ChoiceParts, picks: Picks) -> dict[str, float]:
    quality = {FORESEEN: float(np.mean(picks.later == parts.later.llms))}
    if parts.utility is None:
        return quality
    return {GAP: float(gap_closed(parts.utility, picks.by_task).mean()), **quality}


def _by_history(parts: ChoiceParts, picks: Mapping[str, Picks]) -> SupportCurves:
    """Quality of the users in the training by the number of their earlier choices."""
    counts = parts.counts()
    quality = {name: user_quality(parts, picked) for name, picked in picks.items()}
    cells = {
        label: (~parts.newcomers & (counts >= least) & (counts <= most), quality)
        for label, (least, most) in _HISTORY.items()
    }
    return _curves("users of the training", cells)


def _by_support(parts: ChoiceParts, desk: Desk, baselines: Baselines) -> SupportCurves:
    """Quality of the newcomers of whom the first k choices are known."""
    cells = {}
    for k in _SUPPORT:
        known = first_choices(parts.earlier, k)
        who = parts.newcomers & (parts.counts() >= k)
        inferred = desk.newcomers(known, np.flatnonzero(who))
        picks = {**baseline_picks(baselines, parts, known), OURS: desk.picks(inferred)}
        cells[str(k)] = (who, {name: user_quality(parts, picked) for name, picked in picks.items()})
    return _curves("new users, kept out of the training", cells)


def _curves(title: str, cells: Mapping[str, tuple[Bools, Mapping[str, FloatArray]]]) -> SupportCurves:
    """Mean over the users of each cell; cells with few users are left out."""
    values = {
        label: {name: q[who & ~np.isnan(q)] for name, q in quality.items()}
        for label, (who, quality) in cells.items()
    }
    n_users = {label: next(iter(by_name.values())).size for label, by_name in values.items()}
    kept = [label for label, n in n_users.items() if n >= _LEAST_USERS]
    names = next(iter(values.values()))
    found = {name: np.array([mean_and_error(values[bin_][name]) for bin_ in kept]) for name in names}
    return SupportCurves(
        title=title,
        bins=tuple(kept),
        n_users=np.array([n_users[label] for label in kept], dtype=np.int64),
        means={name: both.reshape(-1, 2)[:, 0] for name, both in found.items()},
        errors={name: both.reshape(-1, 2)[:, 1] for name, both in found.items()},
    )
