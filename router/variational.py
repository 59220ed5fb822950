"""Variational inference of the choice model.

The factors of queries and LLMs are sums of descriptors' weights,

    [v, b](q, m) = A(m) + A(task of q, m) + A(q, m)   (+ (C + C(task of q)) x(q, m)   with telemetry),

x being the features of the answer. Every weight has a Gaussian prior, of a standard deviation learned for
each kind of descriptor and factor, so that descriptors and factors without use vanish; and a Gaussian
approximation of its posterior, independent of the others'. The expected log-likelihood is estimated from one
sample of the logits ("local reparameterisation": Kingma, Salimans, Welling, "Variational Dropout and the
Local Reparameterization Trick", 2015, section 2.2), exact where weights are independent. Weights of features
are shared by the LLMs of a query; their noise is drawn for each LLM all the same, which is quicker and bounds
the evidence less closely. Compared with the maximum of the posterior, factors of a query that few users were
asked do not overfit.

Answers differ far more to some queries than to others, and in other ways: a request for code, a yes or no.
So the prior of a query's own weights A(q, m) has a scale that is learned by factor for each task and LLM, and
scales of the query itself, which give it heavier tails than a Gaussian has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from scipy.cluster.vq import vq
from torch import Tensor, nn

from router.model import TasteModel
from router.persona.data import ChoiceData, Choices, Floats

PADDING = -100  # what the cross-entropy ignores
_ROW = 64
_LOG_VARIANCE = -5.0
_QUERY_SPREAD = 0.5  # prior standard deviations of the logarithms of a query's scales
_QUERY_FACTOR_SPREAD = 0.3
_KMEANS_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What queries and answers are described by, as tensors.

    Attributes
    ----------
    tasks
        int64 [q].
    n_tasks, n_llms
        Counts.
    features
        Features of all answers, measured or predicted, float32 [q, m, f], or None in the choice-only track.
    asked
        Queries with choices, ascending, int64 [a].
    """

    tasks: Tensor
    n_tasks: int
    n_llms: int
    features: Tensor | None
    asked: Tensor

    @classmethod
    def of(cls, data: ChoiceData, features: Floats | None, device: torch.device) -> Descriptors:
        """Move to a device."""
        x = None if features is None else torch.from_numpy(features).to(device)
        tasks, asked = (
            torch.from_numpy(ids).to(device) for ids in (data.tasks, np.unique(data.choices.queries))
        )
        return cls(tasks, data.n_tasks, data.n_llms, x, asked)


@dataclass(frozen=True, slots=True)
class Asked:
    """Choices in rows of one query each; a query asked often has several rows.

    Attributes
    ----------
    queries
        Positions among the queries with choices, int64 [r].
    users
        int64 [r, e]; 0 in the padding.
    llms
        int64 [r, e]; ``PADDING`` in the padding.
    closed
        LLMs not on offer, bool [r, e, m], or None where all were on offer every time.
    """

    queries: Tensor
    users: Tensor
    llms: Tensor
    closed: Tensor | None

    def __len__(self) -> int:
        return len(self.queries)

    def parts(self, n: int) -> Iterator[Asked]:
        """Split the rows into n parts of about the same size."""
        bounds = [len(self) * i // n for i in range(n + 1)]
        for rows in map(slice, bounds, bounds[1:]):
            closed = None if self.closed is None else self.closed[rows]
            yield Asked(self.queries[rows], self.users[rows], self.llms[rows], closed)

    @classmethod
    def of(cls, choices: Choices, device: torch.device) -> Asked:
        """Arrange choices."""
        order = np.argsort(choices.queries, kind="stable")
        _, queries = np.unique(choices.queries[order], return_inverse=True)
        place = np.arange(queries.size) - np.searchsorted(queries, queries)
        width = min(_ROW, int(place.max()) + 1)
        row = np.cumsum(place % width == 0) - 1
        at = row, place % width
        shape = (int(row[-1]) + 1, width)
        users, llms = np.zeros(shape, dtype=np.int64), np.full(shape, PADDING)
        users[at], llms[at] = choices.users[order], choices.llms[order]
        closed = None
        if choices.offered is not None:
            offered = np.ones((*shape, choices.offered.shape[1]), dtype=bool)
            offered[at] = choices.offered[order]
            closed = torch.from_numpy(~offered).to(device)
        of_rows, by_user, by_llm = (
            torch.from_numpy(ids).to(device) for ids in (queries[place % width == 0], users, llms)
        )
        return cls(of_rows, by_user, by_llm, closed)


class Block(nn.Module):
    """Weights of one kind of descriptor, with posterior and prior.

    Parameters
    ----------
    shape
        The last axis is the factors' and the bias.
    spread
        Standard deviation of the initial means.
    prior_sd
        Initial standard deviation of the prior.
    generator
        Of the initial means.
    """

    def __init__(
        self, shape: tuple[int, ...], spread: float, prior_sd: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.mean = nn.Parameter(spread * torch.randn(shape, generator=generator))
        self.log_variance = nn.Parameter(torch.full(shape, _LOG_VARIANCE))
        self.log_prior_sd = nn.Parameter(torch.full(shape[-1:], math.log(prior_sd)))

    def variance(self) -> Tensor:
        """Variance of the posterior, like ``mean``."""
        return self.log_variance.exp()

    def prior_log_sds(self) -> Tensor:
        """Logarithm of the prior's standard deviations, to be broadcast to ``mean``."""
        return self.log_prior_sd

    def divergence(self) -> Tensor:
        """KL divergence of the posterior from the prior, a scalar."""
        log_sds = self.prior_log_sds()
        second_moment = self.mean**2 + self.variance()
        return 0.5 * (second_moment * (-2.0 * log_sds).exp() - 1.0 + 2.0 * log_sds - self.log_variance).sum()


class QueryBlock(Block):
    """Weights of single queries, of a prior with scales by task, LLM and query.

    Parameters
    ----------
    tasks
        Of the queries, int64 [q].
    n_tasks, n_llms, n_outputs
        Counts.
    generator
        Of the initial means.
    """

    def __init__(
        self, tasks: Tensor, *, n_tasks: int, n_llms: int, n_outputs: int, generator: torch.Generator
    ) -> None:
        n_queries = len(tasks)
        super().__init__((n_queries, n_llms, n_outputs), 0.1, 0.3, generator)
        self.tasks = nn.Buffer(tasks, persistent=False)
        self.log_scale_task = nn.Parameter(torch.zeros(n_tasks, 1, n_outputs))
        self.log_scale_llm = nn.Parameter(torch.zeros(n_llms, n_outputs))
        self.log_scale_query = nn.Parameter(torch.zeros(n_queries, 1, 1))
        self.log_scale_query_factor = nn.Parameter(torch.zeros(n_queries, 1, n_outputs))

    def prior_log_sds(self) -> Tensor:
        """Sum of the logarithms of all scales, [q, m, d + 1]."""
        of_query = self.log_scale_query + self.log_scale_query_factor
        return self.log_prior_sd + self.log_scale_task[self.tasks] + self.log_scale_llm + of_query

    def divergence(self) -> Tensor:
        """KL divergence, less the log-density of the queries' scales, which are point estimates."""
        of_scales = ((self.log_scale_query / _QUERY_SPREAD) ** 2).sum()
        of_scales = of_scales + ((self.log_scale_query_factor / _QUERY_FACTOR_SPREAD) ** 2).sum()
        return super().divergence() + 0.5 * of_scales


class VariationalModel(nn.Module):
    """Approximate posterior of everything that is learned from choices.

    Parameters
    ----------
    described
        Queries and answers.
    n_users, n_factors, n_tastes
        Counts.
    generator
        Of the initial values.
    """

    def __init__(
        self,
        described: Descriptors,
        *,
        n_users: int,
        n_factors: int,
        n_tastes: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.described = described
        outputs, n_llms, n_tasks = n_factors + 1, described.n_llms, described.n_tasks
        self.blocks = nn.ModuleDict(
            {
                "llm": Block((1, n_llms, outputs), 0.1, 0.3, generator),
                "task": Block((n_tasks, n_llms, outputs), 0.1, 0.3, generator),
                "query": QueryBlock(
                    described.tasks[described.asked],
                    n_tasks=n_tasks,
                    n_llms=n_llms,
                    n_outputs=outputs,
                    generator=generator,
                ),
            }
        )
        if described.features is not None:
            n_features = described.features.shape[2]
            self.blocks["feature"] = Block((1, n_features, outputs), 0.2, 0.4, generator)
            self.blocks["task_feature"] = Block((n_tasks, n_features, outputs), 0.02, 0.1, generator)
        self.user_mean = nn.Parameter(0.3 * torch.randn(n_users, n_factors, generator=generator))
        self.user_log_variance = nn.Parameter(torch.full((n_users, n_factors), -1.0))
        self.centres = nn.Parameter(torch.zeros(n_tastes, n_factors))
        self.log_sds = nn.Parameter(torch.full((n_tastes, n_factors), -0.7))
        self.log_shares = nn.Parameter(torch.zeros(n_tastes))

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of [v, b] of the queries with choices, both [a, m, d + 1]."""
        described = self.described
        tasks = described.tasks[described.asked]
        means = {name: block.mean for name, block in self._each_block().items()}
        variances = {name: block.variance() for name, block in self._each_block().items()}
        mean, variance = (w["llm"] + w["task"][tasks] + w["query"] for w in (means, variances))
        if described.features is not None:
            x = described.features[described.asked]
            mean = mean + x @ (means["feature"] + means["task_feature"])[tasks]
            variance = variance + x**2 @ (variances["feature"] + variances["task_feature"])[tasks]
        return mean, variance

    def sample_users(self, generator: torch.Generator) -> Tensor:
        """Draw every user's vector, [u, d]."""
        noise = torch.randn(self.user_mean.shape, generator=generator, device=self.user_mean.device)
        return self.user_mean + (0.5 * self.user_log_variance).exp() * noise

    def sample_logits(self, z: Tensor, asked: Asked, generator: torch.Generator) -> Tensor:
        """Draw the logits of events, [r, e, m]; -inf where an LLM was not on offer.

        Parameters
        ----------
        z
            Users' vectors, [u, d].
        asked
            Events.
        generator
            Of the noise.
        """
        # index_select, as the gradient of indexing by brackets is slow on a CPU.
        mean, variance = (part.index_select(0, asked.queries) for part in self.pairs())
        z1 = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
        z1 = z1.index_select(0, asked.users.flatten()).reshape(*asked.users.shape, -1)
        spread = (z1**2 @ variance.mT).sqrt()
        noise = torch.randn(spread.shape, generator=generator, device=z.device)
        logits = z1 @ mean.mT + spread * noise
        return logits if asked.closed is None else logits.masked_fill(asked.closed, -torch.inf)

    def divergence(self, z: Tensor, *, mixed: bool) -> Tensor:
        """KL divergence of the posterior from the prior, a scalar; estimated at z where users are mixed.

        Parameters
        ----------
        z
            The sample of users' vectors.
        mixed
            Whether the prior of users is the mixture of tastes, or else a standard Gaussian.
        """
        of_weights = torch.stack([block.divergence() for block in self._each_block().values()]).sum()
        log_variance = self.user_log_variance
        if not mixed:
            of_users = 0.5 * (self.user_mean**2 + log_variance.exp() - 1.0 - log_variance).sum()
            return of_weights + of_users
        log_q = -0.5 * ((z - self.user_mean) ** 2 * (-log_variance).exp() + log_variance).sum(dim=1)
        deviations = (z[:, None] - self.centres) ** 2 * (-2.0 * self.log_sds).exp()
        by_taste = -0.5 * (deviations + 2.0 * self.log_sds).sum(dim=2)
        log_p = (self.log_shares.log_softmax(0) + by_taste).logsumexp(dim=1)
        return of_weights + (log_q - log_p).sum()

    @torch.no_grad()
    def start_tastes(self, rng: np.random.Generator) -> None:
        """Place the tastes by k-means on the users' means."""
        users = self.user_mean.cpu().numpy()
        centres = users[rng.choice(len(users), size=len(self.centres), replace=False)]
        for _ in range(_KMEANS_ROUNDS):
            nearest, _ = vq(users, centres)
            counts = np.bincount(nearest, minlength=len(centres))
            sums = np.zeros_like(centres)
            np.add.at(sums, nearest, users)
            centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
        self.centres.copy_(torch.from_numpy(centres))
        self.log_shares.copy_(torch.from_numpy(np.log(counts / len(users) + 1e-3)))

    @torch.no_grad()
    def taste_model(self) -> TasteModel:
        """Means of the posterior, on the CPU."""
        described = self.described
        means = {name: block.mean for name, block in self._each_block().items()}
        by_task = means["llm"] + means["task"] + self._own_by_task(means["query"])
        pairs, by_feature = by_task[described.tasks], None
        if described.features is not None:
            by_feature = means["feature"] + means["task_feature"]
            pairs = pairs + described.features @ by_feature[described.tasks]
        pairs[described.asked] = self.pairs()[0]
        return TasteModel(
            pairs=pairs.cpu(),
            log_shares=self.log_shares.log_softmax(0).cpu(),
            centres=self.centres.detach().cpu().clone(),
            log_sds=self.log_sds.detach().cpu().clone(),
            by_task=by_task.cpu(),
            by_feature=None if by_feature is None else by_feature.cpu(),
        )

    def _own_by_task(self, own: Tensor) -> Tensor:
        """Mean of the queries' own weights over each task, [t, m, d + 1].

        Under heavy tails A(task) is what most queries have, but a new query is to be expected like the mean.
        It is taken with one further query that differs in nothing from its task.
        """
        tasks = self.described.tasks[self.described.asked]
        sums = own.new_zeros(self.described.n_tasks, *own.shape[1:]).index_add(0, tasks, own)
        return sums / (1 + tasks.bincount(minlength=self.described.n_tasks))[:, None, None]

    def _each_block(self) -> dict[str, Block]:
        return {name: cast(Block, block) for name, block in self.blocks.items()}
