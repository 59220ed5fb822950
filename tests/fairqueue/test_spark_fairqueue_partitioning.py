"""Number of tasks by the advisory task run time."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.fairqueue import FairQueueParameterError, n_tasks, partition_settings


@given(st.integers(0, 10_000), st.integers(1, 100))
def test_no_task_is_longer_than_the_advisory_run_time(cost_tenths: int, run_time_tenths: int) -> None:
    expected = max(1, ceil(Fraction(cost_tenths, run_time_tenths)))
    assert n_tasks(cost_tenths / 10, advisory_task_run_time_s=run_time_tenths / 10) == expected


def test_settings_cut_scan_and_shuffle_alike() -> None:
    settings = partition_settings(26.9, 54 << 20, shuffle_bytes=27 << 20)
    assert n_tasks(26.9) == 54
    assert settings["spark.sql.files.maxPartitionBytes"] == f"{1 << 20}b"
    assert settings["spark.sql.shuffle.partitions"] == "54"
    assert settings["spark.sql.adaptive.advisoryPartitionSizeInBytes"] == f"{1 << 19}b"


@pytest.mark.parametrize("cost_core_s", [-1.0, float("nan"), float("inf")])
def test_costs_that_are_none_are_refused(cost_core_s: float) -> None:
    with pytest.raises(FairQueueParameterError, match="cost_core_s"):
        n_tasks(cost_core_s)


@pytest.mark.parametrize("size", [0, -5])
def test_inputs_without_size_are_refused(size: int) -> None:
    with pytest.raises(FairQueueParameterError, match="input_bytes"):
        partition_settings(1.0, size)
