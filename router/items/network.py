"""A trained ranking head: item vectors passed along the graph of users and items.

Every item has two vectors, one that its users are made of and one that it is ranked by. Both are smoothed by
message passing over the graph,

    E' = self · E + Σ_l (Âᵀ Â)^l E,   Â = diag(d_u^-user) X diag(d_i^-item),   l = 1 … n_layers,

as in LightGCN, whose layers have no weights of their own; a user has no vector of its own but the sum of the
source vectors of the items it went for, of unit length in training. So the head is inductive, and *linear* in
a user's interactions: it folds into an :class:`~router.items.linear.ItemMap` exactly, and is served and
blended with the closed forms at no further cost.

References
----------
He, Deng, Wang, Li, Zhang, Wang: "LightGCN", SIGIR 2020, section 3.1.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from router.errors import DataError, ParameterError
from router.items.linear import Floats, ItemMap
from router.items.terms import LowPass, degrees, powers

_LOG_SCALE = math.log(3.0)


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Shape of the network and how it is trained.

    The defaults were chosen on a validation split of Gowalla's training data.

    Attributes
    ----------
    n_factors
        Size of the vectors; fewer where there are fewer users or items.
    n_layers
        Steps user → item → user … of message passing; 0 leaves the items' vectors free.
    self_weight
        Weight of an item's own vector beside the messages.
    user_exponent, item_exponent
        Of the normalisation; LightGCN has ½ and ½.
    kept
        Share of a user's interactions, drawn anew in each epoch, that the user is made of; the others are to
        be ranked first.
    n_candidates
        Items that the softmax runs over beside those that the batch's users went for, or None for all items.
    n_epochs, batch_users
        Passes over the users, users in a step.
    learning_rate
        Of Adam; falls to 0 along a straight line.
    weight_decay
        Pull of vectors towards 0, as in AdamW.
    patience
        Epochs without a better quality on held-out interactions after which the training ends.
    seed
        Of everything drawn.
    """

    n_factors: int = 64
    n_layers: int = 0
    self_weight: float = 1.0
    user_exponent: float = 0.5
    item_exponent: float = 0.5
    kept: float = 0.8
    n_candidates: int | None = 3000
    n_epochs: int = 20
    batch_users: int = 512
    learning_rate: float = 0.05
    weight_decay: float = 0.4
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_factors", "n_epochs", "batch_users", "learning_rate", "patience"):
            if not getattr(self, name) > 0:
                raise ParameterError(f"'{name}' must be positive (got {getattr(self, name)})")
        for name in ("n_layers", "self_weight", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ParameterError(f"'{name}' must not be negative (got {getattr(self, name)})")
        if not 0.0 < self.kept < 1.0:
            raise ParameterError(f"'kept' must be between 0 and 1, exclusive (got {self.kept})")
        if self.n_candidates is not None and self.n_candidates < 0:
            raise ParameterError(f"'n_candidates' must not be negative (got {self.n_candidates})")
        if self.n_layers == 0 and self.self_weight == 0.0:
            raise ParameterError("'self_weight' must be positive where 'n_layers' is 0 (got 0)")


@dataclass(frozen=True, slots=True)
class Sparse:
    """Constant compressed rows and their transpose, for products with dense matrices that have gradients.

    Attributes
    ----------
    matrix, transposed
        Tensors of layout ``sparse_csr``, float32 [n, m] and [m, n].
    """

    matrix: Tensor
    transposed: Tensor

    @classmethod
    def of(cls, matrix: sp.csr_array, device: torch.device) -> Sparse:
        """Move to a device."""
        return cls(_csr(matrix, device), _csr(sp.csr_array(matrix.T), device))

    @property
    def mT(self) -> Sparse:  # noqa: N802
        """The transpose."""
        return Sparse(self.transposed, self.matrix)

    def __matmul__(self, dense: Tensor) -> Tensor:
        result: Tensor = _Product.apply(dense, self.matrix, self.transposed)  # type: ignore[no-untyped-call]
        return result


class ItemNetwork(nn.Module):
    """Vectors of items, and of users by their items.

    They start as the leading singular vectors of the interactions (:class:`~router.items.terms.LowPass`).

    Parameters
    ----------
    interactions
        Users × items: the graph, checked.
    settings
        Shape.
    device
        Where the graph is kept; the module itself is moved by ``to``.
    start
        Network to take the vectors from instead.

    Raises
    ------
    DataError
        ``start`` is of other items or another size.
    """

    source: nn.Parameter
    target: nn.Parameter
    log_scale: nn.Parameter

    def __init__(
        self,
        interactions: sp.csr_array,
        settings: NetworkSettings,
        device: torch.device,
        *,
        start: ItemNetwork | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        shape = interactions.shape[1], min(settings.n_factors, *interactions.shape)
        if start is None:
            spectral = LowPass(settings.n_factors, seed=settings.seed).fit(interactions)
            first = _of_unit_size(spectral.source), _of_unit_size(spectral.target), torch.tensor(_LOG_SCALE)
        else:
            first = start.source.detach(), start.target.detach(), start.log_scale.detach()
        if first[0].shape != shape:
            raise DataError(f"'start' must have vectors of shape {shape} (got {tuple(first[0].shape)})")
        self.source = nn.Parameter(first[0].cpu().clone())
        self.target = nn.Parameter(first[1].cpu().clone())
        self.log_scale = nn.Parameter(first[2].cpu().clone())
        self._graph = _normalised(interactions, settings, device)
        inverse = powers(degrees(interactions, axis=0), -settings.item_exponent)
        self._inverse = torch.from_numpy(inverse).to(device)

    def vectors(self, absent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Source and target vectors of all items, both [i, d].

        Parameters
        ----------
        absent
            Users whose interactions pass no messages, int64: those that are being ranked for, or else the
            items to be found would have messages from the very user.
        """
        own = torch.cat([self.source, self.target], dim=1)
        result = self.settings.self_weight * own
        present = torch.ones(self._graph.matrix.shape[0], 1, device=own.device)
        if absent is not None:
            present[absent] = 0.0
        for _ in range(self.settings.n_layers):
            own = self._graph.mT @ (present * (self._graph @ own))
            result = result + own
        source, target = result.chunk(2, dim=1)
        return source, target

    def users(self, own: Sparse, source: Tensor) -> Tensor:
        """Vectors of users by their interactions [u, i], of unit length, 0 without any, [u, d]."""
        return nn.functional.normalize(own @ source, dim=1)

    def smoothed(self, source: Tensor, hops: int) -> Tensor:
        """Source vectors after further steps of message passing, without the own ones, [i, d].

        They are scaled by d_i^-item for the last step to users, so frequent items tell less of them.

        Parameters
        ----------
        source
            Of :meth:`vectors`.
        hops
            Steps item → user → item.
        """
        for _ in range(hops):
            source = self._graph.mT @ (self._graph @ source)
        return self._inverse[:, None] * source

    def logits(self, users: Tensor, target: Tensor) -> Tensor:
        """Logits of items to be next, [u, c]."""
        result: Tensor = users @ target.T * (self.log_scale.exp() / target.shape[1] ** 0.5)
        return result

    @torch.no_grad()
    def item_map(self) -> ItemMap:
        """The map that ranks as the network does: its scores differ by a factor for each user."""
        source, target = (vectors.cpu().numpy() for vectors in self.vectors())
        return ItemMap.of_vectors(source.copy(), target.copy())

    @torch.no_grad()
    def user_vectors(self, interactions: sp.csr_array, hops: int = 0) -> Floats:
        """Vectors of any users, known or new, of unit length, 0 without interactions, float32 [u, d].

        Parameters
        ----------
        interactions
            Theirs, [u, i].
        hops
            Steps of :meth:`smoothed`; 0 takes the vectors that items are ranked by.
        """
        source, _ = self.vectors()
        own = Sparse.of(sp.csr_array(interactions, dtype=np.float32), source.device)
        result: Floats = self.users(own, self.smoothed(source, hops) if hops else source).cpu().numpy()
        return result


class _Product(torch.autograd.Function):
    """Sparse times dense; the gradient goes to the dense matrix alone."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed @ slopes[0], None, None


def _csr(matrix: sp.csr_array, device: torch.device) -> Tensor:
    indptr, indices = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    values = torch.from_numpy(matrix.data.astype(np.float32))
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Sparse CSR tensor support is in beta", category=UserWarning
        )
        return torch.sparse_csr_tensor(
            indptr, indices, values, size=matrix.shape, device=device, check_invariants=False
        )


def _normalised(interactions: sp.csr_array, settings: NetworkSettings, device: torch.device) -> Sparse:
    by_user = sp.diags_array(powers(degrees(interactions, axis=1), -settings.user_exponent))
    by_item = sp.diags_array(powers(degrees(interactions, axis=0), -settings.item_exponent))
    return Sparse.of(sp.csr_array(by_user @ interactions @ by_item), device)


def _of_unit_size(vectors: Floats) -> Tensor:
    """Scale to a root mean square of 1."""
    return torch.from_numpy(vectors / np.sqrt(np.mean(np.square(vectors))))
