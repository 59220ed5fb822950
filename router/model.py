"""The choice model: what a user wants from an LLM's answer, and how sure the model is of it.

Scores are logits of a choice model with latent factors,

    s(u, q, m) = z(u) · v(q, m) + b(q, m).

A user's vector z(u) has a mixture of Gaussians as prior, whose components ("tastes") are shared by all users
and whose weights may depend on what is known of the user beside choices (:mod:`router.graph`). The vector is
never stored per user: it is the mean of the posterior given the user's choices, by Laplace's approximation
within each component (Bishop, "Pattern Recognition and Machine Learning", section 4.4). That is an inductive
encoder of a set of choices: it serves users with none, few or many choices, known in training or not, in the
same way, and does not depend on their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from router.errors import DataError
from router.persona.data import Bools, Choices, Floats, Ints

_NEWTON_STEPS = 8
_LONGEST_STEP = 2.0
_CHUNK = 128  # users at a time; bounds memory


@dataclass(frozen=True, slots=True)
class Posterior:
    """What is known of users.

    Attributes
    ----------
    shares
        Probability of each taste, float32 [u, k].
    modes
        Most probable vector within each taste, float32 [u, k, d].
    log_evidence
        Log-probability of the user's choices under each taste, float32 [u, k]; 0 without choices.
    """

    shares: Tensor
    modes: Tensor
    log_evidence: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the users' vectors, float32 [u, d]."""
        return (self.shares[:, :, None] * self.modes).sum(dim=1)


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
        choices.check(n_users, *self.pairs.shape[:2])
        if log_prior is None:
            log_prior = self.log_shares.log_softmax(0).expand(n_users, -1)
        if log_prior.shape != (n_users, self.n_tastes):
            raise DataError(
                f"'log_prior' must have shape {(n_users, self.n_tastes)} (got {tuple(log_prior.shape)})"
            )
        parts = [self._laplace(part, n) for part, n in _by_users(choices, n_users)]
        modes = torch.cat([part[0] for part in parts] or [self.centres[None][:0]])
        evidence = torch.cat([part[1] for part in parts] or [self.log_shares[None][:0]])
        return Posterior((log_prior + evidence).softmax(dim=1), modes, evidence)

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

    def _laplace(self, choices: Choices, n_users: int) -> tuple[Tensor, Tensor]:
        """Mode [n_users, k, d] and log-evidence [n_users, k] under each taste, by damped Newton steps."""
        events = _Events.of(choices, n_users, self.pairs)
        precision = (-2.0 * self.log_sds).exp()
        z = self.centres.expand(n_users, -1, -1)
        for _ in range(_NEWTON_STEPS):
            _, slope, curvature = events.expand(z)
            uphill = slope - precision * (z - self.centres)
            step = torch.linalg.solve(curvature + precision.diag_embed(), uphill)
            length = step.norm(dim=2, keepdim=True).clamp(min=1e-12)
            z = z + step * (_LONGEST_STEP / length).clamp(max=1.0)
        log_likelihood, _, curvature = events.expand(z)
        log_prior = -0.5 * (precision * (z - self.centres) ** 2).sum(dim=2)
        # ½ log |Λ| - ½ log |Λ + H|: the share of the prior's volume that the choices leave.
        scaled = curvature * self.log_sds.exp()[..., None] * self.log_sds.exp()[..., None, :]
        left = -0.5 * torch.logdet(scaled + torch.eye(z.shape[2], device=z.device))
        return z, log_likelihood + log_prior + left


@dataclass(frozen=True, slots=True)
class _Events:
    """Choices of users, padded to the longest history.

    ``v`` [u, e, m, d], its products with itself ``squares`` [u, e * m, d * d], ``b`` [u, e, m] (-inf: not on
    offer), ``llms`` int64 [u, e], ``real`` [u, e] (0 in the padding).
    """

    v: Tensor
    squares: Tensor
    b: Tensor
    llms: Tensor
    real: Tensor

    @classmethod
    def of(cls, choices: Choices, n_users: int, pairs: Tensor) -> _Events:
        order = np.argsort(choices.users, kind="stable")
        users = choices.users[order]
        place = np.arange(users.size) - np.searchsorted(users, users)
        shape = (n_users, int(place.max(initial=-1)) + 1)
        at = (torch.from_numpy(users), torch.from_numpy(place))
        events = pairs[torch.from_numpy(choices.queries[order])]
        if choices.offered is not None:
            events[..., -1].masked_fill_(~torch.from_numpy(choices.offered[order]), -torch.inf)
        padded = pairs.new_zeros(*shape, *pairs.shape[1:])
        padded[at] = events
        llms, real = torch.zeros(shape, dtype=torch.int64), pairs.new_zeros(shape)
        llms[at], real[at] = torch.from_numpy(choices.llms[order]), 1.0
        v = padded[..., :-1]
        squares = (v[..., None] * v[..., None, :]).flatten(3).flatten(1, 2)
        return cls(v, squares, padded[..., -1], llms, real)

    def expand(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-likelihood [u, k], its gradient [u, k, d] and negative Hessian [u, k, d, d] at z [u, k, d]."""
        log_p = (z[:, None] @ self.v.mT + self.b[:, :, None]).log_softmax(dim=3)  # [u, e, k, m]
        p = log_p.exp() * self.real[..., None, None]
        chosen = self.llms[..., None, None].expand(*log_p.shape[:3], 1)
        log_likelihood = (log_p.gather(3, chosen)[..., 0] * self.real[..., None]).sum(dim=1)
        mean = p @ self.v  # [u, e, k, d]
        taken = self.v.gather(2, chosen[:, :, :1].expand(-1, -1, -1, z.shape[2])) * self.real[..., None, None]
        slope = (taken - mean).sum(dim=1)
        second = p.transpose(1, 2).flatten(2) @ self.squares
        of_means = mean.permute(0, 2, 3, 1) @ mean.transpose(1, 2)
        return log_likelihood, slope, second.reshape(of_means.shape) - of_means


def _by_users(choices: Choices, n_users: int) -> Iterator[tuple[Choices, int]]:
    """Choices of consecutive users, numbered from 0 in each part, and how many users they are."""
    ordered = choices.take(np.argsort(choices.users, kind="stable"))
    for first in range(0, n_users, _CHUNK):
        n = min(_CHUNK, n_users - first)
        begin, end = np.searchsorted(ordered.users, [first, first + n])
        part = ordered.take(np.arange(begin, end))
        yield Choices(part.users - first, part.queries, part.llms, part.offered), n
