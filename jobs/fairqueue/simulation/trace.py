"""Jobs of a cluster trace: the format of the window of the Google cluster data of 2011.

A CSV file with a row per task; the columns read are ``workflow_id`` (the job), ``user_id``,
``ts_submit_seconds``, ``runtime`` (milliseconds) and ``resource_amount_requested`` (cores). A task's
service is its run time times its cores; a job's is the sum over its tasks, cut anew into tasks of at most the
advisory task run time.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.fairqueue.errors import require_positive
from jobs.fairqueue.simulation.workload import Job, partitioned
from jobs.fairqueue.tasks import ADVISORY_TASK_RUN_TIME_S
from ppr.errors import DataError, MissingDataError

SCALE = 2.0  # as in arXiv 2510.15485
MAX_TASKS = 1_000_000  # of the whole trace: every policy simulates each of them

_JOB, _USER, _SUBMIT_S, _RUNTIME_MS, _CORES = (
    "workflow_id",
    "user_id",
    "ts_submit_seconds",
    "runtime",
    "resource_amount_requested",
)


@dataclass(slots=True)
class _TraceJob:
    user: str
    submit_s: float
    core_s: float = 0.0


def read_trace(
    path: Path, *, scale: float = SCALE, advisory_task_run_time_s: float = ADVISORY_TASK_RUN_TIME_S
) -> tuple[Job, ...]:
    """Jobs of a trace in the order of submission, the first at 0 s.

    The job class is the user: what a user's jobs cost is learned from its earlier ones.

    Raises
    ------
    MissingDataError
        The file or a column is missing.
    DataError
        The file cannot be read, a row breaks a rule (it is named), there is none, or the jobs make more than
        :data:`MAX_TASKS` tasks.
    FairQueueParameterError
        ``scale`` or ``advisory_task_run_time_s`` is not positive.
    """
    require_positive("'advisory_task_run_time_s'", advisory_task_run_time_s)
    found: dict[str, _TraceJob] = {}
    n_tasks = 0.0
    for row, values in _rows(path):
        job = _TraceJob(values[_USER], _number(path, row, values, _SUBMIT_S))
        first = found.setdefault(values[_JOB], job)
        if (first.user, first.submit_s) != (job.user, job.submit_s):
            raise DataError(f"{path}, row {row}: job {values[_JOB]!r} has another user or submission before")
        run_time_s = _number(path, row, values, _RUNTIME_MS) / 1000
        core_s = run_time_s * _number(path, row, values, _CORES)
        first.core_s += core_s
        n_tasks += core_s * scale / advisory_task_run_time_s
        if n_tasks > MAX_TASKS:
            raise DataError(
                f"{path}, row {row}: the trace must hold at most {MAX_TASKS:,} tasks of "
                f"{advisory_task_run_time_s:g} s (got {n_tasks:.3g} up to here)"
            )
    if not found:
        raise DataError(f"{path}: empty (no rows)")
    start_s = min(job.submit_s for job in found.values())
    ordered = sorted(found.items(), key=lambda item: (item[1].submit_s, item[0]))
    return tuple(
        Job(
            name,
            job.user,
            (partitioned(job.core_s * scale, advisory_task_run_time_s),),
            submit_s=job.submit_s - start_s,
            job_class=job.user,
        )
        for name, job in ordered
    )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows with the number of their line in the file, the header's being 1."""
    try:
        lines = path.open(newline="", encoding="utf-8")
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({(error.strerror or '').lower()})") from None
    with lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for name in (_JOB, _USER, _SUBMIT_S, _RUNTIME_MS, _CORES):
                if name not in (reader.fieldnames or ()):
                    raise MissingDataError(f"{path}: no column {name!r}")
            for values in reader:
                for name in (_JOB, _USER):
                    if not values[name]:
                        raise DataError(f"{path}, row {reader.line_num}: {name!r} must not be empty")
                yield reader.line_num, values
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a CSV file ({error})") from None


def _number(path: Path, row: int, values: dict[str, str], name: str) -> float:
    text = values[name]
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    lowest = 0 if name == _SUBMIT_S else math.nextafter(0, 1)
    if not lowest <= value < math.inf:
        rule = "must not be negative" if name == _SUBMIT_S else "must be positive"
        raise DataError(f"{path}, row {row}: {name!r} {rule} (got {text!r})")
    return value
