"""The fair queue in a real, classic Spark session: order, identity, ends of jobs, and what may go wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from jobs import fairqueue
from jobs.fairqueue.spark import hook
from jobs.fairqueue.spark.identity import JOB_PROPERTY

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
PATIENCE_S = 30.0
FIFO = "org.apache.spark.scheduler.FIFOSchedulableBuilder"


@pytest.fixture
def queue(spark: SparkSession) -> Iterator[fairqueue.Installation]:
    with fairqueue.install(spark, poll_s=0.05, idle_s=0.2) as installation:
        yield installation
    assert builder_of(spark) == FIFO


def builder_of(spark: SparkSession) -> str:
    scheduler = spark.sparkContext._jsc.sc().taskScheduler()  # type: ignore[union-attr]
    field = scheduler.getClass().getDeclaredField("schedulableBuilder")
    field.setAccessible(True)
    return str(field.get(scheduler).getClass().getName())


def order_in_spark(spark: SparkSession) -> list[tuple[str, int]]:
    """Names and priorities of the task sets, in the order in which Spark would offer them slots."""
    pool = spark.sparkContext._jsc.sc().taskScheduler().rootPool()  # type: ignore[union-attr]
    task_sets = pool.getSortedTaskSetQueue()
    return [(task_sets.apply(i).name(), task_sets.apply(i).priority()) for i in range(task_sets.size())]


def wait_until(condition: Callable[[], Any]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, "it has not happened"
        time.sleep(0.01)


class Gate:
    """Keeps both slots busy until it is opened, and starts jobs behind itself, in a known order."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark = spark
        self.log = folder / "log"
        self._path = folder / "open"
        self._threads: list[threading.Thread] = []
        self._waiting = len(order_in_spark(spark))

    def __enter__(self) -> Gate:
        path = str(self._path)

        def hold(batches: Iterator[Any]) -> Iterator[Any]:
            import time
            from pathlib import Path

            while not Path(path).exists():
                time.sleep(0.01)
            yield from batches

        self._start(
            lambda: self.spark.range(0, 2, 1, 2).mapInArrow(hold, "id long").collect(), {"user": "gate"}
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._path.touch()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def submit(self, user: str | None, tasks: int, name: str, **declared: Any) -> None:
        log = str(self.log)

        def work(batches: Iterator[Any]) -> Iterator[Any]:
            with open(log, "a") as file:  # noqa: PTH123
                file.write(f"{name}\n")
            yield from batches

        def run() -> None:
            self.spark.range(0, tasks, 1, tasks).mapInArrow(work, "id long").collect()

        self._start(run, {"user": user, **declared})

    def _start(self, run: Callable[[], Any], declared: dict[str, Any]) -> None:
        def in_a_block() -> None:
            with fairqueue.job(self.spark, **declared):
                run()

        self._threads.append(threading.Thread(target=in_a_block))
        self._threads[-1].start()
        self._waiting += 1
        wait_until(lambda: len(order_in_spark(self.spark)) == self._waiting)

    def order(self) -> list[str]:
        """Jobs by their first task."""
        return list(dict.fromkeys(self.log.read_text().split()))


def test_a_short_job_passes_the_flood_of_another_user(
    spark: SparkSession, queue: fairqueue.Installation, tmp_path: Path
) -> None:
    with Gate(spark, tmp_path) as gate:
        for number in range(4):
            gate.submit("alice", 4, f"alice-{number}", cost_core_s=20.0)
        gate.submit("bob", 2, "bob", cost_core_s=1.0)
        waiting = order_in_spark(spark)
        labels = [priority for _, priority in waiting]
        assert labels == sorted(labels)
        assert len(set(labels)) == 6
        assert {job.user: job.state for job in queue.snapshot().jobs if job.user != "gate"} == {
            "alice": "waiting",
            "bob": "waiting",
        }
    assert gate.order() == ["bob", "alice-0", "alice-1", "alice-2", "alice-3"]
    assert queue.counters["task_sets"] == 6
    assert not {"callback_errors", "poll_errors", "calls_lost"} & queue.counters.keys()


@pytest.mark.parametrize("flood", [[24], [4] * 6])
def test_a_small_job_of_which_nothing_is_known_passes_a_flood(spark: SparkSession, flood: list[int]) -> None:
    def sleep(batches: Iterator[Any]) -> Iterator[Any]:
        time.sleep(0.3)
        yield from batches

    ended_s: dict[str, float] = {}

    def run(user: str, tasks: int) -> None:
        with fairqueue.job(spark, user=user):
            spark.range(0, tasks, 1, tasks).mapInArrow(sleep, "id long").collect()
        ended_s[user] = time.monotonic()

    spark.range(0, 2, 1, 2).mapInArrow(sleep, "id long").collect()  # Python workers are there
    with fairqueue.install(spark, weights={"alice": 2}):
        threads = [threading.Thread(target=run, args=("alice", tasks)) for tasks in flood]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        run("bob", 4)
        for thread in threads:
            thread.join(PATIENCE_S)
    assert ended_s["bob"] < ended_s["alice"] - 0.5


def test_a_weight_moves_the_jobs_that_wait(
    spark: SparkSession, queue: fairqueue.Installation, tmp_path: Path
) -> None:
    with Gate(spark, tmp_path) as gate:
        gate.submit("alice", 2, "alice", cost_core_s=10.0)
        gate.submit("bob", 2, "bob", cost_core_s=20.0)
        queue.set_weight("bob", 4.0)
    assert gate.order() == ["bob", "alice"]


def test_uninstalling_restores_the_order_of_arrival(spark: SparkSession, tmp_path: Path) -> None:
    fairqueue.install(spark)
    fairqueue.uninstall(spark)
    fairqueue.uninstall(spark)  # nothing is left to do
    assert fairqueue.installation_of(spark) is None
    assert builder_of(spark) == FIFO
    assert "fairqueue" not in {thread.name for thread in threading.enumerate()}
    with Gate(spark, tmp_path) as gate:
        for number in range(3):
            gate.submit("alice", 2, f"alice-{number}", cost_core_s=20.0)
        gate.submit("bob", 2, "bob", cost_core_s=1.0)
    assert gate.order() == ["alice-0", "alice-1", "alice-2", "bob"]


def test_an_error_in_the_callback_costs_no_task_set(
    spark: SparkSession, queue: fairqueue.Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(queue._ledger, "add_task_set", broken)
    with capture_logs() as logs:
        for _ in range(3):
            assert spark.range(0, 10, 1, 2).count() == 10
    assert queue.counters["callback_errors"] == queue.counters["task_sets"] >= 6
    assert [(line["counter"], line["error"]) for line in logs if "counter" in line] == [
        ("callback_errors", "RuntimeError: broken on purpose")
    ]
    assert "write_errors" not in queue.counters
    monkeypatch.undo()
    with fairqueue.job(spark, user="alice"):
        spark.range(0, 10, 1, 2).count()
    wait_until(lambda: "alice" in {user.user for user in queue.snapshot().users} or not queue.snapshot().jobs)


def test_a_job_that_breaks_the_callback_waits_behind_all_others(
    spark: SparkSession, queue: fairqueue.Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_task_set = queue._ledger.add_task_set

    def broken_for_mallory(now_s: float, stage: Any, identity: Any, *rest: Any, **named: Any) -> Any:
        if identity.user == "mallory":
            raise RuntimeError("broken on purpose")
        return add_task_set(now_s, stage, identity, *rest, **named)

    monkeypatch.setattr(queue._ledger, "add_task_set", broken_for_mallory)
    with capture_logs(), Gate(spark, tmp_path) as gate:
        for number in range(3):
            gate.submit("alice", 2, f"alice-{number}", cost_core_s=20.0)
        gate.submit("mallory", 2, "mallory", cost_core_s=1.0)
        gate.submit("bob", 2, "bob", cost_core_s=1e9)
    assert gate.order() == ["alice-0", "alice-1", "alice-2", "bob", "mallory"]
    assert queue.counters["callback_errors"] == 1


def test_a_cancelled_job_is_charged_for_its_killed_tasks(
    spark: SparkSession, queue: fairqueue.Installation
) -> None:
    def sleep(batches: Iterator[Any]) -> Iterator[Any]:
        import time

        time.sleep(1.0)
        yield from batches

    def run() -> None:
        spark.sparkContext.setJobGroup("cancelled", "a job that is cancelled")
        with (
            pytest.raises(Exception, match="cancelled"),
            fairqueue.job(spark, user="eve", name="cancelled", job_class="cancelled"),
        ):
            spark.range(0, 4, 1, 4).mapInArrow(sleep, "id long").collect()

    charged: list[float | None] = []
    finish_job = queue._ledger._scheduler.finish_job

    def recorded(now_s: float, job: str, *, core_s: float | None, learn: bool) -> None:
        charged.append(core_s)
        assert not learn
        finish_job(now_s, job, core_s=core_s, learn=learn)

    queue._ledger._scheduler.finish_job = recorded  # type: ignore[method-assign]
    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: queue.history(1.0) and queue.history(1.0)[-1].running.get("eve") == 2)
    time.sleep(0.3)
    spark.sparkContext.cancelJobGroup("cancelled")
    thread.join(PATIENCE_S)
    wait_until(lambda: queue.sizes() == {"jobs": 0, "task_sets": 0})
    (core_s,) = charged
    assert core_s is not None
    assert core_s >= 0.5  # two tasks of at least 0.3 s
    assert queue.snapshot().estimate_error.count == 0


def test_priorities_that_keep_moving_are_written_at_last_with_the_next_poll(
    spark: SparkSession, queue: fairqueue.Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_locked = queue._hook.write_locked
    failures = iter(range(3))

    def broken_thrice(priorities: Any) -> None:
        if next(failures, None) is not None:
            raise RuntimeError("broken on purpose")
        write_locked(priorities)

    with capture_logs(), Gate(spark, tmp_path) as gate:
        for number in range(25):
            gate.submit(f"user-{number}", 1, f"user-{number}", cost_core_s=10.0 + number)
        wait_until(lambda: queue.sizes()["task_sets"] == 26)
        last = order_in_spark(spark)[-1][0]
        monkeypatch.setattr(queue._hook, "write_locked", broken_thrice)
        with pytest.raises(RuntimeError, match="broken on purpose"):
            queue.set_weight("user-24", 100.0)
        wait_until(lambda: queue.counters.get("poll_errors", 0) == 2)
        wait_until(lambda: last in [name for name, _ in order_in_spark(spark)[:2]])
    assert "user-24" in gate.order()[:2]  # there are two slots


def test_costs_that_cannot_be_saved_stop_nothing(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(fairqueue.CostEstimator, "write", broken)
    with capture_logs() as logs:
        queue = fairqueue.install(spark, poll_s=0.05, estimates=tmp_path / "estimates.json")
        wait_until(lambda: queue.counters.get("save_errors") == 1)
        assert spark.range(0, 10, 1, 2).count() == 10
        queue.uninstall()
    assert queue.counters["save_errors"] == 2
    assert "poll_errors" not in queue.counters
    assert [line["error"] for line in logs if line.get("counter") == "save_errors"] == [
        "RuntimeError: broken on purpose"
    ]
    assert builder_of(spark) == FIFO


def test_jobs_without_user_and_with_broken_descriptions(
    spark: SparkSession, queue: fairqueue.Installation, tmp_path: Path
) -> None:
    context = spark.sparkContext
    with Gate(spark, tmp_path) as gate:
        context.setLocalProperty(JOB_PROPERTY, '{"user": ["not", "a", "name"], "cost_core_s": "dear"')
        try:
            thread = threading.Thread(target=spark.range(0, 2, 1, 2).collect)
            thread.start()
            gate.submit(None, 1, "no-user")
            wait_until(lambda: queue.sizes()["task_sets"] == 3)
            users = {job.user for job in queue.snapshot().jobs}
        finally:
            context.setLocalProperty(JOB_PROPERTY, None)  # type: ignore[arg-type]
    thread.join(PATIENCE_S)
    assert users == {"gate", "default"}
    assert "callback_errors" not in queue.counters


def test_realised_costs_are_learned_and_kept(spark: SparkSession, tmp_path: Path) -> None:
    def work(batches: Iterator[Any]) -> Iterator[Any]:
        import time

        time.sleep(0.2)
        yield from batches

    path = tmp_path / "estimates.json"
    with fairqueue.install(spark, poll_s=0.05, idle_s=0.2, estimates=path) as queue:
        for _ in range(2):
            with fairqueue.job(spark, user="alice", job_class="sleep"):
                spark.range(0, 4, 1, 4).mapInArrow(work, "id long").collect()
        wait_until(lambda: queue.sizes()["jobs"] == 0)
        assert sum(sum(sample.running.values()) for sample in queue.history(60.0)) > 0
    learned = fairqueue.CostEstimator.load(path)
    assert 0.8 <= learned.estimate("alice: sleep") <= 4.0
    with fairqueue.install(spark, estimates=path) as again:
        assert again._estimator.estimate("alice: sleep") == learned.estimate("alice: sleep")


def test_a_failed_job_ends_and_teaches_nothing(spark: SparkSession, queue: fairqueue.Installation) -> None:
    def fail(batches: Iterator[Any]) -> Iterator[Any]:
        raise ValueError("failed on purpose")
        yield from batches

    with (
        pytest.raises(Exception, match="failed on purpose"),
        fairqueue.job(spark, user="alice", job_class="fails"),
    ):
        spark.range(0, 4, 1, 4).mapInArrow(fail, "id long").collect()
    wait_until(lambda: queue.sizes() == {"jobs": 0, "task_sets": 0})
    assert queue.snapshot().estimate_error.count == 0


def test_a_cancelled_group_gives_its_place_back(
    spark: SparkSession, queue: fairqueue.Installation, tmp_path: Path
) -> None:
    context = spark.sparkContext
    failed = []

    def run() -> None:
        context.setJobGroup("doomed", "a job that is cancelled")
        try:
            spark.range(0, 4, 1, 4).count()
        except Exception as error:
            failed.append(str(error))

    with Gate(spark, tmp_path):
        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: "default group doomed" in {job.job for job in queue.snapshot().jobs})
        context.cancelJobGroup("doomed")
        thread.join(PATIENCE_S)
        assert "cancelled" in failed[0]
        wait_until(lambda: {job.user for job in queue.snapshot().jobs if job.state != "finished"} == {"gate"})
    wait_until(lambda: queue.sizes() == {"jobs": 0, "task_sets": 0})


def test_one_application_has_one_fair_queue(
    spark: SparkSession, queue: fairqueue.Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(fairqueue.AlreadyInstalledError, match="already"):
        fairqueue.install(spark)
    monkeypatch.setattr("jobs.fairqueue.spark.install._installations", {})  # as if from another process
    with pytest.raises(fairqueue.AlreadyInstalledError, match="already"):
        fairqueue.install(spark)


@pytest.mark.parametrize("missing", ["field", "method", "class"])
def test_a_spark_without_the_hooks_is_refused_and_left_alone(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    name = {"field": "_FIELD", "method": "_PRIORITY_SETTER", "class": "_BUILDER"}[missing]
    monkeypatch.setattr(hook, name, "no.such.thing")
    with pytest.raises(fairqueue.HooksMissingError, match=r"4\.\d.*lacks.*use_pool"):
        fairqueue.install(spark)
    assert builder_of(spark) == FIFO
    assert fairqueue.installation_of(spark) is None
    with pytest.raises(fairqueue.FairQueueParameterError, match="must be FAIR"):
        fairqueue.use_pool(spark, "alice")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"bob": 0}}, "weight.*bob.*positive"),
        ({"weights": {"bob": -1.0}}, "weight.*bob.*positive"),
        ({"default_weight": float("nan")}, "default_weight.*positive"),
        ({"policy": "lifo"}, "'policy' must be uwfq or cfq"),
        ({"poll_s": 0}, "'poll_s' must be positive"),
        ({"default_user": " "}, "a user must have a name"),
        ({"weights": {5: 1.0}}, "a user must have a name"),
    ],
)
def test_options_that_break_their_rule(spark: SparkSession, options: dict[str, Any], message: str) -> None:
    with pytest.raises(fairqueue.FairQueueParameterError, match=message):
        fairqueue.install(spark, **options)
    assert builder_of(spark) == FIFO
    assert fairqueue.installation_of(spark) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cost_core_s": -1.0}, "cost_core_s"),
        ({"cost_core_s": 1e12}, "'cost_core_s' must be at most"),
        ({"size": float("inf")}, "size"),
        ({"stages": 0}, "stages"),
        ({"stages": 1.5}, "'stages' must be a whole number"),
        ({"user": 5}, "'user' must be a text"),
        ({"user": ""}, "'user' must have"),
        ({"name": "x" * 1000}, "'name' must have"),
    ],
)
def test_a_job_described_wrongly_is_refused(
    spark: SparkSession, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(fairqueue.FairQueueParameterError, match=message), fairqueue.job(spark, **arguments):
        pass


def test_a_block_inside_another_is_a_job_of_its_own(spark: SparkSession) -> None:
    described = [spark.sparkContext.getLocalProperty(JOB_PROPERTY)]
    with fairqueue.job(spark, user="alice", name="outer"):
        described.append(spark.sparkContext.getLocalProperty(JOB_PROPERTY))
        with fairqueue.job(spark, user="bob", name="inner"):
            described.append(spark.sparkContext.getLocalProperty(JOB_PROPERTY))
        described.append(spark.sparkContext.getLocalProperty(JOB_PROPERTY))
    described.append(spark.sparkContext.getLocalProperty(JOB_PROPERTY))
    assert described[0] is described[4] is None
    assert described[1] == described[3] == '{"job": "outer", "user": "alice"}'
    assert described[2] == '{"job": "inner", "user": "bob"}'


def test_sizes_of_scans_are_set_for_a_block(spark: SparkSession, tmp_path: Path) -> None:
    path = str(tmp_path / "table")
    spark.range(0, 400_000, 1, 1).write.parquet(path)
    size = sum(file.stat().st_size for file in (tmp_path / "table").glob("*.parquet"))
    name = "spark.sql.files.maxPartitionBytes"
    before = spark.conf.get(name)
    with fairqueue.sql_conf(spark, 4.0, size, advisory_task_run_time_s=0.5):
        assert spark.read.parquet(path).rdd.getNumPartitions() == 8
    assert spark.conf.get(name) == before
    assert spark.read.parquet(path).rdd.getNumPartitions() <= 2
    with pytest.raises(KeyError), fairqueue.sql_conf(spark, 4.0, size):
        raise KeyError
    assert spark.conf.get(name) == before
