"""One checked local copy per machine of a store that lies behind a URL, so that it can be memory-mapped.

Processes that want the same store at once queue at a file lock; the first one copies. The copy's folder is
named after the manifest's digest, so another version of the store never gets mixed up with it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from ppr.errors import MissingDataError, ResourceError, StoreError
from ppr.machine import locked, shared_folder
from ppr.manifest import MANIFEST, check_files, new_store
from ppr.urls import without_credentials


def is_url(location: str | Path) -> bool:
    """Whether ``location`` is a URL of fsspec (``s3://...``, ``file://...``) and not a plain path."""
    return "://" in str(location)


def local_store(location: str | Path, *, cache_dir: str | Path | None = None) -> Path:
    """Folder on this machine that holds the store at ``location``.

    Parameters
    ----------
    location
        A plain path, which is returned as it is, or a URL that fsspec can read.
    cache_dir
        Folder for the copies; by default below the user's folder for this machine
        (:func:`ppr.machine.shared_folder`).

    Returns
    -------
    pathlib.Path
        The store's folder. Files of a copy have been compared with the manifest's SHA-256.

    Raises
    ------
    MissingDataError
        There is no store at the URL.
    StoreError
        The manifest is not valid, or a file does not match it.
    ResourceError
        The URL cannot be read, the disk is full, or the cache cannot be written.
    """
    if not is_url(location):
        return Path(location)
    url = str(location).rstrip("/")
    digest, names = _remote_manifest(url)
    cache = Path(cache_dir) if cache_dir is not None else shared_folder() / "stores"
    copy = cache / digest
    with locked(cache / f"{digest}.lock"):
        if not _is_whole(copy):
            shutil.rmtree(copy, ignore_errors=True)
            _copy(url, names, copy)
    return copy


def _remote_manifest(url: str) -> tuple[str, list[str]]:
    """Digest of the manifest at ``url``, and the files to copy."""
    with _readable(url):
        file_system, root = fsspec.core.url_to_fs(url)
        raw = file_system.cat_file(f"{root}/{MANIFEST}")
    try:
        names = [str(name) for name in json.loads(raw)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        shown = without_credentials(url)
        raise StoreError(f"{shown}/{MANIFEST}: not a valid manifest ({error!r})") from None
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            shown = without_credentials(url)
            raise StoreError(f"{shown}/{MANIFEST}: file names must stay inside the store (got {name!r})")
    return hashlib.sha256(raw).hexdigest(), [MANIFEST, *names]


def _copy(url: str, names: list[str], copy: Path) -> None:
    with new_store(copy) as working:
        for name in names:
            target = working / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with _readable(url):
                file_system, root = fsspec.core.url_to_fs(url)
                file_system.get_file(f"{root}/{name}", str(target))
        check_files(working, _manifest_of(working), verify=True)


def _manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _is_whole(copy: Path) -> bool:
    """Whether a copy is there with its files in their sizes; their content was checked when it was made."""
    try:
        check_files(copy, _manifest_of(copy), verify=False)
    except (OSError, ValueError):  # a StoreError is a ValueError
        return False
    return True


@contextmanager
def _readable(url: str) -> Iterator[None]:
    """Turn whatever a remote file system raises into errors of this package."""
    try:
        yield
    except FileNotFoundError:
        raise MissingDataError(f"{without_credentials(url)}: no such store") from None
    except Exception as error:  # each file system has its own exceptions
        raise ResourceError(without_credentials(f"{url}: cannot be read ({error})")) from error
