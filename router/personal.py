"""The personal router: factors and tastes from choices, and the graph's prior over tastes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from router.baselines.common import require
from router.graph import Listeners, build_graph, known_users, new_users
from router.joint import Joint, JointSettings, train_joint
from router.model import Posterior, TasteModel
from router.persona.data import ChoiceData, Choices, Floats, Ints, Support, UserLinks
from router.prior import PriorSettings, TastePrior, messages_to, sent_by
from router.prior_fit import fit_prior
from router.threads import threads
from router.train import Progress, Settings, choose_device, train


class PersonalRouter:
    """The router as the benchmark sees it.

    Parameters
    ----------
    settings
        How to train.
    prior
        What the prior over tastes listens to.
    joint
        Train the ranking of items beside it, on the links' interactions: the prior then reads the vectors of
        items that both sides learned, in place of the links' features of items. None leaves those.
    device
        ``auto``, ``cpu``, ``cuda``.
    checkpoint
        File to resume from and save to, or None.
    checkpoint_every
        Steps between two checkpoints.
    held_out
        Choices to measure the training by.
    progress
        Called after every step of the training.
    tell
        Called with what the user should know of the training.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        prior: PriorSettings | None = None,
        *,
        joint: JointSettings | None = None,
        device: str = "auto",
        checkpoint: Path | None = None,
        checkpoint_every: int = 100,
        held_out: Choices | None = None,
        progress: Callable[[Progress], None] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.prior_settings = prior or PriorSettings()
        self.joint_settings = joint
        self.tell = tell
        self.device = device
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.held_out = held_out
        self.progress = progress
        self.model: TasteModel | None = None
        self.prior: TastePrior | None = None
        self.joint: Joint | None = None
        self.log_prior: Tensor | None = None
        self.n_neighbors = 0

    def fit(self, data: ChoiceData) -> None:
        """Train on choices, and the prior on features and links of users where they are given."""
        with threads(self.settings.threads):
            self._fit(data)

    def _fit(self, data: ChoiceData) -> None:
        self.model = train(
            data,
            self.settings,
            device=self.device,
            checkpoint=self.checkpoint,
            checkpoint_every=self.checkpoint_every,
            held_out=self.held_out,
            progress=self.progress,
            tell=self.tell,
        )
        self._posterior = self.model.posterior(data.choices, data.n_users)
        self.prior = self.log_prior = self.joint = None
        if data.user_features is None and data.links is None:
            return
        if self.joint_settings is not None and data.links is not None:
            data = replace(data, links=self._with_learned_items(data, data.links, self.joint_settings))
        chosen = self.prior_settings
        self.n_neighbors = chosen.n_neighbors if chosen.alike and data.n_users <= chosen.max_alike else 0
        self.graph = build_graph(data, n_neighbors=self.n_neighbors, masked=chosen.masking)
        self.sent = sent_by(self.graph, self._posterior.shares, self.model.log_shares)
        self.prior = fit_prior(
            self.graph,
            self.sent,
            self._posterior.log_evidence,
            self.model.log_shares,
            chosen,
            seed=self.settings.seed,
            device=choose_device(self.device),
            tell=self.tell,
        )
        self.log_prior = self._log_prior(known_users(self.graph))
        self._posterior = self.model.posterior(data.choices, data.n_users, self.log_prior)

    def _with_learned_items(self, data: ChoiceData, links: UserLinks, settings: JointSettings) -> UserLinks:
        """Train items and tastes together; links with the vectors of items as their features."""
        if links.interactions is None or not links.interactions.nnz:
            return links
        assert self.model is not None
        rows = np.unique(data.choices.users)
        self.joint = train_joint(
            links.interactions,
            rows,
            self._posterior.log_evidence[torch.from_numpy(rows)],
            self.model.log_shares,
            settings,
            device=self.device,
        )
        return replace(links, item_features=self.joint.item_features())

    def scores(self, users: Ints, queries: Ints) -> Floats:
        """Expected logits of known users, float32 [u, q, m]."""
        require(self.model, self)
        assert self.model is not None
        with threads(self.settings.threads):
            return self.model.scores(self._posterior.mean[torch.from_numpy(users)], queries)

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        """Expected logits of new users, from their choices and features; nothing is trained."""
        require(self.model, self)
        assert self.model is not None
        with threads(self.settings.threads):
            return self.model.scores(self.posterior_of(support).mean, queries)

    def posterior_of(self, support: Support) -> Posterior:
        """What is known of new users."""
        require(self.model, self)
        assert self.model is not None
        log_prior = None
        if self.prior is not None:
            users = new_users(self.graph, support, n_neighbors=self.n_neighbors)
            log_prior = self._log_prior(users)
        return self.model.posterior(support.choices, support.n_users, log_prior)

    @torch.no_grad()
    def _log_prior(self, users: Listeners) -> Tensor:
        assert self.prior is not None
        messages = messages_to(users, self.sent, self.prior_settings)
        return self.prior(messages, len(users))
