"""The personal router: factors and tastes from choices, and the graph's prior over tastes."""

from __future__ import annotations

from pathlib import Path

import scipy.sparse as sp
import torch
from torch import Tensor

from router.baselines.common import require
from router.graph import TastePrior, build_graph, feature_neighbours, fit_prior, near_edges
from router.model import Posterior, TasteModel
from router.persona.data import ChoiceData, Floats, Ints, Support
from router.train import Settings, train


class PersonalRouter:
    """The router as the benchmark sees it.

    Parameters
    ----------
    settings
        How to train.
    device
        ``auto``, ``cpu``, ``cuda``.
    checkpoint
        File to resume from and save to, or None.
    """

    def __init__(
        self, settings: Settings | None = None, *, device: str = "auto", checkpoint: Path | None = None
    ) -> None:
        self.settings = settings or Settings()
        self.device = device
        self.checkpoint = checkpoint
        self.model: TasteModel | None = None
        self.prior: TastePrior | None = None

    def fit(self, data: ChoiceData) -> None:
        """Train on choices, and the prior on users' features where they are given."""
        self.model = train(data, self.settings, device=self.device, checkpoint=self.checkpoint)
        self._posterior = self.model.posterior(data.choices, data.n_users)
        self.prior = None
        if data.user_features is not None:
            near = feature_neighbours(
                data.user_features, data.user_features, self.settings.n_neighbors, same=True
            )
            self._graph = build_graph(data, near)
            self.prior = fit_prior(self.model, self._graph, self._posterior, seed=self.settings.seed)
            self._known, self._shares = data.user_features, self._posterior.shares
            edges = near_edges(near, data.n_users, known=True)
            log_prior = self._log_prior(self._known, edges)
            self._posterior = self.model.posterior(data.choices, data.n_users, log_prior)

    def scores(self, users: Ints, queries: Ints) -> Floats:
        """Expected logits of known users, float32 [u, q, m]."""
        require(self.model, self)
        assert self.model is not None
        return self.model.scores(self._posterior.mean[torch.from_numpy(users)], queries)

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        """Expected logits of new users, from their choices and features; nothing is trained."""
        require(self.model, self)
        assert self.model is not None
        return self.model.scores(self.posterior_of(support).mean, queries)

    def posterior_of(self, support: Support) -> Posterior:
        """What is known of new users."""
        require(self.model, self)
        assert self.model is not None
        log_prior = None
        if self.prior is not None and support.user_features is not None:
            near: sp.csr_array = feature_neighbours(
                support.user_features, self._known, self.settings.n_neighbors, same=False
            )
            edges = near_edges(near, len(self._known), known=False)
            log_prior = self._log_prior(support.user_features, edges)
        return self.model.posterior(support.choices, support.n_users, log_prior)

    @torch.no_grad()
    def _log_prior(self, features: Floats, edges: tuple[Tensor, Tensor]) -> Tensor:
        assert self.prior is not None
        x = torch.from_numpy((features - self._graph.center) / self._graph.scale)
        result: Tensor = self.prior(x, self._graph["user"].x, self._shares, edges)
        return result
