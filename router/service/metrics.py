"""Prometheus metrics of the service; counted over all workers where ``PROMETHEUS_MULTIPROC_DIR`` is set."""

from __future__ import annotations

import math
import os
import time
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = CONTENT_TYPE_LATEST
MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable that names the folder in which the workers keep their counts."""

_PREFIX = "fairpath_"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_Metric = TypeVar("_Metric", Counter, Histogram)
_LATENCIES_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    5.0,
    30.0,
)


class Metrics:
    """Metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._children: dict[tuple[object, ...], Any] = {}
        self._stages = self._histogram("stage_seconds", "Time of the stages of a decision", ["stage"])
        self._requests = self._histogram("request_seconds", "Time of requests", ["method", "route", "status"])
        self._choices = self._counter("choices", "Decisions, by LLM and what they rest on", ["llm", "source"])
        self._cold = self._counter("cold_users", "Decisions for users who are not in the release", ["source"])
        self._predicted = self._counter("predicted_cost_usd", "Predicted cost of the LLMs chosen")
        self._best_single = self._counter(
            "best_single_cost_usd", "Predicted cost, had the best single LLM been taken each time"
        )
        self._cheaper = self._counter("cheaper_choices", "Decisions predicted to cost less than that LLM")
        self._reported = self._counter("reported_cost_usd", "Cost of answers, measured or first reported")
        self._fallbacks = self._counter("fallbacks", "LLMs that failed", ["from_llm", "to_llm", "reason"])
        self._failures = self._counter(
            "upstream_failures",
            "Answers that an upstream did not give, or broke off",
            ["upstream", "llm", "reason"],
        )
        self._feedback = self._counter("feedback", "Feedback accepted", ["kind"])
        self._switches = self._counter("release_switches", "Switches to another release, of all workers")
        self._refused = self._counter("releases_refused", "Releases that were not switched to")

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time what happens within as a stage of a decision."""
        return _Stage(self._child(self._stages, name))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request; ``route`` is its path with the names of parameters."""
        self._child(self._requests, method, route, str(status)).observe(seconds)

    def choice(self, llm: str, source: str) -> None:
        """Count a decision."""
        self._child(self._choices, llm, source).inc()

    def cold(self, source: str) -> None:
        """Count a decision for a user who is not in the release."""
        self._child(self._cold, source).inc()

    def cost(self, predicted_usd: float, best_single_usd: float) -> None:
        """Count the predicted costs of the choice and of the best single LLM, where both are known."""
        if math.isfinite(predicted_usd) and math.isfinite(best_single_usd):
            self._predicted.inc(max(predicted_usd, 0.0))
            self._best_single.inc(max(best_single_usd, 0.0))
            if predicted_usd < best_single_usd:
                self._cheaper.inc()

    def reported(self, cost_usd: float) -> None:
        """Count the cost of an answer, once."""
        self._reported.inc(cost_usd)

    def fallback(self, from_llm: str, to_llm: str | None, reason: str) -> None:
        """Count an LLM that failed; ``to_llm`` is None where no other was left."""
        self._fallbacks.labels(from_llm, to_llm or "", reason).inc()

    def upstream_failed(self, upstream: str, llm: str, reason: str) -> None:
        """Count an answer that did not come, or not to its end."""
        self._failures.labels(upstream, llm, reason).inc()

    def feedback(self, kind: str) -> None:
        """Count accepted feedback."""
        self._feedback.labels(kind).inc()

    def switched(self) -> None:
        """Count a switch to another release in this worker."""
        self._switches.inc()

    def refused(self) -> None:
        """Count a release that was not switched to."""
        self._refused.inc()

    def render(self) -> bytes:
        """All metrics in Prometheus' text form."""
        if MULTIPROCESS_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _child(self, metric: _Metric, *labels: str) -> _Metric:
        """``metric.labels``, which takes a lock and longer than the counting itself, remembered."""
        child: _Metric | None = self._children.get((metric, *labels))
        if child is None:
            child = self._children[metric, *labels] = metric.labels(*labels)
        return child

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(_PREFIX + name, text, labels or (), registry=self._registry)

    def _histogram(self, name: str, text: str, labels: list[str]) -> Histogram:
        return Histogram(_PREFIX + name, text, labels, buckets=_LATENCIES_S, registry=self._registry)


class _Stage:
    """Times what happens within; a class, because a generator takes twice as long."""

    __slots__ = ("_histogram", "_start_s")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._start_s = 0.0

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._histogram.observe(time.perf_counter() - self._start_s)


class RequestMetrics:
    """ASGI middleware: counts and times the answers, by route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "none")  # the path itself may hold a user's id
            method = scope["method"] if scope["method"] in _METHODS else "other"
            method = method if route != "none" else "any"
            self._metrics.request(method, route, status, time.perf_counter() - start_s)
