"""One pipeline at a time in a folder."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from jobs.errors import NotYetError
from ppr.manifest import full_disk_is_an_error

LOCK = ".lock"


@contextmanager
def only_one(work: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it when the process ends, however that happens.

    Raises
    ------
    NotYetError
        Another pipeline is at work in the folder; names its process.
    ResourceError
        The folder cannot be written.
    """
    with full_disk_is_an_error(work):
        work.mkdir(parents=True, exist_ok=True)
        file = (work / LOCK).open("a+b", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise NotYetError(f"{work}: another pipeline is at work here{_holder(file.read())}") from None
        started = datetime.now(UTC).isoformat(timespec="seconds")
        holder = json.dumps({"pid": os.getpid(), "host": platform.node(), "started": started})
        with full_disk_is_an_error(work):
            file.truncate(0)
            file.write(holder.encode())
        yield
        file.truncate(0)


def _holder(text: bytes) -> str:
    """Who holds the lock, in words; nothing where it has not said so yet."""
    try:
        holder = json.loads(text)
        return f" (process {holder['pid']} on {holder['host']}, since {holder['started']})"
    except (ValueError, KeyError, TypeError):
        return ""
