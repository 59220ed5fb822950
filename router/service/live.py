"""The release that is served at the moment, and how a service comes to another one while it answers.

A thread looks at ``CURRENT``. A new release is opened beside the one that serves, compared byte by byte with
its record, asked one question of each kind, and only then takes over, by one assignment: a request that took
the old one keeps it to its end. On any doubt the old one stays, and the reason is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import structlog

from ppr.errors import PprError
from router import releases
from router.encoders import EncoderIdentity
from router.errors import BundleError, NotReadyError, ReleaseError, RouterError
from router.releases import places
from router.service.serving import Serving

_RETRY_S = 30.0  # a release that was refused is looked at again, should its files have been completed


class LiveRelease:
    """Follows the current release of a root.

    Parameters
    ----------
    root
        Folder of all releases.
    encoder
        What texts are encoded with; a release of another encoder is refused. None: nothing encodes here.
    poll_s
        How often ``CURRENT`` is looked at.
    on_switch
        Called after a switch with the version before, or None, and the new one.
    on_refused
        Called with a version, or None where none could be read, and the reason why it is not served.
    hides
        Whether a release must not tell that it knows a user; called with the key and the time up to which the
        release has heard of erasures, or None.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        encoder: EncoderIdentity | None,
        poll_s: float = 0.5,
        on_switch: Callable[[str | None, str], None] | None = None,
        on_refused: Callable[[str | None, str], None] | None = None,
        hides: Callable[[str, float | None], bool] = lambda *_: False,
    ) -> None:
        self._root = Path(root)
        self._encoder = encoder
        self._poll_s = poll_s
        self._on_switch = on_switch
        self._on_refused = on_refused
        self._hides = hides
        self._serving: Serving | None = None
        self._refused: tuple[str | None, str] | None = None
        self._refused_at = 0.0
        self._opening = Lock()
        self._stopped = Event()
        self._thread: Thread | None = None

    @property
    def serving(self) -> Serving:
        """The release to answer from; a request takes it once.

        Raises
        ------
        NotReadyError
            None is open yet; says why.
        """
        serving = self._serving
        if serving is None:
            reason = "not started" if self._refused is None else self._refused[1]
            raise NotReadyError(f"no release is open yet: {reason}")
        return serving

    def start(self) -> None:
        """Open the current release, sizes compared only, and follow ``CURRENT`` from a thread.

        A release that cannot be opened is no error here: it may be replaced, and :meth:`status` says why.
        Until then the last good one before it answers, as in workers that had opened that in time.
        """
        with self._opening:
            self._follow(verify=False)
            if self._serving is None and (earlier := self._open_earlier()[0]) is not None:
                self._take(earlier)
        self._stopped.clear()
        self._thread = Thread(target=self._poll, name="fairpath-releases", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. What is open still answers."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def reload(self) -> str:
        """Look at ``CURRENT`` now, and return the version that is served then.

        Raises
        ------
        ReleaseError
            The current release is refused; the one before goes on.
        """
        with self._opening:
            self._refused = None
            self._follow(verify=True)
            if self._refused is not None:
                raise ReleaseError(self._refused[1])
            return self.serving.version

    def rollback(self) -> str:
        """Go back, for all who follow ``CURRENT``, to the last release before that can be served.

        Returns its version. It is opened before ``CURRENT`` is written.

        Raises
        ------
        ReleaseError
            There is none; nothing was changed.
        """
        with self._opening:
            target, reasons = self._open_earlier()
            if target is None:
                current = releases.current_version(self._root)
                why = "".join(f"; {reason}" for reason in reasons)
                raise ReleaseError(f"there is no release before {current} to go back to{why}")
            places.rollback(places.Folder(self._root), target.version)
            self._refused = None
            self._take(target)
            return target.version

    def status(self) -> dict[str, Any]:
        """The version served; and the one refused, with the reason, as long as ``CURRENT`` names it."""
        serving, refused = self._serving, self._refused
        return {
            "version": None if serving is None else serving.version,
            "refused": None if refused is None else {"version": refused[0], "reason": refused[1]},
        }

    def _poll(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                with self._opening:
                    self._follow(verify=True)
            except Exception:  # of a callback; the next switch must be seen all the same
                structlog.get_logger().exception("following the releases")

    def _follow(self, *, verify: bool) -> None:
        """Serve what ``CURRENT`` names, or note why not."""
        version: str | None = None
        try:
            version = releases.current_version(self._root)
            before = self._serving
            if before is not None and version == before.version:
                self._refused = None
                return
            known = self._refused is not None and self._refused[0] == version
            if version is not None and known and time.monotonic() < self._refused_at + _RETRY_S:
                return
            if version is None:
                raise ReleaseError(f"{self._root}: there is no {releases.CURRENT}")
            serving = self._open(version, verify=verify)
        except Exception as error:  # whatever it is, the old release goes on
            self._refuse(version, self._told(error))
            return
        self._refused = None
        self._take(serving)

    def _take(self, serving: Serving) -> None:
        """Serve this from now on."""
        before, self._serving = self._serving, serving
        if self._on_switch is not None:
            self._on_switch(None if before is None else before.version, serving.version)

    def _open_earlier(self) -> tuple[Serving | None, list[str]]:
        """The last release before the current one that can be served, and why later ones cannot."""
        reasons = list[str]()
        for version in places.earlier_versions(places.Folder(self._root)):
            try:
                return self._open(version, verify=True), reasons
            except (RouterError, PprError) as error:
                reasons.append(self._told(error))
        return None, reasons

    def _open(self, version: str, *, verify: bool) -> Serving:
        release = releases.open_release(self._root, version, verify=False)
        serving = Serving.open(release, verify=verify, hides=self._hides)
        if self._encoder is not None and serving.scorer.encoder != self._encoder:
            raise BundleError(
                f"release {version}: made with encoder {serving.scorer.encoder}, cannot be used with "
                f"{self._encoder}"
            )
        serving.warm_up()
        return serving

    def _told(self, error: Exception) -> str:
        """Text of an error, files named as in the root: callers need not know where that is."""
        return (str(error) or repr(error)).replace(f"{self._root}/", "").replace(str(self._root), "releases")

    def _refuse(self, version: str | None, reason: str) -> None:
        new = self._refused != (version, reason)
        self._refused, self._refused_at = (version, reason), time.monotonic()
        if new and self._on_refused is not None:
            self._on_refused(version, reason)
