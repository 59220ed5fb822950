"""Terms chosen on held-out interactions: noise is left out, nothing alone is better, little data is said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from router.errors import DataError
from router.items import (
    RP3BETA,
    Cooccurrence,
    ItemMap,
    ItemRanker,
    LowPass,
    NeighborRidge,
    TermChoice,
    blend,
    choose_terms,
    default_terms,
    item_quality,
    split_interactions,
    tuning,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Noise:
    """Scores that have nothing to do with users."""

    seed: int = 0

    def fit(self, interactions: sp.csr_array) -> ItemMap:
        vectors = np.random.default_rng(self.seed).standard_normal((2, interactions.shape[1], 8))
        return ItemMap.of_vectors(*vectors)


@dataclass(frozen=True)
class Oracle:
    """Scores of those who know the group of every item."""

    def fit(self, interactions: sp.csr_array) -> ItemMap:
        groups = np.eye(4)[np.arange(interactions.shape[1]) % 4]
        return ItemMap.of_vectors(groups, groups)


def taste_groups(seed: int = 0, n_users: int = 400, n_items: int = 120) -> sp.csr_array:
    """Four groups of users who mostly go for items of their own, the first of them more often."""
    rng = np.random.default_rng(seed)
    own = rng.integers(4, size=n_users)[:, None] == np.arange(n_items) % 4
    often = np.exp(-np.arange(n_items) / 40)
    return sp.csr_array(
        (rng.random((n_users, n_items)) < np.where(own, 0.6, 0.05) * often).astype(np.float32)
    )


@pytest.fixture(scope="module")
def choice() -> TermChoice:
    return choose_terms(taste_groups(), [(Noise(), 1.0)])


def test_noise_is_left_out(choice: TermChoice) -> None:
    assert choice.terms
    assert all(weight > 0 for _, weight in choice.terms)
    assert Noise() in dict(choice.alone)
    assert Noise() not in dict(choice.terms)


def test_what_knows_better_is_taken() -> None:
    best = choose_terms(taste_groups(), [(Noise(), 1.0), (Oracle(), 0.0)])
    assert Oracle() in dict(best.alone)
    assert Noise() not in dict(best.terms)
    assert best.quality is not None
    assert best.quality.mean >= dict(best.alone)[Oracle()].mean


def test_nothing_alone_is_better(choice: TermChoice) -> None:
    """Neither by the figures given, nor by those of fits made anew."""
    part, held_out = split_interactions(taste_groups(), seed=0)

    def quality(terms: list[tuple[object, float]]) -> float:
        return item_quality(ItemRanker.fit(part, terms).recommend, held_out).mean

    assert choice.quality is not None
    assert choice.n_users == np.count_nonzero(np.diff(held_out.indptr))
    assert choice.quality.mean == pytest.approx(quality(list(choice.terms)))
    assert [type(term) for term, _ in choice.alone] == [
        Cooccurrence,
        Cooccurrence,
        NeighborRidge,
        LowPass,
        Noise,
    ]
    assert choice.alone[0][0] == RP3BETA
    for term, reached in choice.alone:
        assert reached.mean == pytest.approx(quality([(term, 1.0)])), term
        assert choice.quality.mean >= reached.mean


def test_better_than_the_defaults_where_there_is_little_data(choice: TermChoice) -> None:
    """On interactions that neither has seen: a rank of 512 fits the noise of 400 users."""
    everything = taste_groups(n_users=800)
    train, test = everything[:400], everything[400:]
    chosen = choose_terms(train).terms
    own, wanted = split_interactions(test, fraction=0.4, seed=3)
    ours, default = (
        item_quality(
            lambda users, k, terms=terms: ItemRanker.fit(train, terms).recommend_new(own[users], k), wanted
        )
        for terms in (chosen, None)
    )
    assert ours.recall > default.recall + 0.01
    assert ours.ndcg > default.ndcg


def test_the_same_each_time(choice: TermChoice) -> None:
    assert choose_terms(taste_groups(), [(Noise(), 1.0)]) == choice
    few = choose_terms(taste_groups(), n_users=150, seed=4)
    assert few.n_users == 150
    assert few == choose_terms(taste_groups(), n_users=150, seed=4)
    assert few.quality != choose_terms(taste_groups(), n_users=150, seed=5).quality


def test_too_little_to_hold_out() -> None:
    lines: list[str] = []
    x = taste_groups()
    enough = np.flatnonzero(np.diff(x.indptr) >= 5)
    few = choose_terms(x[enough[:99]], [(Noise(), 0.7)], tell=lines.append)
    assert few == TermChoice((*default_terms(), (Noise(), 0.7)))
    assert lines == [
        "items are ranked by the default terms: 99 users have interactions enough to hold some out, "
        "and 100 are needed to choose by"
    ]
    nobody = choose_terms(sp.csr_array(np.eye(200)), tell=lines.append)
    assert nobody.terms == default_terms()
    assert "0 users have interactions enough" in lines[-1]
    with pytest.raises(DataError, match=r"at least one interaction"):
        choose_terms(sp.csr_array((200, 3)))


def test_what_is_told_and_written(choice: TermChoice) -> None:
    lines: list[str] = []
    choose_terms(taste_groups(), [(Noise(), 1.0)], tell=lines.append)
    assert lines[0].startswith(f"items, {RP3BETA}: Recall@20 ")
    assert f"{choice.terms[0][1]:g} {choice.terms[0][0]}" in lines[-1]
    written = choice.to_json()
    assert written["chosen"] is True
    assert written["users"] == choice.n_users
    assert written["recall"] == choice.quality.recall
    classes = {kind.__name__: kind for kind in (Cooccurrence, NeighborRidge, LowPass, Noise)}
    again = [(classes[one["term"]](**one["parameters"]), one["weight"]) for one in written["terms"]]
    assert again == list(choice.terms)
    assert [one["ndcg"] for one in written["alone"]] == [quality.ndcg for _, quality in choice.alone]
    default = TermChoice(default_terms()).to_json()
    assert default["chosen"] is False
    assert "recall" not in default


def test_a_pool_of_all_items_ranks_like_the_blend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_POOLED", 120)
    monkeypatch.setattr(tuning, "_SCORES_AT_ONCE", 7 * 120)
    x, users = taste_groups(), np.arange(0, 400, 20)
    maps = [term.fit(x).normalised(x) for term in (Cooccurrence(), LowPass(6), Noise())]
    pool = tuning._Pool.of(maps, x, users)
    for weights in ((0.5, 1.0, 0.25), (0.0, 1.0, 0.0)):
        ids, scores = pool.recommend(weights, 20)
        expected, of_blend = ItemRanker(blend(maps, list(weights)), x).recommend(users, 20)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_allclose(scores, of_blend, rtol=1e-4, atol=1e-5)


def test_a_pool_has_the_best_items_of_every_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_POOLED", 5)
    x, users = taste_groups(), np.arange(30)
    maps = [term.fit(x).normalised(x) for term in (Cooccurrence(), Noise())]
    pool = tuning._Pool.of(maps, x, users)
    for at, one in enumerate(maps):
        ids, _ = pool.recommend(tuple(np.eye(2)[at]), 5)
        np.testing.assert_array_equal(ids, ItemRanker(one, x).recommend(users, 5)[0])
    ids, _ = pool.recommend((1.0, 1.0), 20)
    for user, row in enumerate(ids):
        found = row[row >= 0]
        assert len(set(found)) == len(found)
        assert 5 <= len(found) <= 10
        assert not x[[user]].toarray()[0, found].any()


def test_small_data_of_gowalla(shared_data: Path) -> None:
    """On a part of 1,500 users the default terms are worse than RP³β; what is chosen there is not."""
    from router.loaders import read_square_adjacency

    everything = read_square_adjacency(shared_data / "gowalla" / "s_adj_mat.npz", 29_858)
    rows = sp.csr_array(everything[np.sort(np.random.default_rng(0).choice(29_858, 1_500, replace=False))])
    x = sp.csr_array(rows[:, np.flatnonzero(np.bincount(rows.indices, minlength=rows.shape[1]) >= 4)])
    train, test = split_interactions(x, seed=7)
    default, rp3beta, ours = (
        item_quality(ItemRanker.fit(train, terms).recommend, test).mean
        for terms in (None, [(RP3BETA, 1.0)], choose_terms(train).terms)
    )
    assert ours > max(rp3beta, default) + 0.005
    assert default < rp3beta


def test_terms_of_one_kind_go_on_while_they_get_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rank above the first that is no better than the one before is fitted."""
    fitted: list[int] = []
    fit = LowPass.fit

    def counted(self: LowPass, interactions: sp.csr_array) -> ItemMap:
        fitted.append(self.rank)
        return fit(replace(self, rank=4 if self.rank > 32 else 3), interactions)

    monkeypatch.setattr(LowPass, "fit", counted)
    monkeypatch.setattr(tuning, "_LOW_PASSES", tuple(LowPass(rank) for rank in (32, 128, 512, 700)))
    best = choose_terms(taste_groups())
    assert fitted == [32, 128, 512]
    assert best.alone[-1][0] == LowPass(128)
