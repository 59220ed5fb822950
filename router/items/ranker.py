"""The item ranker: which items a user has not seen yet, best first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from router.errors import DataError, ParameterError, UnknownNameError
from router.items.kernels import rank_rows
from router.items.linear import Floats, ItemMap, blend
from router.items.terms import Cooccurrence, LowPass, NeighborRidge, Term, check_interactions, degrees

Recommendations = tuple[NDArray[np.int32], Floats]
Bools = NDArray[np.bool_]
_SCORES_AT_ONCE = 1 << 24
_CSR = ("indptr", "indices", "data")


def default_terms() -> tuple[tuple[Term, float], ...]:
    """Terms and their weights, as chosen on a validation split of Gowalla's training data."""
    return (Cooccurrence(), 0.5), (NeighborRidge(), 0.5), (LowPass(), 0.6)


class ItemRanker:
    """Ranks items by a linear map of what a user went for.

    Make one with :meth:`fit`. Users without interactions get the most frequent items.

    Parameters
    ----------
    item_map
        The map, over all items.
    interactions
        Users × items that users are ranked by and that are left out of their recommendations.
    user_vectors
        ``interactions @ item_map.source``, float32 [u, d]; None to compute them.
    """

    def __init__(
        self, item_map: ItemMap, interactions: sp.csr_array, *, user_vectors: Floats | None = None
    ) -> None:
        if interactions.shape[1] != item_map.n_items:
            raise DataError(
                f"'interactions' must have {item_map.n_items} items (got {interactions.shape[1]})"
            )
        self.item_map = item_map
        self.interactions = interactions
        self.user_vectors: Floats = (
            np.asarray(interactions @ item_map.source, dtype=np.float32)
            if user_vectors is None
            else user_vectors
        )
        self._popularity = degrees(interactions, axis=0).astype(np.float32)

    @classmethod
    def fit(cls, interactions: sp.csr_array, terms: Sequence[tuple[Term, float]] | None = None) -> ItemRanker:
        """Fit the terms and blend them, each first scaled to scores of one size.

        Parameters
        ----------
        interactions
            Users × items; weights are positive, 1 for a mere visit.
        terms
            Terms and their weights, or None for :func:`default_terms`.

        Raises
        ------
        DataError
            There are no interactions, or a weight is negative or not finite.
        ParameterError
            There is no term.
        """
        chosen = default_terms() if terms is None else terms
        if not chosen:
            raise ParameterError("'terms' must have at least one term (got 0)")
        checked = check_interactions(interactions)
        maps = [term.fit(checked).normalised(checked) for term, _ in chosen]
        return cls(blend(maps, [weight for _, weight in chosen]), checked)

    @property
    def n_users(self) -> int:
        """Number of known users."""
        return int(self.interactions.shape[0])

    def recommend(
        self, users: ArrayLike, k: int, *, exclude_seen: bool = True, among: Bools | None = None
    ) -> Recommendations:
        """Recommend items to known users.

        Parameters
        ----------
        users
            Rows of the interactions, int [b].
        k
            Recommendations per user; more than there are items give all of them.
        exclude_seen
            Leave out the items of the user's interactions.
        among
            Items that may be recommended, bool [i]; None for all.

        Returns
        -------
        ids : int32 [b, min(k, items)]
            Best first, ties by ascending id; padded with -1 where a user has fewer candidates.
        scores : float32 [b, min(k, items)]
            Padded with 0; comparable within a user only.

        Raises
        ------
        UnknownNameError
            A user is not among the rows.
        ParameterError
            ``k`` is not positive.
        """
        rows = np.asarray(users, dtype=np.int64).reshape(-1)
        outside = np.flatnonzero((rows < 0) | (rows >= self.n_users))
        if outside.size:
            raise UnknownNameError(f"unknown user {rows[outside[0]]}; users go to {self.n_users - 1}")

        def block(part: slice) -> tuple[sp.csr_array, Floats]:
            return self.interactions[rows[part]], self.user_vectors[rows[part]]

        return self._ranked(block, rows.size, k, exclude_seen, among)

    def recommend_new(
        self,
        interactions: sp.csr_array,
        k: int,
        *,
        exclude_seen: bool = True,
        among: Bools | None = None,
    ) -> Recommendations:
        """Recommend items to new users, without learning anew.

        Parameters
        ----------
        interactions
            Their interactions, [b, i].
        k, exclude_seen, among
            As for :meth:`recommend`.

        Returns
        -------
        ids, scores
            As for :meth:`recommend`.

        Raises
        ------
        DataError
            The number of items differs, or an entry is negative or not finite.
        ParameterError
            ``k`` is not positive.
        """
        if interactions.shape[1] != self.item_map.n_items:
            raise DataError(
                f"'interactions' must have {self.item_map.n_items} items (got {interactions.shape[1]})"
            )
        checked = sp.csr_array(interactions, dtype=np.float32)
        checked = check_interactions(checked) if checked.nnz else checked
        vectors = np.asarray(checked @ self.item_map.source, dtype=np.float32)
        return self._ranked(
            lambda part: (checked[part], vectors[part]), checked.shape[0], k, exclude_seen, among
        )

    def _ranked(
        self,
        block: Callable[[slice], tuple[sp.csr_array, Floats]],
        n_rows: int,
        k: int,
        exclude_seen: bool,
        among: Bools | None,
    ) -> Recommendations:
        if k < 1:
            raise ParameterError(f"'k' must be positive (got {k})")
        width = min(k, self.item_map.n_items)
        ids = np.full((n_rows, width), -1, dtype=np.int32)
        best = np.zeros((n_rows, width), dtype=np.float32)
        step = max(1, _SCORES_AT_ONCE // self.item_map.n_items)
        for start in range(0, n_rows, step):
            part = slice(start, start + step)
            own, vectors = block(part)
            scores = self.item_map.finished(own, vectors)
            scores[np.diff(own.indptr) == 0] = self._popularity
            if exclude_seen:
                scores[np.repeat(np.arange(own.shape[0]), np.diff(own.indptr)), own.indices] = -np.inf
            if among is not None:
                scores[:, ~among] = -np.inf
            rank_rows(scores, ids[part], best[part])
        return ids, best

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays that :meth:`from_arrays` makes the same ranker of; names with a dot are vectors [n, d].

        ``user.items``, ``item.source`` and ``item.target`` are float32 with a row per user or item;
        ``map_*`` and ``seen_*`` are the parts of compressed rows.
        """
        matrices = {"map": self.item_map.sparse, "seen": self.interactions}
        return {
            "user.items": self.user_vectors,
            "item.source": self.item_map.source,
            "item.target": self.item_map.target,
        } | {f"{name}_{part}": getattr(matrix, part) for name, matrix in matrices.items() for part in _CSR}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ItemRanker:
        """Ranker of the arrays, which may be memory-mapped and read-only.

        Raises
        ------
        DataError
            An array is missing or they do not fit together.
        """
        try:
            source, target, users = (arrays[name] for name in ("item.source", "item.target", "user.items"))
            parts = {name: [arrays[f"{name}_{part}"] for part in _CSR] for name in ("map", "seen")}
        except KeyError as error:
            raise DataError(f"array {error} of the item ranker is missing") from None
        if source.shape != target.shape or source.shape[1] != users.shape[1]:
            raise DataError(
                f"'item.source', 'item.target' and 'user.items' must have one width (got shapes "
                f"{source.shape}, {target.shape}, {users.shape})"
            )
        n_items = len(source)
        sparse = _csr("map", parts["map"], (n_items, n_items))
        return cls(
            ItemMap(sparse, source, target),
            _csr("seen", parts["seen"], (len(users), n_items)),
            user_vectors=users,
        )


def _csr(name: str, parts: Sequence[NDArray[Any]], shape: tuple[int, int]) -> sp.csr_array:
    indptr, indices, data = parts
    try:
        matrix = sp.csr_array((data, indices, indptr), shape=shape)
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise DataError(f"'{name}_indptr', '{name}_indices' and '{name}_data' do not fit: {error}") from None
    return matrix
