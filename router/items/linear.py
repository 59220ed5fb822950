"""Item maps: linear maps from the items a user went for to scores of all items.

A map is a sparse matrix plus a product of two thin ones, so sums of maps are maps again: any blend of the
closed forms in :mod:`router.items.terms` is served at the cost of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from router.items.kernels import add_products

Floats = NDArray[np.float32]
_SAMPLE = 1000


@dataclass(frozen=True, eq=False, repr=False)
class ItemMap:
    """Scores ``x @ sparse + (x @ source) @ target.T`` of the interactions ``x`` of a user.

    Attributes
    ----------
    sparse
        float32 [i, i].
    source, target
        float32 [i, d]; d may be 0.
    """

    sparse: sp.csr_array
    source: Floats
    target: Floats

    @classmethod
    def of_sparse(cls, sparse: sp.csr_array) -> ItemMap:
        """Map of a sparse matrix alone."""
        nothing = np.empty((sparse.shape[0], 0), dtype=np.float32)
        return cls(sp.csr_array(sparse, dtype=np.float32), nothing, nothing)

    @classmethod
    def of_vectors(cls, source: NDArray[np.floating], target: NDArray[np.floating]) -> ItemMap:
        """Map of two thin matrices alone."""
        sparse = sp.csr_array((len(source), len(source)), dtype=np.float32)
        return cls(sparse, np.asarray(source, dtype=np.float32), np.asarray(target, dtype=np.float32))

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.source)

    def __add__(self, other: ItemMap) -> ItemMap:
        return ItemMap(
            sp.csr_array(self.sparse + other.sparse),
            np.concatenate([self.source, other.source], axis=1),
            np.concatenate([self.target, other.target], axis=1),
        )

    def scaled(self, factor: float) -> ItemMap:
        """Map that gives ``factor`` times the scores."""
        number = np.float32(factor)
        return ItemMap(self.sparse * number, self.source, self.target * number)

    def scores(self, interactions: sp.csr_array, rows: NDArray[np.int64]) -> Floats:
        """Scores of all items for some rows of the interactions, float32 [b, i]."""
        own = interactions[rows]
        return self.finished(own, np.asarray(own @ self.source, dtype=np.float32))

    def finished(self, own: sp.csr_array, vectors: Floats) -> Floats:
        """Scores of all items, the products ``own @ source`` given, float32 [b, i]."""
        scores: Floats = vectors @ self.target.T
        add_products(np.arange(own.shape[0]), *_parts(own), *_parts(self.sparse), scores)
        return scores

    def normalised(self, interactions: sp.csr_array) -> ItemMap:
        """Map whose scores have a root mean square of 1, over up to 1,000 evenly spaced users."""
        n_users = interactions.shape[0]
        rows = np.unique(np.linspace(0, n_users - 1, min(n_users, _SAMPLE)).astype(np.int64))
        mean_square = float(np.mean(np.square(self.scores(interactions, rows))))
        return self.scaled(mean_square**-0.5) if mean_square > 0.0 else self


def blend(maps: list[ItemMap], weights: list[float]) -> ItemMap:
    """Weighted sum of maps."""
    return reduce(ItemMap.__add__, (one.scaled(weight) for one, weight in zip(maps, weights, strict=True)))


def _parts(matrix: sp.csr_array) -> tuple[NDArray[np.integer], NDArray[np.integer], Floats]:
    return matrix.indptr, matrix.indices, matrix.data
