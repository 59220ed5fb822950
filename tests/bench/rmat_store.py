"""Undirected R-MAT graphs of hundreds of millions of edges, written as a store a bucket at a time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from numba import njit
from rmat import A, B, C

from ppr.graph import seal
from ppr.manifest import new_store
from ppr.nodes import NodeTable

_CHUNK_EDGES = 1 << 22
_BUCKET_EDGES = 1 << 24  # drawn, both directions: 128 MiB, sorted in memory


def write_rmat_store(folder: Path, scale: int, n_edges: int, seed: int = 0) -> None:
    """Write an undirected R-MAT graph of ``2**scale`` nodes as a graph store.

    Parameters
    ----------
    folder
        The store.
    scale
        Logarithm of the number of nodes; isolated ones are kept. Ids are permuted, so that an id says nothing
        about degree.
    n_edges
        Edges drawn; the store has the distinct ones without self-loops, each in both directions.
    seed
        Seed.
    """
    n_nodes = 1 << scale
    bucket_bits = max(0, (2 * n_edges // _BUCKET_EDGES).bit_length())
    with new_store(folder) as working:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            buckets = [Path(scratch, str(number)) for number in range(1 << bucket_bits)]
            _draw(buckets, scale, n_edges, seed)
            degree = _write_rows(working / "indices.npy", buckets, n_nodes)
        np.save(working / "indptr.npy", np.concatenate([[0], np.cumsum(degree)]))
        np.save(working / "strength.npy", degree.astype(np.float64))
        nodes = NodeTable(pa.array(np.arange(n_nodes)), np.zeros(n_nodes, np.uint8), ("node",))
        nodes.write(working)
        seal(working, nodes, directed=False, parameters={}, counts={})


def _draw(buckets: list[Path], scale: int, n_edges: int, seed: int) -> None:
    """Write ``src << 32 | dst``, both directions, into the bucket of the leading bits of ``src``."""
    permutation = np.random.default_rng(seed).permutation(1 << scale).astype(np.int32)
    shift = 32 + scale - (len(buckets).bit_length() - 1)
    files = [path.open("wb") for path in buckets]
    try:
        for number, start in enumerate(range(0, n_edges, _CHUNK_EDGES)):
            pairs = np.empty(2 * min(_CHUNK_EDGES, n_edges - start), np.int64)
            used = _draw_pairs(scale, np.uint64(seed << 32 | number), permutation, pairs)
            bucket = pairs[:used] >> shift
            order = np.argsort(bucket.astype(np.int16), kind="stable")
            bounds = np.searchsorted(bucket[order], np.arange(len(buckets) + 1))
            for file, low, high in zip(files, bounds[:-1], bounds[1:], strict=True):
                file.write(pairs[order[low:high]].data)
    finally:
        for file in files:
            file.close()


def _write_rows(path: Path, buckets: list[Path], n_nodes: int) -> np.ndarray:
    """Write the neighbours of all nodes, ascending, each once; gives the degrees, int64 [n]."""
    degree = np.zeros(n_nodes, np.int64)
    with path.open("w+b") as file:
        for _ in range(2):  # the header, whose length does not depend on the number in it, is completed last
            file.seek(0)
            header = {"descr": "<i4", "fortran_order": False, "shape": (int(degree.sum()),)}
            np.lib.format.write_array_header_1_0(file, header)
            if degree.any():
                break
            for bucket in buckets:
                pairs = np.fromfile(bucket, np.int64)
                pairs.sort()
                pairs = pairs[np.diff(pairs, prepend=-1) != 0]
                file.write((pairs & 0xFFFFFFFF).astype(np.int32).data)
                degree += np.bincount(pairs >> 32, minlength=n_nodes)
                bucket.unlink()
    return degree


@njit(cache=True)
def _draw_pairs(scale, seed, permutation, pairs):  # type: ignore[no-untyped-def]
    """Fill ``pairs`` with both directions of drawn edges that are no self-loops; gives how many there are."""
    state = seed
    used = 0
    for _ in range(pairs.size // 2):
        src, dst = 0, 0
        for _ in range(scale):
            state += np.uint64(0x9E3779B97F4A7C15)  # splitmix64
            bits = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            draw = np.float64((bits ^ (bits >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
            lower = draw >= A + B
            right = draw >= A + B + C if lower else draw >= A
            src = src << 1 | lower
            dst = dst << 1 | right
        src, dst = permutation[src], permutation[dst]
        if src != dst:
            pairs[used] = np.int64(src) << 32 | np.int64(dst)
            pairs[used + 1] = np.int64(dst) << 32 | np.int64(src)
            used += 2
    return used
