"""The command ``fairpath spark-server``."""

from __future__ import annotations

import typer

from jobs import options as opt
from jobs.command import settings_for
from jobs.errors import ConfigurationError
from jobs.settings_layers import load_settings


def spark_server(
    master: opt.Master = None,
    host: opt.ConnectHost = None,
    port: opt.ConnectPort = None,
    status_host: opt.StatusHost = None,
    status_port: opt.StatusPort = None,
    policy: opt.Policy = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Share one Spark application fairly: Spark Connect, fair queueing by user, and a status page.

    Clients connect with SparkSession.builder.remote("sc://localhost:15002/;user_id=alice"), and with the
    token in SPARK_CONNECT_AUTHENTICATE_TOKEN. Here the token comes from FAIRPATH_SERVER__TOKEN or a --config
    file, never from an option, which others on this machine could read.

    The token says who may connect, not who is who: a client names its own user id, and whoever has the token
    may name another's. All clients' code runs as the user of this process. So weights bind people who trust
    each other; for others, put a gateway in front that authenticates each client and writes the user id into
    its requests. Spark Connect speaks no TLS, and without TLS PySpark sends a token to "localhost" only: for
    other machines, put a proxy that ends TLS in front, or take an SSH tunnel.

    SIGTERM or Ctrl-C ends it gracefully: the operations that run have server.stop_timeout_s to end. A second
    one ends it at once.
    """
    _refuse_token(assign)
    given = {
        "spark.master": master,
        "server.host": host,
        "server.port": port,
        "server.status_host": status_host,
        "server.status_port": status_port,
        "fairqueue.policy": policy,
        "log.level": log_level,
        "log.format": log_format,
    }
    settings = settings_for(given, config, assign, dry_run, ("fairqueue", "server", "spark", "log"))
    from jobs.fairqueue.server.serve import run

    try:
        code = run(settings)
    except KeyboardInterrupt:  # while Spark starts
        code = 130
    raise typer.Exit(code)


def _refuse_token(assignments: list[str] | None) -> None:
    """The command line is there for all on this machine to read."""
    given = load_settings(assignments=assignments or ())
    if given.origins.get(("server", "token"), "").startswith("--set"):
        raise ConfigurationError(
            "--set: [server] 'token' must come from FAIRPATH_SERVER__TOKEN or a --config file: others on "
            "this machine can read options"
        )
