"""The fair queue on real Spark, ``local[2]``: its cost; scenarios 1 and 2 and walk jobs by five policies.

The scenarios are those of the simulator, shrunk: a job's core-seconds are divided by 16 (2 slots for 32) and
then, like all its times, by :data:`SPEED`. Their tasks sleep, at most 0.1 s each, so that what is measured is
the order and not the machine; the walk jobs compute.
"""

from __future__ import annotations

import random
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import fmean, median, quantiles

import numpy as np
from datasets import wiki_vote
from harness import RESULTS, Figure, at_most, check, note, run_alone
from pyspark.sql import SparkSession

from jobs import fairqueue
from jobs.fairqueue.simulation.scenarios import SCENARIOS, SLOTS
from jobs.fairqueue.simulation.workload import Job, partitioned
from jobs.fairqueue.spark.identity import JobIdentity
from jobs.fairqueue.spark.ledger import Ledger
from jobs.fairqueue.spark.progress import StageProgress
from jobs.spark_session import spark_session
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.spark import compute_fingerprints_spark

CORES = 2
SPEED = 3.0
TASK_S = 0.1
SEED = 0
POLICIES = ("FIFO", "FAIR", "UJF", "CFQ", "UWFQ")
WAITING, USERS = 1000, 100
FLAT_JOBS = 100_000
WALKS = FingerprintParams(n_walks=20_000, top_k=50, seed=1)
WALK_BLOCK_MOVES = 2_500_000.0  # about 0.1 s

Responses = dict[str, list[float]]


def measure() -> list[Figure]:
    """Measure the costs, then every workload under every policy."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    figures = [*_memory()]
    found: dict[tuple[str, str], Responses] = {}
    graph = wiki_vote()
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        workloads: dict[str, Callable[[SparkSession, str], Responses]] = {
            "scenario 1": lambda spark, policy: _play(spark, policy, _scaled("s1")),
            "scenario 2": lambda spark, policy: _play(spark, policy, _scaled("s2")),
            "walk jobs": lambda spark, policy: _walk_jobs(spark, policy, graph, Path(folder) / policy),
        }
        for mode, policies in (("FIFO", ("FIFO", "CFQ", "UWFQ")), ("FAIR", ("FAIR", "UJF"))):
            conf = {"spark.scheduler.mode": mode, "spark.locality.wait": "0"}
            spark = spark_session(master=f"local[{CORES}]", app_name="fairpath-bench", conf=conf)
            try:
                _sleep(spark, (0.01,) * CORES)
                if mode == "FIFO":
                    figures += _cost_of_a_task_set(spark)
                for name, run in workloads.items():
                    for policy in policies:
                        with _queue(spark, policy):
                            found[name, policy] = run(spark, policy)
            finally:
                spark.stop()
    return [*figures, *_compare(found)]


def _compare(found: dict[tuple[str, str], Responses]) -> Iterator[Figure]:
    light = {"scenario 1": "short", "scenario 2": "infrequent", "walk jobs": "small"}
    means: dict[tuple[str, str], float] = {}
    for name, prefix in light.items():
        for policy in POLICIES:
            by_user = found[name, policy]
            times = [seconds for each in by_user.values() for seconds in each]
            few = [s for user, each in by_user.items() if user.startswith(prefix) for s in each]
            means[name, policy] = fmean(few)
            yield note(f"{name}, {policy}: mean response", fmean(times), "s")
            yield note(f"{name}, {policy}: mean response of the {prefix} users", fmean(few), "s")
    ratio = means["scenario 2", "UWFQ"] / means["scenario 2", "FAIR"]
    yield at_most("scenario 2: infrequent users' mean response, UWFQ to FAIR", ratio, 0.3)
    for name in ("scenario 1", "walk jobs"):
        ratio = means[name, "UWFQ"] / means[name, "FAIR"]
        yield note(f"{name}: {light[name]} users' mean response, UWFQ to FAIR", ratio)
    for name, prefix in light.items():
        ratio = means[name, "UWFQ"] / means[name, "UJF"]
        yield note(f"{name}: {prefix} users' mean response, UWFQ to UJF with ties for them", ratio)


# ---------------------------------------------------------------------- policies and workloads


@contextmanager
def _queue(spark: SparkSession, policy: str) -> Iterator[None]:
    if policy not in ("CFQ", "UWFQ"):
        yield
        return
    with fairqueue.install(spark, policy=policy.lower(), advisory_task_run_time_s=TASK_S) as installation:
        yield
        bad = {"callback_errors", "poll_errors", "calls_lost"} & installation.counters.keys()
        check(not bad, f"errors of the fair queue: {installation.counters}")


def _as_user(
    spark: SparkSession, policy: str, user: str, job_class: str, size: float | None = None
) -> AbstractContextManager[None]:
    if policy == "UJF":
        light = user.startswith(("short", "infrequent", "small"))
        fairqueue.use_pool(spark, f"{'a' if light else 'b'} {user}")  # Spark breaks ties by name
    if policy in ("CFQ", "UWFQ"):
        return fairqueue.job(spark, user=user, job_class=job_class, size=size)
    return nullcontext()


def _scaled(scenario: str) -> tuple[Job, ...]:
    jobs = []
    for job in SCENARIOS[scenario].make(SEED):
        stages = (partitioned(job.core_s * CORES / SLOTS / SPEED, TASK_S),)
        jobs.append(Job(job.name, job.user, stages, job.submit_s / SPEED, job.after, job.job_class))
    return tuple(jobs)


def _sleep(spark: SparkSession, tasks_s: Sequence[float]) -> None:
    """A stage of tasks that sleep in the JVM, without Python workers."""
    sleep = f"java_method('java.lang.Thread', 'sleep', cast({round(tasks_s[0] * 1000)} as bigint))"
    spark.range(0, len(tasks_s), 1, len(tasks_s)).selectExpr(f"{sleep} as slept").collect()


def _play(spark: SparkSession, policy: str, jobs: Sequence[Job]) -> Responses:
    """Run a workload in real time; gives the response times by user."""
    responses: Responses = {}
    ended = {job.name: threading.Event() for job in jobs}
    begun_s = time.monotonic() + 0.2

    def run(job: Job) -> None:
        time.sleep(max(0.0, begun_s + job.submit_s - time.monotonic()))
        if job.after is not None:
            ended[job.after].wait()
        submitted_s = time.monotonic()
        with _as_user(spark, policy, job.user, job.job_class or ""):
            _sleep(spark, job.stages[0])
        responses.setdefault(job.user, []).append(time.monotonic() - submitted_s)
        ended[job.name].set()

    _in_threads([lambda job=job: run(job) for job in jobs])  # type: ignore[misc]
    check(sum(map(len, responses.values())) == len(jobs), "some jobs have not ended")
    return responses


def _walk(spark: SparkSession, graph: Graph, sources: np.ndarray, out: Path) -> FingerprintStore:
    assert graph.path is not None
    return compute_fingerprints_spark(
        spark, graph.path, out, WALKS, sources=sources, block_moves=WALK_BLOCK_MOVES, wave_blocks=1024
    )


def _walk_jobs(spark: SparkSession, policy: str, graph: Graph, folder: Path) -> Responses:
    """One user fingerprints a graph in four jobs at once; two others ask for a few rows now and then."""
    responses: Responses = {}
    stores: dict[str, FingerprintStore] = {}
    folder.mkdir(parents=True)
    _walk(spark, graph, np.arange(500, dtype=np.int32), folder / "warm-up")  # idle workers end after a minute

    def run(user: str, number: int, submit_s: float, n_sources: int) -> None:
        time.sleep(submit_s)
        first = number * n_sources % (graph.n_nodes - n_sources)
        sources = np.arange(first, first + n_sources, dtype=np.int32)
        submitted_s = time.monotonic()
        with _as_user(spark, policy, user, "fingerprints", size=n_sources):
            stores[f"{user}-{number}"] = _walk(spark, graph, sources, folder / f"{user}-{number}")
        responses.setdefault(user, []).append(time.monotonic() - submitted_s)

    draws = random.Random(SEED)
    runs = [("large", number, 0.0, graph.n_nodes // 4) for number in range(4)]
    runs += [(f"small-{user}", n, 1.0 + 2.0 * n + draws.random(), 50) for user in (1, 2) for n in range(4)]
    _in_threads([lambda each=each: run(*each) for each in runs])  # type: ignore[misc]
    expected = compute_fingerprints(
        graph, folder / "expected", WALKS, sources=np.arange(50, dtype=np.int32), threads=CORES
    )
    check(stores["small-1-0"].checksum == expected.checksum, "rows of a walk job")
    return responses


def _in_threads(calls: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---------------------------------------------------------------------- costs


def _cost_of_a_task_set(spark: SparkSession) -> Iterator[Figure]:
    """Time inside the callback while 1,000 task sets of 100 users wait, and of a look at their progress."""
    context = spark.sparkContext
    spent_ms: list[float] = []
    with fairqueue.install(spark) as installation:
        order = installation._hook._python_builder._on_task_set

        def timed(manager: object, properties: object) -> None:
            started = time.perf_counter()
            order(manager, properties)
            spent_ms.append((time.perf_counter() - started) * 1000)

        installation._hook._python_builder._on_task_set = timed
        futures = []
        hold = context.parallelize(range(CORES), CORES).map(_wait)
        costs = random.Random(SEED)
        for number in range(WAITING + 200):
            with fairqueue.job(spark, user=f"user-{number % USERS}", cost_core_s=costs.uniform(0.1, 60.0)):
                futures.append(hold._jrdd.countAsync())
            while len(spent_ms) <= number - 20:  # the scheduler keeps up
                time.sleep(0.001)
        while len(spent_ms) < WAITING + 200:
            time.sleep(0.01)
        begun = installation.counters
        time.sleep(3.0)
        done = installation.counters
        for future in futures:
            future.cancel(True)
        check(installation.counters["task_sets"] == WAITING + 200, "task sets that reached the fair queue")
        check("callback_errors" not in installation.counters, "errors in the callback")
    last = spent_ms[WAITING:]
    polls = done["polls"] - begun["polls"]
    yield at_most("task set added with 1,000 waiting of 100 users, median", median(last), 2.0, "ms")
    yield note(
        "task set added with 1,000 waiting of 100 users, 95th percentile", quantiles(last, n=20)[-1], "ms"
    )
    yield note("priorities written per task set", begun["priorities_written"] / len(spent_ms))
    yield note(
        "a look at the progress of 1,200 task sets", (done["poll_ns"] - begun["poll_ns"]) / polls / 1e6, "ms"
    )


def _wait(item: int) -> int:
    time.sleep(60.0)
    return item


def _memory() -> Iterator[Figure]:
    """100,000 jobs through the adapter's ledger and the scheduler, with objects in the place of task sets."""
    scheduler = fairqueue.FairScheduler(CORES)
    ledger = Ledger(scheduler, max_samples=100)
    draws = random.Random(SEED)
    sizes, resident_kib = [], []
    started = time.perf_counter()
    for number in range(FLAT_JOBS):
        now_s = 0.6 * number
        identity = JobIdentity(
            f"user {draws.randrange(200)}", f"job {number}", f"class {draws.randrange(500)}"
        )
        ledger.add_task_set(now_s, (number, 0), identity, object(), tasks=4)
        ended = StageProgress("complete", draws.uniform(0.5, 1.5), 4, 4)
        ledger.report(now_s + 0.5, {(number, 0): ended}, slots=CORES)
        if number % 1000 == 999:
            sizes.append(sum(ledger.sizes().values()) + sum(scheduler.sizes().values()))
            resident_kib.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    each_us = (time.perf_counter() - started) / FLAT_JOBS * 1e6
    grown_mib = (resident_kib[-1] - resident_kib[9]) / 1024
    yield at_most("memory grown from 10,000 to 100,000 jobs (no Spark)", grown_mib, 8.0, "MiB")
    yield at_most("things remembered after 100,000 jobs to 10,000", max(sizes[50:]) / max(sizes[:10]), 1.2)
    yield note("scheduler and ledger per job (no Spark)", each_us, "µs")


if __name__ == "__main__":
    run_alone("fairqueue_spark", measure)
