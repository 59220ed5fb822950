"""Arrays of a store that many workers fill at once: made at full length, then written slice by slice.

Two attempts at a task write the same bytes to the same place, so a retried or speculative one does no harm.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt


def allocate(path: Path, dtype: str, length: int) -> None:
    """Make a one-dimensional ``.npy`` file of zeros, with the bytes of what ``numpy.save`` would write."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (length,)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + length * np.dtype(dtype).itemsize)


class SliceWriter:
    """Writes a slice of an allocated array, front to back, and flushes it to the disk at the end.

    It does not map the file: on a full disk, a write fails, while a mapped page kills the process.

    Parameters
    ----------
    path
        An array made by :func:`allocate`.
    start
        Position of the first value written.
    """

    def __init__(self, path: Path, start: int) -> None:
        self._file = path.open("r+b")
        np.lib.format.read_magic(self._file)
        _, _, self._dtype = np.lib.format.read_array_header_1_0(self._file)
        self._file.seek(start * self._dtype.itemsize, os.SEEK_CUR)

    def __enter__(self) -> SliceWriter:
        return self

    def append(self, values: npt.NDArray[Any]) -> None:
        """Write the next values."""
        # Not tofile, whose error does not say that the disk is full.
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
