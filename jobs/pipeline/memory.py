"""Most memory that this process had resident at once, since a moment."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

_RESET_PEAK = "5"


def reset_peak() -> None:
    """Begin to measure anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def peak_bytes() -> int:
    """Most bytes since :func:`reset_peak` or the start of the process; without its children."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
