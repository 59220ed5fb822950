"""Releases: what a service serves, one folder per version, and a file that names the current one.

On disk, below a root,

=============================  ==============================================================
``<version>/model/``           bundle of the router (:mod:`router.bundle`)
``<version>/graph/``           graph store, where there is one
``<version>/fingerprints/``    fingerprints of that graph, where there are any
``<version>/release.json``     what the stores are, and that all of them were verified
``CURRENT``                    the version that is served, and a newline
``history.jsonl``              a line for every switch
=============================  ==============================================================

:mod:`router.publishing` makes them, verified wholly; a release never changes afterwards. So a
service that starts compares sizes and digests of the manifests with the record in ``release.json``, which
takes milliseconds; whoever switches to a release compares every byte. A version is named by the time at which
it was made and a digest of its content.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ppr import errors as ppr_errors
from ppr.manifest import MANIFEST, check_files, file_sha256, full_disk_is_an_error, sync
from router.bundle import store_errors
from router.encoders import EncoderIdentity
from router.errors import DataError, ReleaseError

FORMAT = "fairpath-release"
VERSION = 1
CURRENT = "CURRENT"
HISTORY = "history.jsonl"
RECORD = "release.json"
MODEL, GRAPH, FINGERPRINTS = "model", "graph", "fingerprints"
_VERSION_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")
_DIGEST_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Release:
    """A release on disk.

    Attributes
    ----------
    root
        Folder of all releases.
    version
        Its name among them.
    manifest
        Content of its ``release.json``.
    """

    root: Path
    version: str
    manifest: dict[str, Any] = field(repr=False)

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.root / self.version

    @property
    def model(self) -> Path:
        """Folder of its bundle."""
        return self.path / MODEL

    @property
    def graph(self) -> Path | None:
        """Folder of its graph, or None."""
        return self.path / GRAPH if GRAPH in self.manifest["stores"] else None

    @property
    def fingerprints(self) -> Path | None:
        """Folder of its fingerprints, or None."""
        return self.path / FINGERPRINTS if FINGERPRINTS in self.manifest["stores"] else None

    @property
    def feedback_until(self) -> float | None:
        """Time up to which the model has learned from feedback, Unix seconds; None where from none."""
        text = self.manifest["feedback_until"]
        return None if text is None else datetime.fromisoformat(text).timestamp()

    def check(self, *, verify: bool) -> None:
        """Compare the stores with the record: manifests and sizes, and with ``verify`` every byte.

        Raises
        ------
        ReleaseError
            A file is missing, truncated or altered.
        """
        for name, there in self.manifest["stores"].items():
            folder = self.path / name
            try:
                if file_sha256(folder / MANIFEST) != there["manifest_sha256"]:
                    raise ReleaseError(f"{folder / MANIFEST}: does not match the record of the release")
                manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
                check_files(folder, manifest, verify=verify)
            except OSError as error:
                raise ReleaseError(f"{folder}: cannot be read ({error})") from None
            except ppr_errors.StoreError as error:
                raise ReleaseError(str(error)) from None


def activate(root: str | Path, version: str) -> None:
    """Switch to a release after comparing all of its bytes with its record.

    Raises
    ------
    ReleaseError
        There is no such release, or it is damaged.
    ResourceError
        The folder cannot be written.
    """
    folder = Path(root)
    open_release(folder, version, verify=True)
    switch(folder, version, "activate")


def rollback(root: str | Path, to: str | None = None) -> str:
    """Switch back to a release before the current one and return its version; twice goes back by two.

    Parameters
    ----------
    root
        Folder of all releases.
    to
        One of :func:`earlier_versions`; by default the last of them.

    Raises
    ------
    ReleaseError
        There is none, or it is damaged; nothing was switched.
    ResourceError
        The folder cannot be written.
    """
    folder = Path(root)
    earlier = earlier_versions(folder)
    if not earlier:
        raise ReleaseError(f"{folder}: there is no release before {current_version(folder)}")
    version = earlier[0] if to is None else to
    if version not in earlier:
        raise ReleaseError(f"{folder}: {version!r} is not a release before {current_version(folder)}")
    open_release(folder, version, verify=True)
    switch(folder, version, "rollback")
    return version


def current_version(root: str | Path) -> str | None:
    """Version that ``CURRENT`` names; None where there is no such file.

    Raises
    ------
    ReleaseError
        The file holds something else than a version.
    """
    path = Path(root) / CURRENT
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseError(f"{path}: cannot be read ({error})") from None
    _check_name(text.removesuffix("\n"), path)
    return text.removesuffix("\n")


def previous_version(root: str | Path) -> str | None:
    """Version to roll back to: the one active before the current one, and still there; or None.

    What was rolled back from is not gone back to.
    """
    return next(iter(earlier_versions(root)), None)


def earlier_versions(root: str | Path) -> list[str]:
    """Versions that were active before the current one and are still there, the last one first."""
    folder = Path(root)
    past = list[str]()
    for entry in _history(folder):
        if entry["action"] == "rollback":
            past = past[: past.index(entry["version"])] if entry["version"] in past else []
        past = [version for version in past if version != entry["version"]] + [entry["version"]]
    try:
        current = current_version(folder)
    except ReleaseError:
        current = None
    if current in past:
        past = past[: past.index(current)]
    there = set(versions(folder))
    return [version for version in reversed(past) if version in there]


def versions(root: str | Path) -> list[str]:
    """Versions of all releases, ascending: by the time at which they were made."""
    return sorted(
        path.parent.name
        for path in Path(root).glob(f"*/{RECORD}")
        if _VERSION_NAME.fullmatch(path.parent.name)
    )


def open_release(root: str | Path, version: str, *, verify: bool) -> Release:
    """Open a release.

    Parameters
    ----------
    root
        Folder of all releases.
    version
        Its name.
    verify
        Compare every byte of its stores with their digests. Without, manifests and sizes are compared with
        the record of the verification when it was published.

    Raises
    ------
    ReleaseError
        There is no such release, or it is damaged.
    """
    folder = Path(root)
    _check_name(version, folder)
    path = folder / version / RECORD
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReleaseError(f"{folder}: there is no release {version!r}") from None
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path}: cannot be read ({error})") from None
    try:
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            raise ReleaseError(f"{path}: must be of format {FORMAT} {VERSION}")
        found = content_digest(
            {name: store["manifest_sha256"] for name, store in manifest["stores"].items()},
            manifest["feedback_until"],
        )
        if manifest["digest"] != found or MODEL not in manifest["stores"] or "verified" not in manifest:
            raise ReleaseError(f"{path}: the record does not match its digest")
        release = Release(folder, version, manifest)
        release.check(verify=verify)
    except (KeyError, TypeError, AttributeError) as error:
        raise ReleaseError(f"{path}: the record is damaged ({error!r})") from None
    return release


def encoder_of(root: str | Path, version: str) -> EncoderIdentity | None:
    """Encoder of a release's model; None where there is no such release, or it is damaged."""
    try:
        release = open_release(root, version, verify=False)
        return EncoderIdentity.from_json(release.manifest["encoder"])
    except (ReleaseError, DataError, KeyError):
        return None


def _check_name(version: str, place: Path) -> None:
    if not _VERSION_NAME.fullmatch(version):
        raise ReleaseError(f"{place}: not the name of a release: {version[:120]!r}")


def content_digest(manifests: dict[str, str], feedback_until: str | None) -> str:
    """Digest of the content: of the stores' manifests, which hold digests of all files."""
    text = json.dumps([manifests, feedback_until], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]


def switch(root: Path, version: str, action: str) -> None:
    """Write ``CURRENT`` in one step, then a line of history of what was done; one process at a time.

    Raises
    ------
    ResourceError
        The disk is full or the folder cannot be written.
    """
    with store_errors(), full_disk_is_an_error(root), _locked(root):
        working = root / f".{CURRENT}.new"
        working.write_text(f"{version}\n", encoding="utf-8")
        sync(working)
        working.replace(root / CURRENT)
        line = {"version": version, "action": action, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        with (root / HISTORY).open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(line)}")  # on a line of its own, whatever broke off before
        sync(root / HISTORY)
        sync(root)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with (root / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _history(root: Path) -> list[dict[str, str]]:
    """Entries of the history, oldest first; a line that was not written to its end is left out."""
    try:
        lines = (root / HISTORY).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
            entries.append({"version": str(entry["version"]), "action": str(entry["action"])})
        except (ValueError, KeyError, TypeError):
            continue
    return entries
