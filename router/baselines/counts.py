"""Baselines that count: popularity, by task, by user and task, and users alike."""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from router.baselines.common import require, without_unknown
from router.persona.data import ChoiceData, Choices, Floats, Ints, Support

Doubles = NDArray[np.float64]


class PopularityRouter:
    """The LLM chosen most often, in all or for the query's task or the query itself; blind to users.

    Parameters
    ----------
    by
        ``"all"``, ``"task"``, or ``"query"``, which falls back to its task by ``shrinkage`` pseudo-counts.
    shrinkage
        Pseudo-counts from the next coarser level.
    """

    def __init__(self, by: Literal["all", "task", "query"] = "task", *, shrinkage: float = 5.0) -> None:
        self.by = by
        self.shrinkage = shrinkage
        self._shares: Doubles | None = None

    def fit(self, data: ChoiceData) -> None:
        """Count."""
        shares = np.full((1, data.n_llms), 1.0 / data.n_llms)
        shares = smoothed(
            count(data.choices, np.zeros(len(data.choices), dtype=np.int64), 1, data), shares, self.shrinkage
        )
        if self.by != "all":
            tasks = data.tasks[data.choices.queries]
            shares = smoothed(count(data.choices, tasks, data.n_tasks, data), shares, self.shrinkage)[
                data.tasks
            ]
        if self.by == "query":
            counts = count(data.choices, data.choices.queries, data.n_queries, data)
            shares = smoothed(counts, shares, self.shrinkage)
        self._shares = np.broadcast_to(shares, (data.n_queries, data.n_llms))
        self._data = data

    def scores(self, users: Ints, queries: Ints) -> Floats:
        """Shares of choices, the same for all users, float32 [u, q, m]."""
        require(self._shares, self)
        assert self._shares is not None
        shares = self._shares[queries].astype(np.float32)
        return without_unknown(np.tile(shares, (len(users), 1, 1)), self._data)

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        """As for everyone else."""
        return self.scores(np.arange(support.n_users), queries)


class UserTaskRouter:
    """The user's own choices within a task, filled up with what the user and the task make likely.

    Parameters
    ----------
    user_shrinkage
        Pseudo-counts of the popularity in a user's counts.
    shrinkage
        Pseudo-counts of task share × user share ÷ popularity in the counts of a user and task.
    """

    def __init__(self, *, user_shrinkage: float = 16.0, shrinkage: float = 40.0) -> None:
        self.user_shrinkage = user_shrinkage
        self.shrinkage = shrinkage
        self._task_shares: Doubles | None = None

    def fit(self, data: ChoiceData) -> None:
        """Count."""
        choices = data.choices
        popularity = count(choices, np.zeros(len(choices), dtype=np.int64), 1, data) + 1.0
        self._popularity = popularity / popularity.sum()
        by_task = count(choices, data.tasks[choices.queries], data.n_tasks, data)
        self._task_shares = smoothed(by_task, self._popularity, 1.0)
        self._data = data
        self._known = self._user_scores(choices, data.n_users)

    def scores(self, users: Ints, queries: Ints) -> Floats:
        """Smoothed counts, float32 [u, q, m]."""
        require(self._task_shares, self)
        return without_unknown(self._known[np.ix_(users, self._data.tasks[queries])], self._data)

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        """Counts of the support."""
        require(self._task_shares, self)
        scores = self._user_scores(support.choices, support.n_users)
        return without_unknown(scores[:, self._data.tasks[queries]], self._data)

    def _user_scores(self, choices: Choices, n_users: int) -> Floats:
        """float32 [u, task, m]."""
        assert self._task_shares is not None
        data = self._data
        user_shares = smoothed(
            count(choices, choices.users, n_users, data), self._popularity, self.user_shrinkage
        )
        prior = self._task_shares * (user_shares / self._popularity)[:, None]
        prior /= prior.sum(axis=2, keepdims=True)
        cells = choices.users * data.n_tasks + data.tasks[choices.queries]
        counts = count(choices, cells, n_users * data.n_tasks, data).reshape(prior.shape)
        result: Floats = (counts + self.shrinkage * prior).astype(np.float32)
        return result


class UserKnnRouter:
    """What users alike chose for the query, and in its task.

    Alike are users of like surprises: choices beyond what the query lets expect, by query and by task.

    Parameters
    ----------
    n_neighbors
        Neighbours, weighted by the cosine of the surprises.
    shrinkage
        Votes for the query that the neighbours' shares within its task are worth.
    """

    def __init__(self, n_neighbors: int = 300, *, shrinkage: float = 1.0) -> None:
        self.n_neighbors = n_neighbors
        self.shrinkage = shrinkage
        self._profiles: sp.csr_array | None = None

    def fit(self, data: ChoiceData) -> None:
        """Build the users' profiles."""
        self._data = data
        choices, m = data.choices, data.n_llms
        uniform = np.full((1, m), 1.0 / m)
        self._query_shares = smoothed(count(choices, choices.queries, data.n_queries, data), uniform, 1.0)
        by_task = count(choices, data.tasks[choices.queries], data.n_tasks, data)
        self._task_shares = smoothed(by_task, uniform, 1.0)
        self._made = _made(choices, choices.queries, data.n_users, data.n_queries, m)
        self._made_by_task = _made(choices, data.tasks[choices.queries], data.n_users, data.n_tasks, m)
        self._profiles = self._profile(choices, data.n_users)

    def scores(self, users: Ints, queries: Ints) -> Floats:
        """Weighted votes of the neighbours, float32 [u, q, m]."""
        require(self._profiles, self)
        assert self._profiles is not None
        similarity = (self._profiles[users] @ self._profiles.T).toarray()
        similarity[np.arange(len(users)), users] = 0.0
        return self._votes(similarity, queries)

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        """As for known users; all known users are the neighbours of one without choices."""
        require(self._profiles, self)
        assert self._profiles is not None
        similarity = (self._profile(support.choices, support.n_users) @ self._profiles.T).toarray()
        similarity[np.bincount(support.choices.users, minlength=support.n_users) == 0] = 1.0
        return self._votes(similarity, queries)

    def _profile(self, choices: Choices, n_users: int) -> sp.csr_array:
        """Surprises by (query, LLM) and by (task, LLM); unit rows."""
        data, m = self._data, self._data.n_llms
        surprise = -self._query_shares[choices.queries]
        surprise[np.arange(len(choices)), choices.llms] += 1.0
        users = np.repeat(choices.users, m)
        queries = (choices.queries[:, None] * m + np.arange(m)).ravel()
        tasks = (data.tasks[choices.queries][:, None] * m + np.arange(m)).ravel() + data.n_queries * m
        rows, columns = np.concatenate([users, users]), np.concatenate([queries, tasks])
        values = np.concatenate([surprise.ravel(), surprise.ravel()])
        profile = sp.csr_array(
            (values, (rows, columns)), shape=(n_users, (data.n_queries + data.n_tasks) * m)
        )
        norms = np.sqrt(profile.multiply(profile).sum(axis=1))
        return sp.csr_array(sp.diags_array(1.0 / np.maximum(norms, 1e-12)) @ profile)

    def _votes(self, similarity: Doubles, queries: Ints) -> Floats:
        data = self._data
        k = min(self.n_neighbors, data.n_users)
        least = np.partition(similarity, -k, axis=1)[:, [-k]]
        weights = np.where(similarity >= least, similarity.clip(0.0), 0.0)
        shape = (len(weights), -1, data.n_llms)
        by_query = (weights @ self._made).reshape(shape)[:, queries]
        by_task = (weights @ self._made_by_task).reshape(shape) + self._task_shares
        by_task /= by_task.sum(axis=2, keepdims=True)
        votes: Floats = (by_query + self.shrinkage * by_task[:, data.tasks[queries]]).astype(np.float32)
        return without_unknown(votes, data)


def _made(choices: Choices, groups: Ints, n_users: int, n_groups: int, m: int) -> sp.csr_array:
    """Choices of each user by (group, LLM), [u, n_groups * m]."""
    cells = groups * m + choices.llms
    return sp.csr_array((np.ones(cells.size), (choices.users, cells)), shape=(n_users, n_groups * m))


def count(choices: Choices, groups: Ints, n_groups: int, data: ChoiceData) -> Doubles:
    """Choices of each LLM by group, float64 [n_groups, m]."""
    cells = groups * data.n_llms + choices.llms
    return np.bincount(cells, minlength=n_groups * data.n_llms).reshape(n_groups, -1).astype(np.float64)


def smoothed(counts: Doubles, prior: Doubles, strength: float) -> Doubles:
    """Shares, with ``strength`` pseudo-counts of a prior."""
    result: Doubles = (counts + strength * prior) / (counts.sum(axis=1, keepdims=True) + strength)
    return result
