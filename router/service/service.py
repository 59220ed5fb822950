"""The parts of a running service, opened together and closed together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import anyio
import structlog
from anyio import to_thread

from router.encoders import EncoderIdentity
from router.errors import ReleaseError
from router.releases import current_version, earlier_versions, open_release
from router.service.beliefs import Beliefs
from router.service.chat import Chat
from router.service.desk import Desk
from router.service.encoding import QueryEncoder, open_query_encoder
from router.service.limits import Budgets
from router.service.live import LiveRelease
from router.service.metrics import Metrics
from router.service.security import Gate
from router.service.sessions import Sessions
from router.service.settings import ServiceSettings
from router.service.stand_in import open_stand_in
from router.service.store import Store, open_store
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
    beliefs, budgets, sessions, gate, metrics, desk, chat
        What the endpoints share.
    """

    settings: ServiceSettings
    store: Store
    live: LiveRelease
    encoder: QueryEncoder | None
    beliefs: Beliefs
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
            store = await to_thread.run_sync(open_store, settings.store_url)
            stack.push_async_callback(to_thread.run_sync, store.close)
        encoder = None
        if settings.encoder.kind != "none":
            identity = await to_thread.run_sync(_encoder_of_releases, settings)
            encoder = await to_thread.run_sync(open_query_encoder, settings.encoder, identity)
            stack.callback(encoder.close)
        if live is None:
            live = _follow(settings, metrics, encoder)
            await to_thread.run_sync(live.start)
            stack.push_async_callback(to_thread.run_sync, live.stop)
        beliefs = Beliefs(store, entries=settings.belief_entries)
        await beliefs.refresh()
        budgets = Budgets(settings.budgets, store)
        desk = Desk(
            settings,
            live=live,
            store=store,
            beliefs=beliefs,
            budgets=budgets,
            metrics=metrics,
            encoder=encoder,
        )
        if upstreams is None:
            upstreams = (
                open_stand_in(live.serving.catalogue.names)
                if settings.stand_in
                else Upstreams(settings.upstreams)
            )
            stack.push_async_callback(upstreams.aclose)
        chat = Chat(
            settings,
            desk=desk,
            live=live,
            store=store,
            budgets=budgets,
            metrics=metrics,
            upstreams=upstreams,
        )
        service = Service(
            settings=settings,
            store=store,
            live=live,
            encoder=encoder,
            beliefs=beliefs,
            budgets=budgets,
            sessions=Sessions(settings.sessions, store),
            gate=Gate(settings, store),
            metrics=metrics,
            desk=desk,
            chat=chat,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beliefs.follow)
            yield service
            tasks.cancel_scope.cancel()


def check_start(settings: ServiceSettings) -> None:
    """Open what a service opens and close it again, to find now what would keep its workers from starting.

    Raises
    ------
    ReleaseError, FeedbackStoreError, BundleError, MissingDataError, ParameterError
        As :func:`open_service` does.
    """
    open_store(settings.store_url).close()
    encoder = _current_encoder(settings)
    if settings.encoder.kind != "none":
        open_query_encoder(settings.encoder, encoder).close()
    for upstream in settings.upstreams:
        upstream.key()


def _current_encoder(settings: ServiceSettings) -> EncoderIdentity:
    """Encoder of the current release, from its record."""
    version = current_version(settings.releases)
    if version is None:
        raise ReleaseError(
            f"{settings.releases}: there is no current release; make one by 'fairpath publish'"
        )
    return _encoder_of(settings, version)


def _encoder_of(settings: ServiceSettings, version: str) -> EncoderIdentity:
    release = open_release(settings.releases, version, verify=False)
    return EncoderIdentity.from_json(release.manifest["encoder"])


def _encoder_of_releases(settings: ServiceSettings) -> EncoderIdentity:
    """Encoder of the current release; of the last good one where a worker starts while that is damaged."""
    try:
        return _current_encoder(settings)
    except ReleaseError:
        for version in earlier_versions(settings.releases):
            with suppress(ReleaseError):
                return _encoder_of(settings, version)
        raise


def _follow(settings: ServiceSettings, metrics: Metrics, encoder: QueryEncoder | None) -> LiveRelease:
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
        encoder=None if encoder is None else encoder.identity,
        poll_s=settings.poll_s,
        on_switch=switched,
        on_refused=refused,
    )
