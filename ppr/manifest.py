"""Stores on disk: a folder with a ``manifest.json``, written beside its final name and renamed last.

A reader therefore never sees half a store. The manifest names the format and its version, the parameters,
counts, the files with their sizes and SHA-256, the checksums of the stores it was made from (``parents``),
and ``checksum``, a digest of the *content* (arrays and tables, not the Parquet framing), which is the
store's identity.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppr.errors import MissingDataError, OutputExistsError, ResourceError, StoreError

MANIFEST = "manifest.json"
_INPUT_FIELDS = ("files", "inputs", "nodes", "added", "removed", "removed_nodes")
_CHUNK_BYTES = 1 << 22
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENOTDIR)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Sizes and checksums of all files below ``folder``, by their relative POSIX path, manifest excluded."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in files
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json`` into ``folder`` and flush it to disk."""
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path, *, format_name: str, version: int) -> dict[str, Any]:
    """Read and check the manifest of a store.

    Raises
    ------
    MissingDataError
        There is no such folder, or it holds no manifest.
    StoreError
        The manifest is not JSON, names another format, or another version.
    """
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: no such store")
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingDataError(f"{folder}: not a store ('{MANIFEST}' is missing)") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != format_name:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise StoreError(f"{path}: 'format' must be '{format_name}' (got {found!r})")
    if manifest.get("version") != version:
        raise StoreError(f"{path}: 'version' must be {version} (got {manifest.get('version')!r})")
    missing = {"parameters", "counts", "files", "parents", "checksum"} - manifest.keys()
    if missing:
        raise StoreError(f"{path}: field {sorted(missing)[0]!r} is missing")
    return manifest


def check_files(folder: Path, manifest: dict[str, Any], *, verify: bool) -> None:
    """Check that every file of the manifest is there with its size, and with ``verify`` its SHA-256.

    Raises
    ------
    StoreError
        A file is missing, truncated or altered.
    """
    files = manifest["files"]
    if not isinstance(files, dict) or not all(
        isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"} for entry in files.values()
    ):
        raise StoreError(f"{folder / MANIFEST}: 'files' must give 'bytes' and 'sha256' of each file")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise StoreError(f"{path}: missing from the store")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise StoreError(f"{path}: must have {expected['bytes']} bytes (got {size})")
        if verify and file_sha256(path) != expected["sha256"]:
            raise StoreError(f"{path}: checksum does not match the manifest")


def finished(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Manifest of a finished output with this identity, or None where there is no output yet.

    ``identity`` is compared key by key with the manifest (``format``, ``version``, ``parameters``,
    ``parents``).

    Raises
    ------
    OutputExistsError
        Something else is there: another kind of folder, or a store made with other parameters or input.
    """
    if not path.exists() and not path.is_symlink():
        return None
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise OutputExistsError(
            f"{path}: exists and is not a store; choose another output or remove it"
        ) from None
    for key, value in identity.items():
        there = manifest.get(key)
        if there != value:
            made = difference(key, there, value)
            raise OutputExistsError(f"{path}: exists, made {made}; choose another output or remove it")
    return manifest


def difference(key: str, there: Any, wanted: Any) -> str:
    """First difference between two values of a manifest's field, to go on with in a message."""
    name, there, wanted = _differing_field(key, there, wanted)
    if key == "parents" or name in _INPUT_FIELDS:
        return "from other input"
    if name == "tolerance" and None in (there, wanted):
        return "by a refresh, not in full" if wanted is None else "in full, not by a refresh"
    where = "" if name == key else f"'{name}' "
    return f"with other {key} ({where}there is {there!r}, asked for {wanted!r})"


def _differing_field(name: str, there: Any, wanted: Any) -> tuple[str, Any, Any]:
    """Name and values of the innermost field that differs first."""
    if name == "files":
        return name, there, wanted
    if isinstance(there, dict) and isinstance(wanted, dict):
        fields = [(key, there.get(key), wanted.get(key)) for key in sorted(there.keys() | wanted.keys())]
    elif isinstance(there, list) and isinstance(wanted, list) and len(there) == len(wanted):
        fields = [(name, one, other) for one, other in zip(there, wanted, strict=True)]
    else:
        return name, there, wanted
    return next(_differing_field(*field) for field in fields if field[1] != field[2])


@contextmanager
def new_store(path: Path) -> Iterator[Path]:
    """Folder to fill beside ``path``; renamed to ``path`` when the block ends well, removed when it does not.

    Several processes and threads may fill a store for the same ``path``; the first to end wins.

    Raises
    ------
    OutputExistsError
        Something appeared at ``path`` meanwhile.
    ResourceError
        The disk is full or the folder cannot be written.
    """
    working = path.with_name(f".{path.name}{_working_suffix()}{os.getpid()}-{secrets.token_hex(4)}")
    remove_abandoned(path.parent, path.name)
    with full_disk_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        working.mkdir()
        try:
            yield working
            publish(working, path)
        except BaseException:
            shutil.rmtree(working, ignore_errors=True)
            raise


def _working_suffix() -> str:
    """What stands behind the name in that of this machine's working folders; process and token follow."""
    return f".new-{platform.node()}-"


def output_of(path: Path) -> Path:
    """The output that a working folder is for, given this folder or something in it; else ``path`` itself."""
    for folder in [*reversed(path.parents), path]:
        if found := re.fullmatch(r"\.(.+)\.(new|compare)-.+", folder.name):
            return folder.with_name(found[1])
    return path


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove working folders for ``name``, or all, whose process on this machine is gone."""
    for working in abandoned(folder, name):
        shutil.rmtree(working, ignore_errors=True)


def abandoned(folder: Path, name: str | None = None) -> list[Path]:
    """Working folders for ``name``, or all, whose process on this machine is gone."""
    if not Path("/proc/self").exists():
        return []
    suffix, found = _working_suffix(), []
    wanted = "*" if name is None else glob.escape(name)
    for working in folder.glob(f".{wanted}{glob.escape(suffix)}*"):
        process, _, token = working.name.rpartition(suffix)[2].partition("-")
        # A dash in the token: the folder is of a machine whose name begins with this one's.
        if process.isdecimal() and "-" not in token and not Path("/proc", process).exists():
            found.append(working)
    return found


def publish(working: Path, path: Path) -> None:
    """Flush every file of ``working`` and rename the folder to ``path`` in one step.

    Raises
    ------
    OutputExistsError
        Something appeared at ``path`` meanwhile.
    """
    for file in working.rglob("*"):
        if file.is_file():
            sync(file)
    try:
        working.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputExistsError(f"{path}: exists already; choose another output or remove it") from None
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def full_disk_is_an_error(path: Path) -> Iterator[None]:
    """Turn "no space left", "permission denied" and the like into a :class:`ResourceError` with the path."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (ResourceError, OutputExistsError, MissingDataError)):
            raise
        if error.errno in _FULL_DISK:
            raise ResourceError(f"{path}: no space left on the disk; nothing was written") from error
        if error.errno in _REFUSED:
            raise ResourceError(f"{path}: cannot be written ({os.strerror(error.errno)})") from error
        raise
