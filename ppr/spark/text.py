"""Strings of Arrow as the bytes and lengths that a store holds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def string_lengths(strings: pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of each string in UTF-8, int64."""
    lengths: npt.NDArray[np.int64] = pc.binary_length(strings).to_numpy().astype(np.int64)
    return lengths


def string_bytes(strings: pa.Array) -> npt.NDArray[np.uint8]:
    """The UTF-8 bytes of all strings, one after the other."""
    large = strings.cast(pa.large_string())
    _, bounds, text = large.buffers()
    if bounds is None or text is None:
        return np.empty(0, dtype=np.uint8)
    ends = np.frombuffer(bounds, dtype=np.int64)[large.offset : large.offset + len(large) + 1]
    return np.frombuffer(text, dtype=np.uint8)[ends[0] : ends[-1]]
