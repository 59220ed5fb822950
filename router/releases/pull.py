"""Pulling releases from an object store into a folder: every byte is compared, what is damaged repaired."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Event

from ppr.machine import locked
from ppr.manifest import file_sha256, full_disk_is_an_error, publish
from router.bundle import store_errors
from router.errors import ReleaseError, ResourceError
from router.releases import local
from router.releases.objects import ObjectStore
from router.releases.places import PULL_LOCK, PULLED, Folder
from router.releases.record import RECORD, ReleaseFile, check_record, contents, parse_record
from router.releases.transfer import Progress, StoppedError, Told, Transferred, current_of, each, switched


def pull(
    url: str,
    root: str | Path,
    version: str | None = None,
    *,
    activate: bool = True,
    again: bool = False,
    threads: int = 8,
    tell: Told = lambda done, total: None,
    stopped: Event | None = None,
) -> Transferred:
    """Fetch a release from an object store, compare every byte, and switch to it.

    One that is in the folder already is compared too, and fetched again where it is damaged.

    Parameters
    ----------
    url
        The object store.
    root
        Folder of releases; made where it is not there.
    version
        The release; by default the one that is current there.
    activate
        Switch the folder to it.
    again
        Even if it was rolled back from here.
    threads
        Files fetched at once.
    tell
        Told of the progress.
    stopped
        Set from outside to end early.

    Raises
    ------
    ReleaseError
        There is no such release, or a file is missing, truncated or altered.
    ParameterError
        There is no such file system.
    ResourceError
        The object store cannot be reached, the disk is full, or the folder cannot be written.
    StoppedError
        It was stopped.
    """
    there, here = ObjectStore(url), Folder(Path(root))
    chosen = version or current_of(there)
    progress, repaired = Progress(0, tell), list[str]()
    with store_errors(), full_disk_is_an_error(here.root):
        here.root.mkdir(parents=True, exist_ok=True)
        with locked(here.root / PULL_LOCK):  # another that pulls the same finds it done
            was_there = chosen in here.versions()
            if not was_there or not _is_whole(here, chosen):
                files = _fetch(there, here, chosen, threads, progress, stopped or Event())
                repaired = files if was_there else []
    local.open_release(here.root, chosen, verify=False)
    return switched(
        here, there, chosen, activate=activate, again=again, progress=progress, repaired=tuple(repaired)
    )


def _is_whole(here: Folder, version: str) -> bool:
    try:
        here.check(version, verify=True)
    except (ReleaseError, OSError):
        return False
    return True


def _fetch(
    there: ObjectStore, here: Folder, version: str, threads: int, progress: Progress, stopped: Event
) -> list[str]:
    """Fetch a release beside its name and put it in its place; files that were not there, or damaged.

    One that is there and damaged goes once the other is whole.
    """
    text, place = there.record_text(version), f"{there.shown}/{version}/{RECORD}"
    record = parse_record(text, place)
    check_record(record, version, place)
    files = there.files(version, record)
    bad = [file.name for file in files if not _is(here.root / version / file.name, file)]
    working = here.root / f".{version}{PULLED}"
    for other in here.root.glob(f".*{PULLED}"):
        if other != working:
            shutil.rmtree(other, ignore_errors=True)
    if working.is_symlink():
        working.unlink()
    working.mkdir(exist_ok=True)
    wanted = {file.name for file in files}
    for path in sorted(working.rglob("*"), reverse=True):
        if path.is_symlink() or (path.is_file() and path.relative_to(working).as_posix() not in wanted):
            path.unlink()
    whole = {file.name for file in files if _is(working / file.name, file)}
    twins = _twins_here(here)
    twins |= {(f.sha256, f.n_bytes): here.root / version / f.name for f in files if f.name not in bad}
    _check_room(
        here.root,
        sum(f.n_bytes for f in files if f.name not in whole and (f.sha256, f.n_bytes) not in twins),
    )
    progress.total = sum(file.n_bytes for file in files)

    def fetch(file: ReleaseFile) -> None:
        path, twin = working / file.name, twins.get((file.sha256, file.n_bytes))
        if file.name in whole or (twin is not None and _linked(twin, path, file)):
            progress.known(file.n_bytes)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as target:

            def take(piece: bytes) -> None:
                if stopped.is_set():
                    raise StoppedError
                target.write(piece)
                progress.moved(len(piece))

            there.stream(version, file, take)
        part.replace(path)

    each(fetch, files, threads, stopped)
    (working / RECORD).write_bytes(text)
    # Killed between the two, it is missing until the next pull, which finds all of it here.
    if (here.root / version).exists():
        with here.locked():
            here.remove(version)
            publish(working, here.root / version)
        here.clear(dry_run=False, now=datetime.now(UTC))
    else:
        publish(working, here.root / version)
    return bad or [RECORD]


def _twins_here(here: Folder) -> dict[tuple[str, int], Path]:
    """Files of the releases in a folder by digest and size: an unchanged one need not be fetched."""
    found = dict[tuple[str, int], Path]()
    for version in here.versions():
        folder = here.root / version
        try:
            files = contents(here.record(version), partial(here.read, version), str(folder))
        except (ReleaseError, OSError):
            continue
        found |= {(file.sha256, file.n_bytes): folder / file.name for file in files}
    return found


def _linked(twin: Path, path: Path, file: ReleaseFile) -> bool:
    """Link a file of another release, if it is whole and the file system can."""
    if not _is(twin, file):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(twin, path)
    except OSError:
        return False
    return True


def _is(path: Path, file: ReleaseFile) -> bool:
    try:
        return path.stat().st_size == file.n_bytes and file_sha256(path) == file.sha256
    except OSError:
        return False


def _check_room(root: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(root).free
    if n_bytes > free:
        raise ResourceError(
            f"{root}: no space left on the disk: {n_bytes} bytes are needed, {free} are free; nothing was "
            "fetched"
        )
