"""The subcommands of the service's store: ``keys`` for its API keys, ``feedback`` for what users told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer
from typer import Argument, Option

from jobs import options as opt
from jobs.command import print_result, settings_for, utc
from jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from router.service.store import ApiKey, Store

_DAY_S = 86_400.0

StoreUrl = Annotated[
    str,
    Option("--store", envvar="FAIRPATH_SERVE__STORE", help="sqlite:///PATH or postgresql+psycopg://..."),
]
KeyName = Annotated[str, Option("--name", help="Who the key is for.")]
Scopes = Annotated[
    list[str], Option("--scope", help="What it may be used for: route, read, feedback or admin; repeatable.")
]
BudgetUsd = Annotated[float | None, Option(help="What it may spend in a period, USD.")]
RequestsPerMinute = Annotated[int | None, Option(help="Its rate limit.")]
ExpiresDays = Annotated[float | None, Option(help="Days until it expires; default: never.")]
Releases = Annotated[
    Path | None,
    Option(help="Folder of the service's releases: keeps the name of their encoder beside embeddings."),
]
KeyId = Annotated[str, Argument(metavar="KEY_ID", help="Id of the key, as 'keys list' prints it.")]
Since = Annotated[
    datetime | None,
    Option(
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"],
        help="Feedback received since then only; UTC where no zone is given.",
    ),
]

keys = typer.Typer(help="API keys of the service.", no_args_is_help=True)
feedback = typer.Typer(help="What users told the service.", no_args_is_help=True)


@keys.command()
def create(
    store: StoreUrl,
    name: KeyName,
    scope: Scopes,
    budget_usd: BudgetUsd = None,
    requests_per_minute: RequestsPerMinute = None,
    expires_days: ExpiresDays = None,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Make a key and print its token, which cannot be had again."""
    if expires_days is not None and not 0 < expires_days < float("inf"):
        raise ConfigurationError(f"'--expires-days' must be positive and finite (got {expires_days})")
    with _opened(store, log_level, log_format) as opened:
        key, token = opened.create_key(
            name,
            scope,
            budget_usd=budget_usd,
            requests_per_minute=requests_per_minute,
            expires_at=None if expires_days is None else time.time() + expires_days * _DAY_S,
        )
    print_result({**_described(key), "token": token})


@keys.command("list")
def list_keys(store: StoreUrl, log_level: opt.LogLevel = None, log_format: opt.LogFormat = None) -> None:
    """List all keys, the revoked ones too; their tokens are not kept."""
    with _opened(store, log_level, log_format) as opened:
        there = opened.keys()
    print_result({"keys": [_described(key) for key in there]})


@keys.command()
def revoke(
    store: StoreUrl, key_id: KeyId, log_level: opt.LogLevel = None, log_format: opt.LogFormat = None
) -> None:
    """Revoke a key for good."""
    with _opened(store, log_level, log_format) as opened:
        if not opened.revoke_key(key_id):
            raise ConfigurationError(f"'KEY_ID' must be that of a key that is not revoked (got {key_id!r})")
    print_result({"key_id": key_id, "revoked": True})


@feedback.callback()
def _feedback() -> None:
    """Keep ``export`` a subcommand, though it is the only one."""


@feedback.command()
def export(
    store: StoreUrl,
    out: opt.OutPath,
    since: Since = None,
    releases: Releases = None,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Write choices, interactions and judgements as the tables that train-router and build-graph read."""
    with _opened(store, log_level, log_format) as opened:
        from router.releases import encoder_of

        exported = opened.export(
            out,
            since=None if since is None else utc(since).timestamp(),
            encoder_of=lambda version: None if releases is None else encoder_of(releases, version),
        )
    if exported.n_queries and exported.encoder is None:
        structlog.get_logger().warning(
            "the encoder of the embeddings is not known: services refuse a model that is trained on them; "
            "give the folder of the releases by --releases"
        )
    print_result(
        {
            "folder": exported.folder,
            "choices": exported.n_choices,
            "queries": exported.n_queries,
            "interactions": exported.n_interactions,
            "judgements": exported.n_judgements,
            "left_out": exported.left_out,
            "encoder": None if exported.encoder is None else exported.encoder.to_json(),
            "feedback_until": _iso(exported.feedback_until, "microseconds"),
        }
    )


@contextmanager
def _opened(url: str, log_level: str | None, log_format: str | None) -> Iterator[Store]:
    """The store, with the logs configured."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from router.service.store import open_store

    with open_store(url) as store:
        yield store


def _described(key: ApiKey) -> dict[str, Any]:
    """A key as it is printed."""
    from router.service.store import SCOPES

    return {
        "key_id": key.key_id,
        "name": key.name,
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "budget_usd": key.budget_usd,
        "requests_per_minute": key.requests_per_minute,
        "created_at": _iso(key.created_at),
        "expires_at": _iso(key.expires_at),
        "revoked_at": _iso(key.revoked_at),
    }


def _iso(unix_s: float | None, precision: str = "seconds") -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC).isoformat(timespec=precision)
