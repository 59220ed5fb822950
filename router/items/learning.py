r"""Training of the ranking head by a softmax over items.

In each step some users are split at random into what they are made of and what is to be ranked first, as at
inference, where seen items are left out: input items are no candidates. The loss is the softmax's

    -Σ_u t_u^-½ Σ_{j ∈ targets(u)} log [ exp s(u, j) / Σ_{c ∈ C \ input(u)} exp(s(u, c) - log p_c) ],

t_u the number of targets. Over all items p = 1; otherwise C holds the targets of all users in the step and
items drawn evenly beside them, p_c being the probability that an item is in C, which makes up for frequent
items' being in C more often.

References
----------
Wu, Wang, Gao, Chen, Fu, Qiu: "On the Effectiveness of Sampled Softmax Loss for Item Recommendation", 2022.
Yi et al.: "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019,
section 3 (the correction).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from router.errors import ResourceError
from router.items.choosing import Quality, item_quality
from router.items.linear import Floats, ItemMap
from router.items.network import ItemNetwork, NetworkSettings, Sparse
from router.items.ranker import ItemRanker
from router.items.terms import check_interactions, degrees
from router.train import choose_device

_BETAS = (0.9, 0.99)
_WARMUP = 20
_OTHERS_RATE = 0.05  # of the few weights that are no items' vectors; they have to follow these
_FEWER = 0.5  # power of the number of targets by which a user of many counts less


class Companion(Protocol):
    """A further loss on users' vectors, trained together with the ranking; an ``nn.Module``."""

    def __call__(self, network: ItemNetwork, source: Tensor) -> Tensor:
        """Loss, a scalar, given the source vectors of all items."""


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a training after an epoch: softmax loss in nats per target, quality on what is held out."""

    epoch: int
    loss: float
    quality: Quality | None


@dataclass(frozen=True, slots=True)
class Network:
    """The trained head as a term of a blend, beside the closed forms.

    Parameters
    ----------
    settings
        Shape and training.
    device
        ``auto``, ``cpu``, ``cuda``.
    """

    settings: NetworkSettings = field(default_factory=NetworkSettings)
    device: str = "auto"

    def fit(self, interactions: sp.csr_array) -> ItemMap:
        """Map of two matrices [i, n_factors]."""
        return train_network(interactions, self.settings, device=self.device).item_map()


@dataclass(frozen=True, slots=True)
class Trained:
    """A network that has been trained, as a term of a blend.

    Parameters
    ----------
    network
        Trained on the same interactions.
    """

    network: ItemNetwork

    def fit(self, interactions: sp.csr_array) -> ItemMap:
        """Its map of two matrices [i, n_factors]; nothing is trained."""
        return self.network.item_map()


def train_network(
    interactions: sp.csr_array,
    settings: NetworkSettings | None = None,
    *,
    held_out: sp.csr_array | None = None,
    start: ItemNetwork | None = None,
    companion: nn.Module | None = None,
    ranking: bool = True,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> ItemNetwork:
    """Train on interactions; the same on one machine's CPU each time, at a fixed number of threads.

    Parameters
    ----------
    interactions
        Users × items; every interaction counts alike, whatever its weight, as a target.
    settings
        How.
    held_out
        Interactions of the same users to judge each epoch by: the best one is returned, and the training ends
        when none is better for ``patience`` epochs. Without them, all epochs are made.
    start
        Network to go on from, of the same interactions and shape; it is not changed. By default the leading
        singular vectors are the start.
    companion
        A :class:`Companion`, whose loss is added at each step.
    ranking
        Whether items are ranked at all; if not, the companion's loss is the only one.
    device
        ``auto``, ``cpu``, ``cuda``.
    progress
        Called after every epoch.

    Raises
    ------
    DataError
        There are no interactions, a weight is negative or not finite, or ``start`` has another shape.
    ResourceError
        The device's memory does not suffice.
    """
    settings = settings or NetworkSettings()
    where = choose_device(device)
    try:
        network = ItemNetwork(check_interactions(interactions), settings, where, start=start)
        run = _Training(network.to(where), check_interactions(interactions), companion, ranking, where)
        best, best_value, best_epoch = None, -np.inf, 0
        for epoch in range(settings.n_epochs):
            loss = run.epoch()
            quality = None if held_out is None else run.quality(held_out)
            if progress is not None:
                progress(Progress(epoch + 1, loss, quality))
            if quality is None:
                continue
            if quality.mean > best_value:
                best, best_value, best_epoch = deepcopy(run.state()), quality.mean, epoch
            elif epoch - best_epoch >= settings.patience:
                break
        if best is not None:
            run.load(best)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"the memory of {where} does not suffice; train on 'cpu' ({error})") from None
    return run.network


class _Training:
    """Network, companion, optimiser, and the random numbers that are next."""

    def __init__(
        self,
        network: ItemNetwork,
        interactions: sp.csr_array,
        companion: nn.Module | None,
        ranking: bool,
        device: torch.device,
    ) -> None:
        settings = network.settings
        self.network, self.interactions, self.settings = network, interactions, settings
        self.ranking, self.device = ranking, device
        self.companion = None if companion is None else companion.to(device)
        self.modules = nn.ModuleList([network] if companion is None else [network, companion])
        self.frequency = degrees(_ones(interactions), axis=0)
        self.rng = np.random.default_rng(settings.seed)
        vectors = [network.source, network.target]
        others = [p for p in self.modules.parameters() if all(p is not vector for vector in vectors)]
        groups = [
            {"params": vectors, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0, "lr": _OTHERS_RATE},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_BETAS)
        n_batches = -(-interactions.shape[0] // settings.batch_users)
        n_steps = settings.n_epochs * n_batches
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: min(1.0, (step + 1) / _WARMUP) * (1.0 - step / n_steps)
        )

    def epoch(self) -> float:
        """Pass over all users once; returns the mean softmax loss of the steps."""
        n_users = self.interactions.shape[0]
        parts = -(-n_users // self.settings.batch_users)
        losses = [self.step(rows) for rows in np.array_split(self.rng.permutation(n_users), parts)]
        return float(np.mean(losses))

    def step(self, rows: NDArray[np.int64]) -> float:
        """Make one step on some users."""
        batch = Batch.draw(self.interactions, rows, self.frequency, self.settings, self.rng)
        source, target = self.network.vectors(torch.from_numpy(rows).to(self.device))
        loss = source.new_zeros(())
        if self.ranking:
            loss = self._ranking_loss(batch, source, target)
        total = loss if self.companion is None else loss + self.companion(self.network, source)
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        self.schedule.step()
        return float(loss.detach())

    def quality(self, held_out: sp.csr_array) -> Quality:
        """Of the network alone."""
        ranker = ItemRanker(self.network.item_map(), self.interactions)
        return item_quality(ranker.recommend, held_out)

    def state(self) -> dict[str, Tensor]:
        """All parameters."""
        return self.modules.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        """Take parameters back."""
        self.modules.load_state_dict(state)

    def _ranking_loss(self, batch: Batch, source: Tensor, target: Tensor) -> Tensor:
        at = batch.to(self.device)
        users = self.network.users(Sparse.of(batch.own, self.device), source)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.network.logits(users, target[at.candidates])
        return softmax_loss(logits.float(), at)


@dataclass(frozen=True, slots=True)
class Places:
    """Where targets and inputs lie among a batch's logits; tensors of one device.

    Attributes
    ----------
    candidates
        Items, int64 [c].
    log_inclusion
        Logarithm of the probability that a candidate is one, float32 [c].
    targets, inputs
        Rows and columns, int64 [2, t] and [2, n].
    weights
        Of the targets, float32 [t].
    """

    candidates: Tensor
    log_inclusion: Tensor
    targets: Tensor
    inputs: Tensor
    weights: Tensor


def softmax_loss(logits: Tensor, at: Places) -> Tensor:
    """Weighted mean over targets of the surprise in nats; 0 without targets."""
    closed = logits.new_tensor(-torch.inf)
    open_logits = (logits - at.log_inclusion).index_put((at.inputs[0], at.inputs[1]), closed)
    users, places = at.targets
    surprise = open_logits.logsumexp(dim=1)[users] - logits[users, places]
    return (at.weights * surprise).sum() / at.weights.sum().clamp(min=1e-12)


@dataclass(frozen=True, slots=True)
class Batch:
    """Users split into input and targets.

    Attributes
    ----------
    own
        Input, float32 [b, i].
    candidates, log_inclusion, targets, inputs, weights
        As in :class:`Places`.
    """

    own: sp.csr_array
    candidates: NDArray[np.int64]
    log_inclusion: Floats
    targets: NDArray[np.int64]
    inputs: NDArray[np.int64]
    weights: Floats

    @classmethod
    def draw(
        cls,
        interactions: sp.csr_array,
        rows: NDArray[np.int64],
        frequency: NDArray[np.float64],
        settings: NetworkSettings,
        rng: np.random.Generator,
    ) -> Batch:
        """Split users and draw candidates."""
        part = interactions[rows]
        n_users, n_items = interactions.shape
        users, items = np.repeat(np.arange(rows.size), np.diff(part.indptr)), part.indices.astype(np.int64)
        kept = rng.random(items.size) < settings.kept
        own = sp.csr_array((part.data[kept], (users[kept], items[kept])), shape=part.shape)
        # Users of which all or nothing is input have nothing to be ranked, or nothing to rank by.
        wanted = ~kept & (np.bincount(users[kept], minlength=rows.size) > 0)[users]
        inside = np.ones(n_items, dtype=bool)
        log_inclusion = np.zeros(n_items)
        if settings.n_candidates is not None:
            drawn = min(1.0, settings.n_candidates / n_items)
            inside = rng.random(n_items) < drawn
            inside[items[wanted]] = True
            # A target of the step by chance: about Poisson of the item's frequency among such users' targets.
            rate = frequency * (1.0 - settings.kept) * rows.size / n_users
            log_inclusion = np.log(np.maximum(1.0 - np.exp(-rate) * (1.0 - drawn), 1e-9))
        candidates = np.flatnonzero(inside)
        place = np.full(n_items, -1)
        place[candidates] = np.arange(candidates.size)
        closed = kept & inside[items]
        counts = np.bincount(users[wanted], minlength=rows.size)
        return cls(
            own=own,
            candidates=candidates,
            log_inclusion=log_inclusion[candidates].astype(np.float32),
            targets=np.stack([users[wanted], place[items[wanted]]]),
            inputs=np.stack([users[closed], place[items[closed]]]),
            weights=(counts[users[wanted]] ** -_FEWER).astype(np.float32),
        )

    def to(self, device: torch.device) -> Places:
        """Move the places to a device."""
        arrays = self.candidates, self.log_inclusion, self.targets, self.inputs, self.weights
        return Places(*(torch.from_numpy(array).to(device) for array in arrays))


def _ones(interactions: sp.csr_array) -> sp.csr_array:
    ones = np.ones_like(interactions.data)
    return sp.csr_array((ones, interactions.indices, interactions.indptr), shape=interactions.shape)
