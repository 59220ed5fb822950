"""Joint training: items are ranked, and tastes in LLMs foreseen, by the same vectors of items.

Users are sums of vectors of the items that they went for (:mod:`router.items.network`). Items are ranked by
those; tastes in LLMs, of which far less is seen, by h(u), the same vectors passed some steps further along
the graph and so averaged over more items. Two losses reach the items' vectors,

    softmax over items  +  λ · ( -1/n Σ_u log Σ_k π(k | h(u)) p(choices of u | k) ),
    log π(k | h) = log π(k) + w_k · h + const,

the second being the evidence of the known users' choices of LLMs under a prior over tastes that reads h
(:mod:`router.model`; the evidence p(choices | k) is taken as it is). Either may be trained alone.

h(u) is made of items only: no edge between a user and an LLM enters it, the target's no more than others'.
The known users' choices have trained the items' vectors, as they train every weight; a new user's have not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from router.errors import DataError, ParameterError
from router.items.learning import train_network
from router.items.network import ItemNetwork, NetworkSettings, Sparse
from router.persona.data import Floats, Ints


@dataclass(frozen=True, slots=True)
class JointSettings:
    """How both sides are trained.

    Attributes
    ----------
    network
        The items' side.
    llm_weight
        λ; 0 trains the ranking of items alone.
    items
        Whether the ranking of items is trained; if not, λ is 1.
    hops
        Steps item → user → item from the vectors that items are ranked by to h(u).
    decay
        Pull of the weights w of the prior towards 0, per known user.
    n_features
        Leading directions of h(u) that :meth:`Joint.user_features` keeps.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    llm_weight: float = 0.25
    items: bool = True
    hops: int = 2
    decay: float = 1e-3
    n_features: int = 32

    def __post_init__(self) -> None:
        for name in ("llm_weight", "hops", "decay"):
            if not getattr(self, name) >= 0:
                raise ParameterError(f"'{name}' must not be negative (got {getattr(self, name)})")
        if not self.items and self.llm_weight == 0.0:
            raise ParameterError("'llm_weight' must be positive where 'items' is off (got 0.0)")


@dataclass(frozen=True, slots=True)
class Joint:
    """Both sides of the model.

    Attributes
    ----------
    network
        Vectors of items, and of users by their items.
    head
        The prior over tastes, None where λ was 0.
    directions
        Leading principal axes of the users' h(u), float32 [d, n_features], and their centre, float32 [d].
    hops
        Of the settings.
    """

    network: ItemNetwork
    head: TasteHead | None
    directions: Floats
    centre: Floats
    hops: int

    def user_vectors(self, interactions: sp.csr_array) -> Floats:
        """h(u) of any users by their interactions, known or new, float32 [u, d]; 0 without interactions."""
        return self.network.user_vectors(interactions, self.hops)

    def user_features(self, interactions: sp.csr_array) -> Floats:
        """Leading directions of h(u), rows of unit length, for a prior to be fitted, float32 [u, n]."""
        reduced = (self.user_vectors(interactions) - self.centre) @ self.directions
        norms = np.linalg.norm(reduced, axis=1, keepdims=True)
        result: Floats = reduced / np.maximum(norms, np.float32(1e-12))
        return result

    @torch.no_grad()
    def item_features(self) -> Floats:
        """What h(u) is made of, in the directions of :meth:`user_features`, float32 [i, n].

        As features of items in the graph they reach users, known or new, through the items that they took
        (:mod:`router.prior`).
        """
        source, _ = self.network.vectors()
        smoothed: Floats = self.network.smoothed(source, self.hops).cpu().numpy()
        return smoothed @ self.directions

    @torch.no_grad()
    def log_prior(self, interactions: sp.csr_array) -> Tensor:
        """Log-probability of each taste before the first choice, float32 [u, k].

        Raises
        ------
        DataError
            The LLMs' side was not trained.
        """
        if self.head is None:
            raise DataError("'llm_weight' must be positive for a prior over tastes (it was 0)")
        vectors = torch.from_numpy(self.user_vectors(interactions))
        return self.head.cpu().log_prior(vectors)


class TasteHead(nn.Module):
    """Prior over tastes that reads users' vectors, and its loss on the known users.

    Parameters
    ----------
    own
        Interactions of the known users, [u, i].
    log_evidence
        Log-probability of their choices under each taste, float32 [u, k].
    log_shares
        Of the tastes among all users, float32 [k].
    settings
        λ, hops, decay.
    n_factors
        Size of the vectors.
    """

    def __init__(
        self,
        own: sp.csr_array,
        log_evidence: Tensor,
        log_shares: Tensor,
        settings: JointSettings,
        n_factors: int,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.own = own
        self.log_evidence = nn.Buffer(log_evidence)
        self.log_shares = nn.Buffer(log_shares.log_softmax(0))
        self.weights = nn.Parameter(torch.zeros(n_factors, log_shares.numel()))

    def log_prior(self, vectors: Tensor) -> Tensor:
        """Log-probability of each taste, [u, k]."""
        return (self.log_shares + vectors @ self.weights).log_softmax(dim=1)

    def forward(self, network: ItemNetwork, source: Tensor) -> Tensor:
        """λ times the loss, a scalar, of all known users."""
        own = Sparse.of(self.own, source.device)
        vectors = network.users(own, network.smoothed(source, self.settings.hops))
        surprise = -(self.log_prior(vectors) + self.log_evidence).logsumexp(dim=1).mean()
        scale = self.settings.llm_weight if self.settings.items else 1.0
        return scale * (surprise + self.settings.decay * self.weights.square().sum())


def train_joint(
    interactions: sp.csr_array,
    rows: Ints,
    log_evidence: Tensor,
    log_shares: Tensor,
    settings: JointSettings | None = None,
    *,
    start: ItemNetwork | None = None,
    device: str = "auto",
) -> Joint:
    """Train the ranking of items and the prior over tastes together.

    Parameters
    ----------
    interactions
        All users × items.
    rows
        Row of each user who chose LLMs, int64 [u].
    log_evidence
        Log-probability of their choices under each taste, float32 [u, k]
        (:attr:`router.model.Posterior.log_evidence`).
    log_shares
        Of the tastes, float32 [k].
    settings
        How.
    start
        Network trained on the same interactions, to go on from.
    device
        ``auto``, ``cpu``, ``cuda``.

    Raises
    ------
    DataError
        There are no interactions, a row is out of range, or the evidence does not fit.
    ResourceError
        The device's memory does not suffice.
    """
    settings = settings or JointSettings()
    if rows.size and not (rows.min() >= 0 and rows.max() < interactions.shape[0]):
        raise DataError(f"'rows' must lie in 0..{interactions.shape[0] - 1} (got {rows.min()}..{rows.max()})")
    shape = rows.size, log_shares.numel()
    if log_evidence.shape != shape:
        raise DataError(f"'log_evidence' must have shape {shape} (got {tuple(log_evidence.shape)})")
    head = None
    if settings.llm_weight > 0.0 and rows.size:
        own = sp.csr_array(interactions, dtype=np.float32)[rows]
        n_factors = min(settings.network.n_factors, *interactions.shape)
        head = TasteHead(own, log_evidence, log_shares, settings, n_factors)
    network = train_network(
        interactions, settings.network, start=start, companion=head, ranking=settings.items, device=device
    )
    vectors = network.user_vectors(interactions, settings.hops)
    centre = vectors.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(vectors - centre, rowvar=False))
    directions = axes[:, ::-1][:, : settings.n_features].astype(np.float32)
    return Joint(network, head, directions, centre, settings.hops)
