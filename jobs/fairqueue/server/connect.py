"""Spark Connect inside the Python driver: its Spark properties, its address, and how it stops."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.errors import ConfigurationError
from jobs.fairqueue.server.auth import TOKEN_VARIABLE, is_loopback
from jobs.settings import ServerSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PLUGIN = "org.apache.spark.sql.connect.SparkConnectPlugin"
_SERVICE = "org.apache.spark.sql.connect.service.SparkConnectService$"
_TOKEN_PROPERTY = "spark.connect.authenticate.token"
_LOOK_S = 0.2
_COLLECTION_S = 2.0  # a client that was killed never collects, and Spark does not notice
_LAST_CALLS_S = 0.5
_RESERVED = ("spark.connect.grpc.binding.address", "spark.connect.grpc.binding.port", _TOKEN_PROPERTY)


def connect_properties(settings: ServerSettings, conf: Mapping[str, str]) -> dict[str, str]:
    """Spark properties of the shared application; ``conf`` wins where it may.

    Raises
    ------
    ConfigurationError
        ``conf`` sets what belongs to the section ``[server]``.
    """
    for name in _RESERVED:
        if name in conf:
            raise ConfigurationError(f"[spark] 'conf' must not set {name}: it stands in [server]")
    plugins = [name for name in conf.get("spark.plugins", "").split(",") if name]
    if _PLUGIN not in plugins:
        plugins.append(_PLUGIN)
    return {
        "spark.connect.grpc.maxInboundMessageSize": str(settings.max_message_bytes),
        "spark.connect.session.manager.defaultSessionTimeout": f"{settings.session_timeout_s}s",
        "spark.driver.maxResultSize": str(settings.max_result_bytes),
        # What one client uploads (its classes, files and Python packages) stays its own.
        "spark.sql.artifact.isolation.enabled": "true",
        "spark.sql.artifact.isolation.alwaysApplyClassloader": "true",
        **conf,
        "spark.plugins": ",".join(plugins),
        "spark.connect.grpc.binding.address": settings.host,
        "spark.connect.grpc.binding.port": str(settings.port),
    }


@contextlib.contextmanager
def token_for_spark(token: str | None) -> Iterator[dict[str, str]]:
    """Hand the token to the JVM that is started within.

    Gives the Spark properties that have to be set as well. A JVM of our own inherits the token from the
    environment: properties would stand in its command line, for all to read. One that spark-submit has
    started takes a property, which then travels inside the process.
    """
    before = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        yield {}
    elif "PYSPARK_GATEWAY_PORT" in os.environ:
        yield {_TOKEN_PROPERTY: token}
    else:
        os.environ[TOKEN_VARIABLE] = token
        try:
            yield {}
        finally:
            if before is None:
                del os.environ[TOKEN_VARIABLE]
            else:
                os.environ[TOKEN_VARIABLE] = before


class Operations(NamedTuple):
    """Ids of the operations that a stop has to think of.

    Parameters
    ----------
    running
        Those that have not ended.
    uncollected
        Those that have ended and whose result waits for its client.
    """

    running: frozenset[str]
    uncollected: frozenset[str]


class ConnectService:
    """Spark Connect's server in the JVM of a classic session.

    Parameters
    ----------
    spark
        Session started with :func:`connect_properties`.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark
        self._service: Any = getattr(getattr(spark._jvm, _SERVICE), "MODULE$")

    @property
    def port(self) -> int:
        """Port that clients connect to."""
        return int(self._service.localPort())

    def url(self, host: str) -> str:
        """Connection string for PySpark clients, without the token.

        PySpark sends a token in the clear to the name ``localhost`` only, not to its addresses.
        """
        return f"sc://{'localhost' if is_loopback(host) else host}:{self.port}"

    def operations(self) -> Operations:
        """Operations that have not ended, or whose result has not been collected."""
        executions = self._service.listActiveExecutions()  # Right(operations), or Left(when the last ended)
        if executions.isLeft():
            return Operations(frozenset(), frozenset())
        known = executions.toOption().get()
        running, uncollected = set(), set()
        for operation in (known.apply(i) for i in range(known.size())):
            if operation.terminationReason().isEmpty():
                running.add(str(operation.operationId()))
            elif operation.lastAttachedRpcTimeNs().isEmpty():  # a call is attached to it still
                uncollected.add(str(operation.operationId()))
        return Operations(frozenset(running), frozenset(uncollected))

    def alive(self) -> bool:
        """Whether the JVM answers and Spark runs."""
        from py4j.protocol import Py4JError

        try:
            return not self._spark.sparkContext._jsc.sc().isStopped()
        except (Py4JError, OSError):
            return False

    def drain(
        self, timeout_s: float, waiting: Callable[[int], None], hurried: Callable[[], bool]
    ) -> Operations:
        """Let the operations that run now end and be collected; then accept no calls any more.

        Collecting a result takes further calls (PySpark reads settings afterwards, and releases the
        operation), so the server closes only then. Once no operation runs, clients have two seconds to
        collect. Operations that start meanwhile are not waited for.

        Parameters
        ----------
        timeout_s
            Longest wait in seconds, in all.
        waiting
            Called with the number of running operations before the wait, if there are any.
        hurried
            Whether to wait no longer.

        Returns
        -------
        Operations
            What is left of them.
        """
        left = self.operations()
        known = left.running | left.uncollected
        if left.running:
            waiting(len(left.running))
        ran_s = now_s = time.monotonic()
        give_up_s = now_s + timeout_s
        while any(left) and now_s < min(give_up_s, ran_s + _COLLECTION_S) and not hurried():
            time.sleep(_LOOK_S)
            now_s = time.monotonic()
            if left.running:
                ran_s = now_s
            left = Operations(*(found & known for found in self.operations()))
        if known and not any(left):
            time.sleep(_LAST_CALLS_S)
        self._service.server().shutdown()
        return left
