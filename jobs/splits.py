"""Training and test parts of an interaction table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ppr.errors import DataError, MissingDataError, ParameterError


def split_by_time(
    table: pa.Table, *, timestamp: str = "timestamp", test_fraction: float = 0.2
) -> tuple[pa.Table, pa.Table]:
    """Split at one moment for everybody: what was known then, and what came after it.

    Parameters
    ----------
    table
        Interactions, in any order.
    timestamp
        Column to split by, of any type that has an order.
    test_fraction
        Share of the rows, in (0, 1), that should come after the moment. Rows of equal time stay together,
        so the test part may be larger.

    Returns
    -------
    train, test
        Rows in the order of the table.

    Raises
    ------
    ParameterError
        ``test_fraction`` is outside (0, 1).
    MissingDataError
        There is no such column.
    DataError
        A time is missing, or all times are equal so that nothing would be left to train on.
    """
    _check_fraction(test_fraction)
    if timestamp not in table.column_names:
        raise MissingDataError(f"no column '{timestamp}' among {table.column_names}")
    times = table[timestamp]
    if times.null_count:
        raise DataError(f"'{timestamp}' must not be missing ({times.null_count} rows are)")
    order = pc.sort_indices(times)
    n_train = len(times) - max(1, round(test_fraction * len(times)))
    if n_train < 1:
        raise DataError(f"at least two rows are needed to split (got {len(times)})")
    is_test = pc.greater_equal(times, times[order[n_train].as_py()])
    if pc.all(is_test).as_py():
        raise DataError(f"'{timestamp}' cannot split the rows: the first {n_train + 1} have the same time")
    return table.filter(pc.invert(is_test)), table.filter(is_test)


def split_at_random(
    table: pa.Table, *, user: str = "user", test_fraction: float = 0.2, seed: int = 0
) -> tuple[pa.Table, pa.Table]:
    """Split each user's rows at random, for data without times.

    A user with ``n`` rows gives ``floor(test_fraction * n)`` of them to the test part, so everybody keeps
    something to be recommended from.

    Parameters
    ----------
    table
        Interactions.
    user
        Column of the user.
    test_fraction
        Share of each user's rows in (0, 1).
    seed
        Seed of the draw.

    Returns
    -------
    train, test
        Rows in the order of the table.

    Raises
    ------
    ParameterError
        ``test_fraction`` is outside (0, 1).
    MissingDataError
        There is no such column.
    DataError
        No user has rows enough to give one away.
    """
    _check_fraction(test_fraction)
    if user not in table.column_names:
        raise MissingDataError(f"no column '{user}' among {table.column_names}")
    codes = table[user].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    shuffled = np.random.default_rng(seed).permutation(len(codes))
    order = shuffled[np.argsort(codes[shuffled], kind="stable")]
    counts = np.bincount(codes)
    rank = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_test = np.empty(len(codes), dtype=bool)
    is_test[order] = rank < np.repeat(np.floor(test_fraction * counts), counts)
    if not is_test.any():
        raise DataError(f"no user has the {int(np.ceil(1 / test_fraction))} rows that a test part needs")
    return table.filter(pa.array(~is_test)), table.filter(pa.array(is_test))


def _check_fraction(test_fraction: float) -> None:
    if not 0.0 < test_fraction < 1.0:
        raise ParameterError(f"'test_fraction' must be between 0 and 1, exclusive (got {test_fraction})")
