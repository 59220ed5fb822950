"""What the processes of one user on one machine share: a folder, locks in it, and memory."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppr.errors import ResourceError

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def shared_folder() -> Path:
    """Folder for this user below the machine's temporary one, made private.

    Not the home: on a cluster, executors of one machine often have none, or one each.

    Raises
    ------
    ResourceError
        It cannot be made, or another user has made it.
    """
    folder = Path(tempfile.gettempdir(), f"fairpath-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be made ({error.strerror})") from error
    if owner != os.getuid():
        raise ResourceError(f"{folder}: belongs to another user; set TMPDIR to a folder of your own")
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that processes of this machine exclude each other by.

    Raises
    ------
    ResourceError
        The lock file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ResourceError(f"{path.parent}: cannot be written ({error.strerror})") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def memory_limit_bytes() -> int:
    """Memory of this machine, or of the control group that this process runs in, if that is less."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():  # or 'max'
            limit = min(limit, int(text))
    return limit
