"""Arrays of the graph store: mapped from files, and checked where they come from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ppr.errors import DataError, StoreError
from ppr.kernels.edges import quantise_rows

MAX_NODES = (1 << 31) - 1


def map_array(path: Path, dtype: str, length: int | None) -> npt.NDArray[Any]:
    """Memory-map a one-dimensional array and check its type and length; StoreError where they are wrong."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(f"{path}: missing from the store") from None
    except (ValueError, EOFError):
        array = _load_empty(path)
    if array.dtype != np.dtype(dtype) or array.ndim != 1 or length not in (None, len(array)):
        raise StoreError(f"{path}: must be {dtype} [{length}] (got {array.dtype} {list(array.shape)})")
    # A plain view: memmap's own methods cost more per slice, and it stays as read-only as it was.
    return array.view(np.ndarray)


def check_rows(indptr: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> None:
    """Check compressed rows; DataError names the array and its rule."""
    if indptr.ndim != 1 or len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(indices):
        raise DataError(f"'indptr' must go from 0 to the number of edges {len(indices)}")
    if np.any(np.diff(indptr) < 0):
        raise DataError("'indptr' must not decrease")
    n_nodes = len(indptr) - 1
    if n_nodes > MAX_NODES:
        raise DataError(f"a graph must have at most {MAX_NODES} nodes (got {n_nodes})")
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_nodes:
        raise DataError(
            f"'indices' must be between 0 and {n_nodes - 1} (got {indices.min()}…{indices.max()})"
        )
    row_of = np.repeat(np.arange(n_nodes), np.diff(indptr))
    same_row = row_of[1:] == row_of[:-1]
    wrong = np.flatnonzero(same_row & (np.diff(indices) <= 0))
    if len(wrong):
        raise DataError(f"'indices' must ascend within a row without duplicates (row {row_of[wrong[0]]})")


def check_removed(
    removed: npt.NDArray[np.int32], indptr: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]
) -> None:
    """Check that removed nodes are ids in ascending order without edges; DataError names the rule."""
    if not len(removed):
        return
    n_nodes = len(indptr) - 1
    if np.any(np.diff(removed) <= 0) or not 0 <= removed[0] <= removed[-1] < n_nodes:
        raise DataError(f"'removed' must be ascending ids between 0 and {n_nodes - 1}")
    has_edges = indptr[removed + 1] > indptr[removed]
    has_edges[np.isin(removed, indices)] = True
    if has_edges.any():
        raise DataError(f"a removed node must have no edges (node {removed[has_edges][0]})")


def quantise(
    indptr: npt.NDArray[np.int64], weights: npt.ArrayLike | None, n_edges: int
) -> tuple[npt.NDArray[np.uint32] | None, npt.NDArray[np.float64]]:
    """Cumulative quantised weights (None where all are 1) and strengths; DataError for a wrong weight."""
    if weights is None:
        return None, np.diff(indptr).astype(np.float64)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n_edges,):
        raise DataError(f"'weights' must have {n_edges} entries (got {list(values.shape)})")
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(wrong):
        raise DataError(f"edge {wrong[0]}: 'weight' must be positive and finite (got {values[wrong[0]]})")
    cumulative = np.empty(n_edges, dtype=np.uint32)
    strength = np.empty(len(indptr) - 1)
    row = quantise_rows(indptr, values, cumulative, strength)
    if row >= 0:
        raise DataError(f"node {row}: the sum of its weights must be finite")
    return (None if np.all(values == 1.0) else cumulative), strength


def _load_empty(path: Path) -> npt.NDArray[Any]:
    """An array without entries, which cannot be mapped."""
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise StoreError(f"{path}: not a NumPy array ({error})") from None
    array.flags.writeable = False
    return array
