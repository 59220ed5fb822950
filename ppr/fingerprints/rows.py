"""Fingerprint rows in memory: the CSR form of a table of fingerprints, and the rules that rows obey."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ppr.blocks import FINGERPRINT_SCHEMA
from ppr.errors import StoreError

# Scores are rounded to float32, so their sum may exceed the mass by that much.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Fingerprint rows.

    Attributes
    ----------
    sources
        int32 [s].
    indptr
        Row i owns entries ``indptr[i]`` to ``indptr[i + 1]``, int64 [s + 1].
    ids, scores
        Entries, best first within a row, int32 [e] and float32 [e].
    mass
        Total estimated mass of each row before truncation and restriction, float64 [s].
    moves
        Edges that were handed mass while each row was computed, int64 [s].
    """

    sources: NDArray[np.int32]
    indptr: NDArray[np.int64]
    ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    mass: NDArray[np.float64]
    moves: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.sources.size)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Rows:
        """Rows of a table of :data:`ppr.blocks.FINGERPRINT_SCHEMA`.

        Raises
        ------
        StoreError
            The table has other columns or types, a null, or lists of unequal length.
        """
        if _columns(table.schema) != _columns(FINGERPRINT_SCHEMA):
            raise StoreError(f"fingerprint rows must have the columns {_columns(FINGERPRINT_SCHEMA)} "
                             f"(got {_columns(table.schema)})")  # fmt: skip
        columns = [_one_chunk(table.column(name)) for name in FINGERPRINT_SCHEMA.names]
        source, ids, scores, mass, moves = columns
        for name, column in zip(FINGERPRINT_SCHEMA.names, columns, strict=True):
            values = column.flatten() if pa.types.is_list(column.type) else column
            if column.null_count or values.null_count:
                raise StoreError(f"fingerprint rows must not hold nulls (column '{name}')")
        indptr = _indptr(ids)
        if not np.array_equal(indptr, _indptr(scores)):
            raise StoreError("'ids' and 'scores' of a fingerprint row must have the same length")
        return cls(
            source.to_numpy(),
            indptr,
            ids.flatten().to_numpy(),
            scores.flatten().to_numpy(),
            mass.to_numpy(),
            moves.to_numpy(),
        )

    def to_arrow(self) -> pa.Table:
        """Table of :data:`ppr.blocks.FINGERPRINT_SCHEMA`."""
        offsets = pa.array(self.indptr - self.indptr[0], type=pa.int32())
        entries = slice(int(self.indptr[0]), int(self.indptr[-1]))
        return pa.Table.from_arrays(
            [
                pa.array(self.sources, type=pa.int32()),
                pa.ListArray.from_arrays(
                    offsets, self.ids[entries], type=FINGERPRINT_SCHEMA.field("ids").type
                ),
                pa.ListArray.from_arrays(
                    offsets, self.scores[entries], type=FINGERPRINT_SCHEMA.field("scores").type
                ),
                pa.array(self.mass, type=pa.float64()),
                pa.array(self.moves, type=pa.int64()),
            ],
            schema=FINGERPRINT_SCHEMA,
        )

    def slice(self, start: int, stop: int) -> Rows:
        """Rows ``start`` to ``stop``, as views."""
        indptr = self.indptr[start : stop + 1]
        entries = slice(int(indptr[0]), int(indptr[-1]))
        rows = slice(start, stop)
        return Rows(
            self.sources[rows],
            indptr - indptr[0],
            self.ids[entries],
            self.scores[entries],
            self.mass[rows],
            self.moves[rows],
        )

    def take(self, positions: NDArray[np.intp]) -> Rows:
        """Rows at ``positions``, in that order, copied."""
        starts = self.indptr[positions]
        lengths = self.indptr[positions + 1] - starts
        indptr = np.zeros(positions.size + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        entries = np.repeat(starts - indptr[:-1], lengths) + np.arange(indptr[-1])
        return Rows(
            self.sources[positions],
            indptr,
            self.ids[entries],
            self.scores[entries],
            self.mass[positions],
            self.moves[positions],
        )

    def without(self, nodes: NDArray[np.bool_]) -> Rows:
        """The same rows less the entries of some nodes (bool [n]); mass and moves stay."""
        stays = ~nodes[self.ids]
        entries = np.concatenate([[0], np.cumsum(stays, dtype=np.int64)])
        return replace(self, indptr=entries[self.indptr], ids=self.ids[stays], scores=self.scores[stays])

    @classmethod
    def concat(cls, parts: Sequence[Rows]) -> Rows:
        """Rows of all ``parts``, one after another."""
        if len(parts) == 1:
            return parts[0]
        lengths = np.concatenate([np.diff(part.indptr) for part in parts])
        return cls(
            np.concatenate([part.sources for part in parts]),
            np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)]),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.mass for part in parts]),
            np.concatenate([part.moves for part in parts]),
        )

    def chunks(self, max_entries: int = 1 << 20) -> Iterator[Rows]:
        """Yield views of about ``max_entries`` entries each, in order (a longer row comes alone)."""
        start = 0
        while start < len(self):
            limit = int(self.indptr[start]) + max_entries
            stop = max(start + 1, int(np.searchsorted(self.indptr, limit, side="right")) - 1)
            stop = min(stop, len(self), start + max_entries)
            yield self.slice(start, stop)
            start = stop

    def check(self, *, n_nodes: int, top_k: int | None) -> None:
        """Check the rules of fingerprint rows.

        Node ids in range and once in a row; scores positive, finite, descending, ties by ascending id; mass
        positive, finite and no less than the sum of scores; moves not negative; at most ``top_k`` entries.

        Raises
        ------
        StoreError
            A rule is broken; names the rule and the first source that breaks it.
        """
        for rows in self.chunks():
            rows._check_chunk(n_nodes, top_k)

    def _check_chunk(self, n_nodes: int, top_k: int | None) -> None:
        lengths = np.diff(self.indptr)
        row_of = np.repeat(np.arange(len(self)), lengths)
        ids, scores = self.ids, self.scores
        self._require((self.sources >= 0) & (self.sources < n_nodes), None, "source must be a node id")
        if top_k is not None:
            self._require(lengths <= top_k, None, f"a row must have at most {top_k} entries")
        self._require((ids >= 0) & (ids < n_nodes), row_of, f"ids must be between 0 and {n_nodes - 1}")
        self._require((scores > 0) & np.isfinite(scores), row_of, "scores must be positive and finite")
        same_row = row_of[1:] == row_of[:-1]
        falling = (scores[1:] < scores[:-1]) | ((scores[1:] == scores[:-1]) & (ids[1:] > ids[:-1]))
        self._require(~same_row | falling, row_of[1:], "scores must descend, with ties by ascending id")
        keys = np.sort(row_of * np.int64(n_nodes) + ids)
        self._require(keys[1:] != keys[:-1], keys[1:] // n_nodes, "an id must not repeat within a row")
        self._require((self.mass > 0) & np.isfinite(self.mass), None, "mass must be positive and finite")
        sums = np.bincount(row_of, weights=scores, minlength=len(self))
        self._require(
            sums <= self.mass * (1 + _ROUNDING), None, "mass must be at least the sum of the scores"
        )
        self._require(self.moves >= 0, None, "moves must not be negative")

    def _require(self, holds: NDArray[np.bool_], row_of: NDArray[np.integer] | None, rule: str) -> None:
        broken = np.flatnonzero(~holds)
        if broken.size:
            row = broken[0] if row_of is None else row_of[broken[0]]
            raise StoreError(f"fingerprint of source {self.sources[row]}: {rule}")


def _columns(schema: pa.Schema) -> str:
    """Names and types; engines differ in what they declare nullable."""
    types = [f"list<{t.value_type}>" if pa.types.is_list(t) else str(t) for t in schema.types]
    return ", ".join(f"{name} {type_}" for name, type_ in zip(schema.names, types, strict=True))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _indptr(lists: pa.ListArray) -> NDArray[np.int64]:
    offsets = lists.offsets.to_numpy().astype(np.int64)
    indptr: NDArray[np.int64] = offsets - offsets[0]
    return indptr
