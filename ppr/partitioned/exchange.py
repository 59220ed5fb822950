"""Files of messages between parts: packed, compressed, checked, and read only where they are addressed.

A file holds segments, then their index, then where that begins. A segment is a run of records (position
uint32, node int32, value int64), ascending by position, LZ4 over the three columns; the index names for each
its key (a part, a wave or a block of sources), bounds, place and CRC. Arrow's own files have no such index by
key and no checksums. The content is a function of the records alone.
"""

from __future__ import annotations

import heapq
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ppr.errors import MessagesError
from ppr.kernels.partitioned_messages import sort_by_position

Records = tuple[NDArray[np.uint32], NDArray[np.int32], NDArray[np.int64]]
"""Positions of sources, nodes, and masses or whatever the file holds; equally long."""

RECORD_BYTES = 16
_BEHIND = 1 << 32  # all positions
_CODEC = "lz4_raw"
_TRAILER = np.dtype([("index", "<u8"), ("segments", "<u4"), ("crc", "<u4")])
_SEGMENT = np.dtype(
    [
        ("key", "<i8"),
        ("first", "<u4"),
        ("last", "<u4"),
        ("records", "<u8"),
        ("offset", "<u8"),
        ("bytes", "<u8"),
        ("crc", "<u4"),
    ]
)


def new_records(size: int) -> Records:
    """Space for records."""
    return np.empty(size, np.uint32), np.empty(size, np.int32), np.empty(size, np.int64)


def cut(records: Records, start: int, stop: int) -> Records:
    """A view of some records."""
    return records[0][start:stop], records[1][start:stop], records[2][start:stop]


def copied(records: Records) -> Records:
    """Records of their own."""
    return records[0].copy(), records[1].copy(), records[2].copy()


def read_only(records: Records) -> Records:
    """Records that kernels may not write, so that they are compiled for one type, read or sorted."""
    for column in records:
        column.flags.writeable = False
    return records


class ExchangeWriter:
    """Writes a file beside its name and renames it: two attempts at it do no harm.

    Parameters
    ----------
    path
        The file.
    most
        Records of a segment at most; who reads many streams at once holds a segment of each.
    """

    def __init__(self, path: Path, most: int = 1 << 32) -> None:
        self._path = path
        self._working = path.with_name(f".{path.name}.{uuid4().hex}")
        self._file: BinaryIO = self._working.open("wb")
        self._segments: list[tuple[int, ...]] = []
        self._offset = 0
        self._most = most
        self._codec = pa.Codec(_CODEC)

    def append(self, key: int, records: Records) -> None:
        """Append records, ascending by position."""
        size = records[0].size
        for start in range(0, size, self._most):
            self._append_segment(key, cut(records, start, min(start + self._most, size)))

    def _append_segment(self, key: int, records: Records) -> None:
        positions = records[0]
        raw = b"".join(np.ascontiguousarray(column).data for column in records)
        packed = self._codec.compress(raw, asbytes=True)
        place = (positions.size, self._offset, len(packed), zlib.crc32(packed))
        self._segments.append((key, int(positions[0]), int(positions[-1]), *place))
        self._file.write(packed)
        self._offset += len(packed)

    def close(self) -> int:
        """Complete the file; returns its bytes."""
        index = np.array(self._segments, _SEGMENT).tobytes()
        trailer = np.array((self._offset, len(self._segments), zlib.crc32(index)), _TRAILER).tobytes()
        with self._file:
            self._file.write(index)
            self._file.write(trailer)
        self._working.replace(self._path)
        return self._offset + len(index) + len(trailer)

    def __enter__(self) -> ExchangeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        finally:
            self._working.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of records in a file, or in memory."""

    first: int
    last: int
    n_records: int
    path: Path | None = None
    offset: int = 0
    n_bytes: int = 0
    crc: int = 0
    records: Records | None = None

    @classmethod
    def of(cls, records: Records) -> Segment:
        """A segment in memory."""
        return cls(int(records[0][0]), int(records[0][-1]), records[0].size, records=records)

    def read(self) -> Records:
        """The records.

        Raises
        ------
        MessagesError
            The file is damaged.
        """
        if self.records is not None:
            return self.records
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(self.offset)
            packed = file.read(self.n_bytes)
        if len(packed) != self.n_bytes or zlib.crc32(packed) != self.crc:
            raise _damaged(self.path)
        size = self.n_records
        raw = pa.Codec(_CODEC).decompress(packed, decompressed_size=size * RECORD_BYTES, asbytes=True)
        return (
            np.frombuffer(raw, np.uint32, size),
            np.frombuffer(raw, np.int32, size, offset=4 * size),
            np.frombuffer(raw, np.int64, size, offset=8 * size),
        )


def _damaged(path: Path) -> MessagesError:
    return MessagesError(f"{path}: a file of messages is damaged")


def segments_of(path: Path, key: int) -> list[Segment]:
    """Segments of a file under a key, in order.

    Raises
    ------
    MessagesError
        The file is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < _TRAILER.itemsize:
                raise _damaged(path)
            file.seek(size - _TRAILER.itemsize)
            trailer = np.frombuffer(file.read(), _TRAILER)[0]
            n_bytes = size - _TRAILER.itemsize - int(trailer["index"])
            if n_bytes != int(trailer["segments"]) * _SEGMENT.itemsize:
                raise _damaged(path)
            file.seek(int(trailer["index"]))
            raw = file.read(n_bytes)
    except FileNotFoundError:
        raise MessagesError(f"{path}: a file of messages is missing") from None
    if zlib.crc32(raw) != int(trailer["crc"]):
        raise _damaged(path)
    index = np.frombuffer(raw, _SEGMENT)
    return [
        Segment(first, last, records, path, offset, n_bytes, crc)
        for _, first, last, records, offset, n_bytes, crc in index[index["key"] == key].tolist()
    ]


def ascending(segments: list[Segment]) -> list[list[Segment]]:
    """Streams of which each ascends, from segments that begin again from below now and then."""
    streams: list[list[Segment]] = []
    for segment in segments:
        if streams and streams[-1][-1].last <= segment.first:
            streams[-1].append(segment)
        else:
            streams.append([segment])
    return streams


def merged(streams: Iterable[list[Segment]], n_records: int) -> Iterator[Records]:
    """Records of all streams, ascending by position, in chunks of about ``n_records``.

    All records of a position come in one chunk, those of the first stream first. Each stream ascends. Beside
    a chunk, a segment of each stream is held.
    """
    waiting = [deque(stream) for stream in streams]
    firsts = [(stream[0].first, number) for number, stream in enumerate(waiting) if stream]
    heapq.heapify(firsts)
    held: list[tuple[int, Records]] = []
    least, n_held = _BEHIND, 0
    while firsts or held:
        complete = firsts[0][0] if firsts else _BEHIND
        if firsts and (n_held < n_records or least >= complete):
            number = firsts[0][1]
            segment = waiting[number].popleft()
            if waiting[number]:
                heapq.heapreplace(firsts, (waiting[number][0].first, number))
            else:
                heapq.heappop(firsts)
            held.append((number, segment.read()))
            least, n_held = min(least, segment.first), n_held + segment.n_records
            continue
        taken: list[tuple[int, Records]] = []
        kept: list[tuple[int, Records]] = []
        for number, records in held:
            below = int(np.searchsorted(records[0], complete))
            if below:
                taken.append((number, cut(records, 0, below)))
            if below < records[0].size:
                kept.append((number, cut(records, below, records[0].size)))
        held, least = kept, min((int(records[0][0]) for _, records in kept), default=_BEHIND)
        taken.sort(key=lambda one: one[0])
        chunk = in_order([records for _, records in taken])
        n_held -= chunk[0].size
        del taken
        yield read_only(chunk)


def in_order(parts: list[Records]) -> Records:
    """Records of several ascending runs as one, those of a position in the order of the runs."""
    if len(parts) == 1:
        return parts[0]
    least = min(int(part[0][0]) for part in parts)
    most = max(int(part[0][-1]) for part in parts)
    records: Records = (
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] for part in parts]),
    )
    out = new_records(records[0].size)
    sort_by_position(records, least, most - least + 1, out)
    return out
