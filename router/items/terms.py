"""Closed forms of item ranking: no gradient steps, each a map from a user's items to scores of all items.

All weigh users and items by powers of their degrees. The exponents are not details: the same co-occurrence
counts are RP³β at (1, 1, β), the linear filter of GF-CF at (1, ½, ½), and better than either between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from router.errors import DataError, ParameterError
from router.items.kernels import neighbor_ridge
from router.items.linear import Floats, ItemMap

Doubles = NDArray[np.float64]
_OVERSAMPLING = 64
_ITERATIONS = 4


class Term(Protocol):
    """Gives a map of interactions; a blend adds the maps of several terms."""

    def fit(self, interactions: sp.csr_array) -> ItemMap:
        """Map of checked interactions, users × items."""


@dataclass(frozen=True, slots=True)
class Cooccurrence:
    """Items that users have in common: three hops on the graph of users and items.

    With degrees d of users u and items i, the map is

        M[i, j] = d_i^-source · (Σ_u x_ui x_uj d_u^-user) · d_j^-target.

    Parameters
    ----------
    user_exponent
        How much users of many items count less.
    source_exponent
        How much frequent items say less about their user.
    target_exponent
        How much frequent items are held back in the ranking.

    References
    ----------
    Christoffel, Paudel, Newell, Bernstein: "Blockbusters and Wallflowers", RecSys 2015 (RP³β). Shen et al.:
    "How Powerful is Graph Convolution for Recommendation?", CIKM 2021, section 4 (GF-CF).
    """

    user_exponent: float = 0.7
    source_exponent: float = 0.6
    target_exponent: float = 0.3

    def fit(self, interactions: sp.csr_array) -> ItemMap:
        """Map [i, i]; memory for all pairs of items that have a user in common."""
        matrix = gram(interactions, self.user_exponent)
        by_item = degrees(interactions, axis=0)
        source, target = powers(by_item, -self.source_exponent), powers(by_item, -self.target_exponent)
        matrix.data *= np.repeat(source, np.diff(matrix.indptr)) * target[matrix.indices]
        return ItemMap.of_sparse(matrix)


@dataclass(frozen=True, slots=True)
class NeighborRidge:
    """Least squares of each item on those nearest to it: co-occurrence with what neighbours share explained.

    Item j is predicted from its neighbours N with coefficients that solve

        (G_NN + λ diag(G_NN^p · mean(G)^(1-p))) w = G_Nj,   G = Xᵀ diag(d_u^-user) X.

    Nearest are the items of the largest G_ij · d_i^-closeness.

    Parameters
    ----------
    user_exponent
        How much users of many items count less.
    n_neighbors
        Size of N.
    penalty
        λ.
    penalty_exponent
        p: 0 penalises all items alike, 1 in proportion to their frequency.
    closeness_exponent
        Exponent by which neighbours are chosen.

    References
    ----------
    Ning and Karypis: "SLIM", ICDM 2011, section 4.3 (regression on neighbours); with an L2 penalty alone, as
    in Steck: "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019.
    """

    user_exponent: float = 0.4
    n_neighbors: int = 100
    penalty: float = 7.0
    penalty_exponent: float = 0.5
    closeness_exponent: float = 0.6

    def __post_init__(self) -> None:
        if self.n_neighbors < 1:
            raise ParameterError(f"'n_neighbors' must be positive (got {self.n_neighbors})")
        if not 0.0 < self.penalty < np.inf:
            raise ParameterError(f"'penalty' must be positive and finite (got {self.penalty})")

    def fit(self, interactions: sp.csr_array) -> ItemMap:
        """Map [i, i] of at most ``n_neighbors`` entries per column; a small dense solve for each item."""
        matrix = gram(interactions, self.user_exponent)
        diagonal = matrix.diagonal().astype(np.float64)
        mean = diagonal.mean() if diagonal.any() else 1.0
        p = self.penalty_exponent
        penalties = self.penalty * np.maximum(diagonal, 1e-6) ** p * mean ** (1.0 - p)
        closeness = powers(degrees(interactions, axis=0), -self.closeness_exponent)
        n_items = matrix.shape[0]
        ids = np.zeros((n_items, self.n_neighbors), dtype=np.int32)
        weights = np.zeros(ids.shape, dtype=np.float32)
        neighbor_ridge(matrix.indptr, matrix.indices, matrix.data, closeness, penalties, ids, weights)
        targets = np.repeat(np.arange(n_items, dtype=np.int32), self.n_neighbors)
        found = weights.ravel() != 0.0
        entries = weights.ravel()[found], (ids.ravel()[found], targets[found])
        return ItemMap.of_sparse(sp.csr_array(entries, shape=matrix.shape))


@dataclass(frozen=True, slots=True)
class LowPass:
    """Projection on the leading singular vectors V of the normalised interactions: an ideal low-pass filter.

    With A = diag(d_u^-user) X diag(d_i^-item) ≈ U S Vᵀ, the map is diag(d_i^-item) V Vᵀ diag(d_j^target).

    Parameters
    ----------
    rank
        Singular vectors kept; fewer where there are fewer users or items.
    user_exponent, item_exponent
        Of the normalisation; GF-CF has ½ and ½.
    target_exponent
        GF-CF has ½.
    seed
        Of the random start of the decomposition.

    References
    ----------
    Shen et al., CIKM 2021, section 4 (GF-CF). Halko, Martinsson, Tropp: "Finding Structure with Randomness",
    SIAM Review 2011, algorithm 4.4.
    """

    rank: int = 512
    user_exponent: float = 0.4
    item_exponent: float = 0.4
    target_exponent: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ParameterError(f"'rank' must be positive (got {self.rank})")

    def fit(self, interactions: sp.csr_array) -> ItemMap:
        """Map of two matrices [i, rank]."""
        by_user, by_item = degrees(interactions, axis=1), degrees(interactions, axis=0)
        inverse = powers(by_item, -self.item_exponent)
        scaled = sp.diags_array(powers(by_user, -self.user_exponent)) @ interactions @ sp.diags_array(inverse)
        vectors = right_singular_vectors(sp.csr_array(scaled, dtype=np.float32), self.rank, seed=self.seed)
        return ItemMap.of_vectors(
            vectors * inverse[:, None], vectors * powers(by_item, self.target_exponent)[:, None]
        )


def gram(interactions: sp.csr_array, user_exponent: float) -> sp.csr_array:
    """Xᵀ diag(d_u^-user_exponent) X, float32 [i, i], rows ascending."""
    root = sp.diags_array(powers(degrees(interactions, axis=1), -user_exponent / 2)) @ interactions
    weighted = sp.csr_array(root, dtype=np.float32)
    matrix = sp.csr_array(weighted.T @ weighted)
    matrix.sort_indices()
    return matrix


def degrees(interactions: sp.csr_array, *, axis: int) -> Doubles:
    """Sums over users (axis 0) or items (axis 1), float64."""
    return np.asarray(interactions.sum(axis=axis), dtype=np.float64)


def powers(values: Doubles, exponent: float) -> Floats:
    """Values to a power, those of 0 taken as 1, float32."""
    result: Floats = (np.where(values > 0.0, values, 1.0) ** exponent).astype(np.float32)
    return result


def right_singular_vectors(matrix: sp.csr_array, rank: int, *, seed: int) -> Floats:
    """Leading right singular vectors by subspace iteration from a random start, float32 [i, rank].

    Cost: 9 products of the matrix with ``rank + 64`` vectors, and 4 QR decompositions.
    """
    kept = min(rank, *matrix.shape)
    width = min(kept + _OVERSAMPLING, *matrix.shape)
    rng = np.random.default_rng(seed)
    basis: Floats = rng.standard_normal((matrix.shape[1], width), dtype=np.float32)
    for _ in range(_ITERATIONS):
        basis, _ = np.linalg.qr(matrix.T @ (matrix @ basis))
    small = (matrix @ basis).astype(np.float64)
    _, rotation = np.linalg.eigh(small.T @ small)
    result: Floats = basis @ rotation[:, ::-1][:, :kept].astype(np.float32)
    return result


def check_interactions(interactions: sp.csr_array) -> sp.csr_array:
    """Users × items as float32 with sorted, distinct, positive entries.

    Raises
    ------
    DataError
        There are none, or a weight is negative or not finite.
    """
    checked = sp.csr_array(interactions, dtype=np.float32, copy=True)
    checked.sum_duplicates()
    wrong = np.flatnonzero(~(np.isfinite(checked.data) & (checked.data >= 0.0)))
    if wrong.size:
        user = int(np.searchsorted(checked.indptr, wrong[0], side="right")) - 1
        raise DataError(
            f"user {user}, item {checked.indices[wrong[0]]}: the weight of an interaction must be finite "
            f"and not negative (got {checked.data[wrong[0]]})"
        )
    checked.eliminate_zeros()
    if checked.nnz == 0:
        raise DataError("there must be at least one interaction (got 0)")
    return checked
