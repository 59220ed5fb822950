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
from ppr.errors import MissingDataError

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
        formats=opt.TIMES,
        help="Feedback received since then only; UTC where no zone is given.",
    ),
]
Until = Annotated[
    datetime | None, Option(formats=opt.TIMES, help="Feedback received before then only; UTC likewise.")
]
OlderThan = Annotated[float, Option("--older-than", metavar="DAYS", help="Age in days, at least 1.")]

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
    with opened_store(store, log_level, log_format) as opened:
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
    with existing_store(store, log_level, log_format) as opened:
        there = opened.keys()
    print_result({"keys": [_described(key) for key in there]})


@keys.command()
def revoke(
    store: StoreUrl, key_id: KeyId, log_level: opt.LogLevel = None, log_format: opt.LogFormat = None
) -> None:
    """Revoke a key for good."""
    with existing_store(store, log_level, log_format) as opened:
        if not opened.revoke_key(key_id):
            raise ConfigurationError(f"'KEY_ID' must be that of a key that is not revoked (got {key_id!r})")
    print_result({"key_id": key_id, "revoked": True})


@feedback.command()
def export(
    store: StoreUrl,
    out: opt.OutPath,
    since: Since = None,
    until: Until = None,
    releases: Releases = None,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Write choices, interactions and judgements as the tables that train-router and build-graph read.

    A model that learned from them is published with the times that are printed: 'publish --feedback-until
    TIME --erased-until TIME'.
    """
    with existing_store(store, log_level, log_format) as opened:
        from router.releases import encoder_of

        exported = opened.export(
            out,
            since=None if since is None else utc(since).timestamp(),
            until=None if until is None else utc(until).timestamp(),
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
            "feedback_until": iso(exported.feedback_until, "microseconds"),
            "erased_until": iso(exported.erased_until, "microseconds"),
        }
    )


@feedback.command()
def prune(
    store: StoreUrl,
    older_than: OlderThan,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Remove decisions that nobody judged, sessions and reservations of before, beside a running service.

    Feedback stays, with the decisions that it is about. Feedback on a decision that is gone is refused.
    """
    if not 1 <= older_than < float("inf"):
        raise ConfigurationError(f"'--older-than' must be finite, at least 1 (got {older_than:g})")
    with existing_store(store, log_level, log_format) as opened:
        removed = opened.prune(older_than * _DAY_S, tell=_tell_removed)
    print_result({"removed": removed})


@contextmanager
def opened_store(url: str, log_level: str | None, log_format: str | None) -> Iterator[Store]:
    """The store, with the logs configured."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from router.service.store import open_store

    with open_store(url) as store:
        yield store


@contextmanager
def existing_store(url: str, log_level: str | None, log_format: str | None) -> Iterator[Store]:
    """A store that is there: a misspelt one would be made, and found empty."""
    path = url.removeprefix("sqlite:///").partition("?")[0]
    if url.startswith("sqlite:///") and path and not Path(path).exists():
        raise MissingDataError(f"{path}: there is no store")
    with opened_store(url, log_level, log_format) as store:
        yield store


def _tell_removed(table: str, n_rows: int) -> None:
    structlog.get_logger().debug("removed", table=table, rows=n_rows)


def _described(key: ApiKey) -> dict[str, Any]:
    """A key as it is printed."""
    from router.service.store import SCOPES

    return {
        "key_id": key.key_id,
        "name": key.name,
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "budget_usd": key.budget_usd,
        "requests_per_minute": key.requests_per_minute,
        "created_at": iso(key.created_at),
        "expires_at": iso(key.expires_at),
        "revoked_at": iso(key.revoked_at),
    }


def iso(unix_s: float | None, precision: str = "seconds") -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC).isoformat(timespec=precision)
