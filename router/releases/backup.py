"""All releases of a folder in an object store, with what became of them, and back: a backup."""

from __future__ import annotations

from pathlib import Path
from threading import Event

from ppr.manifest import full_disk_is_an_error, sync
from router.bundle import store_errors
from router.errors import ReleaseError
from router.releases.local import DECISIONS, HISTORY, locked, readable_current
from router.releases.objects import ObjectStore
from router.releases.places import Folder
from router.releases.pull import pull
from router.releases.push import push
from router.releases.transfer import Told, Transferred

_KEPT = (HISTORY, DECISIONS)


def push_all(
    root: str | Path,
    url: str,
    *,
    activate: bool = True,
    again: bool = False,
    new_encoder: bool = False,
    verify: bool = False,
    threads: int = 8,
    tell: Told = lambda done, total: None,
) -> list[Transferred]:
    """Push all releases of a folder, the oldest first, its history and its decisions, and switch at the end.

    What is only in the object store stays there. Parameters and errors are those of
    :func:`router.releases.push.push`; a release that is damaged here ends it before the switch.
    """
    here, there = Folder(Path(root)), ObjectStore(url)
    current, done = readable_current(here.root), list[Transferred]()
    versions = [version for version in here.versions() if version != current]
    if current is None and not versions:
        raise ReleaseError(f"{here.shown}: there are no releases")
    for version in versions:
        sent = push(root, url, version, activate=False, verify=verify, threads=threads, tell=tell)
        done.append(sent)
    for name in _KEPT:
        path = here.root / name
        if path.exists():
            with store_errors():
                there.write(path.read_bytes(), name)
    if current is not None:
        options = {"activate": activate, "again": again, "new_encoder": new_encoder, "verify": verify}
        done.append(push(root, url, current, threads=threads, tell=tell, **options))
    return done


def pull_all(
    url: str,
    root: str | Path,
    *,
    activate: bool = True,
    again: bool = False,
    threads: int = 8,
    tell: Told = lambda done, total: None,
    stopped: Event | None = None,
) -> list[Transferred]:
    """Fetch all releases of an object store, the oldest first, and switch to its current one at the end.

    Where the folder has no history yet, it gets that of the folder that :func:`push_all` sent, and its
    decisions. Parameters and errors are those of :func:`router.releases.pull.pull`.
    """
    there, here = ObjectStore(url), Folder(Path(root))
    current, done = there.current(), list[Transferred]()
    versions = [version for version in there.versions() if version != current]
    if current is None and not versions:
        raise ReleaseError(f"{there.shown}: there are no releases")
    for version in versions:
        done.append(pull(url, root, version, activate=False, threads=threads, tell=tell, stopped=stopped))
    _restore(there, here)
    if current is not None:
        options = {"activate": activate, "again": again}
        done.append(pull(url, root, current, threads=threads, tell=tell, stopped=stopped, **options))
    return done


def _restore(there: ObjectStore, here: Folder) -> None:
    """Take over the history and the decisions that were kept, each where there is none."""
    here.root.mkdir(parents=True, exist_ok=True)
    with store_errors(), full_disk_is_an_error(here.root), locked(here.root):
        for name in _KEPT:
            text, path = there.kept(name), here.root / name
            if text is None or path.exists():
                continue
            working = here.root / f".{name}.new"
            working.write_bytes(text)
            sync(working)
            working.replace(path)
            sync(here.root)
