"""From data to a bundle: train, judge by choices held out, and write what a service needs.

Factors are learned without the choices held out, which only say at which step the training was best: the
figures are honest but for that. What is believed of each user then comes from all choices, because that is
inference, not training. The terms that rank items are chosen on interactions held out, and fitted on all.
Equal data, settings and seed give an equal bundle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from router.bundle import ITEM, QUERY, USER, Bundle, write_bundle
from router.dataset import RouterData
from router.items import ItemRanker, Term, TermChoice, choose_terms
from router.items.learning import Network, Trained
from router.joint import Joint, JointSettings
from router.model import TasteModel
from router.newcomers import NewcomerPrior
from router.persona.data import ChoiceData, Choices, Floats
from router.personal import PersonalRouter
from router.posterior import Beliefs, Tastes, infer
from router.recommender import lists_of
from router.scorer import ANSWER_ARRAYS, packed
from router.served import KnownQueries, LightPairs
from router.train import Progress, Settings
from router.validation import split_choices, validate

_HISTORY_POINTS = 200
_HEAD_WEIGHT = 1.5  # beside the default terms, as chosen on a validation split of Gowalla's training data


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model, and the prior of its users.

    Attributes
    ----------
    model
        Factors and tastes.
    log_prior
        Of the known users, float32 [u, k], or None: the same for all.
    newcomers
        Of other users, or None.
    """

    model: TasteModel
    log_prior: Floats | None
    newcomers: NewcomerPrior | None

    @classmethod
    def of(cls, router: PersonalRouter) -> Fitted:
        """What a fitted router has learned."""
        model, prior = router.model, router.prior
        assert model is not None
        if prior is None or router.log_prior is None:
            return cls(model, None, None)
        newcomers = NewcomerPrior(
            log_shares=prior.log_shares.numpy(),
            weights={block: weights.numpy() for block, weights in prior.weights.items()},
            center=router.graph.center,
            scale=router.graph.scale,
            user_sent=torch.cat(router.sent.users, dim=1).numpy(),
            user_sends=router.graph["user"].n_choices.numpy() > 0,
            item_sent=torch.cat(router.sent.items, dim=1).numpy(),
            n_neighbors=router.n_neighbors,
        )
        return cls(model, router.log_prior.numpy(), newcomers)

    @property
    def tastes(self) -> Tastes:
        """The prior of all users."""
        return self.model.tastes

    def beliefs(self, choices: Choices, n_users: int) -> Beliefs:
        """What is believed of the known users, given choices."""
        return infer(self.tastes, self.model.pairs.numpy(), choices, n_users, self.log_prior)


def train_bundle(
    data: RouterData,
    out: Path,
    settings: Settings | None = None,
    *,
    joint: JointSettings | None = None,
    held_out: float = 0.1,
    device: str = "auto",
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    parameters: Mapping[str, Any] | None = None,
    parents: Mapping[str, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
    tell_items: Callable[[str], None] | None = None,
) -> Bundle:
    """Train a router and write its bundle.

    Parameters
    ----------
    data
        From :func:`router.dataset.read_router_data`.
    out
        Folder to make.
    settings
        How to train.
    joint
        Train items and tastes together, see :class:`router.personal.PersonalRouter`; None ranks items by the
        closed forms alone. The items' side is trained a second time, without the interactions held out, to
        learn how much to trust it.
    held_out
        Share of the choices that the training is judged by; 0 for none.
    device
        ``auto``, ``cpu``, ``cuda``.
    checkpoint, checkpoint_every
        See :func:`router.train.train`.
    parameters, parents
        Further entries of the manifest.
    progress
        Called after every step.
    tell
        Called with what the user should know of the training.
    tell_items
        Called with the course of the choice of the items' terms.

    Raises
    ------
    DataError
        The checkpoint is damaged or of another training, or the training diverged.
    ResourceError
        The device's memory does not suffice, or the disk is full.
    """
    settings = (settings or Settings()).resolved(data.data)
    history: list[Progress] = []

    def note(state: Progress) -> None:
        history.append(state)
        if progress is not None:
            progress(state)

    to_train, held = split_choices(data.data.choices, held_out, settings.seed)
    seen = data.data.with_choices(to_train)
    router = PersonalRouter(
        settings,
        joint=joint,
        device=device,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        held_out=held,
        progress=note,
        tell=tell,
    )
    router.fit(seen)
    fitted = Fitted.of(router)
    light = LightPairs.of(fitted.model, seen)
    known = KnownQueries.of(fitted.model, seen, data.query_keys)
    metrics: dict[str, Any] = {"history": _history(history)}
    if len(held):
        metrics["validation"] = _validation(fitted, light, known, seen, held)
    beliefs = fitted.beliefs(data.data.choices, data.data.n_users)
    ranker = None
    if (interactions := _interactions(data.data)) is not None:
        further = () if joint is None else ((Network(joint.network, device), _HEAD_WEIGHT),)
        choice = choose_terms(interactions, further, seed=settings.seed, tell=tell_items)
        metrics["items"] = choice.to_json()
        ranker = ItemRanker.fit(interactions, _served(choice, router.joint))
    return _write(
        data, out, fitted, light, known, beliefs, ranker, settings, metrics, parameters or {}, parents or {}
    )


def _interactions(data: ChoiceData) -> sp.csr_array | None:
    links = data.links
    if links is None or links.interactions is None or not links.interactions.nnz:
        return None
    return links.interactions


def _served(choice: TermChoice, joint: Joint | None) -> list[tuple[Term, float]]:
    """Terms chosen; the head is the one that was trained with the tastes."""
    if joint is None:
        return list(choice.terms)
    head = Trained(joint.network)
    return [(head if isinstance(term, Network) else term, weight) for term, weight in choice.terms]


def _validation(
    fitted: Fitted, light: LightPairs, known: KnownQueries, seen: ChoiceData, held: Choices
) -> dict[str, Any]:
    """Figures of the light model, which is what will be served."""
    beliefs = fitted.beliefs(seen.choices, seen.n_users)
    pairs = light.at(seen.tasks[held.queries], seen.query_embeddings[held.queries])
    known.put(pairs, held.queries)
    logits = np.einsum("nmd,nd->nm", pairs[..., :-1], beliefs.mean[held.users]) + pairs[..., -1]
    of_known = np.where(seen.known_llms(), logits, -np.inf).astype(np.float32)
    return validate(seen.choices, held, of_known, seen.tasks)


def _history(states: list[Progress]) -> dict[str, list[float | None]]:
    """Some hundred evenly spaced states, and those at which choices held out were measured."""
    evenly = np.linspace(0, len(states) - 1, min(len(states), _HISTORY_POINTS)).astype(int)
    measured = [i for i, state in enumerate(states) if not math.isnan(state.held_out)]
    kept = [states[i] for i in sorted({*evenly.tolist(), *measured})]
    history: dict[str, list[float | None]] = {
        name: [getattr(state, name) for state in kept] for name in ("step", "log_likelihood", "divergence")
    }
    history["held_out"] = [None if math.isnan(state.held_out) else state.held_out for state in kept]
    return history


def _write(
    data: RouterData,
    out: Path,
    fitted: Fitted,
    light: LightPairs,
    known: KnownQueries,
    beliefs: Beliefs,
    ranker: ItemRanker | None,
    settings: Settings,
    metrics: dict[str, Any],
    parameters: Mapping[str, Any],
    parents: Mapping[str, str],
) -> Bundle:
    weights = _light_weights(data, fitted, light)
    embeddings: dict[str, NDArray[np.floating]] = {
        USER: beliefs.mean,
        "user.spread": packed(beliefs.covariance),
        "llm": light.base[-1],
        QUERY: known.pairs.reshape(len(known.pairs), light.base[0].size),
    }
    arrays: dict[str, NDArray[Any]] = {"query_tasks": data.data.tasks[known.positions]}
    keys = {USER: data.user_keys, QUERY: data.query_keys[known.positions]}
    if len(data.item_keys):
        keys[ITEM] = data.item_keys
    if ranker is not None:
        parts = ranker.to_arrays()
        embeddings |= {name: array for name, array in parts.items() if "." in name}
        arrays |= {name: array for name, array in parts.items() if "." not in name} | lists_of(ranker)
    if fitted.newcomers is not None:
        more = fitted.newcomers.to_arrays()
        weights, embeddings, arrays = weights | more[0], embeddings | more[1], arrays | more[2]
    return write_bundle(
        out,
        weights=weights,
        embeddings=embeddings,
        arrays=arrays,
        keys=keys,
        llms=data.catalogue,
        encoder=data.encoder,
        parameters={
            "settings": asdict(settings),
            "tasks": list(data.tasks.names),
            "tasks_given": data.tasks.given,
            "attributes": None if data.attributes is None else data.attributes.to_json(),
            "answer_features": list(data.answer_features),
            "n_neighbors": 0 if fitted.newcomers is None else fitted.newcomers.n_neighbors,
            **parameters,
        },
        parents=parents,
        metrics=metrics,
    )


def _light_weights(data: RouterData, fitted: Fitted, light: LightPairs) -> dict[str, NDArray[Any]]:
    expected = np.stack([data.expected.quality, data.expected.cost_usd, data.expected.latency_ms])
    # The last row stands for all tasks, as that of the factors does.
    expected = np.concatenate([expected, _mean_over_tasks(expected)], axis=1)
    tastes = fitted.tastes
    weights: dict[str, NDArray[Any]] = {
        "task.base": light.base,
        "task.centroids": data.tasks.centroids,
        "taste.log_shares": tastes.log_shares,
        "taste.centres": tastes.centres,
        "taste.log_sds": tastes.log_sds,
        "expected.values": np.nan_to_num(expected),
        "expected.known": ~np.isnan(expected),
        "llm.known": data.data.known_llms(),
    }
    if light.answers is not None and light.kernels is not None and light.by_feature is not None:
        weights |= {f"answers.{name}": getattr(light.answers, name) for name in ANSWER_ARRAYS}
        weights |= {"task.kernels": light.kernels, "task.by_feature": light.by_feature}
    return weights


def _mean_over_tasks(expected: Floats) -> Floats:
    known = ~np.isnan(expected)
    sums, counts = np.nan_to_num(expected).sum(axis=1), known.sum(axis=1)
    means: Floats = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)
    return means[:, None]
