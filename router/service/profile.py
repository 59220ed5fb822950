"""What a release believes of a user and why, in words and numbers that a person can read.

A preference is told as a chance: that the user would choose an LLM among all, by the mean of what is
believed. Tastes are the components of the prior (:mod:`router.posterior`); how likely each of them is, given
what is believed, is the mean of P(taste | z) over the belief, taken over a fixed set of normal draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from router.bundle import USER
from router.persona.data import Floats
from router.scorer import Scorer, User
from router.service.serving import Source  # at run time: FastAPI reads the types of a profile

if TYPE_CHECKING:
    from router.service.serving import Belief, Serving
    from router.surroundings import Surroundings

_DRAWS = 256
_SHOWN = 10  # items, users and items near by
_DRAWN = 6  # of each, in the picture of the neighbourhood


@dataclass(frozen=True, slots=True)
class LlmPreference:
    """What is believed of a user and one LLM.

    Attributes
    ----------
    llm
        Its name.
    chance, population_chance
        That the user, or one of whom nothing is known, would choose it among all.
    sd
        Standard deviation of the user's logit: how unsure that is.
    """

    llm: str
    chance: float
    population_chance: float
    sd: float


@dataclass(frozen=True, slots=True)
class TaskPreferences:
    """Preferences in one task, or over all where it is None; dearest LLM first."""

    task: str | None
    llms: tuple[LlmPreference, ...]


@dataclass(frozen=True, slots=True)
class FeaturePreference:
    """What a feature of answers is worth to a user: logits per standard deviation, over all tasks."""

    feature: str
    weight: float
    population_weight: float


@dataclass(frozen=True, slots=True)
class Taste:
    """A taste that the user may have, likeliest first.

    Attributes
    ----------
    name
        Its number among the tastes of the release.
    share, population_share
        Probability that the user has it; share of all users.
    llms
        Chances of the LLMs for a user in its middle, dearest first.
    """

    name: str
    share: float
    population_share: float
    llms: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Near:
    """A user or item, and its weight or share of the personalised PageRank."""

    key: str
    score: float


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the picture: ``kind`` is ``self``, ``user`` or ``item``."""

    id: str
    kind: str
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge of the picture between the ids of two nodes."""

    source: str
    target: str
    weight: float


@dataclass(frozen=True, slots=True)
class Neighborhood:
    """A user, its items, who and what is near to it, and the interactions between them."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the belief rests on.

    Attributes
    ----------
    source
        See :class:`router.service.serving.Belief`.
    in_release, in_graph
        Whether the release's model, and its graph, know the user.
    n_feedback
        Choices since the training that were taken in.
    n_items
        Items of the user in the graph.
    attributes
        Profile attributes, as far as the release knows them.
    """

    source: Source
    in_release: bool
    in_graph: bool
    n_feedback: int
    n_items: int
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Profile:
    """What is believed of a user; the items near to it are others than its own."""

    user: str
    release: str
    evidence: Evidence
    overall: TaskPreferences
    by_task: tuple[TaskPreferences, ...]
    features: tuple[FeaturePreference, ...]
    tastes: tuple[Taste, ...]
    items: tuple[Near, ...]
    near_users: tuple[Near, ...]
    near_items: tuple[Near, ...]
    neighborhood: Neighborhood


def describe(serving: Serving, user: str, belief: Belief) -> Profile:
    """Profile of a user of whom something is believed."""
    scorer, graph = serving.scorer, serving.surroundings
    around = serving.in_graph(user)
    items = _heaviest(around.get("items", {}), _SHOWN)
    near = {key: weight for key, weight in around.get("near", {}).items() if not serving.hides(str(key))}
    near_users = _heaviest(near, _SHOWN)
    own = around.get("items", {}).keys()
    near_items = _heaviest({k: w for k, w in around.get("near_items", {}).items() if k not in own}, _SHOWN)
    neighborhood = Neighborhood((), ())
    if graph is not None and around:
        neighborhood = _picture(graph, user, items, near_users, near_items, serving.graph_key)
    return Profile(
        user=user,
        release=serving.version,
        evidence=Evidence(
            source=belief.source,
            in_release=belief.in_release,
            in_graph=bool(around),
            n_feedback=belief.n_events,
            n_items=len(around.get("items", {})),
            attributes=scorer.attributes_of(serving.bundle_key(USER, user)) if belief.in_release else {},
        ),
        overall=_preferences(scorer, belief.user, None),
        by_task=tuple(_preferences(scorer, belief.user, task) for task in scorer.tasks),
        features=_features(scorer, belief.user),
        tastes=_tastes(scorer, belief.user),
        items=items,
        near_users=near_users,
        near_items=near_items,
        neighborhood=neighborhood,
    )


def _preferences(scorer: Scorer, user: User, task: str | None) -> TaskPreferences:
    scores = scorer.scores(user, None, task)
    known = np.flatnonzero(~np.isnan(scores.preference))
    chance, of_population = (
        softmax(logits[known].astype(np.float64)) for logits in (scores.preference, scores.base_preference)
    )
    entries = [
        LlmPreference(
            scorer.llms.names[row], float(chance[i]), float(of_population[i]), float(scores.sd[row])
        )
        for i, row in enumerate(known.tolist())
    ]
    return TaskPreferences(task, tuple(sorted(entries, key=lambda entry: -entry.chance)))


def _features(scorer: Scorer, user: User) -> tuple[FeaturePreference, ...]:
    """What the features of answers are worth; none in the choice-only track. Largest difference first."""
    names, weights = scorer.feature_weights((user, scorer.population))
    entries = [FeaturePreference(name, *pair) for name, pair in zip(names, weights.T.tolist(), strict=True)]
    return tuple(sorted(entries, key=lambda entry: -abs(entry.weight - entry.population_weight)))


def _tastes(scorer: Scorer, user: User) -> tuple[Taste, ...]:
    tastes = scorer.tastes
    shares = taste_shares(user, tastes.log_shares, tastes.centres, tastes.log_sds)
    flat = np.zeros_like(scorer.population.spread)
    of_all = np.exp(tastes.log_shares.astype(np.float64))
    found = []
    for row in np.argsort(-shares, kind="stable").tolist():
        middle = _preferences(scorer, User(tastes.centres[row], flat), None)
        llms = tuple((entry.llm, entry.chance) for entry in middle.llms)
        found.append(Taste(f"taste {row + 1}", float(shares[row]), float(of_all[row] / of_all.sum()), llms))
    return tuple(found)


def taste_shares(user: User, log_shares: Floats, centres: Floats, log_sds: Floats) -> NDArray[np.float64]:
    """Probability of each taste, float64 [k]: the mean of P(taste | z) over what is believed of z."""
    normal = np.random.default_rng(0).normal(size=(_DRAWS // 2, user.vector.size))
    z = user.vector + np.concatenate([normal, -normal]) @ user.spread.T.astype(np.float64)
    apart = (z[:, None] - centres) / np.exp(log_sds)
    log_p = log_shares - log_sds.sum(axis=1) - 0.5 * (apart**2).sum(axis=2)
    shares: NDArray[np.float64] = softmax(log_p, axis=1).mean(axis=0)
    return shares


def _heaviest(weights: Mapping[Any, float], k: int) -> tuple[Near, ...]:
    entries = sorted(weights.items(), key=lambda entry: -entry[1])[:k]
    return tuple(Near(str(key), float(weight)) for key, weight in entries)


def _picture(
    graph: Surroundings,
    user: str,
    items: Sequence[Near],
    near_users: Sequence[Near],
    near_items: Sequence[Near],
    graph_key: Callable[[str], Any],
) -> Neighborhood:
    """The user, and the first of its items and of what is near, with the interactions between them."""
    shown_items = [*items[:_DRAWN], *near_items[:_DRAWN]]
    users = [Near(user, 1.0), *near_users[:_DRAWN]]
    nodes = [
        Node(f"user:{near.key}", "user" if place else "self", near.key, near.score)
        for place, near in enumerate(users)
    ]
    nodes += [Node(f"item:{near.key}", "item", near.key, near.score) for near in shown_items]
    wanted = {item.key for item in shown_items}
    edges = [
        Edge(f"user:{near.key}", f"item:{key}", weight)
        for near in users
        for key, weight in _items_of(graph, graph_key(near.key)).items()
        if key in wanted
    ]
    return Neighborhood(tuple(nodes), tuple(edges))


def _items_of(graph: Surroundings, key: Any) -> dict[str, float]:
    node = graph.node(USER, key)
    assert node is not None  # it came from the graph
    return {str(item): weight for item, weight in graph.by_key(*graph.items(node)).items()}
