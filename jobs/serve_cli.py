"""The subcommands of the service: ``serve`` and ``openapi``."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from jobs import options as opt
from jobs.command import settings_for


def serve(
    releases: opt.ReleasesPath,
    host: opt.ServeHost = None,
    port: opt.ServePort = None,
    workers: opt.Workers = None,
    store: opt.StoreOption = None,
    auth: opt.Auth = None,
    stand_in: opt.StandIn = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Serve the current release: LLMs and items for each user, over HTTP.

    Asked from this machine only, no API key is needed until one is made by 'fairpath keys create'; for other
    machines (--host 0.0.0.0) one always is. The service speaks no TLS: put a proxy that does in front.

    A new release is served once 'fairpath publish' has made it the current one, without a restart. SIGTERM or
    Ctrl-C ends the service gracefully: requests that run have serve.stop_timeout_s to end.
    """
    given = {
        "serve.host": host,
        "serve.port": port,
        "serve.workers": workers,
        "serve.store": store,
        "serve.auth": auth,
        "serve.stand_in": stand_in,
        "log.level": log_level,
        "log.format": log_format,
    }
    settings = settings_for(given, config, assign, dry_run, ("serve", "log"), releases=releases)
    from jobs.serve import run

    raise typer.Exit(run(releases, settings))


def openapi(out: opt.OpenApiOut = None) -> None:
    """Write the OpenAPI document of the service."""
    from router.service.app import create_app
    from router.service.settings import ServiceSettings

    document = create_app(ServiceSettings(releases=Path("releases"))).openapi()
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
