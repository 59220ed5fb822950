"""The node table: the key and kind behind each dense id, and the way back."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ppr.errors import DataError, ParameterError, StoreError, UnknownNodeError

MAX_KINDS = 256
NODE_FILE = "nodes.parquet"
# Below this many strings, binary search beats hashing every key of the kind.
_FEW_KEYS = 256


def kind_position(kinds: tuple[str, ...], name: str) -> int:
    """Position of a kind among the kinds; UnknownNodeError lists those there are."""
    if name not in kinds:
        raise UnknownNodeError(f"unknown node kind {name!r}; the graph has {', '.join(kinds)}")
    return kinds.index(name)


@dataclass(frozen=True)
class NodeTable:
    """Keys and kinds of all nodes, in the order of their dense ids.

    Parameters
    ----------
    keys
        Arrow int64 or large_string array [n], unique within a kind.
    kind_ids
        uint8 [n], positions in ``kinds``.
    kinds
        Names of the node kinds.
    """

    keys: pa.Array
    kind_ids: npt.NDArray[np.uint8]
    kinds: tuple[str, ...]
    _indexes: dict[int, _KindIndex] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_integer(self) -> bool:
        """Whether the keys are integers (else strings)."""
        return bool(pa.types.is_int64(self.keys.type))

    def keys_of(self, ids: npt.ArrayLike) -> npt.NDArray[Any]:
        """Keys of dense ids: an int64 array, or an object array of str."""
        array = np.atleast_1d(np.asarray(ids, dtype=np.int64))
        outside = np.flatnonzero((array < 0) | (array >= len(self.keys)))
        if len(outside):
            raise UnknownNodeError(
                f"unknown node id {array[outside[0]]}; ids go from 0 to {len(self.keys) - 1}"
            )
        keys: npt.NDArray[Any] = self.keys.take(pa.array(array)).to_numpy(zero_copy_only=False)
        return keys

    def ids_of(self, keys: Sequence[Any] | npt.NDArray[Any], kind: str | None) -> npt.NDArray[np.int32]:
        """Dense ids of keys, looked up in one kind or, with None, in all of them.

        Raises
        ------
        UnknownNodeError
            A key is in no kind that was asked for; the first such key is named.
        ParameterError
            ``kind`` is None and a key is in several kinds, or the keys are not of the graph's key type.
        """
        wanted = self._as_keys(keys)
        if kind is not None:
            ids = self._index(kind_position(self.kinds, kind)).find(wanted)
            self._refuse_unknown(wanted, ids, f"{kind} node")
            return ids
        ids = np.full(len(wanted), -1, dtype=np.int32)
        for kind_id in range(len(self.kinds)):
            found = self._index(kind_id).find(wanted)
            twice = np.flatnonzero((ids >= 0) & (found >= 0))
            if len(twice):
                raise ParameterError(
                    f"'kind' must be given: key {wanted[int(twice[0])].as_py()!r} is in several kinds "
                    f"({', '.join(self.kinds)})"
                )
            np.copyto(ids, found, where=found >= 0)
        self._refuse_unknown(wanted, ids, "node")
        return ids

    def update_checksum(self, digest: hashlib._Hash) -> None:
        """Feed the content of the table to a digest, independent of how it is stored."""
        if self.is_integer:
            digest.update(b"int64")
            digest.update(np.ascontiguousarray(self.keys.to_numpy(), dtype="<i8").data)
        else:
            digest.update(b"string")
            lengths = pc.binary_length(self.keys).to_numpy()
            digest.update(np.ascontiguousarray(lengths, dtype="<i8").data)
            for start in range(0, len(self.keys), 1 << 16):
                digest.update("".join(self.keys[start : start + (1 << 16)].to_pylist()).encode())
        digest.update(np.ascontiguousarray(self.kind_ids).data)
        digest.update("\0".join(self.kinds).encode())

    def write(self, folder: Path) -> None:
        """Write ``nodes.parquet`` (id, kind, key) and ``kinds.npy`` into a store's folder."""
        kind = pa.DictionaryArray.from_arrays(pa.array(self.kind_ids.astype(np.int32)), pa.array(self.kinds))
        ids = pa.array(np.arange(len(self.keys), dtype=np.int32))
        pq.write_table(pa.table({"id": ids, "kind": kind, "key": self.keys}), folder / NODE_FILE)
        np.save(folder / "kinds.npy", self.kind_ids)

    @classmethod
    def read(cls, folder: Path, kind_ids: npt.NDArray[np.uint8], kinds: tuple[str, ...]) -> NodeTable:
        """Read ``nodes.parquet`` from a store's folder."""
        try:
            keys = pq.ParquetFile(folder / NODE_FILE).read(columns=["key"])["key"]
        except (pa.ArrowException, OSError, KeyError) as error:
            raise StoreError(f"{folder / NODE_FILE}: cannot be read ({error})") from None
        key_type = pa.int64() if pa.types.is_integer(keys.type) else pa.large_string()
        keys = keys.cast(key_type).combine_chunks()
        if len(keys) != len(kind_ids):
            raise StoreError(f"{folder / NODE_FILE}: must have {len(kind_ids)} rows (got {len(keys)})")
        return cls(keys, kind_ids, kinds)

    def check(self) -> None:
        """Check the rules of a table that came from outside.

        Raises
        ------
        DataError
            A kind id is out of range, a kind is named twice, or a key appears twice within a kind.
        """
        if not 1 <= len(self.kinds) <= MAX_KINDS or len(set(self.kinds)) != len(self.kinds):
            raise DataError(f"'kinds' must be 1 to {MAX_KINDS} distinct names (got {self.kinds!r})")
        if len(self.kind_ids) != len(self.keys):
            raise DataError(f"'kind_ids' must have {len(self.keys)} entries (got {len(self.kind_ids)})")
        if len(self.kind_ids) and self.kind_ids.max() >= len(self.kinds):
            raise DataError(f"'kind_ids' must be below {len(self.kinds)} (got {self.kind_ids.max()})")
        for kind_id, kind in enumerate(self.kinds):
            keys = self.keys.filter(pa.array(self.kind_ids == kind_id))
            if len(keys.unique()) < len(keys):
                raise DataError(f"'keys' must be unique within a kind ({kind} has a key twice)")

    def _as_keys(self, keys: Sequence[Any] | npt.NDArray[Any]) -> pa.Array:
        name = "integers" if self.is_integer else "strings"
        if isinstance(keys, (str, bytes, int, np.integer)):
            raise ParameterError(f"'keys' must be a sequence of keys (got {keys!r})")
        values = keys.tolist() if isinstance(keys, np.ndarray) else list(keys)
        for value in values:
            if isinstance(value, bool) or not isinstance(
                value, (int, np.integer) if self.is_integer else str
            ):
                raise UnknownNodeError(f"unknown node {value!r}: the keys of this graph are {name}")
        try:
            return pa.array(values, type=self.keys.type)
        except OverflowError:
            raise UnknownNodeError("unknown node: a key is outside the range of int64") from None

    @staticmethod
    def _refuse_unknown(wanted: pa.Array, ids: npt.NDArray[np.int32], what: str) -> None:
        missing = np.flatnonzero(ids < 0)
        if len(missing):
            raise UnknownNodeError(f"unknown {what} {wanted[int(missing[0])].as_py()!r}")

    def _index(self, kind_id: int) -> _KindIndex:
        if kind_id not in self._indexes:
            ids = np.flatnonzero(self.kind_ids == kind_id).astype(np.int32)
            self._indexes[kind_id] = _KindIndex.of(self.keys.take(pa.array(ids)), ids)
        return self._indexes[kind_id]


@dataclass(frozen=True)
class _KindIndex:
    """Keys of one kind in ascending order, with their dense ids."""

    keys: pa.Array
    ids: npt.NDArray[np.int32]

    @classmethod
    def of(cls, keys: pa.Array, ids: npt.NDArray[np.int32]) -> _KindIndex:
        if not pc.all(pc.less(keys[:-1], keys[1:])).as_py():
            order = pc.sort_indices(keys)
            return cls(keys.take(order), ids[order.to_numpy()])
        return cls(keys, ids)

    def find(self, wanted: pa.Array) -> npt.NDArray[np.int32]:
        """Ids of keys, -1 for one that is not there."""
        if not len(self.keys) or not len(wanted):
            return np.full(len(wanted), -1, dtype=np.int32)
        if pa.types.is_int64(self.keys.type):
            values = wanted.to_numpy()
            at = np.minimum(np.searchsorted(self._integers, values), len(self.ids) - 1)
            return np.where(self._integers[at] == values, self.ids[at], np.int32(-1))
        if len(wanted) > _FEW_KEYS:
            at = pc.fill_null(pc.index_in(wanted, value_set=self.keys), -1).to_numpy()
            return np.where(at >= 0, self.ids[at], np.int32(-1))
        return np.array([self._find_string(key) for key in wanted.to_pylist()], dtype=np.int32)

    @cached_property
    def _integers(self) -> npt.NDArray[np.int64]:
        integers: npt.NDArray[np.int64] = self.keys.to_numpy()
        return integers

    def _find_string(self, key: str) -> int:
        # Python orders strings by code point, which is the order of their UTF-8 bytes.
        at = bisect_left(range(len(self.keys)), key, key=lambda i: self.keys[i].as_py())
        return int(self.ids[at]) if at < len(self.ids) and self.keys[at].as_py() == key else -1
