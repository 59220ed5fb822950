"""What is believed of users: the posterior of their vectors given choices (:mod:`router.model`).

A mixture of Gaussians as prior, Laplace's approximation within each of its components (Bishop, "Pattern
Recognition and Machine Learning", section 4.4). In numpy, so that training and a service without PyTorch have
the same. Beside the mean it gives the covariance, which says how sure the scores of a user are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.persona.data import Bools, Choices, Floats, Ints

Reals = NDArray[np.floating]
_NEWTON_STEPS = 8
_LONGEST_STEP = 2.0
_CHUNK = 128  # users at a time; bounds memory


@dataclass(frozen=True, slots=True)
class Tastes:
    """The prior of users' vectors.

    Attributes
    ----------
    log_shares
        Logarithm of the tastes' shares among users, float32 [k].
    centres, log_sds
        Centre of each taste and logarithm of its standard deviations, float32 [k, d].
    """

    log_shares: Floats
    centres: Floats
    log_sds: Floats


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What is believed of users.

    Attributes
    ----------
    shares
        Probability of each taste, float32 [u, k].
    mean
        Mean of the users' vectors, float32 [u, d].
    covariance
        Of their vectors, float32 [u, d, d].
    log_evidence
        Log-probability of the user's choices under each taste, float32 [u, k]; 0 without choices.
    """

    shares: Floats
    mean: Floats
    covariance: Floats
    log_evidence: Floats


def infer(
    tastes: Tastes, pairs: Floats, choices: Choices, n_users: int, log_prior: Floats | None = None
) -> Beliefs:
    """Infer users' vectors from their choices.

    Parameters
    ----------
    tastes
        The prior.
    pairs
        Factors and bias of each query and LLM, [v, b], float32 [q, m, d + 1].
    choices
        Of users 0 … ``n_users`` - 1, in any order; a user may have made none.
    n_users
        Number of users.
    log_prior
        Logarithm of the tastes' shares for each user, float32 [n_users, k]; by default the same for all.

    Raises
    ------
    DataError
        A choice names a user, query or LLM out of range.
    """
    choices.check(n_users, *pairs.shape[:2])
    if log_prior is None:
        log_prior = np.broadcast_to(tastes.log_shares, (n_users, tastes.log_shares.size))
    k, d = tastes.centres.shape
    shapes = (k,), (d,), (d, d), (k,)
    fields = tuple(np.zeros((n_users, *shape), np.float32) for shape in shapes)
    for part, users in _by_users(choices, n_users):
        found = _laplace(tastes, _Events.of(part, users.size, pairs), log_prior[users])
        for field, values in zip(
            fields, (found.shares, found.mean, found.covariance, found.log_evidence), strict=True
        ):
            field[users] = values
    return Beliefs(*fields)


def _by_users(choices: Choices, n_users: int) -> Iterator[tuple[Choices, Ints]]:
    """Choices of some users, numbered from 0 in each part, and which users they are.

    Users of a part have about as many choices each: all are padded to the longest history of the part.
    """
    users = np.argsort(np.bincount(choices.users, minlength=n_users), kind="stable")
    place = np.empty(n_users, dtype=np.int64)
    place[users] = np.arange(n_users)
    places = place[choices.users]
    order = np.argsort(places, kind="stable")
    ordered, places = choices.take(order), places[order]
    for first in range(0, n_users, _CHUNK):
        rows = slice(first, min(first + _CHUNK, n_users))
        begin, end = np.searchsorted(places, [rows.start, rows.stop])
        part = ordered.take(np.arange(begin, end))
        yield Choices(places[begin:end] - first, part.queries, part.llms, part.offered), users[rows]


@dataclass(frozen=True, slots=True)
class _Events:
    """Choices of users, padded to the longest history.

    ``v`` [u, e, m, d], ``b`` [u, e, m] (-inf: not on offer), ``llms`` int64 [u, e], ``real`` [u, e] (0 in the
    padding).
    """

    v: Floats
    b: Floats
    llms: Ints
    real: Floats

    @classmethod
    def of(cls, choices: Choices, n_users: int, pairs: Floats) -> _Events:
        """Arrange choices whose users ascend."""
        users = choices.users
        place = np.arange(users.size) - np.searchsorted(users, users)
        shape = n_users, int(place.max(initial=-1)) + 1
        events = pairs[choices.queries]
        if choices.offered is not None:
            events[..., -1][~choices.offered] = -np.inf
        padded = np.zeros((*shape, *pairs.shape[1:]), dtype=np.float32)
        llms, real = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        padded[users, place], llms[users, place], real[users, place] = events, choices.llms, 1.0
        return cls(padded[..., :-1], padded[..., -1], llms, real)

    def expand(self, z: Reals) -> tuple[Reals, Reals, Reals]:
        """Log-likelihood [u, k], its gradient [u, k, d] and negative Hessian [u, k, d, d] at z [u, k, d]."""
        log_p = _log_softmax(z[:, None] @ self.v.swapaxes(2, 3) + self.b[:, :, None])  # [u, e, k, m]
        p = np.exp(log_p) * self.real[..., None, None]
        at = self.llms[..., None, None]
        chosen = np.take_along_axis(log_p, at, axis=3)[..., 0]
        log_likelihood = (chosen * self.real[..., None]).sum(axis=1)
        mean = p @ self.v  # [u, e, k, d]
        taken = np.take_along_axis(self.v, at, axis=2) * self.real[..., None, None]
        slope = (taken - mean).sum(axis=1)
        n_users, n_events, n_tastes, n_llms = p.shape
        flat_p = p.transpose(0, 2, 1, 3).reshape(n_users, n_tastes, 1, n_events * n_llms)
        flat_v = self.v.reshape(n_users, 1, n_events * n_llms, self.v.shape[-1])
        second = (flat_p * flat_v.swapaxes(2, 3)) @ flat_v
        means = mean.swapaxes(1, 2)
        return log_likelihood, slope, second - means.swapaxes(2, 3) @ means


def _log_softmax(logits: Reals) -> Reals:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Reals = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _laplace(tastes: Tastes, events: _Events, log_prior: Floats) -> Beliefs:
    """Beliefs from the mode under each taste, found by damped Newton steps."""
    centres, sds = tastes.centres, np.exp(tastes.log_sds)
    precision = sds**-2
    d = centres.shape[1]
    diagonal: Bools = np.eye(d, dtype=bool)
    z = np.broadcast_to(centres, (len(log_prior), *centres.shape))
    for _ in range(_NEWTON_STEPS):
        _, slope, curvature = events.expand(z)
        uphill = slope - precision * (z - centres)
        step = np.linalg.solve(_plus_diagonal(curvature, precision, diagonal), uphill[..., None])[..., 0]
        length = np.maximum(np.linalg.norm(step, axis=2, keepdims=True), 1e-12)
        z = z + step * np.minimum(_LONGEST_STEP / length, 1.0)
    log_likelihood, _, curvature = events.expand(z)
    prior = -0.5 * (precision * (z - centres) ** 2).sum(axis=2)
    # ½ log |Λ| - ½ log |Λ + H|: the share of the prior's volume that the choices leave.
    scaled = curvature * sds[..., None] * sds[..., None, :] + diagonal
    left = -0.5 * np.linalg.slogdet(scaled)[1]
    log_evidence = log_likelihood + prior + left
    shares = np.exp(_log_softmax(log_prior + log_evidence))
    mean = (shares[..., None] * z).sum(axis=1)
    apart = z - mean[:, None]
    within = np.linalg.inv(_plus_diagonal(curvature, precision, diagonal))
    spread = within + apart[..., None] * apart[..., None, :]
    covariance = (shares[..., None, None] * spread).sum(axis=1)
    return Beliefs(*(array.astype(np.float32) for array in (shares, mean, covariance, log_evidence)))


def _plus_diagonal(matrices: Reals, values: Reals, diagonal: Bools) -> Reals:
    """Matrices [u, k, d, d] with ``values`` [k, d] added to their diagonals."""
    result: Reals = matrices + diagonal * values[..., None]
    return result
