"""The node table: the key and kind behind each dense id, and the way back.

In a store's folder it is a table to be read by others, and arrays that are mapped, so that processes share
them and a key is found within microseconds of opening the store:

=================  ==========================================================================
``nodes.parquet``  id, kind, key
``kinds.npy``      uint8 [n], kind of each node
``keys.npy``       int64 [n]; or uint8, the UTF-8 bytes of all keys, one after the other
``ends.npy``       int64 [n + 1], where the bytes of each key begin and end; strings only
``order.npy``      int32 [n - r], ids by kind, and by key (strings by their bytes) within a kind
``removed.npy``    int32 [r], ids of removed nodes, ascending; where there are any only
=================  ==========================================================================

The key of a removed node is blank (an empty string, or 0), and nothing finds it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
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
REMOVED_FILE = "removed.npy"
# Up to this many keys, binary search beats hashing or copying every key of the kind.
_FEW_KEYS = 256
_GROUP_ROWS = 1 << 20


def kind_position(kinds: tuple[str, ...], name: str) -> int:
    """Position of a kind among the kinds; UnknownNodeError lists those there are."""
    if name not in kinds:
        raise UnknownNodeError(f"unknown node kind {name!r}; the graph has {', '.join(kinds)}")
    return kinds.index(name)


def no_nodes() -> npt.NDArray[np.int32]:
    """Ids of no nodes."""
    return np.empty(0, dtype=np.int32)


def first_removed(ids: npt.NDArray[np.integer], removed: npt.NDArray[np.int32]) -> int | None:
    """First of some ids that is among the removed nodes, which ascend, or None; cheap for a few ids."""
    if not len(removed):
        return None
    # As int32, so that the removed ids need not be copied to another type.
    at = np.minimum(np.searchsorted(removed, ids.astype(np.int32, copy=False)), len(removed) - 1)
    gone = ids[removed[at] == ids]
    return int(gone[0]) if len(gone) else None


def blanked(keys: pa.Array, removed: npt.NDArray[np.int32]) -> pa.Array:
    """Keys with those of removed nodes blank, in buffers of their own if there are any."""
    if not len(removed):
        return keys
    gone = np.zeros(len(keys), dtype=np.bool_)
    gone[removed] = True
    return pc.if_else(pa.array(gone), pa.scalar(0 if pa.types.is_int64(keys.type) else "", keys.type), keys)


@dataclass(frozen=True)
class NodeTable:
    """Keys and kinds of all nodes, in the order of their dense ids.

    Parameters
    ----------
    keys
        Arrow int64 or large_string array [n], unique within a kind; blank for removed nodes.
    kind_ids
        uint8 [n], positions in ``kinds``.
    kinds
        Names of the node kinds.
    removed
        int32 [r], ids of removed nodes, ascending.
    """

    keys: pa.Array
    kind_ids: npt.NDArray[np.uint8]
    kinds: tuple[str, ...]
    removed: npt.NDArray[np.int32] = field(default_factory=no_nodes)
    _order: npt.NDArray[np.int32] | None = field(default=None, repr=False, compare=False)
    _sorted: dict[int, pa.Array] = field(default_factory=dict, repr=False, compare=False)

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
        gone = first_removed(array, self.removed)
        if gone is not None:
            raise UnknownNodeError(f"unknown node id {gone}; that node was removed")
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
            ids = self._find(wanted, kind_position(self.kinds, kind))
            self._refuse_unknown(wanted, ids, "node" if kind == "node" else f"{kind} node")
            return ids
        ids = np.full(len(wanted), -1, dtype=np.int32)
        for kind_id in range(len(self.kinds)):
            found = self._find(wanted, kind_id)
            twice = np.flatnonzero((ids >= 0) & (found >= 0))
            if len(twice):
                raise ParameterError(
                    f"'kind' must be given: key {wanted[int(twice[0])].as_py()!r} is in several kinds "
                    f"({', '.join(self.kinds)})"
                )
            np.copyto(ids, found, where=found >= 0)
        self._refuse_unknown(wanted, ids, "node")
        return ids

    def id_of(self, key: Any, kind: str) -> int:
        """Dense id of one key, an integer or a string as the table has them; -1 where it is not there."""
        kind_id = kind_position(self.kinds, kind)
        if self.is_integer:
            integer = isinstance(key, (int, np.integer)) and not isinstance(key, bool)
            return self._find_one(int(key), kind_id) if integer else -1
        return self._find_one(key.encode(errors="replace"), kind_id) if isinstance(key, str) else -1

    @cached_property
    def order(self) -> npt.NDArray[np.int32]:
        """Ids by kind, and by key within a kind, int32 [n - r]: those of nodes that are not removed."""
        if self._order is not None:
            return self._order
        live = np.ones(len(self.kind_ids), dtype=np.bool_)
        live[self.removed] = False
        parts = [no_nodes()]
        for kind_id in range(len(self.kinds)):
            ids = np.flatnonzero((self.kind_ids == kind_id) & live).astype(np.int32)
            keys = self.keys.take(pa.array(ids))
            ascending = pc.all(pc.less(keys[:-1], keys[1:])).as_py()
            parts.append(ids if ascending else ids[pc.sort_indices(keys).to_numpy()])
        return np.concatenate(parts)

    @cached_property
    def per_kind(self) -> npt.NDArray[np.int64]:
        """Number of nodes of each kind, removed ones left out, int64 [kinds]."""
        n_kinds = len(self.kinds)
        counts = -np.bincount(self.kind_ids[self.removed], minlength=n_kinds)
        for start in range(0, len(self.kind_ids), _GROUP_ROWS):  # bincount makes int64 of what it counts
            counts += np.bincount(self.kind_ids[start : start + _GROUP_ROWS], minlength=n_kinds)
        return counts

    def find(self, keys: pa.Array, kind: str) -> npt.NDArray[np.int32]:
        """Dense ids of keys of the table's own type within a kind, int32, -1 for one that is not there."""
        if kind not in self.kinds:
            return np.full(len(keys), -1, dtype=np.int32)
        return self._find(keys, self.kinds.index(kind))

    def update_checksum(self, digest: hashlib._Hash) -> None:
        """Feed the content of the table to a digest, independent of how it is stored."""
        if self.is_integer:
            digest.update(b"int64")
            digest.update(np.ascontiguousarray(self.keys.to_numpy(), dtype="<i8").data)
        else:
            digest.update(b"string")
            ends, text = _string_parts(self.keys)
            for start in range(0, len(self.keys), _GROUP_ROWS):
                digest.update(np.diff(ends[start : start + _GROUP_ROWS + 1]).astype("<i8", copy=False).data)
            digest.update(text[ends[0] : ends[-1]].data)
        digest.update(np.ascontiguousarray(self.kind_ids).data)
        digest.update("\0".join(self.kinds).encode())
        if len(self.removed):
            digest.update(b"removed")
            digest.update(np.ascontiguousarray(self.removed, dtype="<i4").data)

    def write(self, folder: Path) -> None:
        """Write the table and its arrays into a store's folder."""
        self.write_table(folder)
        np.save(folder / "kinds.npy", self.kind_ids)
        np.save(folder / "order.npy", self.order)
        if len(self.removed):
            np.save(folder / REMOVED_FILE, self.removed)
        if self.is_integer:
            np.save(folder / "keys.npy", self.keys.to_numpy())
            return
        ends, text = _string_parts(self.keys)
        np.save(folder / "ends.npy", ends - ends[0])
        np.save(folder / "keys.npy", text[ends[0] : ends[-1]])

    def write_table(self, folder: Path) -> None:
        """Write the table alone, a row group at a time."""
        schema = pa.schema(
            [("id", pa.int32()), ("kind", pa.dictionary(pa.int32(), pa.string())), ("key", self.keys.type)]
        )
        kinds = pa.array(self.kinds, pa.string())
        with pq.ParquetWriter(folder / NODE_FILE, schema) as writer:
            for start in range(0, len(self.keys), _GROUP_ROWS):
                end = min(start + _GROUP_ROWS, len(self.keys))
                kind_ids = pa.array(self.kind_ids[start:end].astype(np.int32))
                kind = pa.DictionaryArray.from_arrays(kind_ids, kinds)
                ids = pa.array(np.arange(start, end, dtype=np.int32))
                columns = {"id": ids, "kind": kind, "key": self.keys[start:end]}
                writer.write_table(pa.table(columns, schema), row_group_size=_GROUP_ROWS)

    def name_of(self, node: int) -> str:
        """Kind and key of a node, for messages."""
        return f"{self.kinds[self.kind_ids[node]]} {self.keys[node].as_py()!r}"

    @classmethod
    def read(
        cls,
        folder: Path,
        kind_ids: npt.NDArray[np.uint8],
        kinds: tuple[str, ...],
        removed: npt.NDArray[np.int32] | None = None,
    ) -> NodeTable:
        """Map the arrays in a store's folder; StoreError where they are not those of such a table."""
        gone = no_nodes() if removed is None else removed
        n = len(kind_ids)
        keys = _map(folder / "keys.npy", (np.dtype(np.int64), np.dtype(np.uint8)))
        order = _map(folder / "order.npy", (np.dtype(np.int32),), n - len(gone))
        if keys.dtype == np.int64:
            if len(keys) != n:
                raise StoreError(f"{folder / 'keys.npy'}: must have {n} entries (got {len(keys)})")
            return cls(pa.array(keys), kind_ids, kinds, gone, order)
        ends = _map(folder / "ends.npy", (np.dtype(np.int64),), n + 1)
        if ends[0] != 0 or ends[-1] != len(keys):
            raise StoreError(f"{folder / 'ends.npy'}: must go from 0 to {len(keys)}")
        array = pa.LargeStringArray.from_buffers(n, pa.py_buffer(ends), pa.py_buffer(keys))
        return cls(array, kind_ids, kinds, gone, order)

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
        live = np.ones(len(self.kind_ids), dtype=np.bool_)
        live[self.removed] = False
        for kind_id, kind in enumerate(self.kinds):
            keys = self.keys.filter(pa.array((self.kind_ids == kind_id) & live))
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

    @cached_property
    def _bounds(self) -> list[int]:
        """Where the ids of each kind begin and end in :attr:`order`."""
        return [0, *np.cumsum(self.per_kind).tolist()]

    def _find(self, wanted: pa.Array, kind_id: int) -> npt.NDArray[np.int32]:
        """Ids of keys of a kind, -1 for one that is not there."""
        if len(wanted) <= _FEW_KEYS:
            keys = wanted.to_pylist() if self.is_integer else [key.encode() for key in wanted.to_pylist()]
            return np.array([self._find_one(key, kind_id) for key in keys], dtype=np.int32)
        ids, keys = self.order[self._bounds[kind_id] : self._bounds[kind_id + 1]], self._sorted_keys(kind_id)
        if not len(keys):
            return np.full(len(wanted), -1, dtype=np.int32)
        if self.is_integer:
            values, there = wanted.to_numpy(), keys.to_numpy()
            at = np.minimum(np.searchsorted(there, values), len(there) - 1)
            return np.where(there[at] == values, ids[at], np.int32(-1))
        at = pc.fill_null(pc.index_in(wanted, value_set=keys), -1).to_numpy()
        return np.where(at >= 0, ids[at], np.int32(-1))

    def _sorted_keys(self, kind_id: int) -> pa.Array:
        """Keys of a kind, ascending; a copy, kept for the next time."""
        if kind_id not in self._sorted:
            ids = self.order[self._bounds[kind_id] : self._bounds[kind_id + 1]]
            self._sorted[kind_id] = self.keys.take(pa.array(ids))
        return self._sorted[kind_id]

    def _find_one(self, key: int | bytes, kind_id: int) -> int:
        order, key_of = self._search
        first, last = self._bounds[kind_id], self._bounds[kind_id + 1]
        at = bisect_left(order, key, first, last, key=key_of)
        return order[at] if at < last and key_of(order[at]) == key else -1

    @cached_property
    def _search(self) -> tuple[Sequence[int], Callable[[int], Any]]:
        """What a binary search goes over, without a copy: :attr:`order`, and the key of an id."""
        order = self.order.data
        if self.is_integer:
            return order, self.keys.to_numpy().data.__getitem__
        ends, text = (part.data for part in _string_parts(self.keys))
        # The order of strings by code point is that of their UTF-8 bytes.
        return order, lambda i: bytes(text[ends[i] : ends[i + 1]])


def _string_parts(keys: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Bounds of each string in the bytes of all, int64 [n + 1], and these bytes, without a copy."""
    _, bounds, text = keys.buffers()
    if bounds is None or not len(keys):
        return np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.uint8)
    ends = np.frombuffer(bounds, dtype=np.int64)[keys.offset : keys.offset + len(keys) + 1]
    return ends, np.empty(0, np.uint8) if text is None else np.frombuffer(text, dtype=np.uint8)


def _map(path: Path, dtypes: tuple[np.dtype[Any], ...], length: int | None = None) -> npt.NDArray[Any]:
    """Memory-map a one-dimensional array and check its type and length."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # one without entries cannot be mapped
        array = _load(path)
    except (OSError, EOFError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from None
    if array.dtype not in dtypes or array.ndim != 1 or length not in (None, len(array)):
        raise StoreError(f"{path}: must be {dtypes[-1]} [{length}] (got {array.dtype} {list(array.shape)})")
    return array.view(np.ndarray)


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise StoreError(f"{path}: not a NumPy array ({error})") from None
    return array
