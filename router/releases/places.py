"""Where releases lie: a folder, or an object store that fsspec reaches; both are asked and changed alike."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from ppr.local_copy import is_url
from ppr.manifest import abandoned, full_disk_is_an_error, sync
from router.bundle import store_errors
from router.errors import MissingDataError, ReleaseError
from router.releases import local
from router.releases.history import ANY, Action, Switch, earlier, rollback_target, rolled_back
from router.releases.objects import STALE, ObjectStore
from router.releases.record import RECORD, VERSION_NAME, check_name, check_record, parse_record

REMOVED, PULLED = ".removed-", ".pull"
PULL_LOCK = ".pull.lock"
_LEFT = re.compile(rf"\.{VERSION_NAME.pattern}(?P<what>{re.escape(REMOVED)}.+|{re.escape(PULLED)}|\.new-.+)")


class Place(Protocol):
    """Releases somewhere."""

    @property
    def shown(self) -> str:
        """What messages call it."""

    def current(self) -> str | None:
        """Version in use, or None."""

    def versions(self) -> list[str]:
        """Versions that are wholly there, ascending."""

    def history(self) -> list[Switch]:
        """Switches, oldest first."""

    def record(self, version: str) -> dict[str, Any]:
        """Content of a release's ``release.json``; :class:`ReleaseError` where there is none."""

    def read(self, version: str, name: str) -> bytes:
        """A file of a release, by its path below the release's folder."""

    def check(self, version: str, *, verify: bool) -> None:
        """Compare manifests and sizes with the record, and with ``verify`` every byte."""

    def switch(
        self, version: str, action: Action, *, expected: str | None = ANY, dropped: Collection[str] = ()
    ) -> None:
        """Switch to a release; ``expected`` must be the current one still."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep others from switching, where that is possible."""

    def remove(self, version: str) -> None:
        """Make a release be there no more, in one step; its bytes may go later."""

    def clear(self, *, dry_run: bool, now: datetime) -> dict[str, int]:
        """Remove what was removed but for its bytes, and what broke off; bytes that it frees, by name."""

    def freed(self, versions: Sequence[str]) -> dict[str, int]:
        """Bytes that removing releases together would free, of each."""


def place_of(location: str | Path) -> Place:
    """A folder, or where ``location`` is a URL an object store.

    Raises
    ------
    MissingDataError
        There is no such folder.
    ParameterError
        There is no such file system.
    ResourceError
        The package that reaches it is not installed, or it cannot be reached.
    """
    if is_url(location):
        return ObjectStore(str(location))
    if not Path(location).is_dir():
        raise MissingDataError(f"{location}: no such folder")
    return Folder(Path(location))


def readable_current(place: Place) -> str | None:
    """Version in use; None also where that cannot be read."""
    try:
        return place.current()
    except ReleaseError:
        return None


def earlier_versions(place: Place) -> list[str]:
    """Versions that were active before the current one and are still there, the last one first.

    Where it cannot be read which is the current one, the one that was in use last comes first.
    """
    return earlier(place.history(), readable_current(place), place.versions())


def rolled_back_from(place: Place) -> frozenset[str]:
    """Versions that were rolled back from and not switched to again."""
    return rolled_back(place.history(), readable_current(place))


def activate(place: Place, version: str, *, verify: bool = True, new_encoder: bool = False) -> bool:
    """Switch to a release: the way forward after a rollback.

    Parameters
    ----------
    place
        Where.
    version
        The release. One that was rolled back from counts as good again.
    verify
        Compare every byte of it first, else sizes.
    new_encoder
        Switch to it even if its encoder is not that of the current release.

    Returns
    -------
    bool
        Whether it was another one that was in use before.

    Raises
    ------
    ReleaseError
        There is no such release, it is damaged, or its encoder is another one; nothing was switched.
    ResourceError
        The place cannot be reached or written.
    """
    current = readable_current(place)
    encoder = place.record(version)["encoder"]
    if not new_encoder and current not in (None, version) and current in place.versions():
        in_use = place.record(current)["encoder"]
        if in_use != encoder:
            raise ReleaseError(
                f"{version}: made with encoder {encoder}, but services of {place.shown} use {in_use} and "
                "would refuse it; activate it with --new-encoder and restart them"
            )
    place.check(version, verify=verify)
    place.switch(version, "activate", expected=ANY if current is None else current)
    return version != current


def rollback(place: Place, to: str | None = None, *, verify: bool = True) -> str:
    """Switch back to a release before the current one; twice goes back by two.

    What was rolled back from is not gone back to.

    Parameters
    ----------
    place
        Where.
    to
        One of :func:`earlier_versions`; by default the last of them. Where it cannot be read which is the
        current one, that is the one that was in use last.
    verify
        Compare every byte of it first, else sizes.

    Raises
    ------
    ReleaseError
        There is none, it is damaged, or another one became the current one; nothing was switched.
    ResourceError
        The place cannot be reached or written.
    """
    current = readable_current(place)
    version = rollback_target(place.shown, current, earlier_versions(place), to)
    place.check(version, verify=verify)
    place.switch(version, "rollback", expected=current)
    return version


class Folder:
    """Releases in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shown = str(root)

    def current(self) -> str | None:
        """Version in use, or None."""
        return local.current_version(self.root)

    def versions(self) -> list[str]:
        """Versions that are wholly there, ascending."""
        return local.versions(self.root)

    def history(self) -> list[Switch]:
        """Switches, oldest first."""
        return local.history(self.root)

    def record(self, version: str) -> dict[str, Any]:
        """Content of a release's record."""
        check_name(version, self.shown)
        path = self.root / version / RECORD
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise ReleaseError(f"{self.shown}: there is no release {version!r}") from None
        record = parse_record(text, str(path))
        check_record(record, version, str(path))
        return record

    def read(self, version: str, name: str) -> bytes:
        """A file of a release."""
        with store_errors():
            return (self.root / version / name).read_bytes()

    def check(self, version: str, *, verify: bool) -> None:
        """Compare the files of a release with its record."""
        local.open_release(self.root, version, verify=verify)

    def switch(
        self, version: str, action: Action, *, expected: str | None = ANY, dropped: Collection[str] = ()
    ) -> None:
        """Switch to a release."""
        local.switch(self.root, version, action, expected=expected, dropped=dropped)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from switching."""
        with store_errors(), full_disk_is_an_error(self.root), local.locked(self.root):
            yield

    def remove(self, version: str) -> None:
        """Make a release be there no more."""
        # Services that have it open keep its files mapped; the name is free at once.
        (self.root / version).rename(self.root / f".{version}{REMOVED}{secrets.token_hex(4)}")
        sync(self.root)

    def clear(self, *, dry_run: bool, now: datetime) -> dict[str, int]:
        """Remove the bytes of what was removed, and what a killed publish or an old pull has left."""
        with self._no_pull() as pulls_rest:
            found = [path for path in sorted(self.root.glob(".*")) if self._is_left(path, now, pulls_rest)]
            freed = dict(zip((path.name for path in found), _freed(found), strict=True))
            for path in () if dry_run else found:
                shutil.rmtree(path, ignore_errors=True)  # another may do the same
        return freed

    def freed(self, versions: Sequence[str]) -> dict[str, int]:
        """Bytes that removing releases together would free, of each."""
        return dict(zip(versions, _freed([self.root / version for version in versions]), strict=True))

    def _is_left(self, path: Path, now: datetime, pulls_rest: bool) -> bool:
        """Whether nobody works with a folder beside the releases any more."""
        named = _LEFT.fullmatch(path.name)
        if named is None or path.is_symlink() or not path.is_dir():
            return False
        if named["what"].startswith(REMOVED):
            return True
        try:
            is_old = datetime.fromtimestamp(path.stat().st_mtime, UTC) < now - STALE
        except FileNotFoundError:
            return False
        if named["what"] == PULLED:
            return pulls_rest and is_old
        return is_old or path in abandoned(self.root)

    @contextmanager
    def _no_pull(self) -> Iterator[bool]:
        """Keep pulls out, and say whether that was possible: False where one is at work."""
        path = self.root / PULL_LOCK
        if not path.exists():
            yield True
            return
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def _freed(folders: Sequence[Path]) -> list[int]:
    """Bytes that removing folders one after another frees: those of files that have no further link then."""
    links, freed = dict[tuple[int, int], int](), []
    for folder in folders:
        n_bytes = 0
        for path in (Path(top, name) for top, _, names in os.walk(folder) for name in names):
            try:
                status = path.lstat()
            except FileNotFoundError:  # another removes it too
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            inode = status.st_dev, status.st_ino
            links[inode] = links.get(inode, status.st_nlink) - 1
            n_bytes += status.st_size if links[inode] == 0 else 0
        freed.append(n_bytes)
    return freed
