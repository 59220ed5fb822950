"""Pushing releases of a folder to an object store.

A release that is there is compared and repaired. What a store says of an object's content is believed where
it is the file's digest; anything else takes reading it back.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from router.errors import ReleaseError, ResourceError
from router.releases import local
from router.releases.objects import ObjectStore
from router.releases.places import Folder, readable_current
from router.releases.record import RECORD, ReleaseFile, contents
from router.releases.stored import StoredFile
from router.releases.transfer import Progress, Told, Transferred, current_of, each, switched


def push(
    root: str | Path,
    url: str,
    version: str | None = None,
    *,
    activate: bool = True,
    again: bool = False,
    new_encoder: bool = False,
    verify: bool = False,
    threads: int = 8,
    tell: Told = lambda done, total: None,
) -> Transferred:
    """Send a release to an object store, or repair it there, and switch it to that.

    Parameters
    ----------
    root
        Folder of releases.
    url
        The object store.
    version
        The release; by default the current one. Every byte of it is compared first.
    activate
        Switch the object store to it.
    again
        Even if it was rolled back from there.
    new_encoder
        Even if its encoder is not that of the release that is current there.
    verify
        Read back what is there and what is sent, and send again what is not as it must be.
    threads
        Files sent at once.
    tell
        Told of the progress.

    Raises
    ------
    ReleaseError
        There is no such release, it is damaged, or the encoder is another one.
    ParameterError
        There is no such file system.
    ResourceError
        The object store cannot be reached or written.
    """
    here, there = Folder(Path(root)), ObjectStore(url)
    chosen = version or current_of(here)
    release = local.open_release(root, chosen, verify=True)
    if activate and not new_encoder:
        _check_encoder(there, chosen, release.manifest["encoder"])
    files = contents(release.manifest, partial(here.read, chosen), str(release.path))
    was_there = chosen in there.versions()
    there.begin(chosen, files, again=not was_there)
    progress = Progress(sum(file.n_bytes for file in files), tell)
    sent = _send(there, release.path, chosen, files, threads, progress, verify=verify)
    there.check_files(chosen, files, verify=False)
    if verify and sent:
        there.check_files(chosen, sent, verify=True)
    repaired = [file.name for file in sent] if was_there else []
    if not was_there or not _has_record(there, chosen):
        there.write((release.path / RECORD).read_bytes(), chosen, RECORD)
        repaired += [RECORD] if was_there else []
    return switched(
        there, here, chosen, activate=activate, again=again, progress=progress, repaired=tuple(repaired)
    )


def _has_record(there: ObjectStore, version: str) -> bool:
    """Whether the record of a release is undamaged."""
    try:
        there.record(version)
    except ReleaseError:
        return False
    return True


def _check_encoder(there: ObjectStore, version: str, encoder: dict[str, object]) -> None:
    """Refuse a model that no service which follows the object store could use."""
    current = readable_current(there)
    if current in (None, version) or current not in there.versions():
        return
    try:
        old = there.record(current)["encoder"]
    except ReleaseError:  # a damaged release says nothing
        return
    if old != encoder:
        raise ReleaseError(
            f"{version}: made with encoder {encoder}, but services of {there.shown} use {old} and would "
            "refuse it; push with --new-encoder and restart them"
        )


def _send(
    there: ObjectStore,
    folder: Path,
    version: str,
    files: list[ReleaseFile],
    threads: int,
    progress: Progress,
    *,
    verify: bool,
) -> list[ReleaseFile]:
    """Send what is not there yet, or not as it must be; gives what that was."""
    found, twins = there.objects(version), _twins(there, version)
    sent = list[ReleaseFile]()

    def is_there(file: ReleaseFile) -> bool:
        about = found.get(file.name)
        if about is None or about.n_bytes != file.n_bytes:
            return False
        if not verify and (about.md5 is None or about.md5 == _md5(folder / file.name)):
            return True
        return there.is_whole(version, file)

    def send(file: ReleaseFile) -> None:
        if is_there(file):
            progress.known(file.n_bytes)
            return
        sent.append(file)
        twin = twins.get((file.sha256, file.n_bytes))
        if twin is not None and _copied(there, twin, version, file, folder):
            progress.known(file.n_bytes)
            return
        there.put(folder / file.name, version, file.name)
        progress.moved(file.n_bytes)

    each(send, files, threads)
    return sent


def _copied(there: ObjectStore, twin: str, version: str, file: ReleaseFile, folder: Path) -> bool:
    """Copy a file within the store; False where the store does not say that it is what it must be."""
    try:
        there.copy(twin, f"{version}/{file.name}")
        about = there.about(version, file.name)
    except ResourceError:  # it was pruned meanwhile
        return False
    return about.n_bytes == file.n_bytes and about.md5 == _md5(folder / file.name)


def _twins(there: ObjectStore, version: str) -> dict[tuple[str, int], str]:
    """Paths of the files of the current release by digest and size: an unchanged one need not be sent.

    None where the store says nothing of their content: reading copies back takes as long as sending.
    """
    current = readable_current(there)
    if current in (None, version):
        return {}
    try:
        files = there.files(current, there.record(current))
        found = there.objects(current)
    except ReleaseError:
        return {}
    if all(about.md5 is None for about in found.values()):
        return {}
    nothing = StoredFile(-1, None)
    return {
        (file.sha256, file.n_bytes): f"{current}/{file.name}"
        for file in files
        if found.get(file.name, nothing).n_bytes == file.n_bytes
    }


def _md5(path: Path) -> str:
    """MD5 of a file, hex: what object stores compare by."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
