"""What a router gets to see of a world, and what it has to answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from router.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Choices:
    """Observed choices: a user saw the answers of the LLMs on offer to a query and took one.

    Attributes
    ----------
    users, queries, llms
        int64 [n].
    offered
        LLMs that the user could choose from, bool [n, m], or None where all were on offer every time.
    """

    users: Ints
    queries: Ints
    llms: Ints
    offered: Bools | None = None

    def __len__(self) -> int:
        return self.users.size

    def take(self, which: ArrayLike) -> Choices:
        """Select choices by a mask or by positions."""
        rows = np.asarray(which)
        offered = None if self.offered is None else self.offered[rows]
        return Choices(self.users[rows], self.queries[rows], self.llms[rows], offered)

    def check(self, n_users: int, n_queries: int, n_llms: int) -> None:
        """Check lengths and ranges.

        Raises
        ------
        DataError
            Columns differ in length, an id is out of range, or an LLM was chosen that was not on offer.
        """
        columns = {"users": (self.users, n_users), "queries": (self.queries, n_queries)}
        for name, (ids, end) in (columns | {"llms": (self.llms, n_llms)}).items():
            if ids.shape != self.users.shape:
                raise DataError(f"'{name}' must have {self.users.size} entries (got {ids.size})")
            if ids.size and not (ids.min() >= 0 and ids.max() < end):
                raise DataError(f"'{name}' must lie in 0..{end - 1} (got {ids.min()}..{ids.max()})")
        if self.offered is None:
            return
        if self.offered.shape != (len(self), n_llms):
            raise DataError(f"'offered' must have shape {(len(self), n_llms)} (got {self.offered.shape})")
        if not self.offered[np.arange(len(self)), self.llms].all():
            raise DataError(
                "'offered' must hold every chosen LLM (got a choice of one that was not on offer)"
            )


@dataclass(frozen=True, slots=True)
class UserLinks:
    """What ties users to items and to each other, beside choices of LLMs. Any of it may be missing.

    Personalised PageRank (PPR) must come from a graph of users and items alone: over edges from users to
    LLMs, walks would carry a user's own choices back to the user.

    Attributes
    ----------
    interactions
        Weights of users' interactions with items, [u, i].
    near
        PPR mass from users to the known users, [u, known]; entries from a known user to itself are ignored.
    near_items
        PPR mass from users to items, [u, i].
    item_features
        What is known of items, float32 [i, q]; read from the links of the known users only.
    """

    interactions: sp.csr_array | None = None
    near: sp.csr_array | None = None
    near_items: sp.csr_array | None = None
    item_features: Floats | None = None

    def check(self, n_users: int) -> None:
        """Check shapes and weights.

        Raises
        ------
        DataError
            The number of users or of items differs, or a weight is negative or not finite.
        """
        matrices = {"interactions": self.interactions, "near": self.near, "near_items": self.near_items}
        n_items = set() if self.item_features is None else {len(self.item_features)}
        for name, matrix in matrices.items():
            if matrix is None:
                continue
            if matrix.shape[0] != n_users:
                raise DataError(f"'{name}' must have a row for each of {n_users} users (got {matrix.shape})")
            if not (np.isfinite(matrix.data).all() and (matrix.data >= 0.0).all()):
                raise DataError(f"'{name}' must hold finite weights of at least 0")
            if name != "near":
                n_items.add(matrix.shape[1])
        if len(n_items) > 1:
            raise DataError(f"'links' must agree on the number of items (got {sorted(n_items)})")

    def take(self, users: ArrayLike, known: ArrayLike) -> UserLinks:
        """Select users (rows), and known users (columns of ``near``), by positions."""
        rows, columns = np.asarray(users), np.asarray(known)
        return UserLinks(
            interactions=None if self.interactions is None else self.interactions[rows],
            near=None if self.near is None else sp.csr_array(self.near[rows][:, columns]),
            near_items=None if self.near_items is None else self.near_items[rows],
            item_features=self.item_features,
        )


@dataclass(frozen=True, slots=True)
class ChoiceData:
    """What a router is trained on.

    Attributes
    ----------
    n_users
        Users are numbered from 0.
    choices
        Their choices, on training queries only.
    tasks
        Task of each query, int64 [q].
    query_embeddings
        float32 [q, d].
    train_queries
        Queries that may have been answered already, bool [q].
    llm_names, llm_embeddings
        Names, and embeddings of the descriptions, float32 [m, d].
    prices_usd
        Prices per million prompt and completion tokens, float32 [m, 2]; NaN where unknown.
    features
        Telemetry track: features of the LLMs' answers, float32 [q, m, f], NaN where no answer was measured
        (all of the test queries). None in the choice-only track.
    user_features
        What is known of users beside their choices, float32 [n_users, p], or None.
    links
        Their ties to items and to each other, or None.
    """

    n_users: int
    choices: Choices
    tasks: Ints
    query_embeddings: Floats
    train_queries: Bools
    llm_names: tuple[str, ...]
    llm_embeddings: Floats
    prices_usd: Floats
    features: Floats | None = None
    user_features: Floats | None = None
    links: UserLinks | None = None

    def __post_init__(self) -> None:
        self.choices.check(self.n_users, self.n_queries, self.n_llms)
        if not self.train_queries[self.choices.queries].all():
            raise DataError("'choices' must be on training queries (got one on a test query)")
        if self.features is not None and not np.isnan(self.features[~self.train_queries]).all():
            raise DataError("'features' must be NaN on test queries")
        if self.user_features is not None and len(self.user_features) != self.n_users:
            raise DataError(f"'user_features' must have {self.n_users} rows (got {len(self.user_features)})")
        if self.links is None:
            return
        self.links.check(self.n_users)
        if self.links.near is not None and self.links.near.shape[1] != self.n_users:
            raise DataError(f"'near' must have {self.n_users} columns (got {self.links.near.shape[1]})")

    @property
    def n_queries(self) -> int:
        """Number of queries."""
        return self.tasks.size

    @property
    def n_llms(self) -> int:
        """Number of LLMs."""
        return len(self.llm_names)

    @property
    def n_tasks(self) -> int:
        """Number of tasks."""
        return int(self.tasks.max()) + 1

    def with_choices(self, choices: Choices) -> ChoiceData:
        """Return the same data with other choices, such as a training split of them."""
        return replace(self, choices=choices)

    def known_llms(self) -> Bools:
        """LLMs that were on offer at least once or whose answers were measured, bool [m]."""
        offered = self.choices.offered
        known = np.ones(self.n_llms, dtype=bool) if offered is None else offered.any(axis=0)
        if self.features is not None:
            known = known | ~np.isnan(self.features).all(axis=(0, 2))
        return np.asarray(known)


@dataclass(frozen=True, slots=True)
class Support:
    """New users, and the choices made by them so far.

    Attributes
    ----------
    n_users
        New users are numbered from 0; a user may have made no choice.
    choices
        Their choices, on training queries.
    user_features
        float32 [n_users, p] as in :class:`ChoiceData`, or None.
    links
        Ties of the new users to items and to the known users, or None.
    """

    n_users: int
    choices: Choices
    user_features: Floats | None = None
    links: UserLinks | None = None

    def __post_init__(self) -> None:
        if self.user_features is not None and len(self.user_features) != self.n_users:
            raise DataError(f"'user_features' must have {self.n_users} rows (got {len(self.user_features)})")
        if self.links is not None:
            self.links.check(self.n_users)


class ChoiceRouter(Protocol):
    """A router as the benchmark sees it. Higher scores are better; -inf excludes an LLM."""

    def fit(self, data: ChoiceData) -> None:
        """Learn from choices."""

    def scores(self, users: Ints, queries: Ints) -> Floats:
        """Scores of all LLMs for known users and queries, float32 [u, q, m]."""

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        """Scores for new users, without learning anew, float32 [support.n_users, q, m]."""
