"""What the graph says of a user before the first choice: a prior over tastes, learned by a graph network.

The graph holds users, LLMs and tasks. Its edges: *near* (known user → user, by fingerprints or by features),
*chose* (user → LLM) and *served* (LLM → task), with weights. A user's prior is

    log π(k | u) = log π(k) + W x(u) + V Σ_v a(u, v) x(v) + R Σ_v a(u, v) (r(v, k) - π(k)),

one layer of message passing over *near* with normalised weights a: x are features of users, r(v, ·) the
tastes that the choices of a known user v point to. W, V and R start at 0 and are fitted to the known users'
choices, as far as that helps on users held out: how much the graph is trusted is learned, and may be nothing.

A user's own choices never enter its own prior: edges from a user to itself are dropped, and the only messages
are one step long. They come in as the likelihood (:mod:`router.model`), so nothing is counted twice.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import SimpleConv

from router.errors import DataError
from router.model import Posterior, TasteModel
from router.persona.data import ChoiceData, Floats

NEAR = ("user", "near", "user")
CHOSE = ("user", "chose", "llm")
SERVED = ("llm", "served", "task")
_HELD_OUT = 0.2
_STEPS = 600
_PATIENCE = 60
_LEARNING_RATE = 0.01
_WEIGHT_DECAY = 1e-2


def build_graph(data: ChoiceData, near: sp.csr_array | None = None) -> HeteroData:
    """Build the graph of the known users.

    Parameters
    ----------
    data
        Users, LLMs and tasks, and who chose what.
    near
        Weights of the edges from known users (columns) to users (rows), such as top-k PPR, [u, u]; no edges
        by default.

    Returns
    -------
    HeteroData
        ``user.x`` are features of users, standardised, [u, p]; ``llm.x`` the descriptions' embeddings. Edges
        carry ``edge_weight``: the normalised weight of *near*, the number of choices of *chose* and *served*.

    Raises
    ------
    DataError
        ``near`` has another number of users.
    """
    graph = HeteroData()
    features = np.zeros((data.n_users, 0), np.float32) if data.user_features is None else data.user_features
    # Of all users alike features may not vary at all.
    graph.center, graph.scale = features.mean(axis=0), features.std(axis=0) + np.float32(1e-6)
    graph["user"].x = torch.from_numpy((features - graph.center) / graph.scale)
    graph["llm"].x = torch.from_numpy(data.llm_embeddings)
    graph["task"].num_nodes = data.n_tasks
    choices = data.choices
    _connect(graph, CHOSE, choices.users, choices.llms, (data.n_users, data.n_llms))
    _connect(graph, SERVED, choices.llms, data.tasks[choices.queries], (data.n_llms, data.n_tasks))
    nothing = sp.csr_array((data.n_users, data.n_users), dtype=np.float32)
    graph[NEAR].edge_index, graph[NEAR].edge_weight = near_edges(
        nothing if near is None else near, data.n_users, known=True
    )
    return graph


def near_edges(near: sp.csr_array, n_known: int, *, known: bool) -> tuple[Tensor, Tensor]:
    """Edges from known users to users, with weights that sum to 1 for each user.

    Parameters
    ----------
    near
        Weights, users × known users; edges without a positive weight are dropped.
    n_known
        Number of known users.
    known
        Whether the rows are the known users themselves; then edges from a user to itself are dropped.

    Returns
    -------
    index
        int64 [2, e]: known user, user.
    weights
        float32 [e].

    Raises
    ------
    DataError
        The number of users differs.
    """
    if near.shape[1] != n_known or (known and near.shape[0] != n_known):
        raise DataError(f"'near' must have a column for each of {n_known} known users (got {near.shape})")
    coo = near.tocoo()
    kept = coo.data > 0.0
    if known:
        kept &= coo.row != coo.col
    rows, columns, weights = coo.row[kept], coo.col[kept], coo.data[kept]
    weights = weights / np.bincount(rows, weights, minlength=near.shape[0])[rows]
    index = np.stack([columns, rows]).astype(np.int64)
    return torch.from_numpy(index), torch.from_numpy(weights.astype(np.float32))


def feature_neighbours(features: Floats, known: Floats, k: int, *, same: bool) -> sp.csr_array:
    """Each user's k known users of largest positive dot product, [u, known].

    Parameters
    ----------
    features, known
        float32 [u, p], [known, p].
    k
        Neighbours.
    same
        Whether both are the same users; a user is then no neighbour of its own.
    """
    affinity = (features @ known.T).clip(0.0)
    if same:
        np.fill_diagonal(affinity, 0.0)
    k = min(k, affinity.shape[1])
    least = np.partition(affinity, -k, axis=1)[:, [-k]]
    return sp.csr_array(np.where(affinity >= least, affinity, np.float32(0.0)))


class TastePrior(nn.Module):
    """Graph network for the prior over tastes.

    Parameters
    ----------
    n_features
        Features of users.
    log_shares
        Tastes' shares among all users, float32 [k].
    """

    def __init__(self, n_features: int, log_shares: Tensor) -> None:
        super().__init__()
        self.log_shares = nn.Buffer(log_shares.log_softmax(0))
        n_tastes = log_shares.numel()
        self.own = nn.Linear(n_features, n_tastes, bias=False)
        self.others = nn.Linear(n_features, n_tastes, bias=False)
        self.tastes = nn.Linear(n_tastes, n_tastes, bias=False)
        for layer in (self.own, self.others, self.tastes):
            nn.init.zeros_(layer.weight)
        self.gather = SimpleConv(aggr="sum")

    def forward(
        self, x: Tensor, known_x: Tensor, known_shares: Tensor, near: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Log-probability of each taste, [u, k].

        Parameters
        ----------
        x, known_x
            Features of users and of known users, [u, p], [known, p].
        known_shares
            Tastes that the known users' choices point to, [known, k].
        near
            Edges and weights of :func:`near_edges`.
        """
        index, weights = near
        surprise = known_shares - self.log_shares.exp()
        sent = torch.cat([known_x, surprise], dim=1)
        received = self.gather((sent, x.new_zeros(len(x), sent.shape[1])), index, weights)
        p = known_x.shape[1]
        logits = self.own(x) + self.others(received[:, :p]) + self.tastes(received[:, p:])
        result: Tensor = (self.log_shares + logits).log_softmax(dim=1)
        return result


def fit_prior(model: TasteModel, graph: HeteroData, posterior: Posterior, *, seed: int = 0) -> TastePrior:
    """Fit the prior to the known users' choices, until users held out gain nothing more.

    Parameters
    ----------
    model
        Gives the tastes.
    graph
        Of the known users.
    posterior
        The known users', under the same prior for all.
    seed
        Of the users held out.
    """
    x, evidence = graph["user"].x, posterior.log_evidence
    near = graph[NEAR].edge_index, graph[NEAR].edge_weight
    prior = TastePrior(x.shape[1], model.log_shares)
    held_out = torch.from_numpy(np.random.default_rng(seed).random(len(x)) < _HELD_OUT)
    # Tastes of users held out are not to be learned from, so they send no messages of them.
    shares = torch.where(held_out[:, None], prior.log_shares.exp(), posterior.shares)
    optimiser = torch.optim.AdamW(prior.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    best, best_loss, best_step = deepcopy(prior.state_dict()), torch.inf, 0
    for step in range(_STEPS):
        by_user = -(prior(x, x, shares, near) + evidence).logsumexp(dim=1)
        loss = float(by_user[held_out].detach().mean())
        if loss < best_loss:
            best, best_loss, best_step = deepcopy(prior.state_dict()), loss, step
        elif step - best_step > _PATIENCE:
            break
        optimiser.zero_grad()
        by_user[~held_out].mean().backward()
        optimiser.step()
    prior.load_state_dict(best)
    return prior


def _connect(
    graph: HeteroData,
    edge: tuple[str, str, str],
    tails: np.ndarray,
    heads: np.ndarray,
    shape: tuple[int, int],
) -> None:
    counts = sp.coo_array((np.ones(tails.size, np.float32), (tails, heads)), shape=shape)
    counts.sum_duplicates()
    graph[edge].edge_index = torch.from_numpy(np.stack(counts.coords).astype(np.int64))
    graph[edge].edge_weight = torch.from_numpy(counts.data)
