"""Prometheus metrics, read from the fair queue when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from jobs.fairqueue.scheduler import Snapshot
from jobs.fairqueue.server.status import Queue, read_counters

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Content type of :func:`render`."""

_PREFIX = "fairpath_fairqueue_"
_USER_GAUGES = {
    "user_weight": ("weight", "Weight of the user"),
    "user_virtual_time": ("virtual_time", "The user's own virtual time"),
    "user_virtual_start": ("start", "Virtual time at which the user's unfinished work starts"),
    "user_virtual_finish": ("virtual_finish", "Virtual time at which the user leaves the virtual system"),
    "user_backlogged": ("backlogged", "1 while the user has virtually unfinished work"),
}
_TIMES = (
    ("callback", "task_sets", "Time within Spark's scheduler lock, by task set added"),
    ("poll", "polls", "Time to read what Spark has done, by poll"),
)


class QueueCollector(Collector):
    """Collector of one fair queue. Users whom the queue has forgotten have no metrics.

    Parameters
    ----------
    queue
        Installed fair queue.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def collect(self) -> Iterator[Metric]:
        """Give the metrics of one snapshot."""
        snapshot = self._queue.snapshot()
        yield GaugeMetricFamily(f"{_PREFIX}slots", "Tasks that can run at once", value=snapshot.slots)
        yield GaugeMetricFamily(f"{_PREFIX}virtual_time", "Virtual time", value=snapshot.virtual_time)
        yield from _users(snapshot)
        yield _running_tasks(self._queue, snapshot)
        yield from _estimates(snapshot)
        yield from _adapter(read_counters(self._queue))


def _users(snapshot: Snapshot) -> Iterator[Metric]:
    for name, (attribute, text) in _USER_GAUGES.items():
        gauge = GaugeMetricFamily(_PREFIX + name, text, labels=["user"])
        for user in snapshot.users:
            gauge.add_metric([user.user], float(getattr(user, attribute)))
        yield gauge
    service = CounterMetricFamily(
        f"{_PREFIX}user_service_core_seconds", "Core-seconds in finished tasks", labels=["user"]
    )
    for user in snapshot.users:
        service.add_metric([user.user], user.service_core_s)
    yield service
    jobs = GaugeMetricFamily(
        f"{_PREFIX}user_jobs", "Known jobs; idle ones are between stages", labels=["user", "state"]
    )
    for (name, state), count in Counter((job.user, job.state) for job in snapshot.jobs).items():
        jobs.add_metric([name, state], count)
    yield jobs


def _running_tasks(queue: Queue, snapshot: Snapshot) -> Metric:
    gauge = GaugeMetricFamily(f"{_PREFIX}user_running_tasks", "Tasks that run now", labels=["user"])
    samples = queue.history(60.0)
    running = samples[-1].running if samples else {}
    for user in {user.user for user in snapshot.users} | set(running):
        gauge.add_metric([user], running.get(user, 0))
    return gauge


def _estimates(snapshot: Snapshot) -> Iterator[Metric]:
    error = snapshot.estimate_error
    yield CounterMetricFamily(
        f"{_PREFIX}estimates", "Jobs whose estimate met its actual cost", value=error.count
    )
    yield GaugeMetricFamily(
        f"{_PREFIX}estimate_error_median_log2",
        "Median of log2(actual / estimated cost) of recent jobs: 1 is half of what was needed",
        value=error.median_log2,
    )
    yield GaugeMetricFamily(
        f"{_PREFIX}estimate_error_p90_absolute_log2",
        "90 % of recent jobs have log2(actual / estimated cost) within this, up or down",
        value=error.p90_absolute_log2,
    )


def _adapter(counters: dict[str, int]) -> Iterator[Metric]:
    for name, count, text in _TIMES:
        seconds = counters.pop(f"{name}_ns", 0) / 1e9
        yield SummaryMetricFamily(
            f"{_PREFIX}{name}_seconds", text, count_value=counters.pop(count, 0), sum_value=seconds
        )
    for name, value in counters.items():
        yield CounterMetricFamily(_PREFIX + name, name.replace("_", " ").capitalize(), value=value)


def registry(queue: Queue) -> CollectorRegistry:
    """Registry of its own, so that two applications in one process do not meet."""
    metrics = CollectorRegistry(auto_describe=False)
    metrics.register(QueueCollector(queue))
    return metrics


def render(metrics: CollectorRegistry) -> bytes:
    """Text format of Prometheus."""
    return generate_latest(metrics)
