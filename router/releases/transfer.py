"""What pushing releases to an object store and pulling them from it have in common.

Both ways, files come first, then the record that makes them a release, and the switch last; what broke off is
not seen by anyone and goes on where it stopped. What the receiving place was rolled back from is not switched
to again unless that is asked for: a nightly job must not undo what an operator did.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock

from router.errors import ReleaseError
from router.releases.places import Place, readable_current, rolled_back_from
from router.releases.record import ReleaseFile

Told = Callable[[int, int], None]
"""Called with the bytes that are there and those that are to be."""


class StoppedError(Exception):
    """A transfer was asked to stop; it goes on from there the next time."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """What a push or pull did.

    Attributes
    ----------
    version
        The release.
    switched
        Whether it became the current one by this.
    current
        The current one at the end.
    held_back
        Why it was not switched to although it was to be, or None.
    moved_bytes
        Bytes that were sent over the network.
    known_bytes
        Bytes that were there: of a transfer that broke off, or of another release.
    repaired
        Files of a release that was there, but were missing or damaged.
    """

    version: str
    switched: bool
    current: str | None
    held_back: str | None
    moved_bytes: int
    known_bytes: int
    repaired: tuple[str, ...] = ()


def current_of(place: Place) -> str:
    """The current release; :class:`ReleaseError` where there is none."""
    found = place.current()
    if found is None:
        raise ReleaseError(f"{place.shown}: there is no current release; name a version")
    return found


def switched(
    place: Place,
    source: Place,
    version: str,
    *,
    activate: bool,
    again: bool,
    progress: Progress,
    repaired: tuple[str, ...],
) -> Transferred:
    """Switch a place to a release that came from another, if that is to be, and say what was done."""
    current, held_back = readable_current(place), None
    wanted = activate and current != version
    if wanted and not again and version in rolled_back_from(place):
        held_back, wanted = f"{place.shown} was rolled back from it", False
    if wanted:
        # What was judged there is nothing to go back to here.
        dropped = rolled_back_from(source)
        try:
            place.switch(version, "follow", expected=current, dropped=dropped)
        except ReleaseError:
            if readable_current(place) != version:  # another has done the same
                raise
    return Transferred(
        version,
        wanted,
        version if wanted else current,
        held_back,
        progress.n_moved,
        progress.n_known,
        repaired,
    )


def each(
    do: Callable[[ReleaseFile], None], files: list[ReleaseFile], threads: int, stopped: Event | None = None
) -> None:
    """Do one thing with each file, several at once; the first error ends it, once what runs is done."""

    def unless_stopped(file: ReleaseFile) -> None:
        if stopped is not None and stopped.is_set():
            raise StoppedError
        do(file)

    with ThreadPoolExecutor(threads) as pool:
        # Large ones first, so that none is left alone at the end.
        tasks = [pool.submit(unless_stopped, file) for file in sorted(files, key=lambda f: -f.n_bytes)]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class Progress:
    """Counts bytes from several threads."""

    def __init__(self, total: int, tell: Told) -> None:
        self.n_moved = self.n_known = 0
        self.total, self._tell, self._lock = total, tell, Lock()

    def moved(self, n_bytes: int) -> None:
        """Count bytes that went over the network."""
        with self._lock:
            self.n_moved += n_bytes
            self._tell(self.n_moved + self.n_known, self.total)

    def known(self, n_bytes: int) -> None:
        """Count bytes that were there."""
        with self._lock:
            self.n_known += n_bytes
            self._tell(self.n_moved + self.n_known, self.total)
