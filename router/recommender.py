"""What a service asks: items for a user.

Reads a bundle (:mod:`router.bundle`), as :mod:`router.scorer` does for LLMs. The first items of each known
user are listed in the bundle, so that a service need not rank them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from router.bundle import ITEM, USER, Bundle
from router.errors import ParameterError, UnknownNameError
from router.persona.data import Bools, Floats

if TYPE_CHECKING:
    from router.items import ItemRanker

N_LISTED = 100
_MOST_RANKED = 5 * 10**10  # users × items; about an hour on one core


class Recommender:
    """Ranks items for users. Safe to share between threads.

    Parameters
    ----------
    bundle
        The trained router.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Recommender:
        """Open a bundle; see :meth:`router.bundle.Bundle.open` for ``verify`` and the errors."""
        return cls(Bundle.open(path, verify=verify))

    @property
    def has_items(self) -> bool:
        """Whether the bundle knows items."""
        return "item.source" in self.bundle.embeddings

    def recommend(self, users: Sequence[Any], k: int) -> tuple[list[list[Any]], Floats]:
        """Recommend items that known users do not have yet.

        Returns
        -------
        items : list of list
            Keys, best first; fewer than ``k`` where there are no more.
        scores : float32 [b, min(k, items)]
            Comparable within a user only.

        Raises
        ------
        UnknownNameError
            A user is unknown, or the bundle knows no items.
        """
        ids, scores = self._ranker.recommend(self.bundle.rows(USER, users), k)
        return [self.bundle.keys(ITEM, row[row >= 0]).tolist() for row in ids], scores

    def rank(
        self,
        user: Any,
        items: Mapping[Any, float],
        k: int,
        *,
        among: Bools | None = None,
        exclude_seen: bool = True,
    ) -> tuple[list[Any], Floats]:
        """Rank items for a known user, or None, by what the user has and further items.

        Parameters
        ----------
        user
            Key of a known user, or None.
        items
            Positive weights of items, beside the user's own.
        k
            Length of the answer.
        among
            Items that may be recommended, bool [i]; None for all.
        exclude_seen
            Leave out the items that the ranking rests on.

        Returns
        -------
        items : list
            Keys, best first; fewer than ``k`` where there are no more.
        scores : float32
            Their scores.

        Raises
        ------
        UnknownNameError
            The user or an item is unknown, or the bundle knows no items.
        """
        import scipy.sparse as sp

        if k < 1:
            raise ParameterError(f"'k' must be positive (got {k})")
        if user is not None and not items and exclude_seen:
            listed = self.listed(user, k, among)
            if listed is not None:
                return listed
        ranker = self._ranker
        rows = self.bundle.rows(USER, [] if user is None else [user])
        if rows.size and not items:
            ids, scores = ranker.recommend(rows, k, exclude_seen=exclude_seen, among=among)
        else:
            columns = self.bundle.rows(ITEM, list(items)) if items else np.zeros(0, dtype=np.int64)
            values = np.array(list(items.values()), dtype=np.float32)
            own = sp.csr_array(
                (values, (np.zeros_like(columns), columns)), shape=(1, ranker.item_map.n_items)
            )
            if rows.size:
                own = sp.csr_array(own + ranker.interactions[rows])
            ids, scores = ranker.recommend_new(own, k, exclude_seen=exclude_seen, among=among)
        found = ids[0] >= 0
        return self.bundle.keys(ITEM, ids[0][found]).tolist(), scores[0][found]

    def listed(self, user: Any, k: int, among: Bools | None = None) -> tuple[list[Any], Floats] | None:
        """What the bundle lists for a user, as :meth:`rank` gives it: a look-up of microseconds.

        None where it lists nothing for the user, or not enough.
        """
        lists = self.bundle.arrays.get("listed_ids")
        row = self.bundle.row(USER, user)
        if lists is None or row < 0:
            return None
        ids, scores = lists[row], self.bundle.arrays["listed_scores"][row]
        usable = ids >= 0
        ends_here = not usable[-1] or ids.size == len(self.bundle.embeddings["item.source"])
        if among is not None:
            usable = usable & among[ids]
        found = np.flatnonzero(usable)[:k]
        if found.size < k and not ends_here:
            return None
        return self.bundle.keys(ITEM, ids[found]).tolist(), scores[found]

    @cached_property
    def _ranker(self) -> ItemRanker:
        from router.items import ItemRanker  # numba takes a second to import

        if not self.has_items:
            raise UnknownNameError(f"{self.bundle.path}: the bundle knows no items")
        return ItemRanker.from_arrays({**self.bundle.arrays, **self.bundle.embeddings})


def lists_of(ranker: ItemRanker) -> dict[str, NDArray[Any]]:
    """Arrays of a bundle with the first items for each user, so that a service need not rank them again.

    ``listed_ids`` int32 [u, n] and ``listed_scores`` float32 [u, n], as :meth:`ItemRanker.recommend` gives
    them; none where users × items are so many that this would take longer than all the rest.
    """
    if ranker.n_users * ranker.item_map.n_items > _MOST_RANKED:
        return {}
    ids, scores = ranker.recommend(np.arange(ranker.n_users), N_LISTED)
    return {"listed_ids": ids, "listed_scores": scores}
