"""Fitting the prior over tastes to the known users' choices.

The weights of each block of messages have a Gaussian prior whose standard deviation is learned, and a
Gaussian approximation of their posterior, as the model's own weights have (:mod:`router.variational`). What
is maximised is a lower bound of the evidence, the expected log-likelihood of the known users' choices less
the divergence of the weights. So a block without use vanishes, how far each is trusted follows from the data,
and no users need be held out ("automatic relevance determination": MacKay, "Probable networks and plausible
predictions", 1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from router.errors import ResourceError
from router.graph import HEARD, TOOK, known_users
from router.newcomers import ITEM_PARTS, USER_PARTS
from router.prior import PriorSettings, Sent, TastePrior, messages_to
from router.sampling import Rows, sample
from router.variational import Block

_PRIOR_SD = 0.1
_BETAS = (0.9, 0.99)
_LEAST_VARIANCE = 1e-9  # the gradient of a root ends at 0
_HOPS = 8  # streams of random numbers in a step

T = TypeVar("T")


class Source(Protocol):
    """Gives the messages of some of the known users."""

    def __call__(self, users: Tensor, step: int) -> dict[str, Tensor]:
        """Messages by block, [b, d]."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Messages of all users, computed once."""

    messages: dict[str, Tensor]

    def __call__(self, users: Tensor, step: int) -> dict[str, Tensor]:
        """Messages by block, [b, d]."""
        return {block: message[users] for block, message in self.messages.items()}


@dataclass(frozen=True, slots=True)
class Sampled:
    """Messages from neighbours drawn anew at each step, by at most ``fan_out`` at each node.

    Attributes
    ----------
    sent
        What others tell; of items, the features only.
    x
        Features of the users, [u, p].
    heard
        Neighbours that users hear, by name of the edges; weights sum to 1.
    took
        Users who made choices, of each item, with the weights of the interactions; or None.
    settings
        Which blocks, and how many neighbours.
    seed
        Of the draws.
    """

    sent: Sent
    x: Tensor
    heard: dict[tuple[str, str, str], Rows]
    took: Rows | None
    settings: PriorSettings
    seed: int

    def __call__(self, users: Tensor, step: int) -> dict[str, Tensor]:
        """Messages by block, [b, d]."""
        messages = {"own": self.x[users]}
        for hop, (edge, rows) in enumerate(self.heard.items()):
            ids, weights = self._draw(rows, users, _HOPS * step + hop)
            names, parts = USER_PARTS, self.sent.users
            if edge[0] == "item":
                names, parts = ITEM_PARTS[:1], (self.sent.item_features,)  # type: ignore[assignment]
                if self.took is not None:
                    others = self._others(users, ids, _HOPS * step + len(HEARD) + hop)
                    messages[f"{edge[1]}.tastes"] = torch.bmm(weights[:, None], others)[:, 0]
            for name, part in zip(names, parts):
                messages[f"{edge[1]}.{name}"] = _weighted(weights, part, ids)
        return {b: m for b, m in messages.items() if m.shape[1] and self.settings.hears(b)}

    def _others(self, users: Tensor, items: Tensor, stream: int) -> Tensor:
        """What the other users of items say, [b, fan_out, k]."""
        assert self.took is not None
        ids, weights = self._draw(self.took, items.flatten(), stream)
        if self.settings.masking:
            weights = weights * (ids != users.repeat_interleave(items.shape[1])[:, None])
        said = _weighted(weights, self.sent.users[1], ids) / (1.0 + weights.sum(dim=1, keepdim=True))
        return said.reshape(*items.shape, -1)

    def _draw(self, rows: Rows, nodes: Tensor, stream: int) -> tuple[Tensor, Tensor]:
        return sample(rows, nodes, self.settings.fan_out, seed=self.seed, step=stream)


def fit_prior(
    graph: HeteroData,
    sent: Sent,
    log_evidence: Tensor,
    log_shares: Tensor,
    settings: PriorSettings | None = None,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    tell: Callable[[str], None] | None = None,
) -> TastePrior:
    """Fit the prior to the known users' choices; the result is on the CPU.

    Parameters
    ----------
    graph
        Of the known users.
    sent
        What they tell, :func:`router.prior.sent_by`.
    log_evidence
        Log-probability of the known users' choices under each taste, float32 [u, k].
    log_shares
        Tastes' shares among all users, float32 [k].
    settings
        Which blocks, and how.
    seed
        Of everything drawn.
    device
        Where to fit; the CPU by default.
    tell
        Called with what the user should know, such as that the memory sufficed for smaller batches only.

    Raises
    ------
    ResourceError
        The device's memory does not suffice for the graph, or for one user at a time.
    """
    settings, where = settings or PriorSettings(), device or torch.device("cpu")
    n_edges = sum(graph[edge].num_edges for edge in HEARD if edge in graph.edge_types)
    source: Source
    try:
        if n_edges <= settings.max_edges:
            messages = messages_to(known_users(graph), sent, settings)
            source = Whole({block: message.to(where) for block, message in messages.items()})
            batch_size = max(1, len(log_evidence))
        else:
            source, batch_size = sampled_source(graph, sent, settings, seed, where), settings.batch_size
        fit = PriorFit(source, log_evidence.to(where), log_shares.to(where), settings, batch_size, seed, tell)
        for step in range(settings.n_steps):
            fit.advance(step)
        return fit.prior()
    except torch.OutOfMemoryError as error:  # of the graph itself
        raise ResourceError(f"the memory of {where} does not suffice; train on 'cpu' ({error})") from None


def sampled_source(
    graph: HeteroData, sent: Sent, settings: PriorSettings, seed: int, device: torch.device
) -> Sampled:
    """Compressed rows of a graph, on a device, to sample from."""
    users = graph["user"]
    heard = {}
    for edge, edges in known_users(graph).edges.items():
        rows = Rows.of(edges.index, edges.weight, users.num_nodes)
        rows.check()
        if settings.hears(edge[1]):
            heard[edge] = rows.to(device)
    took = None
    if TOOK in graph.edge_types:
        index, weight = graph[TOOK].edge_index, graph[TOOK].edge_weight
        sends = (users.n_choices > 0)[index[0]]  # by item, as the edges lie
        took = Rows.of(index[:, sends], weight[sends], graph["item"].num_nodes)
        took.check()
        took = took.to(device)
    return Sampled(sent.to(device), users.x.to(device), heard, took, settings, seed)


class Reading(Block):
    """Weights by which a block of messages is read; one spread for all of them."""

    def __init__(
        self, shape: tuple[int, ...], spread: float, prior_sd: float, generator: torch.Generator
    ) -> None:
        super().__init__(shape, spread, prior_sd, generator)
        self.log_prior_sd = nn.Parameter(torch.full((1,), math.log(prior_sd)))


class PriorFit:
    """The weights' approximate posterior, and the optimiser.

    Parameters
    ----------
    source
        Of the messages.
    log_evidence, log_shares
        As in :func:`fit_prior`, on the device.
    settings
        Of the optimiser.
    batch_size
        Users in a step; halved when the memory does not suffice.
    seed
        Of the order of users, and of the noise.
    tell
        Called when a batch is halved.
    """

    def __init__(
        self,
        source: Source,
        log_evidence: Tensor,
        log_shares: Tensor,
        settings: PriorSettings,
        batch_size: int,
        seed: int = 0,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.source, self.evidence, self.settings = source, log_evidence, settings
        self.log_shares = log_shares.log_softmax(0)
        self.batch_size, self.seed, self.tell = batch_size, seed, tell
        # Nothing can be learned from users whose choices speak for no taste, such as those who made none.
        telling = (log_evidence != log_evidence[:, :1]).any(dim=1)
        self.users = telling.nonzero()[:, 0]
        self._epoch, self._next, self._order = -1, len(self.users), self.users
        self._start()

    def _start(self) -> None:
        """Read the messages' widths and spreads from a first batch."""
        device, n_tastes = self.evidence.device, self.evidence.shape[1]
        first = self._with_room(lambda: self.source(self.users[: self.batch_size], 0))
        self.scales = {}
        for block, message in first.items():
            spread = float((message**2).mean(dim=0).max().sqrt()) if len(message) else 0.0
            if spread > 0.0:
                self.scales[block] = spread
        generator = torch.Generator().manual_seed(self.seed)
        self.blocks = nn.ModuleDict(
            {
                _key(block): Reading((first[block].shape[1], n_tastes), 0.0, _PRIOR_SD, generator)
                for block in self.scales
            }
        ).to(device)
        self.optimiser = None
        if self.scales:
            self.optimiser = torch.optim.Adam(
                self.blocks.parameters(), lr=self.settings.learning_rate, betas=_BETAS
            )

    def advance(self, step: int) -> float:
        """Make one step; gives the loss per user, in nats.

        Raises
        ------
        ResourceError
            The memory does not suffice for one user.
        """
        if self.optimiser is None:
            return float("nan")
        left = 1.0 - step / self.settings.n_steps
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * min(1.0, 2.0 * left)
        users, loss = self._with_room(lambda: self._learn_from(self._batch(), step))
        self.optimiser.step()
        self._next += len(users)
        return loss / len(self.users)

    def prior(self) -> TastePrior:
        """Means of the posterior, on the CPU."""
        weights, spreads = {}, {}
        for block, scale in self.scales.items():
            part = self._block(block)
            weights[block] = (part.mean.detach() / scale).cpu()
            spreads[block] = float(part.log_prior_sd.detach().exp().square().mean().sqrt())
        return TastePrior(self.log_shares.cpu(), weights, spreads)

    def _learn_from(self, users: Tensor, step: int) -> tuple[Tensor, float]:
        """Set the gradients; gives the users and the loss, in nats."""
        loss = self._loss(users, step)
        self.blocks.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return users, float(loss.detach())

    def _loss(self, users: Tensor, step: int) -> Tensor:
        """Negative lower bound of the evidence of all users, estimated from some, a scalar in nats."""
        device = self.evidence.device
        on_gpu = device.type == "cuda"
        half = torch.bfloat16 if not on_gpu or torch.cuda.is_bf16_supported() else torch.float16
        with torch.autocast(device.type, dtype=half, enabled=on_gpu):
            messages = self.source(users, step)
            mean = self.evidence.new_zeros(len(users), self.evidence.shape[1])
            variance = torch.full_like(mean, _LEAST_VARIANCE)
            for block, scale in self.scales.items():
                message, weights = messages[block] / scale, self._block(block)
                mean = mean + message @ weights.mean
                variance = variance + message**2 @ weights.variance()
        entropy = np.random.SeedSequence([self.seed, step])
        generator = torch.Generator(device).manual_seed(int(entropy.generate_state(1)[0]))
        noise = torch.randn(mean.shape, generator=generator, device=device)
        log_prior = (self.log_shares + mean.float() + variance.float().sqrt() * noise).log_softmax(dim=1)
        surprise = -(log_prior + self.evidence[users]).logsumexp(dim=1).mean() * len(self.users)
        divergence = torch.stack([self._block(block).divergence() for block in self.scales]).sum()
        return surprise + divergence

    def _batch(self) -> Tensor:
        """The next users, in an order that is drawn anew for each pass over all."""
        if self.batch_size >= len(self.users):
            return self.users
        if self._next >= len(self.users):
            self._epoch, self._next = self._epoch + 1, 0
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, self._epoch]))
            order = torch.from_numpy(rng.permutation(len(self.users)))
            self._order = self.users[order.to(self.users.device)]
        return self._order[self._next : self._next + self.batch_size]

    def _with_room(self, compute: Callable[[], T]) -> T:
        """Do something with smaller and smaller batches, until the memory suffices."""
        while True:
            try:
                return compute()
            except torch.OutOfMemoryError as error:
                self._halve(error)

    def _halve(self, error: torch.OutOfMemoryError) -> None:
        size = min(self.batch_size, len(self.users))
        if size <= 1:
            raise ResourceError(f"the memory of {self.evidence.device} does not suffice ({error})") from None
        self.batch_size = size // 2
        if self.tell is not None:
            self.tell(
                f"the memory of {self.evidence.device} does not suffice for {size} users at a time; "
                f"going on with {self.batch_size}"
            )

    def _block(self, block: str) -> Reading:
        return cast(Reading, self.blocks[_key(block)])


def _key(block: str) -> str:
    """Name that a module may have."""
    return block.replace(".", "/")


def _weighted(weights: Tensor, sent: Tensor, ids: Tensor) -> Tensor:
    """Sums over neighbours, [b, d], of weights [b, f] times what is sent [n, d] by those at ids [b, f]."""
    told = sent.index_select(0, ids.flatten()).view(*ids.shape, sent.shape[1])
    return torch.bmm(weights[:, None], told)[:, 0]
