"""The record of a release, ``release.json``: the stores, by digests of their manifests, and so all files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from ppr.manifest import MANIFEST
from router.errors import ParameterError, ReleaseError

FORMAT = "fairpath-release"
VERSION = 2
RECORD = "release.json"
MODEL, GRAPH, FINGERPRINTS = "model", "graph", "fingerprints"
_STORES = frozenset({MODEL, GRAPH, FINGERPRINTS})
_DIGEST_LENGTH = 12
VERSION_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{12}")
"""A version: the time at which it was made, and the digest of its content."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DICTIONARIES = ("encoder", "metrics")
_TIMES = ("created", "verified")
_MAYBE_TIMES = ("feedback_until", "erased_until")


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """A file of a release.

    Attributes
    ----------
    name
        Its path below the folder of the release.
    n_bytes, sha256
        Its size, and its digest, hex.
    """

    name: str
    n_bytes: int
    sha256: str


def parse_record(text: bytes, place: str) -> dict[str, Any]:
    """Content of a ``release.json``.

    Raises
    ------
    ReleaseError
        It is not valid, of another version, or does not match its digest.
    """
    try:
        manifest: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{place}: cannot be read ({error})") from None
    try:
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            raise ReleaseError(f"{place}: must be of format {FORMAT} {VERSION}")
        _check_fields(manifest, place)
        found = content_digest(
            {name: store["manifest_sha256"] for name, store in manifest["stores"].items()},
            manifest["feedback_until"],
            manifest["erased_until"],
        )
        if manifest["digest"] != found:
            raise ReleaseError(f"{place}: the record does not match its digest")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ReleaseError):
            raise
        raise ReleaseError(f"{place}: the record is damaged ({error!r})") from None
    return manifest


def _check_fields(manifest: Mapping[str, Any], place: str) -> None:
    """Raise where a field is missing or not what it must be: names become paths, and times are compared."""
    stores = manifest["stores"]
    if not isinstance(stores, dict) or MODEL not in stores or not stores.keys() <= _STORES:
        raise ReleaseError(
            f"{place}: 'stores' must be {MODEL}, and may be {GRAPH} and {FINGERPRINTS} (got {list(stores)})"
        )
    for name, store in stores.items():
        told = f"{place}: 'stores.{name}'"
        if not _SHA256.fullmatch(store["manifest_sha256"]) or not isinstance(store["checksum"], str):
            raise ReleaseError(f"{told}: 'manifest_sha256' and 'checksum' must be digests")
        if not isinstance(store["counts"], dict) or not _is_count(store["bytes"]):
            raise ReleaseError(f"{told}: 'counts' must be an object, and 'bytes' a number of bytes")
    for name in (*_TIMES, *_MAYBE_TIMES):
        text = manifest[name]
        if text is None and name in _MAYBE_TIMES:
            continue
        if datetime.fromisoformat(text).tzinfo is None:
            raise ReleaseError(f"{place}: {name!r} must have a time zone (got {text!r})")
    for name in _DICTIONARIES:
        if not isinstance(manifest[name], dict):
            raise ReleaseError(f"{place}: {name!r} must be an object")
    if not isinstance(manifest["decision"], dict | None):
        raise ReleaseError(f"{place}: 'decision' must be an object or null")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def contents(record: Mapping[str, Any], read: Callable[[str], bytes], place: str) -> list[ReleaseFile]:
    """All files of a release but its record, manifests included.

    Parameters
    ----------
    record
        Content of its ``release.json``.
    read
        Gives the bytes of a file by its path below the folder of the release.
    place
        What messages call that folder.

    Raises
    ------
    ReleaseError
        A manifest does not match the record, or names a file outside its store.
    """
    files = []
    for store, about in record["stores"].items():
        name = f"{store}/{MANIFEST}"
        text = read(name)
        digest = hashlib.sha256(text).hexdigest()
        if digest != about["manifest_sha256"]:
            raise ReleaseError(f"{place}/{name}: does not match the record of the release")
        files.append(ReleaseFile(name, len(text), digest))
        try:
            listed = {str(file): entry for file, entry in json.loads(text)["files"].items()}
            for file, entry in listed.items():
                if not _stays_inside(file):
                    raise ReleaseError(f"{place}/{name}: files must stay inside the store (got {file!r})")
                if not _is_count(entry["bytes"]) or not _SHA256.fullmatch(entry["sha256"]):
                    raise ReleaseError(f"{place}/{name}: {file!r} must have 'bytes' and 'sha256'")
                files.append(ReleaseFile(f"{store}/{file}", entry["bytes"], entry["sha256"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, ReleaseError):
                raise
            raise ReleaseError(f"{place}/{name}: the manifest is damaged ({error!r})") from None
    return files


def _stays_inside(file: str) -> bool:
    """Whether a file's name is a plain relative path below a store, and not that of its manifest."""
    path = PurePosixPath(file)
    plain = file.isprintable() and "\\" not in file and path.as_posix() == file and file not in ("", MANIFEST)
    return plain and not path.is_absolute() and not {".", ".."} & set(path.parts)


def is_version(name: str) -> bool:
    """Whether a name is that of a release."""
    return VERSION_NAME.fullmatch(name) is not None


def check_name(version: str, place: object) -> str:
    """The version, where it is the name of one; :class:`ReleaseError` else."""
    if not is_version(version):
        raise ReleaseError(f"{place}: not the name of a release: {version[:120]!r}")
    return version


def check_record(record: Mapping[str, Any], version: str, place: str) -> None:
    """Raise a :class:`ReleaseError` where a record is that of another release than its folder's name says."""
    if not version.endswith(f"-{record['digest']}"):
        raise ReleaseError(f"{place}: is the record of another release, of digest {record['digest']}")


def content_digest(manifests: Mapping[str, str], feedback_until: str | None, erased_until: str | None) -> str:
    """Digest of the content: of the stores' manifests, which hold digests of all files, and both times."""
    text = json.dumps([dict(manifests), feedback_until, erased_until], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]


def json_object(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as JSON would give it back; :class:`ParameterError` where it cannot."""
    try:
        return dict(json.loads(json.dumps(dict(value), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ParameterError(f"'{name}' must be a JSON object ({error})") from None
