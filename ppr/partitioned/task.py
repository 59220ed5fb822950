"""The unit of work of partitioned walks: ``(round, part) -> receipt``.

A task takes one step with all messages that are addressed to its part, of batches of every age; ranks what
has stopped in its part, for batches that ended in the round before; and merges the rows of some sources, for
batches that were ranked in the round before. It reads and writes files on storage that all workers share, and
gives back nothing but a receipt. Its memory is bounded: records are read in chunks, in which those of a
source for the part stay together, and files that are read many at once are written in small segments. Not
bounded by the size of a chunk: what one source sends to one part, its whole row, and the rows of one block.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ppr.blocks import allowed_kinds, fingerprint_table
from ppr.errors import MessagesError, ResourceError
from ppr.fingerprints import write_block
from ppr.graph import Graph
from ppr.kernels.packets import ONE
from ppr.kernels.partitioned import FULL, SMALL
from ppr.kernels.partitioned_rows import merge_rows, rank_part
from ppr.kernels.slots import new_scratch
from ppr.kernels.topk import new_rank_space
from ppr.params import FingerprintParams
from ppr.partitioned.exchange import (
    ExchangeWriter,
    Records,
    Segment,
    ascending,
    copied,
    cut,
    in_order,
    merged,
    new_records,
    read_only,
    segments_of,
)
from ppr.partitioned.plan import PartArrays, Parts
from ppr.partitioned.stepping import Stepper, by_part

SOURCES = "sources.npy"
_FIRST_SLOTS = 1 << 14
_LEAST_SEGMENT = 256  # smaller ones would take longer to open than to read


@dataclass(frozen=True, slots=True)
class Batch:
    """Sources that walk together: a wave of the run.

    Parameters
    ----------
    wave
        Index of the wave.
    bounds
        Positions of the wave's blocks among all sources, and where the last one ends.
    started
        Round of the first step.
    gathered
        Round in which the few messages left all go to one task, which takes all other steps in the next.
    ended
        Round of the last step; the batch is ranked in the next and merged in the one after.
    """

    wave: int
    bounds: tuple[int, ...]
    started: int
    gathered: int | None = None
    ended: int | None = None

    @property
    def first(self) -> int:
        """Position of the first source."""
        return self.bounds[0]

    @property
    def last(self) -> int:
        """Position behind the last source."""
        return self.bounds[-1]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a task has done.

    Attributes
    ----------
    part
        Its part.
    sent
        Messages handed on for each walking batch, in the order of the round's batches.
    n_bytes
        Bytes written for other tasks to read.
    """

    part: int
    sent: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True)
class RoundTask:
    """One round of a run; called with the number of a part. Pickled by reference to this module.

    Parameters
    ----------
    folder
        Folder of the rounds, shared by all workers.
    number
        The round.
    params
        Parameters of the rows.
    parts
        How the graph is cut.
    chunk_messages
        Messages held at once.
    batches
        Those that walk, are ranked or are merged in this round.
    wave_folders
        Where the rows of the merged batches go, by wave.
    needed_bytes
        What the files of all rounds take, roughly; told where the disk is full.
    expected_steps
        Steps of a batch in all parts, about: files of stopped mass that are read at once.
    """

    folder: str
    number: int
    params: FingerprintParams
    parts: Parts
    chunk_messages: int
    batches: tuple[Batch, ...]
    wave_folders: dict[int, str]
    needed_bytes: int
    expected_steps: int

    @property
    def walking(self) -> list[Batch]:
        """Batches that take a step in all parts."""
        return [
            batch
            for batch in self.batches
            if batch.ended is None and (batch.gathered is None or batch.gathered >= self.number)
        ]

    @property
    def finishing(self) -> list[Batch]:
        """Batches that one task takes to their end."""
        return [batch for batch in self.batches if batch.ended is None and batch.gathered == self.number - 1]

    @property
    def ranking(self) -> list[Batch]:
        """Batches of which each part gives its best nodes."""
        return [batch for batch in self.batches if batch.ended == self.number - 1]

    @property
    def merging(self) -> list[Batch]:
        """Batches whose rows are written."""
        return [batch for batch in self.batches if batch.ended == self.number - 2]

    def written(self) -> list[Path]:
        """Files of messages that the round's tasks write, where batches walk."""
        return [self._path("messages", part) for part in range(len(self.parts))]

    def run(self, graph: Graph, part: int) -> Receipt:
        """Do what the round asks of a part.

        Parameters
        ----------
        graph
            The graph; of a store, no more than the part is touched.

        Raises
        ------
        MessagesError
            A file of the round before is damaged.
        ResourceError
            The disk is full.
        """
        with self._full_disk_is_told():
            for batch in self.merging:
                self._merge(batch, part)
            for batch in self.finishing:
                if batch.wave % len(self.parts) == part:
                    self._finish(batch, graph)
            if not self.ranking and not self.walking:
                return Receipt(part, (), 0)
            arrays = PartArrays.load(graph, self.parts, part)
            n_bytes = self._rank(graph, arrays, part) if self.ranking else 0
            if not self.walking:
                return Receipt(part, (), n_bytes)
            sent, n_walked = self._walk(arrays, part)
            return Receipt(part, sent, n_bytes + n_walked)

    def _walk(self, arrays: PartArrays, part: int) -> tuple[tuple[int, ...], int]:
        """Take a step with every message for the part; returns messages sent by batch, and bytes."""
        walking = self.walking
        bounds = [batch.first for batch in walking] + [walking[-1].last]
        first = bounds[0]
        walkers = self._walkers(first, bounds[-1])
        for batch in walking:
            walkers[1][batch.first - first : batch.last - first] = self.number - batch.started
        streams = [
            self._seeds(batch, walkers[0][batch.first - first : batch.last - first], arrays)
            for batch in walking
            if batch.started == self.number
        ]
        if any(batch.started < self.number for batch in walking):
            streams += self._segments("messages", self.number - 1, part)
        sent = np.zeros(len(walking), np.int64)
        stepper = Stepper(self.params, self.chunk_messages)
        with (
            ExchangeWriter(self._path("messages", part)) as messages,
            ExchangeWriter(self._path("stops", part), self._share(self.expected_steps)) as stops,
        ):
            for records in merged(streams, self.chunk_messages):
                for out, stopped in stepper.take(arrays, walkers, first, records):
                    _append_cut(stops, [batch.wave for batch in walking], bounds, stopped)
                    sent += self._send(messages, bounds, out)
            return tuple(sent.tolist()), messages.close() + stops.close()

    def _send(self, file: ExchangeWriter, bounds: list[int], messages: Records) -> NDArray[np.int64]:
        """Write messages under the parts that they go to; returns how many there were by batch."""
        places = np.searchsorted(messages[0], bounds)
        start = 0
        for batch, first, last in zip(self.walking, places.tolist(), places[1:].tolist(), strict=False):
            if batch.gathered == self.number:
                self._send_to_parts(file, cut(messages, start, first))
                file.append(len(self.parts) + batch.wave, cut(messages, first, last))
                start = last
        self._send_to_parts(file, cut(messages, start, messages[0].size))
        return np.diff(places)

    def _send_to_parts(self, file: ExchangeWriter, messages: Records) -> None:
        for part, records in by_part(self.parts, messages):
            file.append(part, records)

    def _finish(self, batch: Batch, graph: Graph) -> None:
        """Take all further steps with the few messages of a batch, from part to part."""
        walkers = self._walkers(batch.first, batch.last)
        walkers[1][:] = self.number - batch.started
        stepper = Stepper(self.params, self.chunk_messages)
        # Few: what stays mapped is held.
        load = lru_cache(maxsize=2)(lambda part: PartArrays.load(graph, self.parts, part))
        streams = self._segments("messages", self.number - 1, len(self.parts) + batch.wave)
        stopped: list[list[Records]] = [[] for _ in range(len(self.parts))]
        n_held = 0
        with ExchangeWriter(self._path("rest", batch.wave), self._share(self.expected_steps)) as file:
            while streams:
                further: list[list[Segment]] = []
                for records in merged(streams, self.chunk_messages):
                    for part, own in by_part(self.parts, records):
                        for out, stops in stepper.take(load(part), walkers, batch.first, read_only(own)):
                            if out[0].size:
                                further.append([Segment.of(copied(out))])
                            if stops[0].size:
                                stopped[part].append(copied(stops))
                                n_held += stops[0].size
                        if n_held >= self.chunk_messages:
                            n_held = _write_stopped(file, stopped)
                streams = further
                walkers[1][:] += 1
            _write_stopped(file, stopped)
            file.close()

    def _rank(self, graph: Graph, arrays: PartArrays, part: int) -> int:
        """Write the part's best nodes of each source of batches that have ended; returns bytes."""
        params = self.params
        limit = -1 if params.top_k is None else params.top_k
        row = limit, allowed_kinds(graph, params), params.exclude_neighbors
        slots = _FIRST_SLOTS
        scratch, space = new_scratch(slots, slots), new_rank_space(slots)
        out = new_records(max(self.chunk_messages, 2))
        with ExchangeWriter(self._path("candidates", part), self._share(len(self.parts))) as file:
            for batch in self.ranking:
                sources = self._sources(batch.first, batch.last)
                streams = self._stops(batch, part)
                for records in merged(streams, self.chunk_messages):
                    start = 0
                    while start < records[0].size:
                        start, used, why = rank_part(
                            records, start, sources, batch.first, arrays.first_own, arrays.kind_ids, row,
                            scratch, space, out,
                        )  # fmt: skip
                        _append_cut(file, batch.bounds, batch.bounds, cut(out, 0, used))
                        if why == SMALL:
                            slots *= 4
                            scratch, space = new_scratch(slots, slots), new_rank_space(slots)
                        elif why == FULL and used == 0:
                            out = new_records(4 * out[0].size)
            return file.close()

    def _merge(self, batch: Batch, part: int) -> None:
        """Write the rows of every block of a ranked batch that falls to this task."""
        limit = -1 if self.params.top_k is None else self.params.top_k
        sources = self._sources(batch.first, batch.last)
        for number in range(part, len(batch.bounds) - 1, len(self.parts)):
            first = batch.bounds[number]
            streams = self._segments("candidates", self.number - 1, first)
            tables = []
            for records in merged(streams, self.chunk_messages):
                begin, end = int(records[0][0]), int(records[0][-1]) + 1
                lengths, mass, moves = (np.zeros(end - begin, np.int64) for _ in range(3))
                ids, scores = np.empty(records[0].size, np.int32), np.empty(records[0].size, np.float32)
                used = merge_rows(records, begin, limit, (lengths, mass, moves, ids, scores))
                of_rows = sources[begin - batch.first : end - batch.first]
                tables.append(
                    fingerprint_table(of_rows, lengths, ids[:used], scores[:used], mass / ONE, moves)
                )
            write_block(
                Path(self.wave_folders[batch.wave]), number, pa.concat_tables(tables).combine_chunks()
            )

    def _sources(self, first: int, last: int) -> NDArray[np.int32]:
        """Sources at some positions."""
        path = Path(self.folder, SOURCES)
        try:
            sources = np.array(np.load(path, mmap_mode="r", allow_pickle=False)[first:last])
        except (ValueError, EOFError, FileNotFoundError) as error:
            raise MessagesError(f"{path}: the file of sources is damaged or missing ({error})") from error
        if sources.shape != (last - first,) or sources.dtype != np.int32:
            raise MessagesError(f"{path}: the file of sources is damaged")
        return sources

    def _walkers(self, first: int, last: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return self._sources(first, last), np.zeros(last - first, np.int32)

    def _segments(self, what: str, number: int, key: int) -> list[list[Segment]]:
        """Of the files that all parts wrote in a round, the segments under a key: a stream each."""
        return [segments_of(self._path(what, one, number), key) for one in range(len(self.parts))]

    def _stops(self, batch: Batch, part: int) -> list[list[Segment]]:
        """All mass of a batch that has stopped in a part: a stream for each step but those of the rest."""
        last = batch.ended if batch.gathered is None else batch.gathered
        assert last is not None
        rounds = range(batch.started, last + 1)
        streams = [segments_of(self._path("stops", part, one), batch.wave) for one in rounds]
        if batch.ended != last:
            streams += ascending(segments_of(self._path("rest", batch.wave, batch.ended), part))
        return streams

    def _seeds(self, batch: Batch, sources: NDArray[np.int32], arrays: PartArrays) -> list[Segment]:
        """All mass of each source of a new batch, on the source, where the part holds of its row."""
        low, high = np.searchsorted(sources, [arrays.least, arrays.end])
        if low == high:
            return []
        positions = np.arange(batch.first + low, batch.first + high, dtype=np.uint32)
        return [Segment.of((positions, sources[low:high].copy(), np.full(high - low, ONE, np.int64)))]

    def _share(self, n_streams: int) -> int:
        """Records of a segment, where that many streams share a chunk."""
        return max(self.chunk_messages // n_streams, _LEAST_SEGMENT)

    def _path(self, what: str, part: int, number: int | None = None) -> Path:
        return round_folder(self.folder, self.number if number is None else number) / f"{what}-{part:05d}"

    @contextmanager
    def _full_disk_is_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ResourceError(
                f"{self.folder}: no space left on the disk in round {self.number}; what is under way takes "
                f"about {self.needed_bytes / 1e9:.2g} GB; make space and run again: it goes on from the "
                "round before"
            ) from error


def _append_cut(file: ExchangeWriter, keys: Sequence[int], bounds: Sequence[int], records: Records) -> None:
    """Append records under the key of the bounds that their positions fall between."""
    places = np.searchsorted(records[0], bounds).tolist()
    for key, start, stop in zip(keys, places, places[1:], strict=False):
        file.append(key, cut(records, start, stop))


def _write_stopped(file: ExchangeWriter, stopped: list[list[Records]]) -> int:
    """Append what is held of each part, and let go of it; returns the records held."""
    for part, held in enumerate(stopped):
        if held:
            file.append(part, in_order(held))
            held.clear()
    return 0


def round_folder(folder: str | Path, number: int) -> Path:
    """Folder of a round's files."""
    return Path(folder, f"round-{number:06d}")
