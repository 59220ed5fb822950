"""LightGCN, the graph network that item rankings are compared with.

Embeddings of users and items, averaged over hops of the symmetrically normalised interaction graph, are
trained by the loss of Bayesian personalised ranking: an item taken should score above one drawn at random. He
et al., "LightGCN: Simplifying and powering graph convolution network for recommendation", 2020. The network
is PyTorch Geometric's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch_geometric.nn.models import LightGCN

from router.baselines.common import require
from router.errors import DataError, ParameterError


class LightGcnRanker:
    """Item ranking by LightGCN.

    Parameters
    ----------
    n_factors, n_layers
        Width of the embeddings, and hops.
    learning_rate, penalty, batch_size
        Of Adam; of the squared embeddings in a batch; interactions in a batch.
    seed
        Of initial embeddings, batches and drawn items.
    """

    def __init__(
        self,
        *,
        n_factors: int = 64,
        n_layers: int = 3,
        learning_rate: float = 1e-3,
        penalty: float = 1e-4,
        batch_size: int = 2048,
        seed: int = 0,
    ) -> None:
        for name, value in (("n_factors", n_factors), ("n_layers", n_layers), ("batch_size", batch_size)):
            if value < 1:
                raise ParameterError(f"'{name}' must be positive (got {value})")
        self.n_factors, self.n_layers = n_factors, n_layers
        self.learning_rate, self.penalty, self.batch_size = learning_rate, penalty, batch_size
        self.seed = seed
        self._vectors: Tensor | None = None

    def fit(
        self,
        interactions: sp.csr_array,
        n_epochs: int,
        *,
        every: int = 10,
        after: Callable[[int], bool] = lambda epoch: True,
    ) -> None:
        """Train.

        Parameters
        ----------
        interactions
            Users × items; weights do not count.
        n_epochs
            Passes over the interactions.
        every, after
            After so many epochs the vectors are set and ``after`` is called; training ends where it says no.

        Raises
        ------
        DataError
            There are no interactions.
        """
        if not interactions.nnz:
            raise DataError("'interactions' must not be empty")
        self._taken = sp.csr_array(interactions)
        n_users, n_items = self._taken.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = LightGCN(n_users + n_items, self.n_factors, self.n_layers, normalize=False)
            torch.nn.init.normal_(network.embedding.weight, std=0.1)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        graph = _normalised(self._taken)
        rng = np.random.default_rng(self.seed)
        users, items = (torch.from_numpy(ids.astype(np.int64)) for ids in self._taken.nonzero())
        for epoch in range(1, n_epochs + 1):
            for batch in torch.split(torch.from_numpy(rng.permutation(users.numel())), self.batch_size):
                drawn = torch.from_numpy(rng.integers(n_items, size=batch.numel()))
                nodes = torch.stack([users[batch], n_users + items[batch], n_users + drawn])
                optimiser.zero_grad()
                of_user, taken, other = network.get_embedding(graph)[nodes]
                loss = network.recommendation_loss(
                    (of_user * taken).sum(dim=1),
                    (of_user * other).sum(dim=1),
                    node_id=nodes.flatten(),
                    lambda_reg=self.penalty,
                )
                loss.backward()
                optimiser.step()
            if epoch % every == 0 or epoch == n_epochs:
                self._vectors = network.get_embedding(graph).detach()
                if not after(epoch):
                    break

    def recommend(self, users: ArrayLike, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Best items that a user has not taken.

        Parameters
        ----------
        users
            Rows of the interactions, int [b].
        k
            Items per user.

        Returns
        -------
        ids : int32 [b, k]
            Best first.
        scores : float32 [b, k]
        """
        require(self._vectors, self)
        assert self._vectors is not None
        rows = np.asarray(users, dtype=np.int64)
        n_users = self._taken.shape[0]
        scores = self._vectors[torch.from_numpy(rows)] @ self._vectors[n_users:].T
        seen = self._taken[rows].tocoo()
        scores[
            torch.from_numpy(seen.row.astype(np.int64)), torch.from_numpy(seen.col.astype(np.int64))
        ] = -torch.inf
        best = scores.topk(k, dim=1)
        return best.indices.numpy().astype(np.int32), best.values.numpy()


def _normalised(interactions: sp.csr_array) -> Tensor:
    """D^-½ A D^-½ of the graph of users, then items, as a sparse tensor."""
    ones = interactions.astype(bool).astype(np.float32)
    both = sp.csr_array(sp.block_array([[None, ones], [ones.T, None]]))
    scale = sp.diags_array(np.maximum(both.sum(axis=1), 1.0) ** -0.5)
    matrix = sp.csr_array(scale @ both @ scale, dtype=np.float32)
    matrix.sort_indices()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
            check_invariants=True,
        )
