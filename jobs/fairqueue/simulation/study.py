"""The evaluation: every number with its goal, for the command and for the benchmark alike.

In the four scenarios costs are learned per job class, from nothing at the start; in the trace they are
declared, and once more learned per user. The published figures (arXiv 2510.15485, and the authors' results)
are of a patched Spark with its overheads: compare the ratios between policies, not the seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.fairqueue.simulation import experiments as ex
from jobs.fairqueue.simulation.experiments import Lag, Outcome, evaluate
from jobs.fairqueue.simulation.policies import TITLES
from jobs.fairqueue.simulation.scenarios import SCENARIOS, Workload
from jobs.fairqueue.simulation.trace import read_trace

TRACE, TRACE_LEARNED = "trace", "trace-learned"
NOISE_SEEDS = 10
ERROR_SEEDS = 3
FAIRNESS_SEEDS = 20

Progress = Callable[[str], None]

#: The authors' mean response times, seconds, by workload and policy.
PUBLISHED_MEAN_S: Mapping[str, Mapping[str, float]] = {
    "s1": {"fair": 7.75, "ujf": 7.72, "cfq": 7.50, "uwfq": 7.25},
    "s2": {"fair": 44.1, "ujf": 43.1, "cfq": 32.6, "uwfq": 29.4},
    "s3": {"fair": 13.7, "ujf": 13.6, "cfq": 14.1, "uwfq": 14.3},
    "s4": {"fair": 28.1, "ujf": 29.1, "cfq": 43.2, "uwfq": 25.5},
    TRACE: {"fair": 58.6, "ujf": 23.1, "cfq": 12.8, "uwfq": 13.8},
}
#: The same of the light users alone.
PUBLISHED_LIGHT_MEAN_S: Mapping[str, Mapping[str, float]] = {
    "s2": {"fair": 40.8, "ujf": 5.1, "cfq": 34.3, "uwfq": 4.5}
}


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the evaluation; ``goal`` and ``ok`` are None where it only explains another one."""

    name: str
    value: float
    unit: str = ""
    goal: str | None = None
    ok: bool | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A workload under every policy."""

    name: str
    title: str
    outcomes: Mapping[str, Outcome]
    published_mean_s: Mapping[str, float]
    published_light_mean_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that was measured."""

    numbers: tuple[Number, ...]
    evaluations: tuple[Evaluation, ...]
    lags: Mapping[str, Lag]  # by policy, of scenario 2 with its costs declared
    seed: int


def at_most(name: str, value: float, bound: float, unit: str = "") -> Number:
    """Number that should not exceed ``bound``."""
    return Number(name, float(value), unit, f"≤ {bound:g}", bool(value <= bound))


def note(name: str, value: float, unit: str = "") -> Number:
    """Number without a goal."""
    return Number(name, float(value), unit)


def run_study(trace: Path | None, *, seed: int = 0, progress: Progress = lambda text: None) -> Study:
    """Run everything.

    Parameters
    ----------
    trace
        CSV file of the trace (:mod:`jobs.fairqueue.simulation.trace`); without it what needs it is left out.
    seed
        First of the seeds.
    progress
        Told what is being simulated.

    Raises
    ------
    DataError
        The trace is missing or a row of it breaks a rule.
    """
    traced = read_trace(trace) if trace else ()
    evaluations = tuple(_evaluations(traced, seed, progress))
    outcomes = {evaluation.name: evaluation.outcomes for evaluation in evaluations}
    numbers = [*_response_numbers(outcomes), *_makespan_numbers(outcomes)]
    progress("wrong estimates")
    numbers += _noise_numbers(outcomes, traced, seed)
    progress("one user with wrong costs")
    numbers += _wrong_user_numbers(seed)
    progress("fairness")
    lags = _flood_lags(seed)
    numbers += _fairness_numbers(seed, lags)
    return Study(tuple(numbers), evaluations, lags, seed)


def beside_published(study: Study) -> Iterator[Number]:
    """Every mean response time for which there is a published one, which stands in its name."""
    for evaluation in study.evaluations:
        for policy, published_s in evaluation.published_mean_s.items():
            name = f"{_label(evaluation.name)}, {TITLES[policy]}: mean response (published {published_s:g} s)"
            yield note(name, evaluation.outcomes[policy].mean_s, "s")
        for policy, published_s in evaluation.published_light_mean_s.items():
            name = (
                f"{_label(evaluation.name)}, {TITLES[policy]}, infrequent users (published {published_s:g} s)"
            )
            yield note(name, evaluation.outcomes[policy].light_mean_s, "s")


def _evaluations(traced: Workload, seed: int, progress: Progress) -> Iterator[Evaluation]:
    for scenario in SCENARIOS.values():
        progress(scenario.title)
        workloads = [scenario.make(seed + i) for i in range(scenario.seeds)]
        outcomes = evaluate(workloads, light_users=scenario.light_users)
        yield _evaluation(scenario.name, scenario.title, outcomes)
    if traced:
        for name, title, workload in (
            (TRACE, "Google window, costs declared", ex.declared(traced)),
            (TRACE_LEARNED, "Google window, costs learned per user", traced),
        ):
            progress(title)
            yield _evaluation(name, title, evaluate([workload]))


def _evaluation(name: str, title: str, outcomes: Mapping[str, Outcome]) -> Evaluation:
    published = PUBLISHED_MEAN_S.get(name, {}), PUBLISHED_LIGHT_MEAN_S.get(name, {})
    return Evaluation(name, title, outcomes, *published)


Outcomes = Mapping[str, Mapping[str, Outcome]]


def _response_numbers(outcomes: Outcomes) -> Iterator[Number]:
    s1, s2 = outcomes["s1"], outcomes["s2"]
    name = "scenario 1, {} / Fair's"
    yield at_most(name.format("mean response"), s1["uwfq"].mean_s / s1["fair"].mean_s, 1.0)
    yield at_most(name.format("short jobs' mean"), s1["uwfq"].light_mean_s / s1["fair"].light_mean_s, 0.75)
    name = "scenario 2, infrequent users' mean response / {}"
    yield at_most(name.format("Fair's"), s2["uwfq"].light_mean_s / s2["fair"].light_mean_s, 0.08)
    yield at_most(name.format("UJF's"), s2["uwfq"].light_mean_s / s2["ujf"].light_mean_s, 0.65)
    yield at_most("scenario 2, mean response / Fair's", s2["uwfq"].mean_s / s2["fair"].mean_s, 0.76)
    for name in ("s3", "s4"):
        best = min(outcome.mean_s for outcome in outcomes[name].values())
        ratio = outcomes[name]["uwfq"].mean_s / best
        yield at_most(f"scenario {name[1]}, mean response / the best policy's", ratio, 1.02)
    if TRACE in outcomes:
        yield from _trace_numbers(outcomes[TRACE], outcomes[TRACE_LEARNED])


def _trace_numbers(declared: Mapping[str, Outcome], learned: Mapping[str, Outcome]) -> Iterator[Number]:
    uwfq, ujf, cfq = declared["uwfq"], declared["ujf"], declared["cfq"]
    yield at_most("Google window, mean response / UJF's", uwfq.mean_s / ujf.mean_s, 0.60)
    yield at_most("Google window, mean response / CFQ's", uwfq.mean_s / cfq.mean_s, 1.03)
    yield at_most(
        "Google window, largest 5 % of jobs, mean response / UJF's", uwfq.large_mean_s / ujf.large_mean_s, 1.0
    )
    name = "Google window, costs learned per user: mean response / {}"
    yield note(name.format("UJF's"), learned["uwfq"].mean_s / learned["ujf"].mean_s)
    yield note(name.format("CFQ's"), learned["uwfq"].mean_s / learned["cfq"].mean_s)


def _makespan_numbers(outcomes: Outcomes) -> Iterator[Number]:
    for name, by_policy in outcomes.items():
        best = min(outcome.makespan_s for outcome in by_policy.values())
        yield at_most(
            f"{_label(name)}, makespan / the best policy's", by_policy["uwfq"].makespan_s / best, 1.01
        )


def _label(name: str) -> str:
    names = {TRACE: "Google window", TRACE_LEARNED: "Google window, costs learned per user"}
    return names.get(name) or f"scenario {name[1]}"


def _noise_numbers(outcomes: Outcomes, traced: Workload, seed: int) -> Iterator[Number]:
    flood, ujf = SCENARIOS["s2"], outcomes["s2"]["ujf"]
    noisy = evaluate(
        [ex.misdeclared(flood.make(seed + i), seed + i) for i in range(flood.seeds)],
        ["uwfq"],
        flood.light_users,
    )["uwfq"]
    name = "costs wrong by up to 4 times either way, scenario 2: {} / UJF's"
    yield at_most(name.format("infrequent users' mean response"), noisy.light_mean_s / ujf.light_mean_s, 1.5)
    yield at_most(name.format("stretch"), noisy.stretch / ujf.stretch, 1.0)
    if traced:
        noisy = evaluate([ex.misdeclared(traced, seed + i) for i in range(NOISE_SEEDS)], ["uwfq"])["uwfq"]
        exact = outcomes[TRACE]["uwfq"].mean_s
        name = "costs wrong by up to 4 times either way, Google window: mean response / with exact costs"
        yield at_most(name, noisy.mean_s / exact, 1.12)


def _wrong_user_numbers(seed: int) -> Iterator[Number]:
    """What is gained once, before the first tasks are reported, counts for less the longer one looks."""
    horizon_s = np.inf
    for error in ex.ERRORS:
        gains = [ex.gain_of_error(error, error.workload(seed + i)) for i in range(ERROR_SEEDS)]
        horizon_s = min(horizon_s, *(gain.horizon_s for gain in gains))
        worst = 100 * max(gain.gain for gain in gains)
        name = f"one of four backlogged users {error.what}: gain, the worst of {ERROR_SEEDS} workloads"
        yield at_most(name, worst, 5, "% of share")
    yield note("one of four backlogged users is wrong: the shortest horizon", horizon_s, "s")
    gain = ex.gain_of_error(ex.TENTH, SCENARIOS["s2"].make(seed), "frequent-1").gain
    yield at_most("a flooding user of scenario 2 declares a tenth: gain", 100 * gain, 5, "% of share")


def _fairness_numbers(seed: int, flood: Mapping[str, Lag]) -> Iterator[Number]:
    name = "scenario 2, largest lag / the bound"
    yield at_most(name, flood["uwfq"].largest, 1.0)
    yield note(f"{name}, Fair", flood["fair"].largest)
    yield note(f"{name}, UJF", flood["ujf"].largest)
    name = f"{FAIRNESS_SEEDS} weighted workloads, largest lag / the bound"
    yield at_most(name, _largest_lag(seed, stages=1), 1.0)
    yield note(f"{name}, jobs of three stages", _largest_lag(seed, stages=3))


def _flood_lags(seed: int) -> dict[str, Lag]:
    """Lags in scenario 2, its costs declared, by policy."""
    flood = ex.declared(SCENARIOS["s2"].make(seed))
    equal = dict.fromkeys((job.user for job in flood), 1.0)
    return {policy: ex.fairness_lag(flood, policy, equal) for policy in ("fair", "ujf", "uwfq")}


def _largest_lag(seed: int, stages: int) -> float:
    """The largest lag over its bound under UWFQ."""
    workloads = (ex.weighted(seed + i, stages=stages) for i in range(FAIRNESS_SEEDS))
    return max(ex.fairness_lag(workload, "uwfq", ex.WEIGHTS).largest for workload in workloads)
