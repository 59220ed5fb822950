"""Releases in an object store that fsspec reaches.

It knows neither renaming nor locks nor appending. Below its URL there are the same names as in a folder
(:mod:`router.releases`), but

* a release is there once its ``release.json`` is, which comes after all its files and goes before them;
* ``<version>/.push.json`` comes before all of them and goes last: a push began this, with these files, and
  nothing else is ever removed;
* ``history/<number>-<token>.json`` is a switch: one object each;
* ``history.jsonl`` and ``decisions.jsonl`` are copies of a folder's (:mod:`router.releases.backup`).
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from ppr.manifest import sync
from ppr.urls import without_credentials
from router.errors import ParameterError, ReleaseError, ResourceError, RouterError
from router.releases.history import ANY, Action, Switch, active, check_switch
from router.releases.local import CURRENT, parse_current
from router.releases.record import (
    RECORD,
    ReleaseFile,
    check_name,
    check_record,
    contents,
    is_version,
    parse_record,
)
from router.releases.stored import MARKER, Marker, StoredFile, check_size, md5_of, of_release

STALE = timedelta(days=1)
"""What broke off and was not gone on with for so long is cleared; before, it may be at work."""
_CHUNK_BYTES = 1 << 24
_HISTORY = "history"
_THREADS = 8


class ObjectStore:
    """Releases in an object store.

    Parameters
    ----------
    url
        Such as ``s3://bucket/releases``.

    Raises
    ------
    ParameterError
        There is no such file system.
    ResourceError
        The package that reaches it is not installed, or it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.shown = without_credentials(url.rstrip("/"))
        protocol = url.partition("://")[0].rpartition("::")[0] or url.partition("://")[0]
        try:
            self.file_system, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            package = known_implementations.get(protocol, {}).get("class", "").partition(".")[0] or error.name
            raise ResourceError(
                f"{self.shown}: {package} is not installed: run pip install {package}"
            ) from None
        except ValueError as error:
            raise ParameterError(without_credentials(f"{url}: {error}")) from None
        except Exception as error:  # each file system has its own
            raise ResourceError(without_credentials(f"{url}: cannot be reached ({error})")) from error
        self._root = root.rstrip("/")
        self._is_local = isinstance(self.file_system, LocalFileSystem)

    def path(self, *names: str) -> str:
        """Path within the file system."""
        return "/".join((self._root, *names))

    def current(self) -> str | None:
        """Version in use, or None."""
        try:
            text = self._bytes(CURRENT).decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise ReleaseError(f"{self.shown}/{CURRENT}: cannot be read ({error})") from None
        return parse_current(text, f"{self.shown}/{CURRENT}")

    def versions(self) -> list[str]:
        """Versions that are wholly there, ascending."""
        with ThreadPoolExecutor(_THREADS) as pool:
            names = self._names()
            there = pool.map(lambda name: self._exists(name, RECORD), names)
            return [name for name, found in zip(names, there, strict=True) if found]

    def history(self) -> list[Switch]:
        """Switches, oldest first."""
        with self.errors(_HISTORY):
            try:
                self.file_system.invalidate_cache()
                paths = sorted(self.file_system.ls(self.path(_HISTORY), detail=False))
            except FileNotFoundError:
                return []
            texts = self.file_system.cat(paths) if paths else {}
        found = (Switch.from_text(texts[path]) for path in paths)
        return [entry for entry in found if entry is not None]

    def record(self, version: str) -> dict[str, Any]:
        """Content of a release's record."""
        place = f"{self.shown}/{version}/{RECORD}"
        record = parse_record(self.record_text(version), place)
        check_record(record, version, place)
        return record

    def record_text(self, version: str) -> bytes:
        """Bytes of a release's record; :class:`ReleaseError` where there is none."""
        check_name(version, self.shown)
        try:
            return self._bytes(version, RECORD)
        except FileNotFoundError:
            raise ReleaseError(f"{self.shown}: there is no release {version!r}") from None

    def read(self, version: str, name: str) -> bytes:
        """A file of a release."""
        try:
            return self._bytes(version, name)
        except FileNotFoundError:
            raise ReleaseError(f"{self.shown}/{version}/{name}: missing from the release") from None

    def files(self, version: str, record: dict[str, Any]) -> list[ReleaseFile]:
        """All files that a release must have, but its record."""
        return contents(record, partial(self.read, version), f"{self.shown}/{version}")

    def objects(self, version: str) -> dict[str, StoredFile]:
        """Objects that there are of a release, by their path below its folder."""
        with self.errors(version):
            self.file_system.invalidate_cache()
            try:
                found = self.file_system.find(self.path(version), detail=True)
            except FileNotFoundError:
                return {}
        prefix = self.path(version, "")
        return {
            name.removeprefix(prefix): StoredFile(int(about["size"]), md5_of(about))
            for name, about in found.items()
        }

    def about(self, version: str, name: str) -> StoredFile:
        """One of them; :class:`ResourceError` where it is not there."""
        with self.errors(version, name):
            self.file_system.invalidate_cache()
            about = self.file_system.info(self.path(version, name))
        return StoredFile(int(about["size"]), md5_of(about))

    def sizes(self, version: str) -> dict[str, int]:
        """Their sizes."""
        return {name: about.n_bytes for name, about in self.objects(version).items()}

    def check(self, version: str, *, verify: bool) -> None:
        """Compare the files of a release with its record."""
        self.check_files(version, self.files(version, self.record(version)), verify=verify)

    def check_files(self, version: str, files: list[ReleaseFile], *, verify: bool) -> None:
        """Compare the objects of a release with what they must be."""
        sizes = self.sizes(version)
        for file in files:
            if file.name not in sizes:
                raise ReleaseError(f"{self.shown}/{version}/{file.name}: missing from the release")
            check_size(f"{self.shown}/{version}/{file.name}", sizes[file.name], file)
        if verify:
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda file: self.stream(version, file, lambda _: None), files))

    def is_whole(self, version: str, file: ReleaseFile) -> bool:
        """Read a file and say whether it is what it must be."""
        try:
            self.stream(version, file, lambda _: None)
        except ReleaseError:
            return False
        return True

    def stream(self, version: str, file: ReleaseFile, take: Callable[[bytes], object]) -> None:
        """Hand a file over piece by piece; afterwards an error is raised where it was not what it must be."""
        shown, digest, done = f"{self.shown}/{version}/{file.name}", hashlib.sha256(), 0
        while done < file.n_bytes:
            end = min(done + _CHUNK_BYTES, file.n_bytes)
            with self.errors(version, file.name):
                try:
                    piece = self.file_system.cat_file(self.path(version, file.name), start=done, end=end)
                except FileNotFoundError:
                    raise ReleaseError(f"{shown}: missing from the release") from None
            digest.update(piece)
            take(piece)
            done += len(piece)
            if done < end:  # it is shorter than it must be
                break
        check_size(shown, done, file)
        if digest.hexdigest() != file.sha256:
            raise ReleaseError(f"{shown}: checksum does not match the manifest")

    def switch(
        self, version: str, action: Action, *, expected: str | None = ANY, dropped: Collection[str] = ()
    ) -> None:
        """Switch to a release."""
        try:
            before = self.current()
        except ReleaseError:
            before = None
        check_switch(self.shown, version, before, expected, there=self._exists(version, RECORD))
        with self.errors(_HISTORY):
            self.file_system.invalidate_cache()
            try:
                names = self.file_system.ls(self.path(_HISTORY), detail=False)
            except FileNotFoundError:
                names = []
        numbers = [int(found[1]) for name in names if (found := re.search(r"/(\d+)-\w+\.json$", name))]
        # A number, not the time: clocks of operators differ.
        entry = f"{max(numbers, default=0) + 1:08d}-{secrets.token_hex(4)}.json"
        known = tuple(sorted(set(dropped) & set(active(self.history())))) if dropped else ()
        line = Switch(version, action, datetime.now(UTC).isoformat(timespec="seconds"), before, known)
        self.write(line.to_text().encode(), _HISTORY, entry)
        self.write(f"{version}\n".encode(), CURRENT)

    def locked(self) -> AbstractContextManager[None]:
        """Keep others from switching; an object store cannot."""
        return nullcontext()

    def remove(self, version: str) -> None:
        """Make a release be there no more; only files that belong to it go."""
        files = self._pushed(version)
        self.write(Marker(tuple(files), removing=True).to_text(), version, MARKER)
        with self.errors(version), suppress(FileNotFoundError):
            self.file_system.rm_file(self.path(version, RECORD))
        self._remove_files(version, files)

    def clear(self, *, dry_run: bool, now: datetime) -> dict[str, int]:
        """Remove what removals have left, and pushes that broke off long ago; bytes by name."""
        there, found = set(self.versions()), dict[str, int]()
        for name in self._names():
            marker = None if name in there else self.marker(name)
            if marker is None or not (marker.removing or self._is_stale(name, now)):
                continue
            sizes = self.sizes(name)
            found[name] = sum(sizes[file] for file in of_release(sizes, marker.files))
            if not dry_run:
                self._remove_files(name, marker.files)
        return found

    def freed(self, versions: Sequence[str]) -> dict[str, int]:
        """Bytes that removing releases together would free, of each."""
        sizes = {version: self.sizes(version) for version in versions}
        return {
            version: sum(found[file] for file in of_release(found, self._pushed(version)))
            for version, found in sizes.items()
        }

    def begin(self, version: str, files: Iterable[ReleaseFile], *, again: bool) -> None:
        """Note that a push of these files begins; ``again`` also where that was noted before."""
        wanted = Marker(tuple(sorted(file.name for file in files)), removing=False)
        if again or self.marker(version) != wanted:
            self.write(wanted.to_text(), version, MARKER)

    def marker(self, version: str) -> Marker | None:
        """What a push noted when it began; None where none did."""
        try:
            return Marker.from_text(self._bytes(version, MARKER))
        except FileNotFoundError:
            return None

    def _pushed(self, version: str) -> list[str]:
        """Names of the files that belong to a release, as far as that can be told."""
        marker = self.marker(version)
        if marker is not None:
            return list(marker.files)
        try:
            return [file.name for file in self.files(version, self.record(version))]
        except ReleaseError:
            return []

    def _is_stale(self, version: str, now: datetime) -> bool:
        try:
            with self.errors(version):
                begun = self.file_system.modified(self.path(version, MARKER))
        except ResourceError:  # not every file system tells
            return False
        return bool((begun if begun.tzinfo else begun.replace(tzinfo=UTC)) < now - STALE)

    def write(self, content: bytes, *names: str) -> None:
        """Write a small object in one step."""
        path = self.path(*names)
        with self.errors(*names):
            if not self._is_local:
                self.file_system.pipe_file(path, content)
                return
            # A file, unlike an object, is seen while it is written.
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            working = target.with_name(f".{target.name}.new-{secrets.token_hex(4)}")
            working.write_bytes(content)
            sync(working)
            working.replace(target)

    def put(self, source: Path, *names: str) -> None:
        """Send a file."""
        with self.errors(*names):
            path = self.path(*names)
            if self._is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.file_system.put_file(os.fspath(source), path)

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the store; both are paths below the root."""
        with self.errors(target):
            if self._is_local:
                Path(self.path(target)).parent.mkdir(parents=True, exist_ok=True)
            self.file_system.cp_file(self.path(source), self.path(target))

    def _names(self) -> list[str]:
        """Names that may be those of releases, whole or not, ascending."""
        with self.errors():
            self.file_system.invalidate_cache()
            try:
                found = self.file_system.ls(self._root or "/", detail=True)
            except FileNotFoundError:
                return []
        names = {
            about["name"].rstrip("/").rpartition("/")[2] for about in found if about["type"] == "directory"
        }
        return sorted(name for name in names - {_HISTORY} if is_version(name))

    def _bytes(self, *names: str) -> bytes:
        with self.errors(*names, missing=True):
            return bytes(self.file_system.cat_file(self.path(*names)))

    def _exists(self, *names: str) -> bool:
        with self.errors(*names):
            self.file_system.invalidate_cache()
            return bool(self.file_system.isfile(self.path(*names)))

    def kept(self, name: str) -> bytes | None:
        """A file beside the releases, or None."""
        try:
            return self._bytes(name)
        except FileNotFoundError:
            return None

    def is_there(self) -> bool:
        """Whether there is anything at all."""
        with self.errors():
            self.file_system.invalidate_cache()
            try:
                return bool(self.file_system.ls(self._root or "/", detail=False))
            except FileNotFoundError:
                return False

    def _remove_files(self, version: str, files: Sequence[str]) -> None:
        """Remove files of a release, and the marker after all others."""

        def remove(name: str) -> None:
            with self.errors(version, name), suppress(FileNotFoundError):  # another may do the same
                self.file_system.rm_file(self.path(version, name))

        names = of_release(self.sizes(version), files)
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(remove, [name for name in names if name != MARKER]))
        remove(MARKER)
        if self._is_local:
            folder = Path(self.path(version))
            for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
                with suppress(OSError):  # something else is in it
                    path.rmdir()
            with suppress(OSError):
                folder.rmdir()

    @contextmanager
    def errors(self, *names: str, missing: bool = False) -> Iterator[None]:
        """Turn whatever a file system raises into errors of this package; ``missing`` lets one through."""
        try:
            yield
        except RouterError:
            raise
        except Exception as error:  # each file system has its own
            if missing and isinstance(error, FileNotFoundError):
                raise
            shown = "/".join((self.shown, *names))
            raise ResourceError(without_credentials(f"{shown}: {error or type(error).__name__}")) from error
