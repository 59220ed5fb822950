"""Which terms rank the items, and how they are blended, chosen on interactions that were held out.

What is best depends on how many users and interactions there are: a decomposition of high rank that helps
tens of thousands of users fits the noise of a few thousand. So a share of each user's interactions is held
out, and on the rest

1. the few parameters that matter are searched for each kind of term by itself, from the cheap to the dear;
2. the weights of the best terms are searched together, 0 among them, with RP³β as published as one term more.

The second step fits nothing: each user's best items under every term are pooled, and a blend ranks the pool.
It starts from the best of single terms and of common blends, so no single term is better than what is chosen,
on what is held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from router.errors import DataError
from router.items.choosing import Quality, item_quality, search_coordinates, split_interactions
from router.items.kernels import rank_rows
from router.items.linear import Floats, ItemMap, blend
from router.items.ranker import ItemRanker, Recommendations, default_terms
from router.items.terms import Cooccurrence, LowPass, NeighborRidge, Term, check_interactions

K = 20
RP3BETA = Cooccurrence(1.0, 1.0, 0.1)
LEAST_USERS = 100  # with fewer, the figures say more about who they are than about the terms
_COOCCURRENCE = {
    "user_exponent": (0.4, 1.0),
    "source_exponent": (0.8, 1.0),
    "target_exponent": (0.1, 0.2),
}
_RIDGES = (
    NeighborRidge(),
    NeighborRidge(closeness_exponent=0.3),
    NeighborRidge(closeness_exponent=0.3, penalty=20.0),
)
_LOW_PASSES = tuple(LowPass(rank) for rank in (32, 128, 512))
_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.5)
_PASSES = 2
_POOLED = 100  # items of each user and term
_SCORES_AT_ONCE = 1 << 24  # of each term

Weights = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TermChoice:
    """Terms, their weights, and the figures they were chosen by.

    Attributes
    ----------
    terms
        What :meth:`router.items.ItemRanker.fit` takes.
    n_users
        Users with held-out interactions that the figures are means over; 0 where nothing was chosen.
    quality
        Of the blend, on what was held out; None where nothing was chosen.
    alone
        Of each term by itself, those left out too, and of RP³β first.
    """

    terms: tuple[tuple[Term, float], ...]
    n_users: int = 0
    quality: Quality | None = None
    alone: tuple[tuple[Term, Quality], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What a bundle's manifest says of the choice."""
        return {
            "chosen": self.quality is not None,
            "terms": [{"weight": weight, **_described(term)} for term, weight in self.terms],
            "k": K,
            "users": self.n_users,
            **({} if self.quality is None else asdict(self.quality)),
            "alone": [{**_described(term), **asdict(quality)} for term, quality in self.alone],
        }


def _described(term: Term) -> dict[str, Any]:
    return {"term": type(term).__name__, "parameters": asdict(cast(Any, term))}


def choose_terms(
    interactions: sp.csr_array,
    further: Sequence[tuple[Term, float]] = (),
    *,
    n_users: int = 4000,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> TermChoice:
    """Choose the terms of an item ranking, and their weights, on a held-out fifth of the interactions.

    Costs about three fits of the default terms on as many interactions as Gowalla's (800,000). The same
    interactions and seed give the same choice.

    Parameters
    ----------
    interactions
        Users × items.
    further
        Terms to try beside the closed forms, as they are, and their weights beside :func:`default_terms`.
    n_users
        Most users that figures are means over, drawn at random.
    seed
        Of the split and of the users.
    tell
        Called with a line for each term and for what is chosen.

    Returns
    -------
    TermChoice
        The default terms, and ``further``, where fewer than 100 users can give an interaction away.

    Raises
    ------
    DataError
        There are no interactions, or a weight is negative or not finite.
    """
    say = tell or (lambda line: None)
    given = (*default_terms(), *further)
    checked = check_interactions(interactions)
    try:
        part, held_out = split_interactions(checked, seed=seed)
    except DataError:
        part, held_out = checked, sp.csr_array(checked.shape)
    users = np.flatnonzero(np.diff(held_out.indptr))
    if users.size < LEAST_USERS:
        say(
            f"items are ranked by the default terms: {users.size} users have interactions enough to hold "
            f"some out, and {LEAST_USERS} are needed to choose by"
        )
        return TermChoice(given)
    if users.size > n_users:
        users = np.sort(np.random.default_rng(seed).choice(users, size=n_users, replace=False))
    trial = _Trial(part, held_out, users, say)
    fitted = [
        trial.fit(RP3BETA),
        trial.searched(Cooccurrence(), _COOCCURRENCE),
        trial.best(_RIDGES),
        trial.best(_LOW_PASSES),
        *(trial.fit(term) for term, _ in further),
    ]
    return trial.blended(fitted, (0.0, *(weight for _, weight in given)))


@dataclass(frozen=True, eq=False, slots=True)
class _Fitted:
    term: Term
    item_map: ItemMap  # normalised
    quality: Quality


class _Trial:
    """Fits on a part of the interactions, and judges by the rest; maps that lost are let go."""

    def __init__(
        self,
        part: sp.csr_array,
        held_out: sp.csr_array,
        users: NDArray[np.int64],
        say: Callable[[str], None],
    ) -> None:
        self.part, self.held_out, self.users, self.say = part, held_out, users, say

    def fit(self, term: Term) -> _Fitted:
        item_map = term.fit(self.part).normalised(self.part)
        quality = self.quality(ItemRanker(item_map, self.part).recommend)
        self.say(f"items, {term}: {_shown(quality)}")
        return _Fitted(term, item_map, quality)

    def quality(self, recommend: Callable[[NDArray[np.int64], int], Recommendations]) -> Quality:
        return item_quality(recommend, self.held_out, k=K, users=self.users)

    def searched(self, start: Cooccurrence, grid: Mapping[str, Weights]) -> _Fitted:
        """Try one parameter after the other, keeping the best map."""
        best: list[_Fitted] = []

        def value(term: Cooccurrence) -> float:
            fitted = self.fit(term)
            if not best or fitted.quality.mean > best[0].quality.mean:
                best[:] = [fitted]
            return fitted.quality.mean

        search_coordinates(start, grid, lambda term, name, new: replace(term, **{name: new}), value)
        return best[0]

    def best(self, terms: Sequence[Term]) -> _Fitted:
        """Go on for as long as terms get better."""
        best = self.fit(terms[0])
        for term in terms[1:]:
            fitted = self.fit(term)
            if fitted.quality.mean <= best.quality.mean:
                break
            best = fitted
        return best

    def blended(self, fitted: Sequence[_Fitted], common: Weights) -> TermChoice:
        """Blend of the best weights, or the best single term where that is better."""
        pool = _Pool.of([one.item_map for one in fitted], self.part, self.users)

        def value(weights: Weights) -> float:
            return self.quality(lambda _, k: pool.recommend(weights, k)).mean if any(weights) else -np.inf

        units = [tuple(row) for row in np.eye(len(fitted)).tolist()]
        weights = max([*units, common], key=value)
        grid = {str(at): _WEIGHTS for at in range(len(fitted))}
        for _ in range(_PASSES):
            weights, _ = search_coordinates(weights, grid, _changed, value)
        chosen = [(one, weight) for one, weight in zip(fitted, weights, strict=True) if weight]
        item_map = blend([one.item_map for one, _ in chosen], [weight for _, weight in chosen])
        quality = self.quality(ItemRanker(item_map, self.part).recommend)
        single = max(fitted, key=lambda one: one.quality.mean)
        if single.quality.mean >= quality.mean:
            chosen, quality = [(single, 1.0)], single.quality
        terms = tuple((one.term, weight) for one, weight in chosen)
        self.say(f"items, {' + '.join(f'{weight:g} {term}' for term, weight in terms)}: {_shown(quality)}")
        return TermChoice(terms, len(self.users), quality, tuple((one.term, one.quality) for one in fitted))


def _changed(weights: Weights, at: str, new: float) -> Weights:
    return (*weights[: int(at)], new, *weights[int(at) + 1 :])


def _shown(quality: Quality) -> str:
    return f"Recall@{K} {quality.recall:.4f}, NDCG@{K} {quality.ndcg:.4f} on held-out interactions"


@dataclass(frozen=True, eq=False, slots=True)
class _Pool:
    """Items that some term ranks high, ascending, int32 [u, c], and their scores, float32 [t, u, c].

    A score of -inf stands for no candidate: an item seen, padding, a repetition.
    """

    ids: NDArray[np.int32]
    scores: Floats

    @classmethod
    def of(cls, maps: Sequence[ItemMap], part: sp.csr_array, users: NDArray[np.int64]) -> _Pool:
        step = max(1, _SCORES_AT_ONCE // part.shape[1])
        blocks = [_pooled(maps, part[users[at : at + step]]) for at in range(0, len(users), step)]
        ids, scores = zip(*blocks, strict=True)
        return cls(np.concatenate(ids), np.concatenate(scores, axis=1))

    def recommend(self, weights: Weights, k: int) -> Recommendations:
        used = np.flatnonzero(weights)
        scores = np.tensordot(np.asarray(weights, np.float32)[used], self.scores[used], axes=1)
        at, best = _ranked(scores, k)
        return np.where(at < 0, -1, np.take_along_axis(self.ids, at, axis=1)), best


def _pooled(maps: Sequence[ItemMap], own: sp.csr_array) -> tuple[NDArray[np.int32], Floats]:
    scores = [one.finished(own, np.asarray(own @ one.source, dtype=np.float32)) for one in maps]
    for of_term in scores:
        of_term[np.repeat(np.arange(own.shape[0]), np.diff(own.indptr)), own.indices] = -np.inf
    ids = np.sort(np.concatenate([_ranked(of_term, _POOLED)[0] for of_term in scores], axis=1), axis=1)
    absent = ids < 0
    absent[:, 1:] |= ids[:, 1:] == ids[:, :-1]
    return ids, np.stack([np.where(absent, -np.inf, np.take_along_axis(s, ids, axis=1)) for s in scores])


def _ranked(scores: Floats, k: int) -> Recommendations:
    ids = np.full((len(scores), min(k, scores.shape[1])), -1, dtype=np.int32)
    best = np.zeros(ids.shape, dtype=np.float32)
    rank_rows(scores, ids, best)
    return ids, best
