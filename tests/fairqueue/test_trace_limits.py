"""Traces that no simulation could hold, and paths that are no files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.fairqueue.errors import FairQueueParameterError
from jobs.fairqueue.simulation import trace
from jobs.fairqueue.simulation.trace import read_trace
from ppr.errors import DataError

HEADER = "workflow_id,user_id,ts_submit_seconds,runtime,resource_amount_requested\n"


@pytest.mark.parametrize(
    ("row", "got"),
    [("1,ann,0,1e15,1", "4e+12"), ("1,ann,0,1e300,1e300", "inf"), ("0,bob,0,1e9,1", "4e+06")],
)
def test_a_row_of_endless_work_is_named(tmp_path: Path, row: str, got: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(f"{HEADER}0,bob,0,1,1\n{row}\n2,ann,0,1,1\n")
    with pytest.raises(DataError) as refused:
        read_trace(path, scale=2.0, advisory_task_run_time_s=0.5)
    rule = f"the trace must hold at most 1,000,000 tasks of 0.5 s (got {got} up to here)"
    assert str(refused.value) == f"{path}, row 3: {rule}"


def test_the_limit_is_that_of_the_tasks_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MAX_TASKS", 8)
    path = tmp_path / "trace.csv"
    path.write_text(f"{HEADER}0,bob,0,1000,1\n1,ann,0,500,2\n")  # 4 core-seconds when doubled
    jobs = read_trace(path, scale=2.0, advisory_task_run_time_s=0.5)
    assert [len(stage) for job in jobs for stage in job.stages] == [4, 4]
    with pytest.raises(DataError, match=r"row 3: .* at most 8 tasks of 0.4 s \(got 10 up to here\)"):
        read_trace(path, scale=2.0, advisory_task_run_time_s=0.4)
    with pytest.raises(FairQueueParameterError, match="'advisory_task_run_time_s' must be positive"):
        read_trace(path, advisory_task_run_time_s=0)


def test_a_trace_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r": cannot be read \(is a directory\)"):
        read_trace(tmp_path)
    path = tmp_path / "trace.csv"
    path.write_text(HEADER)
    path.chmod(0)
    if not os.access(path, os.R_OK):  # a superuser reads everything
        with pytest.raises(DataError, match=r": cannot be read \(permission denied\)"):
            read_trace(path)
