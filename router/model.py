"""The choice model: what a user wants from an LLM's answer, and how sure the model is of it.

Scores are logits of a choice model with latent factors,

    s(u, q, m) = z(u) · v(q, m) + b(q, m).

A user's vector z(u) has a mixture of Gaussians as prior, whose components ("tastes") are shared by all users
and whose weights may depend on what is known of the user beside choices (:mod:`router.graph`). The vector is
never a parameter: it is the mean of the posterior given the user's choices (:mod:`router.posterior`). That is
an inductive encoder of a set of choices: it serves users with none, few or many choices, known in training or
not, in the same way, and does not depend on their order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from router.errors import DataError
from router.persona.data import Bools, Choices, Floats, Ints
from router.posterior import Tastes, infer


@dataclass(frozen=True, slots=True)
class Posterior:
    """What is known of users.

    Attributes
    ----------
    shares
        Probability of each taste, float32 [u, k].
    mean
        Mean of the users' vectors, float32 [u, d].
    log_evidence
        Log-probability of the user's choices under each taste, float32 [u, k]; 0 without choices.
    """

    shares: Tensor
    mean: Tensor
    log_evidence: Tensor


@dataclass(frozen=True, slots=True)
class TasteModel:
    """Factors of queries and LLMs, and the tastes that users are drawn from.

    Attributes
    ----------
    pairs
        Factors and bias of each query and LLM, [v, b], float32 [q, m, d + 1].
    log_shares
        Logarithm of the tastes' shares among users, float32 [k].
    centres, log_sds
        Centre of each taste and logarithm of its standard deviations, float32 [k, d].
    by_task
        Factors and bias of an unseen query, by its task, float32 [t, m, d + 1].
    by_feature
        What features of the answers add, by task, float32 [t, f, d + 1]; None in the choice-only track.
    """

    pairs: Tensor
    log_shares: Tensor
    centres: Tensor
    log_sds: Tensor
    by_task: Tensor
    by_feature: Tensor | None = None

    @property
    def n_tastes(self) -> int:
        """Number of tastes."""
        return self.log_shares.numel()

    def posterior(self, choices: Choices, n_users: int, log_prior: Tensor | None = None) -> Posterior:
        """Infer users' vectors from their choices.

        Parameters
        ----------
        choices
            Of users 0 … ``n_users`` - 1, in any order.
        n_users
            A user may have made no choice.
        log_prior
            Logarithm of the tastes' shares for each user, float32 [n_users, k]; by default the same for all.

        Raises
        ------
        DataError
            A choice names a user, query or LLM out of range.
        """
        if log_prior is not None and log_prior.shape != (n_users, self.n_tastes):
            raise DataError(
                f"'log_prior' must have shape {(n_users, self.n_tastes)} (got {tuple(log_prior.shape)})"
            )
        shares = None if log_prior is None else log_prior.numpy()
        beliefs = infer(self.tastes, self.pairs.numpy(), choices, n_users, shares)
        parts = beliefs.shares, beliefs.mean, beliefs.log_evidence
        return Posterior(*(torch.from_numpy(part) for part in parts))

    @property
    def tastes(self) -> Tastes:
        """The prior that is the same for all users."""
        log_shares = self.log_shares.log_softmax(0)
        return Tastes(log_shares.numpy(), self.centres.numpy(), self.log_sds.numpy())

    def pairs_of(self, tasks: Ints, features: Floats | None = None) -> Tensor:
        """Factors and bias of queries that were not there in training, float32 [q, m, d + 1].

        Parameters
        ----------
        tasks
            int64 [q].
        features
            Features of the answers as predicted, float32 [q, m, f]; in the telemetry track only.

        Raises
        ------
        DataError
            Features are given to a model of the choice-only track, or the other way round.
        """
        if (features is None) != (self.by_feature is None):
            raise DataError("'features' must be given in the telemetry track, and only there")
        of_tasks = torch.from_numpy(tasks)
        pairs = self.by_task[of_tasks]
        if features is not None and self.by_feature is not None:
            pairs = pairs + torch.from_numpy(features) @ self.by_feature[of_tasks]
        return pairs

    def scores(self, users: Tensor, queries: Ints) -> Floats:
        """Expected logits, float32 [u, q, m].

        Parameters
        ----------
        users
            Vectors, float32 [u, d].
        queries
            int64 [q].
        """
        pairs = self.pairs[torch.from_numpy(queries)]
        logits = users @ pairs[..., :-1].flatten(0, 1).T
        result: Floats = (logits.reshape(len(users), *pairs.shape[:2]) + pairs[..., -1]).cpu().numpy()
        return result

    def without_unknown(self, known: Bools) -> TasteModel:
        """Exclude LLMs of which nothing has been observed, by a bias of -inf."""
        unknown = torch.from_numpy(np.flatnonzero(~known))
        pairs, by_task = self.pairs.clone(), self.by_task.clone()
        pairs[:, unknown, -1] = by_task[:, unknown, -1] = -torch.inf
        return replace(self, pairs=pairs, by_task=by_task)
