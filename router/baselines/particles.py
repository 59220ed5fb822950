"""New users as a mixture of known ones.

Every known user v is a hypothesis ("particle") about a new user u, of weight

    π(v | u) · Π p_v(choice),    p_v = softmax of v's scores, over u's choices so far,

and the score for u is the mean of the known users' scores by these weights. The prior π is uniform, or
∝ exp(β x_u · x_v) where features x of users are given, β being the one that best predicts known users'
choices from each other; 0, which ignores the features, is among those tried. Nothing is trained.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from router.baselines.common import incidence, log_softmax
from router.persona.data import ChoiceData, ChoiceRouter, Choices, Floats, Ints, Support

_SHARPNESS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_N_JUDGED = 300


def particle_scores(model: ChoiceRouter, data: ChoiceData, support: Support, queries: Ints) -> Floats:
    """Scores for new users.

    Parameters
    ----------
    model
        Scores known users by logits.
    data
        What it was fitted to.
    support
        New users, with features if ``data`` has them.
    queries
        int64 [q].

    Returns
    -------
    float32 [support.n_users, q, m]
    """
    log_weights = np.zeros((support.n_users, data.n_users))
    if data.user_features is not None and support.user_features is not None:
        affinity = support.user_features @ data.user_features.T
        log_weights += best_sharpness(model, data) * affinity
    if len(support.choices):
        likelihood = _choice_log_likelihoods(model, data, support.choices)
        log_weights += incidence(support.choices.users, support.n_users) @ likelihood.T
    weights = np.exp(log_softmax(log_weights)).astype(np.float32)
    scores = model.scores(np.arange(data.n_users), queries)
    excluded = ~np.isfinite(scores).all(axis=(0, 1))
    scores[..., excluded] = 0.0
    mixed = weights @ scores.reshape(data.n_users, -1)
    result: Floats = mixed.reshape(support.n_users, *scores.shape[1:])
    result[..., excluded] = -np.inf
    return result


def best_sharpness(model: ChoiceRouter, data: ChoiceData) -> float:
    """β that best predicts single choices of known users from the other users."""
    assert data.user_features is not None
    judged = np.unique(data.choices.users)
    judged = judged[:: max(1, judged.size // _N_JUDGED)]
    choices = data.choices.take(np.isin(data.choices.users, judged))
    likelihood = np.exp(_choice_log_likelihoods(model, data, choices))
    affinity = data.user_features[choices.users] @ data.user_features.T
    own = (np.arange(len(choices)), choices.users)
    values = []
    for sharpness in _SHARPNESS:
        log_prior = sharpness * affinity
        log_prior[own] = -np.inf
        prior = np.exp(log_softmax(log_prior))
        values.append(float(np.log(np.einsum("nv,vn->n", prior, likelihood)).mean()))
    return _SHARPNESS[int(np.argmax(values))]


def _choice_log_likelihoods(model: ChoiceRouter, data: ChoiceData, choices: Choices) -> NDArray[np.floating]:
    """Log-probability of each choice under each known user, [n_users, n]."""
    queries, column = np.unique(choices.queries, return_inverse=True)
    scores = model.scores(np.arange(data.n_users), queries)
    if choices.offered is None:
        return log_softmax(scores)[:, column, choices.llms]
    at_choice = np.where(choices.offered, scores[:, column], -np.inf)
    return log_softmax(at_choice)[:, np.arange(len(choices)), choices.llms]
