"""What is known of a user before the first choice: a prior over tastes, by messages on the graph.

A user's prior is linear in what the user hears,

    log π(k | u) = log π(k) + Σ_b message_b(u) W_b + constant,

over blocks b of messages (those that there are):

``own``
    x(u), the user's features.
``alike.features``, ``alike.tastes``, ``alike.llms``
    Σ_v a(u, v) · (x(v) | s(v, ·) | c(v, ·)) over the users alike in features: their features; the surprise of
    their choices s(v, k) = r(v, k) - π(k), r being the tastes that the choices point to; and which LLMs they
    chose more often than at random, c(v, m) = n(v, m) / n(v) - 1 / M. (Not than all users do: that mean would
    hold the user's own choices.)
``near.features``, ``near.tastes``, ``near.llms``
    The same over the users who are near by PPR. The last is the PPR mass between users and LLMs, composed.
``taken_by.features``, ``taken_by.tastes``, ``reached.features``, ``reached.tastes``
    Σ_i a(u, i) · (y(i) | h(u, i, ·)) over the user's items and those near by PPR: their features; and what
    the choices of their users say, h(u, i, k) = Σ_{v≠u} w(v, i) s(v, k) / (1 + Σ_{v≠u} w(v, i)).

Weights a sum to 1. Layers without non-linearities between them are one linear map (Wu et al., "Simplifying
Graph Convolutional Networks", ICML 2019): messages are computed once, and what is learned is how they are
read. A user's own choices never enter its own messages; they come in as the likelihood (:mod:`router.model`),
so no edge is counted twice. Here v ≠ u holds exactly, on paths of two steps as well, for given factors. (The
factors themselves are learned from the choices of all users: that much of a user's choices is in everything.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import MessagePassing, SimpleConv

from router.errors import ParameterError
from router.graph import ALIKE, CHOSE, NEAR, REACHED, TAKEN_BY, TOOK, Edges, Listeners
from router.newcomers import ITEM_PARTS, USER_PARTS

_USERS = 4096  # who get their messages at a time; bounds memory


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorSettings:
    """What the prior listens to, and how it is fitted.

    Attributes
    ----------
    attributes
        The user's own features.
    alike
        Users alike in features.
    near
        Users and items near by PPR.
    items
        The user's items and those near by PPR.
    masking
        Leave out what would bring a user's own choices back. Without it the prior learns from a leak, as
        PersonalizedRouter's released training does: for comparisons only.
    n_neighbors
        Users alike that a user hears.
    max_alike
        Largest number of users, as users alike are searched for by comparing all pairs.
    n_steps, learning_rate
        Steps of Adam; the learning rate falls to 0 over the second half.
    max_edges
        Edges of a graph that is used as a whole at each step; of a larger one, neighbours are sampled.
    batch_size, fan_out
        Then: users in a step, and neighbours drawn for each node and type of edges.
    """

    attributes: bool = True
    alike: bool = True
    near: bool = True
    items: bool = True
    masking: bool = True
    n_neighbors: int = 50
    max_alike: int = 50_000
    n_steps: int = 400
    learning_rate: float = 0.05
    max_edges: int = 20_000_000
    batch_size: int = 4096
    fan_out: int = 16

    def __post_init__(self) -> None:
        for name in ("n_neighbors", "n_steps", "learning_rate", "batch_size", "fan_out"):
            if getattr(self, name) <= 0:
                raise ParameterError(f"'{name}' must be positive (got {getattr(self, name)})")
        if self.max_edges < 0:
            raise ParameterError(f"'max_edges' must not be negative (got {self.max_edges})")

    def hears(self, block: str) -> bool:
        """Whether a block of messages is used."""
        heard = {
            "own": self.attributes,
            ALIKE[1]: self.alike,
            NEAR[1]: self.near,
            TAKEN_BY[1]: self.items,
            REACHED[1]: self.near and self.items,
        }
        return heard[block.partition(".")[0]]


@dataclass(frozen=True, slots=True)
class Sent:
    """What known users and items tell those who listen.

    Attributes
    ----------
    users
        Features, surprise of tastes and of LLMs by user: float32 [u, p], [u, k], [u, m].
    item_features
        float32 [i, q].
    item_tastes
        Sum of the surprise of the item's users, by weight, float64 [i, k].
    item_weights
        Sum of the weights of users who made choices, float64 [i].
    """

    users: tuple[Tensor, Tensor, Tensor]
    item_features: Tensor
    item_tastes: Tensor
    item_weights: Tensor

    @property
    def items(self) -> tuple[Tensor, Tensor]:
        """What items tell a user who has no part in it: float32 [i, q], [i, k]."""
        return self.item_features, (self.item_tastes / (1.0 + self.item_weights[:, None])).float()

    def to(self, device: torch.device) -> Sent:
        """Move to a device."""
        features, tastes, llms = (part.to(device) for part in self.users)
        items = (part.to(device) for part in (self.item_features, self.item_tastes, self.item_weights))
        return Sent((features, tastes, llms), *items)


@dataclass(frozen=True, slots=True)
class TastePrior:
    """The fitted prior.

    Attributes
    ----------
    log_shares
        Tastes' shares among all users, float32 [k].
    weights
        By block, float32 [d, k].
    spreads
        Standard deviations of the weights by block, as learned and in units of the messages' spread: how much
        a block is trusted.
    """

    log_shares: Tensor
    weights: dict[str, Tensor]
    spreads: dict[str, float]

    def __call__(self, messages: dict[str, Tensor], n_users: int) -> Tensor:
        """Log-probability of each taste, float32 [u, k]; blocks that are not there say nothing.

        Parameters
        ----------
        messages
            By block, float32 [u, d].
        n_users
            Number of users.
        """
        logits = self.log_shares.expand(n_users, -1)
        for block, weights in self.weights.items():
            if block in messages:
                logits = logits + messages[block] @ weights
        return logits.log_softmax(dim=1)


class _OthersOfItems(MessagePassing):  # type: ignore[misc]
    """From items to known users: what the item's users say, without the user's own part."""

    def __init__(self) -> None:
        super().__init__(aggr="sum")

    def forward(self, sent: Sent, edges: Edges, known: Tensor) -> Tensor:
        """Weighted sum over the items of some known users, float32 [u, k]."""
        assert edges.own is not None
        items = torch.cat([sent.item_tastes, sent.item_weights[:, None]], dim=1)
        surprise = sent.users[1][known].double()
        users = torch.cat([surprise, torch.ones_like(surprise[:, :1])], dim=1)
        result: Tensor = self.propagate(
            edges.index,
            x=(items, users),
            weight=edges.weight[:, None],
            own=edges.own[:, None],
            size=(len(items), len(users)),
        )
        return result

    def message(self, x_j: Tensor, x_i: Tensor, weight: Tensor, own: Tensor) -> Tensor:
        """Take the user's part out of the item's sums; in float64, so that nothing of it is left."""
        others = x_j - own * x_i
        return (weight * others[:, :-1] / (1.0 + others[:, -1:])).float()


def sent_by(graph: HeteroData, shares: Tensor, log_shares: Tensor) -> Sent:
    """What the known users and items tell.

    Parameters
    ----------
    graph
        Of the known users.
    shares
        Tastes that the known users' choices point to, under the same prior for all, float32 [u, k].
    log_shares
        Tastes' shares among all users, float32 [k].
    """
    user = graph["user"]
    sends = user.n_choices > 0
    surprise = torch.where(sends[:, None], shares - log_shares.exp(), 0.0)
    chosen = torch.zeros(len(shares), graph["llm"].num_nodes)
    chosen[tuple(graph[CHOSE].edge_index)] = graph[CHOSE].edge_weight
    shares_of_llms = chosen / user.n_choices.clamp(min=1)[:, None]
    llms = torch.where(sends[:, None], shares_of_llms - 1.0 / chosen.shape[1], 0.0)
    n_items = graph["item"].num_nodes if "item" in graph.node_types else 0
    features = graph["item"].x if n_items else torch.zeros(0, 0)
    sums = torch.zeros(n_items, surprise.shape[1] + 1, dtype=torch.float64)
    if TOOK in graph.edge_types:
        users, items = graph[TOOK].edge_index
        part = torch.cat([surprise, sends[:, None]], dim=1).double()
        weight = graph[TOOK].edge_weight.double()
        sums = SimpleConv(aggr="sum")((part, sums), torch.stack([users, items]), weight)
    return Sent((user.x, surprise, llms), features, sums[:, :-1], sums[:, -1])


def messages_to(listeners: Listeners, sent: Sent, settings: PriorSettings) -> dict[str, Tensor]:
    """What users hear, by block, float32 [u, d].

    Parameters
    ----------
    listeners
        Users, and edges into them.
    sent
        What others tell.
    settings
        Which blocks are used.
    """
    items = sent.items
    parts = [_messages(part, sent, items, settings) for part in listeners.parts(_USERS)]
    return {block: torch.cat([part[block] for part in parts]) for block in parts[0]}


def _messages(
    listeners: Listeners, sent: Sent, items: tuple[Tensor, Tensor], settings: PriorSettings
) -> dict[str, Tensor]:
    messages = {"own": listeners.x}
    for edge, edges in listeners.edges.items():
        names, parts = (USER_PARTS, sent.users) if edge[0] == "user" else (ITEM_PARTS, items)
        for name, part in zip(names, parts):
            block = f"{edge[1]}.{name}"
            if listeners.known is not None and edge[0] == "item" and name == "tastes":
                messages[block] = _OthersOfItems()(sent, edges, listeners.known)
            else:
                nothing = part.new_zeros(len(listeners), part.shape[1])
                messages[block] = SimpleConv(aggr="sum")((part, nothing), edges.index, edges.weight)
    return {b: m for b, m in messages.items() if m.shape[1] and settings.hears(b)}
