"""Releases: what a service serves, one folder per version, and a file that names the current one.

On disk, below a root,

=============================  ==============================================================
``<version>/model/``           bundle of the router (:mod:`router.bundle`)
``<version>/graph/``           graph store, where there is one
``<version>/fingerprints/``    fingerprints of that graph, where there are any
``<version>/release.json``     what the stores are, and that all of them were verified
``CURRENT``                    the version that is served, and a newline
``history.jsonl``              a line for every switch (:mod:`router.releases.history`)
``decisions.jsonl``            a line for every decision whether to publish, refusals too
=============================  ==============================================================

:mod:`router.publishing` makes them, verified wholly; a release never changes afterwards. So a
service that starts compares sizes and digests of the manifests with the record in ``release.json``, which
takes milliseconds; whoever switches to a release compares every byte. A version is named by the time at which
it was made and a digest of its content.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Collection, Iterator, Mapping
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
from router.releases.history import (
    ANY,
    Action,
    Switch,
    active,
    check_switch,
)
from router.releases.record import (
    FINGERPRINTS,
    GRAPH,
    MODEL,
    RECORD,
    check_name,
    check_record,
    is_version,
    json_object,
    parse_record,
)

CURRENT = "CURRENT"
HISTORY = "history.jsonl"
DECISIONS = "decisions.jsonl"


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

    @property
    def erased_until(self) -> datetime | None:
        """Time up to which erasures of users were carried out in its data; None where none were."""
        text = self.manifest["erased_until"]
        return None if text is None else datetime.fromisoformat(text)

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
    return parse_current(text, path)


def parse_current(text: str, place: object) -> str:
    """Version that the content of a ``CURRENT`` names; :class:`ReleaseError` where it names none."""
    if not text.strip():
        raise ReleaseError(f"{place}: is empty")
    return check_name(text.removesuffix("\n"), place)


def readable_current(root: str | Path) -> str | None:
    """Version that ``CURRENT`` names; None where it names none or cannot be read."""
    try:
        return current_version(root)
    except ReleaseError:
        return None


def versions(root: str | Path) -> list[str]:
    """Versions of all releases, ascending: by the time at which they were made."""
    return sorted(path.parent.name for path in Path(root).glob(f"*/{RECORD}") if is_version(path.parent.name))


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
    check_name(version, folder)
    path = folder / version / RECORD
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ReleaseError(f"{folder}: there is no release {version!r}") from None
    except OSError as error:
        raise ReleaseError(f"{path}: cannot be read ({error})") from None
    release = Release(folder, version, parse_record(text, str(path)))
    check_record(release.manifest, version, str(path))
    try:
        release.check(verify=verify)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ReleaseError):
            raise
        raise ReleaseError(f"{path}: the record is damaged ({error!r})") from None
    return release


def encoder_of(root: str | Path, version: str) -> EncoderIdentity | None:
    """Encoder of a release's model; None where there is no such release, or it is damaged."""
    try:
        release = open_release(root, version, verify=False)
        return EncoderIdentity.from_json(release.manifest["encoder"])
    except (ReleaseError, DataError, KeyError):
        return None


def switch(
    root: Path, version: str, action: Action, *, expected: str | None = ANY, dropped: Collection[str] = ()
) -> None:
    """Write ``CURRENT`` in one step, then a line of history of what was done; one process at a time.

    Parameters
    ----------
    root
        Folder of all releases.
    version, action
        What to switch to, and why.
    expected
        Version that must be the current one still; by default any.
    dropped
        What the place that is followed was rolled back from.

    Raises
    ------
    ReleaseError
        The release was removed, or another became the current one meanwhile; nothing was switched.
    ResourceError
        The disk is full or the folder cannot be written.
    """
    with store_errors(), full_disk_is_an_error(root), locked(root):
        before = readable_current(root)
        check_switch(str(root), version, before, expected, there=(root / version / RECORD).exists())
        working = root / f".{CURRENT}.new"
        working.write_text(f"{version}\n", encoding="utf-8")
        sync(working)
        working.replace(root / CURRENT)
        known = tuple(sorted(set(dropped) & set(active(history(root)))))
        _append(root / HISTORY, Switch(version, action, _now(), before, known).to_text())


def record_decision(root: str | Path, version: str | None, decision: Mapping[str, Any]) -> None:
    """Keep a decision whether to publish, and what was published; the same again in a row is kept once.

    Raises
    ------
    ParameterError
        The decision is not a JSON object.
    ResourceError
        The disk is full or the folder cannot be written.
    """
    folder = Path(root)
    line = {"version": version, "decision": json_object("decision", decision)}
    with store_errors(), full_disk_is_an_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            last = next(iter(decisions(folder)[-1:]), {})
            if {name: last.get(name) for name in line} != line:
                _append(folder / DECISIONS, json.dumps({"at": _now(), **line}))


def record_refusal(root: str | Path, decision: Mapping[str, Any]) -> None:
    """Keep a decision not to publish; errors are those of :func:`record_decision`."""
    record_decision(root, None, decision)


def decisions(root: str | Path) -> list[dict[str, Any]]:
    """Decisions that were kept, oldest first: ``at``, ``version`` (None for a refusal), ``decision``."""
    entries = []
    for line in _lines(Path(root) / DECISIONS):
        try:
            entry = json.loads(line)
            entries.append({name: entry[name] for name in ("at", "version", "decision")})
        except (ValueError, KeyError, TypeError):
            continue  # it was not written to its end
    return entries


def history(root: Path) -> list[Switch]:
    """Switches, oldest first; a line that was not written to its end is left out."""
    found = (Switch.from_text(line) for line in _lines(root / HISTORY))
    return [entry for entry in found if entry is not None]


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the lock of whoever switches or removes releases of a folder."""
    with (root / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}")  # on a line of its own, whatever broke off before
    sync(path)
    sync(path.parent)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
