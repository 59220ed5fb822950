"""The prior over tastes of users that a bundle does not hold, in numpy; see :mod:`router.prior`.

The prior is linear in what a user hears, so a newcomer costs a few sums over rows of stored messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.persona.data import Bools, Floats, Ints

USER_PARTS = ("features", "tastes", "llms")
ITEM_PARTS = ("features", "tastes")


@dataclass(frozen=True, slots=True)
class Heard:
    """What ties a newcomer to users and items, by their rows and positive weights.

    Attributes
    ----------
    features
        Profile features, float32 [p], or None where nothing is known.
    items, near, near_items
        Rows int64 [n] and weights float32 [n]: the newcomer's items; users and items near by personalised
        PageRank.
    """

    features: Floats | None = None
    items: tuple[Ints, Floats] | None = None
    near: tuple[Ints, Floats] | None = None
    near_items: tuple[Ints, Floats] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing ties the newcomer to anyone."""
        return all(tie is None for tie in (self.features, self.items, self.near, self.near_items))


@dataclass(frozen=True, slots=True)
class NewcomerPrior:
    """Prior over tastes, linear in messages.

    Attributes
    ----------
    log_shares
        Tastes' shares among all users, float32 [k].
    weights
        By block of messages, float32 [d, k].
    center, scale
        Of the profile features, float32 [p].
    user_sent
        What known users tell, float32 [u, p + k + m]: their features, standardised, their tastes and LLMs.
    user_sends
        Users who made choices, bool [u]; the others tell nothing.
    item_sent
        What items tell, float32 [i, q + k]; [0, ...] where there are none.
    n_neighbors
        Users alike in features that a newcomer hears.
    """

    log_shares: Floats
    weights: dict[str, Floats]
    center: Floats
    scale: Floats
    user_sent: Floats
    user_sends: Bools
    item_sent: Floats
    n_neighbors: int

    def log_prior(self, heard: Heard) -> Floats:
        """Log-probability of each taste, float32 [k]."""
        logits = self.log_shares.astype(np.float64)
        for block, message in self._messages(heard).items():
            if block in self.weights:
                logits = logits + message @ self.weights[block]
        shifted = logits - logits.max()
        result: Floats = (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)
        return result

    def features_of(self, row: int) -> Floats:
        """Profile features of a known user, float32 [p]."""
        features: Floats = self.user_sent[row, : self.center.size] * self.scale + self.center
        return features

    def _messages(self, heard: Heard) -> dict[str, Floats]:
        messages: dict[str, Floats] = {}
        if heard.features is not None and self.center.size:
            messages["own"] = (heard.features - self.center) / self.scale
            if self.n_neighbors:  # a look at all users
                self._tell(messages, "alike", self._alike(heard.features))
        self._tell(messages, "near", heard.near)
        self._tell(messages, "taken_by", heard.items)
        self._tell(messages, "reached", heard.near_items)
        return messages

    def _tell(self, messages: dict[str, Floats], edge: str, rows: tuple[Ints, Floats] | None) -> None:
        """Add the weighted means of what the users or items at some rows tell."""
        if rows is None or not any(block.startswith(f"{edge}.") for block in self.weights):
            return
        at, weights = rows
        of_users = edge in ("alike", "near")
        if of_users:
            sends = self.user_sends[at]
            at, weights = at[sends], weights[sends]
        sent = self.user_sent if of_users else self.item_sent
        mean = (weights / weights.sum()) @ sent[at] if at.size else np.zeros(sent.shape[1], np.float32)
        p, k = self.center.size, self.log_shares.size
        bounds = [p, p + k] if of_users else [sent.shape[1] - k]
        names = USER_PARTS if of_users else ITEM_PARTS
        for name, part in zip(names, np.split(mean, bounds), strict=True):
            messages[f"{edge}.{name}"] = part

    def _alike(self, features: Floats) -> tuple[Ints, Floats]:
        """Known users of largest positive dot product of features, ties by ascending row."""
        known = self.user_sent[:, : self.center.size] * self.scale + self.center
        affinity = np.where(self.user_sends, (known @ features).clip(0.0), np.float32(0.0))
        nearest = np.argsort(-affinity, kind="stable")[: self.n_neighbors]
        nearest = nearest[affinity[nearest] > 0.0]
        return nearest, affinity[nearest]

    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Floats], dict[str, NDArray[Any]]]:
        """Weights, embeddings and further arrays of a bundle."""
        weights = {f"prior.{block}": array for block, array in self.weights.items()}
        weights |= {"prior_center": self.center, "prior_scale": self.scale}
        embeddings = {"user.sent": self.user_sent}
        if len(self.item_sent):  # a bundle without items has no rows of that kind
            embeddings["item.sent"] = self.item_sent
        return weights, embeddings, {"user_sends": self.user_sends}

    @classmethod
    def from_arrays(
        cls,
        log_shares: Floats,
        n_neighbors: int,
        weights: Mapping[str, NDArray[Any]],
        embeddings: Mapping[str, NDArray[Any]],
        arrays: Mapping[str, NDArray[Any]],
    ) -> NewcomerPrior | None:
        """Prior of :meth:`to_arrays`; None where the bundle has none. KeyError where an array is missing."""
        blocks = {name.removeprefix("prior."): a for name, a in weights.items() if name.startswith("prior.")}
        if not blocks:
            return None
        no_items = np.zeros((0, log_shares.size), dtype=np.float32)
        return cls(
            log_shares=log_shares,
            weights=blocks,
            center=weights["prior_center"],
            scale=weights["prior_scale"],
            user_sent=embeddings["user.sent"],
            user_sends=arrays["user_sends"],
            item_sent=embeddings.get("item.sent", no_items),
            n_neighbors=n_neighbors,
        )
