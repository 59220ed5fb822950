"""Distinct keys of a node kind, and their translation to dense ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ppr.errors import DataError

_COMPACT_AT = 1 << 22
# A table from key to id serves integer keys that fill at least a quarter of their range; it is several times
# faster than hashing.
_TABLE_SLACK = 4
_TABLE_ALWAYS = 1 << 20


def check_utf8(keys: pa.Array) -> None:
    """Raise DataError where a string of a table that nothing has parsed is not UTF-8."""
    try:
        keys.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"a string key is not valid UTF-8 ({error})") from None


class DistinctKeys:
    """Collects the distinct keys of one kind; integers and strings may both come until all are read."""

    def __init__(self) -> None:
        self._integers = _DistinctArrays()
        self._strings = _DistinctArrays()

    @property
    def has_strings(self) -> bool:
        """Whether any key was a string."""
        return bool(self._strings)

    def add(self, keys: pa.Array) -> None:
        """Add int64 or large_string keys."""
        unique = keys.unique()
        if pa.types.is_int64(keys.type):
            self._integers.add(unique)
            return
        check_utf8(unique)
        self._strings.add(unique)

    def sorted(self, *, as_strings: bool) -> pa.Array:
        """All keys, ascending: integers by value or, with ``as_strings`` in decimal, all by UTF-8 bytes."""
        if not as_strings:
            integers: npt.NDArray[np.int64] = np.sort(self._integers.take(pa.int64()).to_numpy())
            return pa.array(integers)
        self._strings.add(self._integers.take(pa.int64()).cast(pa.large_string()))
        strings = self._strings.take(pa.large_string())
        return strings.take(pc.sort_indices(strings))


class _DistinctArrays:
    """Arrays without duplicates, merged whenever they have doubled."""

    def __init__(self) -> None:
        self._arrays: list[pa.Array] = []
        self._pending = 0
        self._limit = _COMPACT_AT

    def __bool__(self) -> bool:
        return bool(self._arrays)

    def add(self, array: pa.Array) -> None:
        self._arrays.append(array)
        self._pending += len(array)
        if self._pending > self._limit:
            merged = pa.chunked_array(self._arrays).unique()
            self._arrays, self._pending = [merged], 0
            self._limit = max(_COMPACT_AT, len(merged))

    def take(self, key_type: pa.DataType) -> pa.Array:
        """All distinct keys, in no order; the collection is empty afterwards."""
        arrays, self._arrays = self._arrays, []
        return pa.chunked_array(arrays, type=key_type).unique()


@dataclass(frozen=True, slots=True)
class KeyTranslator:
    """Dense ids of the keys of one kind.

    Parameters
    ----------
    keys
        int64 or large_string [k], ascending.
    ids
        int32 [k], the dense id of each key.
    table
        int32 ids by ``key - keys[0]``, -1 in the gaps; None where such a table would be too sparse.
    """

    keys: pa.Array
    ids: npt.NDArray[np.int32]
    table: npt.NDArray[np.int32] | None

    @classmethod
    def of(cls, keys: pa.Array, ids: npt.NDArray[np.int32]) -> KeyTranslator:
        """Translator of ascending keys."""
        if not pa.types.is_int64(keys.type) or not len(keys):
            return cls(keys, ids, None)
        values: npt.NDArray[np.int64] = keys.to_numpy()
        span = int(values[-1]) - int(values[0]) + 1
        if span > _TABLE_SLACK * len(values) + _TABLE_ALWAYS:
            return cls(keys, ids, None)
        table = np.full(span, -1, dtype=np.int32)
        table[values - values[0]] = ids
        return cls(keys, ids, table)

    @property
    def is_integer(self) -> bool:
        """Whether the keys are integers."""
        return bool(pa.types.is_int64(self.keys.type))

    def translate(self, keys: pa.Array) -> npt.NDArray[np.int32]:
        """Dense ids, int32; DataError for a key that was not there when the keys were collected."""
        ids: npt.NDArray[np.int32]
        if self.table is not None:
            at = keys.to_numpy() - self.keys[0].as_py()
            known = (at >= 0) & (at < len(self.table))
            ids = self.table[at] if known.all() else np.full(1, -1, dtype=np.int32)
        else:
            found = pc.fill_null(pc.index_in(keys, value_set=self.keys), -1).to_numpy()
            ids = self.ids[found] if np.all(found >= 0) else np.full(1, -1, dtype=np.int32)
        if len(ids) and ids.min() < 0:
            raise DataError("the input changed while it was being read")
        return ids
