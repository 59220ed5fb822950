"""The multi-cost-efficiency protocol of PersonalizedRouter (arXiv 2511.16883): nine users who weigh cost.

User p is rewarded by p · effect - (1 - p) · cost, for p = 0.2, 0.3 ... 1.0. It hardly tests personalisation:
a router that sees the answers but not the user (``blind``) comes near the oracle. It is here for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.baselines.telemetry import predict_by_ridge
from router.errors import DataError, ParameterError
from router.loaders import ResponseTable
from router.persona.data import Floats
from router.persona.responses import scaled_by_group

Doubles = NDArray[np.float64]

PREFERENCES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class CostEfficiency:
    """Mean reward over users and queries, each query judged by what was learned from others.

    Attributes
    ----------
    best_single
        The LLM that is best for all on the training queries.
    ridge
        Effect and cost of each LLM predicted from task and embedding, the user's p known.
    blind
        Sees the answers to the query, not the user: the LLM best on average over users.
    oracle
        Sees both.
    """

    best_single: float
    ridge: float
    blind: float
    oracle: float


def cost_efficiency(
    table: ResponseTable, query_embeddings: Floats, *, n_folds: int = 5, seed: int = 0
) -> CostEfficiency:
    """Measure the simple routers, cross-validated over queries.

    Parameters
    ----------
    table
        Quality counts as it is, a missing one as 0; cost is scaled to 0..1 within each task.
    query_embeddings
        float32 [q, d].
    n_folds, seed
        Of the cross-validation.

    Raises
    ------
    DataError
        A cost is unknown, or the embeddings are of other queries.
    ParameterError
        There are fewer than two folds.
    """
    if len(query_embeddings) != len(table.queries):
        raise DataError(
            f"'query_embeddings' must have {len(table.queries)} rows (got {len(query_embeddings)})"
        )
    if np.isnan(table.cost_usd).any():
        raise DataError("'table' must have the cost of every answer (got NaN)")
    if n_folds < 2:
        raise ParameterError(f"'n_folds' must be at least 2 (got {n_folds})")
    tasks, task = np.unique(np.array(table.tasks), return_inverse=True)
    effect, cost = np.nan_to_num(table.quality), scaled_by_group(table.cost_usd, task)
    rewards = reward(effect, cost)
    x = np.concatenate([np.eye(tasks.size)[task], query_embeddings], axis=1)
    folds = np.random.default_rng(seed).permutation(len(x)) % n_folds
    n_llms = len(table.llms)
    single, ridge = np.zeros(len(x), dtype=np.int64), np.zeros((len(PREFERENCES), len(x)), dtype=np.int64)
    for fold in range(n_folds):
        out = folds == fold
        single[out] = rewards[:, ~out].mean(axis=(0, 1)).argmax()
        guess = predict_by_ridge(x[~out], np.concatenate([effect, cost], axis=1)[~out], x[out])
        ridge[:, out] = reward(guess[:, :n_llms], guess[:, n_llms:]).argmax(axis=2)
    blind = rewards.mean(axis=0).argmax(axis=1)

    def mean_of(picks: NDArray[np.int64]) -> float:
        wide = np.broadcast_to(picks, rewards.shape[:2])
        return float(np.take_along_axis(rewards, wide[..., None], axis=2).mean())

    return CostEfficiency(mean_of(single), mean_of(ridge), mean_of(blind), float(rewards.max(axis=2).mean()))


def reward(effect: Doubles, cost: Doubles) -> Doubles:
    """P · effect - (1 - p) · cost of every user, float64 [9, q, m]."""
    p = np.array(PREFERENCES)[:, None, None]
    return np.asarray(p * effect - (1.0 - p) * cost)
