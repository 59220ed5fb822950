"""Job: the fair queue beside other policies on a simulated cluster, told in an HTML report."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from jobs.fairqueue.simulation.experiments import Outcome
from jobs.fairqueue.simulation.study import run_study
from jobs.fairqueue.simulation_report import write_simulation_report
from jobs.report import check_page


def run(out: Path, *, trace: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Run the evaluation and write its report.

    Parameters
    ----------
    out
        HTML file to write.
    trace
        CSV file of a cluster trace, or None.
    seed
        First seed of the random workloads.

    Returns
    -------
    dict
        The report's path, every number with its goal, the means of every workload and policy.

    Raises
    ------
    DataError
        The trace is missing or a row of it breaks a rule.
    OutputExistsError
        There is a file at ``out`` that is not a page of this program.
    ResourceError
        The report cannot be written.
    """
    started = time.monotonic()
    check_page(out)
    log = structlog.get_logger()
    study = run_study(trace, seed=seed, progress=lambda text: log.info("simulating", workload=text))
    write_simulation_report(out, study)
    return {
        "report": str(out),
        "numbers": [asdict(number) for number in study.numbers],
        "workloads": {
            evaluation.name: {policy: _means(outcome) for policy, outcome in evaluation.outcomes.items()}
            for evaluation in study.evaluations
        },
        "seconds": round(time.monotonic() - started, 3),
    }


def _means(outcome: Outcome) -> dict[str, float | None]:
    return {
        "mean_response_s": outcome.mean_s,
        "light_mean_response_s": outcome.light_mean_s if outcome.light.any() else None,
        "stretch": outcome.stretch,
        "deadline_violation_ratio": outcome.deadline_violations,
        "makespan_s": outcome.makespan_s,
    }
