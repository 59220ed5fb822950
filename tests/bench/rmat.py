"""R-MAT graphs (Chakrabarti, Zhan, Faloutsos, SDM 2004), streamed to Parquet a chunk at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

A, B, C = 0.57, 0.19, 0.19  # the Graph500 parameters; D is the rest
_CHUNK_EDGES = 1 << 20


def write_rmat(path: Path, scale: int, n_edges: int, seed: int, *, weighted: bool = False) -> None:
    """Write an R-MAT edge list with columns ``src``, ``dst`` and perhaps ``weight``.

    Parameters
    ----------
    path
        The Parquet file.
    scale
        The graph has up to ``2**scale`` nodes; ids are permuted, so that an id says nothing about degree.
    n_edges
        Rows, duplicates and self-loops included.
    seed
        Seed.
    weighted
        Add log-normal weights.
    """
    rng = np.random.default_rng(seed)
    permutation = rng.permutation(1 << scale).astype(np.int32)
    fields = [("src", pa.int32()), ("dst", pa.int32())] + ([("weight", pa.float64())] if weighted else [])
    with pq.ParquetWriter(path, pa.schema(fields)) as writer:
        for start in range(0, n_edges, _CHUNK_EDGES):
            count = min(_CHUNK_EDGES, n_edges - start)
            src, dst = _chunk(rng, scale, count)
            columns: list[npt.NDArray[np.generic]] = [permutation[src], permutation[dst]]
            if weighted:
                columns.append(rng.lognormal(size=count))
            writer.write_table(pa.table(dict(zip(writer.schema.names, columns, strict=True))))


def _chunk(
    rng: np.random.Generator, scale: int, count: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Descend the quadrants of the adjacency matrix, one bit of both ids at a time."""
    src = np.zeros(count, dtype=np.int32)
    dst = np.zeros(count, dtype=np.int32)
    for _ in range(scale):
        draw = rng.random(count, dtype=np.float32)
        lower = draw >= A + B
        right = np.where(lower, draw >= A + B + C, draw >= A)
        src = src << 1 | lower
        dst = dst << 1 | right
    return src, dst
