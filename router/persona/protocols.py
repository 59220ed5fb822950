"""The protocols of persona-sim: known users, new users, a new LLM.

Two tracks, always named: a router of the *choice-only* track sees who chose what; one of the *telemetry*
track also sees the features of all LLMs' answers to the training queries. Queries of the test split are new
to routers in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from router.errors import ParameterError
from router.persona.data import Bools, ChoiceData, ChoiceRouter, Choices, Floats, Ints, Support, UserLinks
from router.persona.metrics import ChoiceQuality, Doubles, choice_quality
from router.persona.world import TEMPERATURE, World

Track = Literal["choice-only", "telemetry"]
TRACKS: tuple[Track, ...] = ("choice-only", "telemetry")

N_NEW_USERS = 200
_NEW_LLM_STREAM = 30


@dataclass(frozen=True, slots=True)
class SeenNew:
    """Quality on training queries that the user has not answered, and on test queries."""

    seen: ChoiceQuality
    new: ChoiceQuality


@dataclass(frozen=True, slots=True)
class NewLlmQuality:
    """Quality with a new LLM, averaged over the LLMs that take the part in turn.

    Attributes
    ----------
    quality
        By user, on test queries.
    recall
        Share of the (user, query) pairs where the new LLM is best that get it.
    precision
        Share of the pairs that get it where it is best; NaN where it is never chosen.
    gain_where_best
        G over the pairs where the new LLM is best.
    """

    quality: ChoiceQuality
    recall: float
    precision: float
    gain_where_best: float


def warm_data(
    world: World,
    seed: int,
    track: Track,
    *,
    user_features: Floats | None = None,
    links: UserLinks | None = None,
) -> ChoiceData:
    """Everything that a router of a track may see of a world.

    Raises
    ------
    ParameterError
        The world has no users of this seed, or there is no such track.
    """
    if track not in TRACKS:
        raise ParameterError(f"'track' must be one of {', '.join(TRACKS)} (got {track!r})")
    users = world.of_seed(seed)
    features = None
    if track == "telemetry":
        features = np.where(world.train_queries[:, None, None], world.features, np.float32(np.nan))
    return ChoiceData(
        n_users=len(users.weights),
        choices=users.choices,
        tasks=world.tasks,
        query_embeddings=world.query_embeddings,
        train_queries=world.train_queries,
        llm_names=world.llm_names,
        llm_embeddings=world.llm_embeddings,
        prices_usd=world.prices_usd,
        features=features,
        user_features=user_features,
        links=links,
    )


def new_user_data(data: ChoiceData, k: int, *, n_new: int = N_NEW_USERS) -> tuple[ChoiceData, Support]:
    """Take the last users out of the data, as new ones with their first k choices."""
    first = data.n_users - n_new
    old = data.choices.users < first
    choices = data.choices.take(~old)
    support = choices.take(_rank_within(choices.users) < k)
    support = replace(support, users=support.users - first)
    features, links = data.user_features, data.links
    known = replace(
        data,
        n_users=first,
        choices=data.choices.take(old),
        user_features=None if features is None else features[:first],
        links=None if links is None else links.take(np.arange(first), np.arange(first)),
    )
    return known, Support(
        n_new,
        support,
        None if features is None else features[first:],
        None if links is None else links.take(np.arange(first, data.n_users), np.arange(first)),
    )


def new_llm_data(
    world: World, seed: int, track: Track, llm: int, *, n_events: int, n_probes: int
) -> ChoiceData:
    """Training data of a world where an LLM is new.

    It was not on offer, except in ``n_events`` choices at random; answers of it are measured on the first
    ``n_probes`` training queries of each task. Where a user had chosen it when it was not on offer, the
    choice is drawn again among the others, from the law of the user's choices.
    """
    data = warm_data(world, seed, track)
    rng = np.random.default_rng(np.random.SeedSequence([seed, _NEW_LLM_STREAM, llm]))
    choices = data.choices
    offered = np.ones((len(choices), data.n_llms), dtype=bool)
    offered[:, llm] = False
    offered[rng.permutation(len(choices))[:n_events], llm] = True
    llms = choices.llms.copy()
    again = np.flatnonzero((llms == llm) & ~offered[:, llm])
    utilities = world.utilities(seed)[choices.users[again], choices.queries[again]]
    noisy = utilities / TEMPERATURE + rng.gumbel(size=utilities.shape)
    noisy[:, llm] = -np.inf
    llms[again] = noisy.argmax(axis=1)
    features = data.features
    if features is not None:
        train = np.flatnonzero(data.train_queries)
        rank = _rank_within(data.tasks[train])
        features = features.copy()
        features[train[rank >= n_probes], llm] = np.nan
    return replace(data, choices=replace(choices, llms=llms, offered=offered), features=features)


def evaluate_warm(
    world: World,
    seed: int,
    make: Callable[[], ChoiceRouter],
    track: Track,
    *,
    user_features: Floats | None = None,
    links: UserLinks | None = None,
) -> SeenNew:
    """Train on all users' choices and judge the answers to the same users.

    Raises
    ------
    ParameterError
        The world has no users of this seed, or there is no such track.
    """
    data = warm_data(world, seed, track, user_features=user_features, links=links)
    model = make()
    model.fit(data)
    users, queries = np.arange(data.n_users), np.arange(data.n_queries)
    return _seen_new(world, world.utilities(seed), model.scores(users, queries), data.choices)


def evaluate_new_users(
    world: World,
    seed: int,
    make: Callable[[], ChoiceRouter],
    track: Track,
    ks: Sequence[int] = (0, 1, 3, 5, 10),
    *,
    user_features: Floats | None = None,
    links: UserLinks | None = None,
    n_new: int = N_NEW_USERS,
) -> dict[int, SeenNew]:
    """Train without the last users, then judge the answers to them after k of their choices, for each k.

    The queries that count are the same for all k: a user's own queries are left out, beyond the first k too.
    """
    data = warm_data(world, seed, track, user_features=user_features, links=links)
    model = make()
    model.fit(new_user_data(data, 0, n_new=n_new)[0])
    return judge_new_users(world, seed, model, data, ks, n_new=n_new)


def judge_new_users(
    world: World,
    seed: int,
    model: ChoiceRouter,
    data: ChoiceData,
    ks: Sequence[int],
    *,
    n_new: int = N_NEW_USERS,
) -> dict[int, SeenNew]:
    """Judge the answers of a model that was fitted without the last users of the data, as above.

    Parameters
    ----------
    data
        Of all users; without features and links where the model is to go without those of the new ones.
    """
    utilities = world.utilities(seed)[-n_new:]
    first = data.n_users - n_new
    own = data.choices.take(data.choices.users >= first)
    own = replace(own, users=own.users - first)
    queries = np.arange(data.n_queries)
    result = {}
    for k in ks:
        _, support = new_user_data(data, k, n_new=n_new)
        result[k] = _seen_new(world, utilities, model.scores_new_users(support, queries), own)
    return result


def evaluate_new_llm(
    world: World,
    seed: int,
    make: Callable[[], ChoiceRouter],
    track: Track,
    *,
    n_events: int = 0,
    n_probes: int = 0,
    llms: Sequence[int] | None = None,
) -> NewLlmQuality:
    """Train with each LLM in turn as a new one and judge the answers to all users' test queries.

    Parameters
    ----------
    n_events
        Choices in which the new LLM was on offer.
    n_probes
        Queries of each task on which its answers were measured; they count in the telemetry track only.
    llms
        LLMs that take the part, or None for all.
    """
    utilities = world.utilities(seed)[:, ~world.train_queries]
    best = utilities.argmax(axis=2)
    asked = np.ones(best.shape, dtype=bool)
    queries = np.flatnonzero(~world.train_queries)
    qualities, shares = [], []
    for llm in range(len(world.llm_names)) if llms is None else llms:
        data = new_llm_data(world, seed, track, llm, n_events=n_events, n_probes=n_probes)
        model = make()
        model.fit(data)
        scores = model.scores(np.arange(data.n_users), queries)
        qualities.append(choice_quality(utilities, scores, asked))
        picked, wanted = scores.argmax(axis=2) == llm, best == llm
        hits = np.count_nonzero(picked & wanted)
        n_picked = np.count_nonzero(picked)
        precision = hits / n_picked if n_picked else np.nan
        # Pooled over users, as few of them like some of the LLMs best.
        gain = _pooled_gain(utilities, scores, wanted)
        shares.append((hits / np.count_nonzero(wanted), precision, gain))
    recall, precision, gain = _nanmean(np.array(shares))
    return NewLlmQuality(ChoiceQuality.mean_of(qualities), float(recall), float(precision), float(gain))


def _seen_new(world: World, utilities: Floats, scores: Floats, choices: Choices) -> SeenNew:
    seen = np.broadcast_to(world.train_queries, utilities.shape[:2]).copy()
    seen[choices.users, choices.queries] = False
    new = np.broadcast_to(~world.train_queries, seen.shape)
    return SeenNew(choice_quality(utilities, scores, seen), choice_quality(utilities, scores, new))


def _pooled_gain(utilities: Floats, scores: Floats, asked: Bools) -> float:
    u, s = utilities[asked], scores[asked]
    picked = np.take_along_axis(u, s.argmax(axis=1)[:, None], axis=1)[:, 0]
    mean = u.mean(axis=1)
    return float((picked - mean).sum(dtype=np.float64) / (u.max(axis=1) - mean).sum(dtype=np.float64))


def _rank_within(groups: Ints) -> Ints:
    """Number the members of each group from 0 in the order given."""
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], groups[order], side="left")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size) - starts
    return rank


def _nanmean(rows: Doubles) -> Doubles:
    """Mean of each column over its numbers; NaN, without a warning, where there are none."""
    known = ~np.isnan(rows)
    result = np.full(rows.shape[1], np.nan)
    np.divide(np.where(known, rows, 0.0).sum(axis=0), known.sum(axis=0), out=result, where=known.any(axis=0))
    return result
