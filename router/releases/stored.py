"""What an object store tells of the files of a release, and the note with which a push begins. Pure."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.errors import ReleaseError
from router.releases.record import RECORD, ReleaseFile

MARKER = ".push.json"
_FORMAT = "fairpath-push"
_WORKING = re.compile(r"(^|/)\.([^/]+)\.new-[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An object as its store lists it.

    Attributes
    ----------
    n_bytes
        Its size.
    md5
        What the store says of its content, hex; None where it says nothing. Some give other digests that look
        the same: one that differs proves nothing.
    """

    n_bytes: int
    md5: str | None


@dataclass(frozen=True, slots=True)
class Marker:
    """What a push noted when it began.

    Attributes
    ----------
    files
        Names of its files below the folder of the release.
    removing
        Whether the release is being removed.
    """

    files: tuple[str, ...]
    removing: bool

    def to_text(self) -> bytes:
        """As it is kept."""
        told = {"format": _FORMAT, "files": list(self.files), "removing": self.removing}
        return json.dumps(told).encode()

    @classmethod
    def from_text(cls, text: bytes) -> Marker | None:
        """As it was kept; None for anything else."""
        try:
            found = json.loads(text)
            if found["format"] != _FORMAT or not isinstance(found["files"], list):
                return None
            return cls(tuple(str(name) for name in found["files"]), found["removing"] is True)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def of_release(there: Iterable[str], files: Sequence[str]) -> list[str]:
    """Of the objects below a release's folder those that a push of these files has written."""
    known = {*files, RECORD, MARKER}
    return [name for name in there if name in known or _WORKING.sub(r"\1\2", name) in known]


def md5_of(about: Mapping[str, Any]) -> str | None:
    """MD5 of an object, hex, where its listing has what looks like one."""
    if "md5Hash" in about:
        return base64.b64decode(about["md5Hash"]).hex()
    tag = str(about.get("ETag", "")).strip('"').lower()
    return tag if re.fullmatch(r"[0-9a-f]{32}", tag) else None


def check_size(shown: str, found: int, file: ReleaseFile) -> None:
    """Raise a :class:`ReleaseError` where a file has not the size that it must have."""
    if found != file.n_bytes:
        raise ReleaseError(f"{shown}: must have {file.n_bytes} bytes (got {found})")
