"""Further users of a world, drawn from the law of its users.

    w(u, g) = P(k) + PD(k, g) + e(u) + e(u, g),    b(u, m) = B(k, m) + b'(u, m),

k being the user's prototype; e and b' are Gaussian, with the variances of the world's own users.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from router.errors import ParameterError
from router.persona.data import Choices, Floats, Ints
from router.persona.world import TEMPERATURE, Users, World

MIN_CHOICES, MAX_CHOICES = 20, 60
Deviations = tuple[float, float, float]
_USER_STREAM, _EVENT_STREAM = 10, 20


def draw_users(world: World, seed: int, prototypes: Ints, deviations: Deviations | None = None) -> Users:
    """Draw users of given prototypes, and their choices.

    Parameters
    ----------
    world
        Gives prototypes, queries and LLMs.
    seed
        Of users and choices.
    prototypes
        int64 [u].
    deviations
        Standard deviations of e(u), e(u, g) and b', or None to take those of the world's own users.

    Raises
    ------
    ParameterError
        A prototype is not one of the world's, or the world has too few training queries.
    """
    n_prototypes, n_domains, n_features = world.prototype_domain_weights.shape
    if prototypes.size and not (prototypes.min() >= 0 and prototypes.max() < n_prototypes):
        raise ParameterError(f"'prototypes' must lie in 0..{n_prototypes - 1}")
    if np.count_nonzero(world.train_queries) < MAX_CHOICES:
        raise ParameterError(f"'world' must have at least {MAX_CHOICES} training queries")
    rng = np.random.default_rng(np.random.SeedSequence([seed, _USER_STREAM]))
    user_sd, domain_sd, llm_sd = deviations or user_deviations(world)
    n, m = prototypes.size, len(world.llm_names)
    own = rng.normal(0.0, user_sd, (n, 1, n_features)) + rng.normal(
        0.0, domain_sd, (n, n_domains, n_features)
    )
    weights = world.prototype_weights[prototypes][:, None] + world.prototype_domain_weights[prototypes] + own
    bias = rng.normal(0.0, llm_sd, (n, m))
    bias += world.prototype_llm_bias[prototypes] - bias.mean(axis=1, keepdims=True)
    tastes = weights.astype(np.float32), bias.astype(np.float32)
    choices = _draw_choices(world, world.utilities_of(*tastes), seed)
    return Users(*tastes, prototypes, choices)


def _draw_choices(world: World, utilities: Floats, seed: int) -> Choices:
    rng = np.random.default_rng(np.random.SeedSequence([seed, _EVENT_STREAM]))
    train = np.flatnonzero(world.train_queries)
    n_choices = rng.integers(MIN_CHOICES, MAX_CHOICES + 1, size=len(utilities))
    queries = np.concatenate([rng.choice(train, size=n, replace=False) for n in n_choices])
    users = np.repeat(np.arange(len(utilities)), n_choices)
    at_choice = utilities[users, queries] / TEMPERATURE
    return Choices(users, queries, (at_choice + rng.gumbel(size=at_choice.shape)).argmax(axis=1))


def user_deviations(world: World) -> Deviations:
    """Standard deviations of e(u), e(u, g) and b', from the users that the world came with."""
    own, bias = [], []
    for users in world.users.values():
        k = users.prototypes
        own.append(users.weights - world.prototype_weights[k][:, None] - world.prototype_domain_weights[k])
        bias.append(users.llm_bias - world.prototype_llm_bias[k])
    residual: NDArray[np.float64] = np.concatenate(own)
    n_domains, n_llms = residual.shape[1], bias[0].shape[1]
    domain_variance = float(residual.var(axis=1, ddof=1).mean())
    user_variance = max(0.0, float(residual.mean(axis=1).var()) - domain_variance / n_domains)
    # Centring over the LLMs took a part of the variance of b' away.
    llm_variance = float(np.concatenate(bias).var()) * n_llms / (n_llms - 1)
    return user_variance**0.5, domain_variance**0.5, llm_variance**0.5
