"""Make a Spark session: on this machine, on a cluster, under spark-submit or through Spark Connect."""

from __future__ import annotations

import os
import re
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from jobs.java import java_home
from ppr.errors import ParameterError, ResourceError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DEFAULTS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "8",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.python.worker.reuse": "true",  # a worker keeps its open graph and compiled kernels between tasks
    "spark.sql.session.timeZone": "UTC",
}

_CONNECT_TIMEOUT_S = 10.0


def spark_session(
    *,
    master: str | None = None,
    remote: str | None = None,
    app_name: str = "fairpath",
    conf: Mapping[str, str] | None = None,
) -> SparkSession:
    """Session to run the jobs in.

    Parameters
    ----------
    master
        Master of a classic session, such as ``local[*]``, ``local-cluster[2,1,1024]`` or ``spark://host:7077``.
        None takes what spark-submit was given, else ``local[*]``.
    remote
        Spark Connect URL, such as ``sc://host:15002``; excludes ``master``.
    app_name
        Name shown by the cluster manager.
    conf
        Further Spark settings; they win over this module's defaults.

    Returns
    -------
    pyspark.sql.SparkSession
        A session that is already active is returned as it is.

    Raises
    ------
    ParameterError
        Both ``master`` and ``remote`` are given.
    ResourceError
        pyspark or Java is missing, or Spark does not start or answer.
    """
    if master is not None and remote is not None:
        raise ParameterError(f"'master' and 'remote' exclude each other (got {master!r} and {remote!r})")
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ResourceError("pyspark is not installed: run pip install 'fairpath[spark]'") from error
    if (active := SparkSession.getActiveSession()) is not None:
        return active
    builder = SparkSession.builder.appName(app_name)
    if remote is not None:
        if not remote.startswith("local"):
            _check_reachable(remote)
        settings = dict(conf or {})
        builder = builder.remote(remote)
    else:
        settings = _classic_settings(master, conf or {})
        _check_master(settings.get("spark.master", ""))
    for name, value in settings.items():
        builder = builder.config(name, value)
    try:
        return _start(builder, remote)
    except (PySparkException, Py4JError, RuntimeError) as error:
        where = remote or settings.get("spark.master", "spark-submit")
        raise ResourceError(f"Spark does not start at {where} ({_reason(error)})") from error


@contextmanager
def session_for_a_job(
    *,
    master: str | None = None,
    remote: str | None = None,
    app_name: str = "fairpath",
    conf: Mapping[str, str] | None = None,
) -> Iterator[SparkSession]:
    """Session of :func:`spark_session` that is stopped at the end, unless it was active before."""
    before: SparkSession | None = None
    with suppress(ImportError):  # without pyspark, spark_session says so
        from pyspark.sql import SparkSession as Session

        before = Session.getActiveSession()
    session = spark_session(master=master, remote=remote, app_name=app_name, conf=conf)
    try:
        yield session
    finally:
        if before is None:
            session.stop()


def _check_master(master: str) -> None:
    """Refuse masters of a standalone cluster none of which listens: Spark would ask them for minutes."""
    if not master.startswith("spark://"):
        return
    reasons = []
    for address in master.removeprefix("spark://").split(","):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
            return
        except ValueError:
            return  # Spark says what is wrong with it
        except OSError as error:
            reasons.append(f"{address}: {error}")
    raise ResourceError(f"no Spark master answers at {master} ({'; '.join(reasons)})")


def _check_reachable(remote: str) -> None:
    """Refuse an address where nobody listens, or not as PySpark asks: it would try again for ten minutes."""
    from pyspark.errors import PySparkException
    from pyspark.sql.connect.client import DefaultChannelBuilder

    try:
        channel = DefaultChannelBuilder(remote)
    except PySparkException as error:
        raise ParameterError(f"'remote' is not a Spark Connect URL ({_reason(error)})") from error
    host, _, port = channel.endpoint.rpartition(":")
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S)
    except OSError as error:
        raise ResourceError(f"no Spark Connect server answers at {channel.endpoint} ({error})") from error
    with connection:
        # PySpark sends a token in the clear to this name only, not to its addresses.
        if channel.use_ssl or (channel.secure and channel.host != "localhost"):
            _check_tls(connection, channel.endpoint)


def _check_tls(connection: socket.socket, endpoint: str) -> None:
    """Refuse a peer that speaks no TLS; whether its certificate is good is gRPC's to check."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(connection).close()
    except OSError as error:
        raise ResourceError(
            f"no TLS at {endpoint}, which PySpark takes for 'use_ssl', and for a token to any name but "
            f"localhost: use localhost or a TLS proxy ({error})"
        ) from error


def _reason(error: Exception) -> str:
    """What gRPC tells in detail, such as a refused token, or Java's exception; else the first line."""
    text = str(error)
    if "on a stopped SparkContext" in text:
        return "it stopped at once; its log says why"
    details = re.search(r'^\s*details = "(.+)"$|^: [\w.$]+: (.+)$', text, re.MULTILINE)
    return details[1] or details[2] if details else text.partition("\n")[0]


def _under_spark_submit() -> bool:
    return "PYSPARK_GATEWAY_PORT" in os.environ


def _classic_settings(master: str | None, conf: Mapping[str, str]) -> dict[str, str]:
    """Settings of a classic session, ``conf`` last."""
    if master is None and not _under_spark_submit():
        master = "local[*]"
    settings = dict(DEFAULTS)
    if master is not None:
        settings["spark.master"] = master
    settings["spark.executorEnv.NUMBA_NUM_THREADS"] = conf.get("spark.task.cpus", "1")
    if master is None or not master.startswith("local["):
        # numba keeps kernels that come from a zip in the user's cache folder. On a cluster the user often has
        # no home; a folder below the executor's working directory can always be written, and goes with it.
        settings["spark.executorEnv.XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME", "cache")
    return {**settings, **conf}


def _start(builder: SparkSession.Builder, remote: str | None) -> SparkSession:
    if _under_spark_submit() or (remote is not None and not remote.startswith("local")):
        return builder.getOrCreate()  # the JVM is there already
    os.environ["JAVA_HOME"] = str(java_home())
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if remote is not None:
        return builder.getOrCreate()  # a Connect server of our own
    with as_file(files("jobs") / "log4j2.properties") as quiet:
        option = f"-Dlog4j2.configurationFile={quiet.as_uri()}"
        return builder.config("spark.driver.extraJavaOptions", option).getOrCreate()
