"""PersonalizedRouter as released (arXiv 2511.16883), by specification, its defects included.

Query nodes x_q = [W_t t; W_q e; W_u onehot(u)] and LLM nodes x_m = W_m z pass messages over one edge per
(choice, LLM on offer), of weight 1 where the LLM was chosen and 0 otherwise, in two GeneralConv layers; a
pair scores σ(mean(x_q ⊙ h_m)). The users' indicators are tiled over query nodes that all users share, so
every user gets the same answer; the sigmoid is applied twice (here and in the loss); edges are targets and
messages in turn. One thing differs: the epoch is chosen on a tenth of the choices, not on the test split.

Edges between a query and an LLM differ in their weight only, so messages are summed by counts of edges.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from router.baselines.common import require, without_unknown
from router.errors import ParameterError
from router.persona.data import ChoiceData, Choices, Floats, Ints, Support

_BLOCK = 16
_WIDTH = 3 * _BLOCK
_VALIDATION = 0.1


class PersonalizedRouter:
    """The published graph neural network.

    Parameters
    ----------
    n_epochs
        Epochs; each sees a random half of the choices as messages and the other half as targets.
    learning_rate, weight_decay
        Of AdamW.
    seed
        Of initial weights, halves and the validation split.
    """

    def __init__(
        self,
        *,
        n_epochs: int = 400,
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ) -> None:
        if n_epochs < 1:
            raise ParameterError(f"'n_epochs' must be positive (got {n_epochs})")
        self.n_epochs = n_epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.seed = seed
        self._scores: Floats | None = None

    def fit(self, data: ChoiceData) -> None:
        """Train, and keep the scores of the epoch that is best on validation."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = _Network(data)
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        rng = np.random.default_rng(self.seed)
        held_out = rng.random(len(data.choices)) < _VALIDATION
        train, validation = data.choices.take(~held_out), data.choices.take(held_out)
        everything = edge_counts(train, data)
        best = -1.0
        for _ in range(self.n_epochs):
            visible = rng.random(len(train)) < 0.5
            targets = edge_counts(train.take(~visible), data)
            network.train()
            optimiser.zero_grad()
            scores = network(edge_counts(train.take(visible), data))
            # The second sigmoid is in the loss: softplus(-s) = -log σ(s).
            softplus = nn.functional.softplus
            loss = (targets[1] * softplus(-scores) + targets[0] * softplus(scores)).sum() / targets.sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            network.eval()
            with torch.no_grad():
                answer = network(everything).numpy()
            accuracy = float((answer[validation.queries].argmax(axis=1) == validation.llms).mean())
            if accuracy > best:
                best, self._scores = accuracy, answer
        self._data = data

    def scores(self, users: Ints, queries: Ints) -> Floats:
        """Scores, the same for all users, float32 [u, q, m]."""
        require(self._scores, self)
        assert self._scores is not None
        return without_unknown(np.tile(self._scores[queries], (len(users), 1, 1)), self._data)

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        """As for everyone else."""
        return self.scores(np.arange(support.n_users), queries)


def edge_counts(choices: Choices, data: ChoiceData) -> Tensor:
    """Edges by weight (0, 1), query and LLM, float32 [2, q, m]."""
    shape = (data.n_queries, data.n_llms)
    cells = choices.queries * data.n_llms + choices.llms
    chosen = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    offered = np.zeros(shape)
    np.add.at(offered, choices.queries, 1 if choices.offered is None else choices.offered)
    return torch.from_numpy(np.stack([offered - chosen, chosen]).astype(np.float32))


class SummedConv(nn.Module):
    """GeneralConv of PyTorch Geometric (sum of messages, edge features, skip connection) on counted edges."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.message = nn.Linear(width, width)
        self.edge = nn.Linear(width, width)

    def forward(self, queries: Tensor, llms: Tensor, edges: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Pass messages both ways.

        Parameters
        ----------
        queries, llms
            Nodes, float32 [q, w] and [m, w].
        edges
            Features of an edge of weight 0 and of weight 1, float32 [2, w].
        counts
            float32 [2, q, m].
        """
        both = counts.sum(dim=0)
        from_edges = self.edge(edges)
        to_queries = both @ self.message(llms) + counts.sum(dim=2).T @ from_edges
        to_llms = both.T @ self.message(queries) + counts.sum(dim=1).T @ from_edges
        return queries + to_queries, llms + to_llms


class _Network(nn.Module):
    def __init__(self, data: ChoiceData) -> None:
        super().__init__()
        tiled = torch.arange(data.n_queries) % data.n_users
        self.tasks = nn.functional.one_hot(torch.from_numpy(data.tasks)).float()
        self.users = nn.functional.one_hot(tiled, data.n_users).float()
        self.queries = torch.from_numpy(data.query_embeddings)
        self.llms = torch.from_numpy(data.llm_embeddings)
        self.of_task = nn.Linear(self.tasks.shape[1], _BLOCK)
        self.of_query = nn.Linear(self.queries.shape[1], _BLOCK)
        self.of_user = nn.Linear(data.n_users, _BLOCK)
        self.of_llm = nn.Linear(self.llms.shape[1], _WIDTH)
        self.of_edge = nn.Linear(1, _WIDTH)
        self.convs = nn.ModuleList([SummedConv(_WIDTH), SummedConv(_WIDTH)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(_WIDTH), nn.BatchNorm1d(_WIDTH)])

    def forward(self, counts: Tensor) -> Tensor:
        """Scores in 0..1, float32 [q, m]."""
        x = torch.cat(
            [self.of_task(self.tasks), self.of_query(self.queries), self.of_user(self.users)], dim=1
        )
        queries, llms = x, self.of_llm(self.llms)
        edges = torch.relu(self.of_edge(torch.tensor([[0.0], [1.0]])))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            queries, llms = conv(queries, llms, edges, counts)
            nodes = torch.relu(norm(torch.cat([queries, llms])))
            queries, llms = nodes[: len(queries)], nodes[len(queries) :]
        return torch.sigmoid(x @ llms.T / _WIDTH)
