"""Bayes' rule with the true law of a world: what no router that has to learn the law can exceed by much.

Given the prototype k, a user's tastes θ = (P + e, PD + e', B + b) are Gaussian with known means and
variances, and the logits of a choice are linear in them,

    U / τ = (base + scale · x(q, m) · θ) / τ,      x = (Z, Z in the query's domain, indicator of m).

The posterior of θ for each k is Laplace's approximation (Newton's method, as the likelihood is concave); its
evidence weighs the prototypes. The features Z of answers to test queries are predicted as in the telemetry
track's baseline. Differs from a router in that it is told P, PD, B, π, all variances and the base utility's
weights: a reference, not a competitor.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from router.baselines.common import log_softmax, require
from router.baselines.telemetry import complete_features
from router.errors import ParameterError
from router.persona.data import ChoiceData, Choices, Floats, Ints, Support
from router.persona.simulate import user_deviations
from router.persona.world import TEMPERATURE, World

Doubles = NDArray[np.float64]
_NEWTON_STEPS = 6


class BayesRouter:
    """Posterior mean under the law of a world.

    Parameters
    ----------
    world
        Gives the law, which routers never see; of its features those that the data shows are used.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._design: Doubles | None = None

    def fit(self, data: ChoiceData) -> None:
        """Compute the posterior of all users.

        Raises
        ------
        ParameterError
            The data is of the choice-only track.
        """
        if data.features is None:
            raise ParameterError("'features' must be given: the law is one over features of answers")
        world = self._world
        z = complete_features(data)
        n_domains = world.prototype_domain_weights.shape[1]
        q, m, f = z.shape
        in_domain = np.zeros((q, m, n_domains, f))
        in_domain[np.arange(q), :, world.domains] = z
        llms = np.broadcast_to(np.eye(m), (q, m, m))
        x = np.concatenate([z, in_domain.reshape(q, m, -1), llms], axis=2)
        # The base utility is linear in the features; on training queries it is known exactly.
        known = world.features[data.train_queries].reshape(-1, f).astype(np.float64)
        common, *_ = np.linalg.lstsq(known, world.base[data.train_queries].ravel(), rcond=None)
        self._offset = z @ common / TEMPERATURE
        self._design = x * (world.personal_scale / TEMPERATURE)
        sds = np.repeat(user_deviations(world), (f, n_domains * f, m))
        self._precision = sds**-2.0
        k = len(world.prototype_shares)
        self._centres = np.concatenate(
            [
                world.prototype_weights,
                world.prototype_domain_weights.reshape(k, -1),
                world.prototype_llm_bias,
            ],
            axis=1,
        )
        self._tastes = self._posterior_means(data.choices, data.n_users)

    def scores(self, users: Ints, queries: Ints) -> Floats:
        """Expected logits of known users, float32 [u, q, m]."""
        require(self._design, self)
        return self._scores(self._tastes[users], queries)

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        """Expected logits of new users: the same rule."""
        require(self._design, self)
        return self._scores(self._posterior_means(support.choices, support.n_users), queries)

    def _scores(self, tastes: Doubles, queries: Ints) -> Floats:
        assert self._design is not None
        x = self._design[queries]
        logits = (tastes @ x.reshape(-1, x.shape[2]).T).reshape(len(tastes), *x.shape[:2])
        result: Floats = (logits + self._offset[queries]).astype(np.float32)
        return result

    def _posterior_means(self, choices: Choices, n_users: int) -> Doubles:
        """E θ, float64 [u, d]."""
        order = np.argsort(choices.users, kind="stable")
        ends = np.searchsorted(choices.users[order], np.arange(n_users + 1))
        means = [self._posterior_mean(choices.take(order[a:b])) for a, b in pairwise(ends)]
        return np.stack(means)

    def _posterior_mean(self, choices: Choices) -> Doubles:
        """E θ of one user with these choices, float64 [d]."""
        assert self._design is not None
        shares, centres, precision = self._world.prototype_shares, self._centres, self._precision
        n, rows = len(choices), np.arange(len(choices))
        if not n:
            mean: Doubles = shares @ centres
            return mean
        x, offset = self._design[choices.queries], self._offset[choices.queries].copy()
        if choices.offered is not None:
            offset[~choices.offered] = -np.inf
        flat = x.reshape(-1, x.shape[2])
        theta = centres
        for _ in range(_NEWTON_STEPS):
            p = np.exp(log_softmax((theta @ flat.T).reshape(-1, *offset.shape) + offset))
            information = _information(p, x, flat)
            slope = x[rows, choices.llms].sum(axis=0) - p.reshape(len(theta), -1) @ flat
            uphill = slope - precision * (theta - centres)
            curvature = information + np.diag(precision)
            theta = theta + np.linalg.solve(curvature, uphill[..., None])[..., 0]
        log_p = log_softmax((theta @ flat.T).reshape(-1, *offset.shape) + offset)
        curvature = _information(np.exp(log_p), x, flat) + np.diag(precision)
        log_evidence = (
            np.log(shares)
            + log_p[:, rows, choices.llms].sum(axis=1)
            - 0.5 * (precision * (theta - centres) ** 2).sum(axis=1)
            - 0.5 * np.linalg.slogdet(curvature)[1]
        )
        expected: Doubles = np.exp(log_softmax(log_evidence)) @ theta
        return expected


def _information(p: Doubles, x: Doubles, flat: Doubles) -> Doubles:
    """Fisher information of the choices, float64 [k, d, d], p being probabilities [k, n, m]."""
    k, n, m = p.shape
    weighted = flat * p.reshape(k, n * m, 1)
    mean_x = np.einsum("knm,nmd->knd", p, x, optimize=True)
    result: Doubles = flat.T @ weighted - mean_x.transpose(0, 2, 1) @ mean_x
    return result
