"""The parts of a running service, opened together and closed together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

import anyio
import structlog
from anyio import to_thread

from router.encoders import EncoderIdentity, check_encoder
from router.errors import ReleaseError
from router.releases import current_version, open_release
from router.service.beliefs import Beliefs
from router.service.budgets import Budgets
from router.service.chat import Chat
from router.service.desk import Desk
from router.service.encoding import QueryEncoder, open_query_encoder
from router.service.erasures import Erasures
from router.service.live import LiveRelease
from router.service.metrics import Metrics
from router.service.security import Gate
from router.service.sessions import Sessions
from router.service.settings import ServiceSettings
from router.service.stand_in import open_stand_in
from router.service.store import LONGEST_WAIT_S, Store, open_store
from router.service.upstreams import Upstreams


@dataclass(frozen=True, eq=False)
class Service:
    """All that requests are answered with; hangs on ``app.state.service``.

    Attributes
    ----------
    settings
        What it was made from.
    store, live, encoder
        Feedback, release, and what encodes texts, if anything does.
    beliefs, erasures, budgets, sessions, gate, metrics, desk, chat
        What the endpoints share.
    """

    settings: ServiceSettings
    store: Store
    live: LiveRelease
    encoder: QueryEncoder | None
    beliefs: Beliefs
    erasures: Erasures
    budgets: Budgets
    sessions: Sessions
    gate: Gate
    metrics: Metrics
    desk: Desk
    chat: Chat


@asynccontextmanager
async def open_service(
    settings: ServiceSettings,
    metrics: Metrics,
    *,
    encoder: EncoderIdentity | None = None,
    store: Store | None = None,
    live: LiveRelease | None = None,
    upstreams: Upstreams | None = None,
) -> AsyncIterator[Service]:
    """Open a service.

    Parameters
    ----------
    settings
        All settings.
    metrics
        What it counts in.
    encoder
        Of the releases that may be served; by default that of the current one. All workers of a service must
        be given the same, or one that starts later would follow releases that the others refuse.
    store, live, upstreams
        Used instead of those that the settings name, and left open at the end.

    Raises
    ------
    ReleaseError
        There is no current release, or it is damaged.
    FeedbackStoreError
        The store cannot be opened.
    BundleError, MissingDataError
        The release was made with another encoder, or the packages of its encoder are not installed.
    """
    async with AsyncExitStack() as stack:
        if store is None:
            # All its waits together end before a request's time does, so that a caller is told what was done.
            wait_s = min(LONGEST_WAIT_S, settings.limits.timeout_s / 6)
            store = await to_thread.run_sync(open_store, settings.store_url, wait_s)
            stack.push_async_callback(to_thread.run_sync, store.close)
        if encoder is None:
            encoder = await to_thread.run_sync(_current_encoder, settings)
        texts = None
        if settings.encoder.kind != "none":
            texts = await to_thread.run_sync(open_query_encoder, settings.encoder, encoder)
            stack.callback(texts.close)
        beliefs = Beliefs(store, entries=settings.belief_entries)
        await beliefs.refresh()
        erasures = Erasures(store, beliefs.forget_erased)
        await erasures.refresh()
        if live is None:
            live = _follow(settings, metrics, encoder, erasures)
            await to_thread.run_sync(live.start)
            stack.push_async_callback(to_thread.run_sync, live.stop)
        budgets = Budgets(settings.budgets, store)
        desk = Desk(
            settings,
            live=live,
            store=store,
            beliefs=beliefs,
            budgets=budgets,
            erasures=erasures,
            metrics=metrics,
            encoder=texts,
        )
        if upstreams is None:
            upstreams = (
                open_stand_in(live.serving.catalogue.names)
                if settings.stand_in
                else Upstreams(settings.upstreams)
            )
            stack.push_async_callback(upstreams.aclose)
        sessions = Sessions(settings.sessions, store)
        chat = Chat(
            settings,
            desk=desk,
            live=live,
            store=store,
            budgets=budgets,
            sessions=sessions,
            erasures=erasures,
            metrics=metrics,
            upstreams=upstreams,
        )
        _tell_unknown(upstreams, live)
        service = Service(
            settings=settings,
            store=store,
            live=live,
            encoder=texts,
            beliefs=beliefs,
            erasures=erasures,
            budgets=budgets,
            sessions=sessions,
            gate=Gate(settings, store),
            metrics=metrics,
            desk=desk,
            chat=chat,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beliefs.follow)
            tasks.start_soon(erasures.follow)
            yield service
            tasks.cancel_scope.cancel()


class Start(NamedTuple):
    """What was found at a start.

    Attributes
    ----------
    encoder
        Of the release, and so of all that the service may switch to.
    any_keys
        Whether an API key was made.
    """

    encoder: EncoderIdentity
    any_keys: bool


def check_start(settings: ServiceSettings) -> Start:
    """Open or check what a service opens, to find now what would keep its workers from starting.

    Raises
    ------
    ReleaseError, FeedbackStoreError, BundleError, MissingDataError, ParameterError
        As :func:`open_service` does.
    """
    with open_store(settings.store_url) as store:
        any_keys = store.any_keys()
    encoder = _current_encoder(settings)
    if settings.encoder.kind == "release":
        check_encoder(encoder)
    elif settings.encoder.kind != "none":
        open_query_encoder(settings.encoder, encoder).close()
    for upstream in settings.upstreams:
        upstream.key()
    return Start(encoder, any_keys)


def _current_encoder(settings: ServiceSettings) -> EncoderIdentity:
    """Encoder of the current release, from its record."""
    version = current_version(settings.releases)
    if version is None:
        raise ReleaseError(
            f"{settings.releases}: there is no current release; make one by 'fairpath publish'"
        )
    release = open_release(settings.releases, version, verify=False)
    return EncoderIdentity.from_json(release.manifest["encoder"])


def _tell_unknown(upstreams: Upstreams, live: LiveRelease) -> None:
    """Warn of models of upstreams that the release does not know: misspelt ones would never be chosen."""
    names = live.serving.catalogue.names
    if unknown := sorted(upstreams.targets.keys() - set(names)):
        structlog.get_logger().warning(
            "upstreams have models that are not in the catalogue: they answer by name only",
            models=unknown,
            catalogue=sorted(names),
        )


def _follow(
    settings: ServiceSettings, metrics: Metrics, encoder: EncoderIdentity, erasures: Erasures
) -> LiveRelease:
    log = structlog.get_logger()

    def switched(before: str | None, version: str) -> None:
        if before is not None:
            metrics.switched()
        log.info("serving release", version=version, before=before)

    def refused(version: str | None, reason: str) -> None:
        metrics.refused()
        log.warning("release refused", version=version, reason=reason)

    return LiveRelease(
        settings.releases,
        encoder=None if settings.encoder.kind == "none" else encoder,
        poll_s=settings.poll_s,
        on_switch=switched,
        on_refused=refused,
        hides=erasures.hides,
    )
