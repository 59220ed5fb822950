"""The HTML report of the simulation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib

from jobs.fairqueue import simulation_figures as figures
from jobs.fairqueue.simulation.experiments import Outcome
from jobs.fairqueue.simulation.policies import TITLES
from jobs.fairqueue.simulation.scenarios import SCENARIOS, SLOTS
from jobs.fairqueue.simulation.study import NOISE_SEEDS, TRACE, Evaluation, Number, Study
from jobs.fairqueue.tasks import ADVISORY_TASK_RUN_TIME_S
from jobs.report import html
from jobs.report.data import Fact
from jobs.report.style import RC, SERIES

_TITLE = "Fair queueing on a simulated cluster"
_SUMMARY = (
    f"{SLOTS} slots, tasks of at most {ADVISORY_TASK_RUN_TIME_S:g} s that run to their end, and who gets the "
    "next slot: in the order of submission (FIFO), by Spark's fair order of jobs (Fair), by a fair pool per "
    "user, its jobs in order (Pools) or fair among them (UJF), by fair queueing without users (CFQ) or with "
    "them (UWFQ). DVR: the delay of the jobs that end later than in the ideal fluid schedule, over their "
    "response time there. Published: arXiv 2510.15485, on a patched Spark with its overheads."
)
_SHOWN_SLOTS_S: Mapping[str, float] = {"s1": 30.0, "s2": 30.0, "s3": 40.0, "s4": 6.0}
_SHOWN_POLICIES = ("fair", "ujf", "uwfq")
_TEXTS: Mapping[str, str] = {
    "s1": "Two users run four long jobs one after another (131 core-s each); two users submit six short ones "
    "(26.9 core-s) at random, 15 a minute. Light users: those with the short jobs. Means over {seeds} seeds.",
    "s2": "Two users submit twenty jobs (26.9 core-s each) at once, four times; two others submit twelve of "
    "the same jobs at random, 8 a minute. Light users: the latter. Means over {seeds} seeds.",
    "s3": "Four users run four long jobs (131 core-s each) one after another.",
    "s4": "Four users submit thirty short jobs (1.5 core-s each) at once.",
    TRACE: "500 s of a Google cluster of 2011: 27 users, 125 jobs from a fifth of a core-second to forty "
    "core-minutes. Every job's cost is declared.",
}


def write_simulation_report(path: Path, study: Study) -> Path:
    """Write the report as one self-contained HTML file.

    Raises
    ------
    ResourceError
        The disk is full or the folder cannot be written.
    """
    return html.write_page(path, render_simulation_report(study))


def render_simulation_report(study: Study) -> str:
    """HTML of the report; equal studies give equal text."""
    with matplotlib.rc_context(RC):
        return html.page(_TITLE, _sections(study))


def _sections(study: Study) -> Iterator[str]:
    yield html.heading(_TITLE, _SUMMARY)
    yield html.facts(_facts(study))
    yield html.section(
        "Numbers",
        "Lines without a goal explain the others. Costs are learned per job class from nothing in the four "
        f"scenarios. Wrong costs are wrong by a factor between ¼ and 4, log-uniform, {NOISE_SEEDS} draws.",
        html.table(("", "measured", "goal", "reached"), map(_number_row, study.numbers)),
    )
    for evaluation in study.evaluations:
        yield from _evaluation(evaluation)
    yield _fairness(study)


def _facts(study: Study) -> Iterator[Fact]:
    outcomes = {evaluation.name: evaluation.outcomes for evaluation in study.evaluations}
    met = [number.ok for number in study.numbers if number.ok is not None]
    yield Fact("goals reached", f"{sum(met)} of {len(met)}")
    fair, uwfq = outcomes["s2"]["fair"], outcomes["s2"]["uwfq"]
    note = f"of {fair.light_mean_s:.1f} s under Fair, beside two users who flood the cluster"
    yield Fact("a light user waits", f"{uwfq.light_mean_s:.1f} s", note)
    yield Fact("all users wait", f"{uwfq.mean_s:.1f} s", f"of {fair.mean_s:.1f} s under Fair, the same load")
    if TRACE in outcomes:
        ujf, uwfq = outcomes[TRACE]["ujf"], outcomes[TRACE]["uwfq"]
        note = f"of {ujf.mean_s:.1f} s under UJF, mean response"
        yield Fact("Google window", f"{uwfq.mean_s:.1f} s", note)


def _number_row(number: Number) -> tuple[str, str, str, str]:
    value = f"{number.value:.3g} {number.unit}".strip()
    return number.name, value, number.goal or "", {True: "yes", False: "no", None: ""}[number.ok]


def _evaluation(evaluation: Evaluation) -> Iterator[str]:
    light = any(outcome.light.any() for outcome in evaluation.outcomes.values())
    columns = [
        "policy",
        "mean response, s",
        *(["light users', s"] if light else []),
        "mean slowdown",
        "DVR",
        "makespan, s",
        *(["published mean, s"] if evaluation.published_mean_s else []),
        *(["published light users', s"] if evaluation.published_light_mean_s else []),
    ]
    rows = [_outcome_row(evaluation, outcome, light) for outcome in evaluation.outcomes.values()]
    policies = {TITLES[name]: figures.POLICY_COLOURS[name] for name in evaluation.outcomes}
    scenario = SCENARIOS.get(evaluation.name)
    text = _TEXTS.get(evaluation.name, "The same, each user's costs learned from its earlier jobs.")
    yield html.picture(
        f"Scenario {evaluation.name[1]}: {evaluation.title}" if scenario else evaluation.title,
        text.format(seeds=scenario.seeds if scenario else 1),
        figures.response_figure(evaluation.outcomes),
        f"responses-{evaluation.name}",
        "Share of jobs with at most a given response time and slowdown. Mean response times: "
        + ", ".join(f"{TITLES[name]} {found.mean_s:.2f} s" for name, found in evaluation.outcomes.items()),
        html.legend(policies) + html.table(columns, rows),
    )
    if scenario:
        yield _slots(evaluation)


def _outcome_row(evaluation: Evaluation, outcome: Outcome, light: bool) -> list[str]:
    published = (evaluation.published_mean_s, evaluation.published_light_mean_s)
    return [
        TITLES[outcome.policy],
        f"{outcome.mean_s:.2f}",
        *([f"{outcome.light_mean_s:.2f}"] if light else []),
        f"{outcome.stretch:.2f}",
        f"{outcome.deadline_violations:.3f}",
        f"{outcome.makespan_s:.1f}",
        *(f"{known[outcome.policy]:g}" if outcome.policy in known else "" for known in published if known),
    ]


def _slots(evaluation: Evaluation) -> str:
    schedules = {policy: evaluation.outcomes[policy].example for policy in _SHOWN_POLICIES}
    users = dict.fromkeys(job.user for job in schedules["uwfq"].jobs)
    colours = dict(zip(users, SERIES, strict=False))
    until_s = _SHOWN_SLOTS_S[evaluation.name]
    return html.picture(
        "Who had the slots",
        f"The first {until_s:g} s of one seed: a row per slot, coloured by user.",
        figures.slots_figure(schedules, colours, until_s),
        f"slots-{evaluation.name}",
        f"Slots by user over {until_s:g} s under {', '.join(TITLES[policy] for policy in schedules)}.",
        html.legend(colours),
    )


def _fairness(study: Study) -> str:
    return html.picture(
        "Fairness over time",
        "Scenario 2 again, costs declared. Each line is how far a user's cumulative service is behind "
        "its fluid share, over the bound that fair queueing keeps; below zero the user is ahead.",
        figures.lag_figure(study.lags),
        "lag",
        "Largest lag over its bound: "
        + ", ".join(f"{TITLES[policy]} {lag.largest:.2f}" for policy, lag in study.lags.items()),
        html.legend(dict(zip(study.lags["uwfq"].curves, SERIES, strict=False))),
    )
