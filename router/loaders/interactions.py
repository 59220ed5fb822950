"""Interactions of users with items, in the forms that public data sets have."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from router.errors import DataError, MissingDataError
from router.loaders.text import numbered_lines


@dataclass(frozen=True, slots=True)
class Interactions:
    """Pairs of a user and an item, by their keys, in the order of the file.

    Attributes
    ----------
    users, items
        Keys, int64 or str [n].
    weights
        Ratings or counts, float32 [n], or None.
    timestamps
        Seconds, float64 [n], or None.
    """

    users: NDArray[Any]
    items: NDArray[Any]
    weights: NDArray[np.float32] | None = None
    timestamps: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return self.users.size


def read_adjacency_lists(path: str | Path) -> Interactions:
    """Read a line ``user item item ...`` per user, as LightGCN's data sets have; plain or gzip.

    Users without items are left out.

    Raises
    ------
    MissingDataError
        The file is not there.
    DataError
        A key is no integer that is not negative, a user has two lines, or no line has an item.
    """
    file = Path(path)
    users: list[int] = []
    lists: list[NDArray[np.int64]] = []
    first_row: dict[int, int] = {}
    for row, line in numbered_lines(file):
        words = line.split()
        if not words:
            continue
        if not all(word.isascii() and word.isdigit() for word in words):
            raise DataError(f"{file}: row {row}: keys must be integers, not negative (got {line[:80]!r})")
        user = int(words[0])
        if user in first_row:
            raise DataError(
                f"{file}: row {row}: a user must have one line (user {user} has row {first_row[user]} too)"
            )
        first_row[user] = row
        users.append(user)
        lists.append(np.array(words[1:], dtype=np.int64))
    lengths = [items.size for items in lists]
    return _checked(file, Interactions(np.repeat(np.array(users, dtype=np.int64), lengths), _joined(lists)))


def read_recbole(path: str | Path) -> Interactions:
    """Read a RecBole ``.inter`` file: tab-separated, with a header of ``name:type``.

    Columns ``user_id`` and ``item_id`` are needed; ``rating`` and ``timestamp`` are read where there are any,
    others are not.

    Raises
    ------
    MissingDataError
        The file or a column is not there.
    DataError
        A row has another number of columns than the header, a key is empty, or a number is not finite.
    """
    file = Path(path)
    rows = csv.reader((line for _, line in numbered_lines(file)), delimiter="\t", quoting=csv.QUOTE_NONE)
    header = [name.partition(":")[0] for name in next(rows, [])]
    for needed in ("user_id", "item_id"):
        if needed not in header:
            raise MissingDataError(f"{file}: no column {needed!r} (there are {', '.join(header) or 'none'})")
    table = []
    for number, fields in enumerate(rows, start=2):
        if not fields:
            continue
        if len(fields) != len(header):
            raise DataError(
                f"{file}: row {number}: must have {len(header)} columns as the header (got {len(fields)})"
            )
        if not (fields[header.index("user_id")] and fields[header.index("item_id")]):
            raise DataError(f"{file}: row {number}: 'user_id' and 'item_id' must not be empty")
        table.append((number, fields))

    def strings(name: str) -> NDArray[np.str_]:
        at = header.index(name)
        return np.array([fields[at] for _, fields in table], dtype=np.str_)

    def numbers(name: str) -> NDArray[np.float64] | None:
        if name not in header:
            return None
        at = header.index(name)
        return np.array([_number(file, row, name, fields[at]) for row, fields in table])

    ratings = numbers("rating")
    weights = None if ratings is None else ratings.astype(np.float32)
    found = Interactions(strings("user_id"), strings("item_id"), weights, numbers("timestamp"))
    return _checked(file, found)


def read_square_adjacency(path: str | Path, n_users: int) -> sp.csr_array:
    """Read users × items from scipy's file of the symmetric adjacency of users, then items.

    Parameters
    ----------
    path
        An ``.npz`` file.
    n_users
        Rows of users; the rest are items.

    Returns
    -------
    csr_array
        float32 [n_users, n - n_users].

    Raises
    ------
    MissingDataError
        The file is not there.
    DataError
        It is no such file, or the matrix is not square or not larger than ``n_users``.
    """
    file = Path(path)
    try:
        matrix = sp.csr_array(sp.load_npz(file))
    except FileNotFoundError:
        raise MissingDataError(f"{file}: no such file") from None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file}: not a sparse matrix of scipy ({error})") from None
    if matrix.shape[0] != matrix.shape[1] or not 0 < n_users < matrix.shape[0]:
        raise DataError(
            f"{file}: the matrix must be square and larger than {n_users} users (got {matrix.shape})"
        )
    return sp.csr_array(matrix[:n_users, n_users:], dtype=np.float32)


def interaction_matrices(
    tables: Sequence[Interactions],
) -> tuple[list[sp.csr_array], NDArray[Any], NDArray[Any]]:
    """Users × items of several tables, such as a training and a test split, with common rows and columns.

    Pairs that appear twice count once, or with the sum of their weights.

    Returns
    -------
    matrices : list of csr_array, float32
        One per table.
    user_keys, item_keys : ndarray
        Keys of rows and columns, ascending.
    """
    user_keys = np.unique(np.concatenate([table.users for table in tables]))
    item_keys = np.unique(np.concatenate([table.items for table in tables]))
    matrices = []
    for table in tables:
        at = np.searchsorted(user_keys, table.users), np.searchsorted(item_keys, table.items)
        values = np.ones(len(table), dtype=np.float32) if table.weights is None else table.weights
        matrix = sp.csr_array((values, at), shape=(user_keys.size, item_keys.size))
        if table.weights is None:
            matrix.data[:] = 1.0
        matrices.append(matrix)
    return matrices, user_keys, item_keys


def _number(path: Path, row: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise DataError(f"{path}: row {row}: {column!r} must be a finite number (got {text!r})")
    return value


def _joined(lists: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, dtype=np.int64), *lists])


def _checked(path: Path, found: Interactions) -> Interactions:
    if len(found) == 0:
        raise DataError(f"{path}: empty (no interactions)")
    return found
