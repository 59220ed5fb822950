"""Kernels of the graph builder: decimal keys, duplicate edges, quantised weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

# A row's quantised weights add up to about this; with fewer than 2**31 edges in a row, rounding adds less
# than 2**31 in all, so that the total stays below 2**32.
QUANTISED_TOTAL = float(1 << 31)
MAX_TOTAL = float((1 << 32) - 1)
_MIN_INT64 = -(1 << 63)
_MIN_INT64_TENTH = -922337203685477580


@njit(cache=True, nogil=True)
def parse_decimals(
    offsets: npt.NDArray[np.int32], text: npt.NDArray[np.uint8], out: npt.NDArray[np.int64]
) -> int:
    """Parse strings that are integers in canonical decimal form, blanks around them allowed.

    Canonical means that printing the integer gives the string again: no plus sign, no leading zero, no
    ``-0``, and within int64.

    Parameters
    ----------
    offsets, text
        Arrow string layout: row i is ``text[offsets[i]:offsets[i + 1]]``.
    out
        int64 [rows], filled up to the first row that is not such an integer.

    Returns
    -------
    int
        The first row that is not such an integer, or -1.
    """
    for row in range(len(out)):
        start, end = offsets[row], offsets[row + 1]
        while start < end and (text[start] == 32 or text[start] == 9):
            start += 1
        while end > start and (text[end - 1] == 32 or text[end - 1] == 9):
            end -= 1
        negative = start < end and text[start] == 45
        if negative:
            start += 1
        if start == end or (text[start] == 48 and (negative or end - start > 1)):
            return row
        value = np.int64(0)  # accumulated below zero: int64 reaches one further there
        for position in range(start, end):
            digit = np.int64(text[position]) - 48
            if digit < 0 or digit > 9 or value < _MIN_INT64_TENTH:
                return row
            if value == _MIN_INT64_TENTH and digit > 8:
                return row
            value = value * 10 - digit
        if not negative:
            if value == _MIN_INT64:
                return row
            value = -value
        out[row] = value
    return -1


@njit(cache=True, nogil=True)
def merge_duplicates(keys: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]) -> int:
    """Merge runs of equal keys in place and add up their weights, smallest first.

    Adding in ascending order makes the sum independent of the order of the input.

    Parameters
    ----------
    keys
        int64 [edges], ascending.
    weights
        float64 [edges].

    Returns
    -------
    int
        Number of distinct keys, now the first entries of both arrays.
    """
    n_merged = 0
    start = 0
    while start < len(keys):
        end = start + 1
        while end < len(keys) and keys[end] == keys[start]:
            end += 1
        total = weights[start]
        if end - start > 1:
            total = 0.0
            for weight in np.sort(weights[start:end]):
                total += weight
        keys[n_merged] = keys[start]
        weights[n_merged] = total
        n_merged += 1
        start = end
    return n_merged


@njit(cache=True, nogil=True)
def merge_sorted(keys: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]) -> int:
    """Merge runs of equal keys in place where the weights of a run ascend; see :func:`merge_duplicates`.

    The first weight of a run may be the sum of those before it, so that a run may be merged piece by piece.

    Parameters
    ----------
    keys
        int64 [edges], ascending.
    weights
        float64 [edges].

    Returns
    -------
    int
        Number of distinct keys, now the first entries of both arrays.
    """
    n_merged = 0
    for edge in range(len(keys)):
        if n_merged and keys[n_merged - 1] == keys[edge]:
            weights[n_merged - 1] += weights[edge]
        else:
            keys[n_merged], weights[n_merged] = keys[edge], weights[edge]
            n_merged += 1
    return n_merged


@njit(cache=True, nogil=True)
def quantise_rows(
    indptr: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    cumulative: npt.NDArray[np.uint32],
    strength: npt.NDArray[np.float64],
) -> int:
    """Quantise each row's weights to integers and accumulate them.

    Integer weights with a sum below 2**32 are taken as they are; any other row is scaled to a sum of about
    2**31, each weight rounded to the nearest integer and at least 1.

    Parameters
    ----------
    indptr
        int64 [rows + 1], row bounds in ``weights``.
    weights
        float64 [edges], positive.
    cumulative
        uint32 [edges], filled with the inclusive sums within each row.
    strength
        float64 [rows], filled with the sum of each row's weights.

    Returns
    -------
    int
        The first row with an infinite sum, or -1.
    """
    for row in range(len(strength)):
        start, end = indptr[row], indptr[row + 1]
        total, integers = add_weights(weights[start:end], 0.0, True)
        if not np.isfinite(total):
            return row
        strength[row] = total
        accumulate(weights[start:end], total, integers, np.int64(0), cumulative[start:end])
    return -1


@njit(cache=True, nogil=True)
def add_weights(weights: npt.NDArray[np.float64], total: float, integers: bool) -> tuple[float, bool]:
    """Add a piece of a row's weights, in their order, to the total of those before it.

    Parameters
    ----------
    weights
        float64 [edges], positive.
    total
        Sum of the weights before; 0 for the first piece.
    integers
        Whether all weights before are integers; True for the first piece.

    Returns
    -------
    tuple[float, bool]
        The new sum, and whether still all weights are integers.
    """
    for weight in weights:
        total += weight
        integers = integers and weight == np.floor(weight)
    return total, integers


@njit(cache=True, nogil=True)
def accumulate(
    weights: npt.NDArray[np.float64],
    total: float,
    integers: bool,
    running: np.int64,
    cumulative: npt.NDArray[np.uint32],
) -> np.int64:
    """Quantise a piece of a row whose total is known, and go on accumulating.

    Parameters
    ----------
    weights
        float64 [edges], positive.
    total, integers
        Of the whole row, as :func:`add_weights` gives them.
    running
        Sum of the quantised weights before; 0 for the first piece.
    cumulative
        uint32 [edges], filled with the inclusive sums.

    Returns
    -------
    numpy.int64
        The sum at the end of the piece.
    """
    as_they_are = integers and total <= MAX_TOTAL
    for edge in range(len(weights)):
        if as_they_are:
            running += np.int64(weights[edge])
        else:
            running += max(np.int64(1), np.int64(np.rint(weights[edge] / total * QUANTISED_TOTAL)))
        cumulative[edge] = running
    return running
