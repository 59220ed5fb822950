"""Latent factors of users and of (query, LLM) pairs, fitted to choices by maximum posterior.

Scores are logits of a choice model,

    s(u, q, m) = p(u) · v(q, m) + b(q, m),      [v, b](q, ·) = Σ φ(q, j) W(j),

where φ describes queries: a constant, the task, the query itself, its embedding. The constant and the task
alone make matrix factorisation, the query itself adds factors of each query, the embedding makes the model
bilinear, and no factors at all make it blind to users. All have Gaussian priors; L-BFGS finds the maximum.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from router.baselines.common import incidence, log_softmax, require, without_unknown
from router.baselines.particles import particle_scores
from router.errors import ParameterError
from router.persona.data import ChoiceData, Floats, Ints, Support

Block = Literal["task", "query", "embedding"]


class FactorRouter:
    """Choice model with latent factors.

    Parameters
    ----------
    blocks
        What queries are described by, beside a constant.
    n_factors
        Factors; 0 makes the model blind to users.
    factor_penalty
        Precision of the prior of W's factors; users' factors have precision 1.
    bias_penalty
        Precision of the prior of W's biases.
    embedding_scale
        Factor of the embeddings, which are unit vectors, against the indicators of task and query.
    n_iterations
        Most iterations of L-BFGS.
    seed
        Of the starting point.
    """

    def __init__(
        self,
        blocks: tuple[Block, ...] = ("task", "query"),
        *,
        n_factors: int = 8,
        factor_penalty: float = 30.0,
        bias_penalty: float = 1.0,
        embedding_scale: float = 0.3,
        n_iterations: int = 200,
        seed: int = 0,
    ) -> None:
        if n_factors < 0:
            raise ParameterError(f"'n_factors' must not be negative (got {n_factors})")
        self.blocks = blocks
        self.n_factors = n_factors
        self.factor_penalty = factor_penalty
        self.bias_penalty = bias_penalty
        self.embedding_scale = embedding_scale
        self.n_iterations = n_iterations
        self.seed = seed
        self._fitted: tuple[Floats, Floats] | None = None

    def fit(self, data: ChoiceData) -> None:
        """Find the maximum of the posterior."""
        posterior = _Posterior(
            data, self._design(data), self.n_factors, self.factor_penalty, self.bias_penalty
        )
        options = {"maxiter": self.n_iterations}
        start = posterior.start(np.random.default_rng(self.seed))
        best = minimize(posterior.loss, start, jac=True, method="L-BFGS-B", options=options)
        users, weights = posterior.split(best.x)
        self._fitted = users, posterior.pairs(weights)
        self._data = data

    def scores(self, users: Ints, queries: Ints) -> Floats:
        """Logits of known users, float32 [u, q, m]."""
        require(self._fitted, self)
        assert self._fitted is not None
        factors, pairs = self._fitted
        d = self.n_factors
        v = pairs[queries]
        logits = factors[users] @ v[..., :d].reshape(v.shape[0] * v.shape[1], d).T
        return without_unknown(logits.reshape(len(users), *v.shape[:2]) + v[..., d], self._data)

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        """Posterior mean over the known users."""
        require(self._fitted, self)
        return particle_scores(self, self._data, support, queries)

    def _design(self, data: ChoiceData) -> Floats:
        """φ, float32 [q, j]."""
        parts: list[Floats] = [np.ones((data.n_queries, 1), dtype=np.float32)]
        if "task" in self.blocks:
            parts.append(np.eye(data.n_tasks, dtype=np.float32)[data.tasks])
        if "query" in self.blocks:
            parts.append(np.eye(data.n_queries, dtype=np.float32)[:, data.train_queries])
        if "embedding" in self.blocks:
            parts.append(np.float32(self.embedding_scale) * data.query_embeddings)
        return np.concatenate(parts, axis=1)


class _Posterior:
    """Negative log-posterior of all parameters in one vector, and its gradient."""

    def __init__(
        self, data: ChoiceData, design: Floats, n_factors: int, factor_penalty: float, bias_penalty: float
    ) -> None:
        self.choices, self.n_llms, self.n_factors = data.choices, data.n_llms, n_factors
        self.design = design
        self.users_shape = data.n_users, n_factors
        self.of_user = incidence(data.choices.users, data.n_users)
        self.of_query = incidence(data.choices.queries, data.n_queries)
        penalty = np.full((data.n_llms, n_factors + 1), factor_penalty, dtype=np.float32)
        penalty[:, n_factors] = bias_penalty
        self.penalty = penalty.ravel()

    def start(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Small random numbers."""
        users = rng.normal(0.0, 0.3, self.users_shape)
        weights = rng.normal(0.0, 0.1, (self.design.shape[1], self.penalty.size))
        return np.concatenate([users.ravel(), weights.ravel()])

    def split(self, x: NDArray[np.float64]) -> tuple[Floats, Floats]:
        """Users' factors, float32 [u, d], and W, float32 [j, m * (d + 1)]."""
        n = self.users_shape[0] * self.users_shape[1]
        x32 = x.astype(np.float32)
        return x32[:n].reshape(self.users_shape), x32[n:].reshape(-1, self.penalty.size)

    def pairs(self, weights: Floats) -> Floats:
        """Factors and bias of all pairs, [v, b], float32 [q, m, d + 1]."""
        pairs: Floats = (self.design @ weights).reshape(-1, self.n_llms, self.n_factors + 1)
        return pairs

    def loss(self, x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Value and gradient."""
        users, weights = self.split(x)
        choices, d, rows = self.choices, self.n_factors, np.arange(len(self.choices))
        v, p = self.pairs(weights)[choices.queries], users[choices.users]
        logits = np.einsum("nmd,nd->nm", v[..., :d], p) + v[..., d]
        if choices.offered is not None:
            logits[~choices.offered] = -np.inf
        log_p = log_softmax(logits)
        slope = np.exp(log_p)
        slope[rows, choices.llms] -= 1.0
        user_slope = self.of_user @ np.einsum("nm,nmd->nd", slope, v[..., :d]) + users
        by_event = np.concatenate([slope[..., None] * p[:, None], slope[..., None]], axis=2)
        weight_slope = self.design.T @ (self.of_query @ by_event.reshape(rows.size, self.penalty.size))
        weight_slope += self.penalty * weights
        prior = (users.astype(np.float64) ** 2).sum() + (self.penalty * weights.astype(np.float64) ** 2).sum()
        value = 0.5 * float(prior) - float(log_p[rows, choices.llms].sum(dtype=np.float64))
        return value, np.concatenate([user_slope.ravel(), weight_slope.ravel()]).astype(np.float64)
