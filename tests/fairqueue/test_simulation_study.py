"""Metrics, the trace reader, the scenarios and the experiments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.fairqueue.errors import FairQueueParameterError
from jobs.fairqueue.simulation import experiments as ex
from jobs.fairqueue.simulation import metrics
from jobs.fairqueue.simulation.cluster import simulate
from jobs.fairqueue.simulation.fluid import fluid_schedule
from jobs.fairqueue.simulation.policies import POLICIES
from jobs.fairqueue.simulation.scenarios import CORE_S, SCENARIOS
from jobs.fairqueue.simulation.trace import read_trace
from jobs.fairqueue.simulation.workload import Job
from ppr.errors import DataError, MissingDataError

HEADER = "workflow_id,user_id,ts_submit_seconds,runtime,resource_amount_requested\n"


def two_jobs() -> list[Job]:
    """On two slots under FIFO: a from 0 to 2 s, b from 2 to 3 s; in the fluid, a to 3 s and b to 2 s."""
    return [Job("a", "a", ((1.0,) * 4,)), Job("b", "b", ((1.0,) * 2,))]


def test_metrics_of_a_schedule_computed_by_hand() -> None:
    schedule = simulate(two_jobs(), POLICIES["fifo"](2, None), slots=2)
    fluid = fluid_schedule(two_jobs(), slots=2)
    assert schedule.finish_s == (2.0, 3.0)
    assert fluid.finish_s == pytest.approx((3.0, 2.0))
    assert metrics.responses_s([schedule]).tolist() == [2.0, 3.0]
    assert metrics.slowdowns([schedule]).tolist() == [1.0, 3.0]
    assert metrics.deadline_violation_ratio([schedule], [fluid]) == pytest.approx((3 - 2) / 2)
    assert metrics.service_share(schedule, "a", 2.5) == pytest.approx(4 / 5)
    times_s, lag = metrics.lag_curve(schedule, fluid, "b")
    assert np.interp([0, 1, 2, 3], times_s, lag) == pytest.approx([0, 1, 2, 0])
    times_s, lag = metrics.lag_curve(schedule, fluid, "a")
    assert np.interp([0, 1, 2, 3], times_s, lag) == pytest.approx([0, -1, -2, 0])


def test_the_ideal_has_no_violations_and_no_lag() -> None:
    """One user with one job: every schedule is the ideal one."""
    jobs = [Job("a", "a", ((1.0,) * 4,))]
    schedule = simulate(jobs, POLICIES["uwfq"](2, None), slots=2)
    fluid = fluid_schedule(jobs, slots=2)
    assert metrics.deadline_violation_ratio([schedule], [fluid]) == 0
    assert metrics.lag_curve(schedule, fluid, "a")[1] == pytest.approx(0)


def test_scenarios_are_those_of_the_evaluation() -> None:
    work = {name: sum(job.core_s for job in scenario.make(0)) for name, scenario in SCENARIOS.items()}
    assert work["s1"] == pytest.approx(8 * 131 + 12 * 26.9)
    assert work["s2"] == pytest.approx(160 * 26.9 + 24 * 26.9)
    assert work["s3"] == pytest.approx(16 * 131)
    assert work["s4"] == pytest.approx(120 * 1.5)
    for scenario in SCENARIOS.values():
        jobs = scenario.make(3)
        assert all(job.core_s == pytest.approx(CORE_S[job.job_class or ""]) for job in jobs)
        assert scenario.light_users <= {job.user for job in jobs}
        assert jobs == scenario.make(3)
        assert (jobs != scenario.make(4)) == (scenario.seeds > 1)


def test_poisson_users_submit_at_their_rate() -> None:
    last_s = [
        max(job.submit_s for job in SCENARIOS["s2"].make(seed) if job.user == "infrequent-1")
        for seed in range(200)
    ]
    mean_s, spread_s = 12 * 7.5, 12**0.5 * 7.5  # a sum of 12 exponential gaps
    assert np.mean(last_s) == pytest.approx(mean_s, abs=4 * spread_s / 200**0.5)


def test_trace_jobs_hold_their_tasks_work(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    rows = ("7,ann,100.5,2000,0.5", "3,bob,100,4000,0.25", "7,ann,100.5,1000,1")
    path.write_text(HEADER + "\n".join(rows) + "\n")
    bob, ann = read_trace(path, scale=2.0, advisory_task_run_time_s=0.5)
    assert (bob.name, bob.user, bob.submit_s, bob.core_s) == ("3", "bob", 0.0, 2.0)
    assert (ann.name, ann.user, ann.submit_s, ann.core_s) == ("7", "ann", 0.5, 4.0)
    assert ann.stages == ((0.5,) * 8,)
    assert ann.job_class == "ann"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,u,-1,1,1", "row 3: 'ts_submit_seconds' must not be negative (got '-1')"),
        ("1,u,0,0,1", "row 3: 'runtime' must be positive (got '0')"),
        ("1,u,0,nan,1", "row 3: 'runtime' must be positive (got 'nan')"),
        ("1,u,0,1,much", "row 3: 'resource_amount_requested' must be positive (got 'much')"),
        ("1,u,0,1", "row 3: 'resource_amount_requested' must be positive (got None)"),
        (",u,0,1,1", "row 3: 'workflow_id' must not be empty"),
        ("1,,0,1,1", "row 3: 'user_id' must not be empty"),
        ("0,other,0,1,1", "row 3: job '0' has another user or submission before"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(f"{HEADER}0,u,0,1,1\n{row}\n")
    with pytest.raises(DataError) as caught:
        read_trace(path)
    assert str(caught.value) == f"{path}, {message}"


def test_a_trace_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="no such file"):
        read_trace(tmp_path / "none.csv")
    path = tmp_path / "trace.csv"
    path.write_text("workflow_id,runtime\n1,2\n")
    with pytest.raises(MissingDataError, match="no column 'user_id'"):
        read_trace(path)
    path.write_text(HEADER)
    with pytest.raises(DataError, match=r"empty \(no rows\)"):
        read_trace(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a CSV file"):
        read_trace(path)
    path.write_text(HEADER + "0,u,0,1,1\n")
    with pytest.raises(FairQueueParameterError, match="'core_s' must be positive and finite"):
        read_trace(path, scale=-1)


def test_the_google_window_is_the_one_described(shared_data: Path) -> None:
    jobs = read_trace(shared_data / "google-2011" / "window_hetero.csv")
    assert len(jobs) == 125
    assert len({job.user for job in jobs}) == 27
    assert max(job.submit_s for job in jobs) < 500
    assert sum(job.core_s for job in jobs) == pytest.approx(2 * 6388.343, rel=1e-5)


def test_noise_is_log_uniform_within_its_factor() -> None:
    jobs = SCENARIOS["s2"].make(0)
    noise = np.log2([j.declared_core_s / j.core_s for s in range(20) for j in ex.misdeclared(jobs, s)])
    assert np.abs(noise).max() <= 2
    assert noise.mean() == pytest.approx(0, abs=4 * (4 / 12**0.5) / len(noise) ** 0.5)
    assert noise.std() == pytest.approx(4 / 12**0.5, rel=0.03)
    assert ex.misdeclared(jobs, 1) == ex.misdeclared(jobs, 1)


@pytest.mark.parametrize("error", ex.ERRORS, ids=lambda error: error.what)
def test_only_the_costs_of_one_user_are_wrong(error: ex.Error) -> None:
    jobs = error.workload(0)
    wrong = error.apply(jobs)
    own = [job for job in wrong if job.user == ex.SUBJECT]
    assert all(job.declared_core_s == job.core_s for job in wrong if job.user != ex.SUBJECT)
    assert [job.core_s for job in wrong] == [job.core_s for job in jobs]
    assert sum(job.declared_core_s is None or job.declared_core_s < 0.2 * job.core_s for job in own) > 100 / 3


@pytest.mark.parametrize("error", ex.ERRORS, ids=lambda error: error.what)
def test_a_user_with_wrong_costs_does_not_gain(error: ex.Error) -> None:
    """Beyond the service of the tasks that had not been reported yet when it was first seen to be wrong."""
    found = ex.gain_of_error(error, error.workload(0))
    assert found.horizon_s >= 80
    assert found.gain <= 0.05


def test_no_user_lags_by_more_than_the_bound_and_cfq_does() -> None:
    for seed in range(5):
        assert ex.fairness_lag(ex.weighted(seed), "uwfq", ex.WEIGHTS).largest <= 1
    flood = ex.declared(SCENARIOS["s2"].make(0))
    equal = dict.fromkeys((job.user for job in flood), 1.0)
    assert ex.fairness_lag(flood, "uwfq", equal).largest <= 1
    assert ex.fairness_lag(flood, "cfq", equal).largest > 1
    assert ex.fairness_lag(flood, "fair", equal).largest > 1


def test_the_bound_counts_only_users_that_may_have_overtaken_themselves() -> None:
    """Two slots, tasks of 1 s, each user's longest job 4 core-seconds; reports every half a second."""
    jobs = [
        Job("a/0", "a", ((1.0,) * 4,)),
        Job("a/1", "a", ((1.0,),), submit_s=1.0),
        Job("b/0", "b", ((1.0,),)),
    ]
    weights = {"a": 1.0, "b": 0.25}
    alike = [replace(job, declared_core_s=job.core_s) for job in jobs]
    schedule = simulate(alike, POLICIES["fifo"](2, None), slots=2)
    assert ex.lag_bound_core_s(schedule, weights, "a") == 2 + 4  # b has one job
    assert ex.lag_bound_core_s(schedule, weights, "b") == 2 + 2 * 1.5  # a/1 comes while a/0 is running
    late = [job if job.name != "a/1" else replace(job, submit_s=9.0) for job in alike]
    schedule = simulate(late, POLICIES["fifo"](2, None), slots=2)
    assert ex.lag_bound_core_s(schedule, weights, "b") == 2 + 1


def test_backlogged_users_share_by_weight() -> None:
    jobs = ex.declared(ex.backlogs(0))
    weights = {"user-1": 3.0, "user-2": 1.0, "user-3": 1.0, "user-4": 1.0}
    schedule = ex.run(jobs, "uwfq", weights)
    bound = ex.lag_bound_core_s(schedule, weights, "user-1")
    end_s = 25.0  # everybody has work until then
    assert metrics.service_share(schedule, "user-1", end_s) == pytest.approx(0.5, abs=bound / (32 * end_s))


def test_an_infrequent_user_does_not_wait_for_a_flood() -> None:
    flood = SCENARIOS["s2"]
    found = ex.evaluate([flood.make(0)], ["fair", "uwfq"], flood.light_users)
    assert found["uwfq"].light_mean_s <= 0.1 * found["fair"].light_mean_s
    assert found["uwfq"].mean_s < found["fair"].mean_s
    assert found["uwfq"].makespan_s <= 1.01 * found["fair"].makespan_s
