from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from router.errors import DataError, ParameterError
from router.persona import (
    ChoiceData,
    Choices,
    Support,
    World,
    evaluate_new_llm,
    evaluate_new_users,
    evaluate_warm,
    judge_new_users,
    load_world,
    new_llm_data,
    new_user_data,
    warm_data,
)
from router.persona.data import Floats, Ints
from tests.oracles.persona_worlds import write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load_world(write_world(tmp_path_factory.mktemp("world")))


class Cheat:
    """Scores by the utilities, optionally without an LLM; remembers what it was given."""

    def __init__(self, utilities: Floats, without: int | None = None) -> None:
        self.utilities = utilities.copy()
        if without is not None:
            self.utilities[..., without] = -np.inf
        self.fitted: list[ChoiceData] = []
        self.supports: list[Support] = []

    def fit(self, data: ChoiceData) -> None:
        self.fitted.append(data)

    def scores(self, users: Ints, queries: Ints) -> Floats:
        return self.utilities[np.ix_(users, queries)]

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        self.supports.append(support)
        return self.utilities[-support.n_users :][:, queries]


def test_tracks(world: World) -> None:
    assert warm_data(world, 1, "choice-only").features is None
    features = warm_data(world, 1, "telemetry").features
    assert features is not None
    assert np.isnan(features[~world.train_queries]).all()
    np.testing.assert_array_equal(features[world.train_queries], world.features[world.train_queries])
    with pytest.raises(ParameterError, match="'track' must be one of choice-only, telemetry"):
        warm_data(world, 1, "all")  # type: ignore[arg-type]


def test_data_of_the_test_split_is_refused(world: World) -> None:
    data = warm_data(world, 1, "telemetry")
    with pytest.raises(DataError, match="'features' must be NaN on test queries"):
        replace(data, features=world.features)
    test_query = np.flatnonzero(~world.train_queries)[:1]
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(DataError, match="'choices' must be on training queries"):
        data.with_choices(Choices(one, test_query, one))
    with pytest.raises(DataError, match="'offered' must hold every chosen LLM"):
        data.with_choices(Choices(one, one, one, np.array([[False, True, True, True]])))
    with pytest.raises(DataError, match=r"'users' must lie in 0..59 \(got 60..60\)"):
        data.with_choices(Choices(one + 60, one, one))


def test_warm_counts_unanswered_queries_only(world: World) -> None:
    utilities = world.utilities(1)
    choices = world.users[1].choices
    # Wrong exactly where the user has answered: it must not show.
    spoiled = utilities.copy()
    spoiled[choices.users, choices.queries] *= -1
    result = evaluate_warm(world, 1, lambda: Cheat(spoiled), "choice-only")
    assert result.seen.means() == pytest.approx({"gain": 1.0, "accuracy": 1.0, "utility": 1.0, "regret": 0.0})
    assert result.new.means()["gain"] == pytest.approx(1.0)


def test_new_users_are_unseen_and_give_their_first_choices(world: World) -> None:
    cheat = Cheat(world.utilities(1))
    result = evaluate_new_users(world, 1, lambda: cheat, "choice-only", (0, 2, 5), n_new=20)
    (data,) = cheat.fitted
    assert data.n_users == 40
    assert data.choices.users.max() == 39
    choices = world.users[1].choices
    for k, support in zip((0, 2, 5), cheat.supports, strict=True):
        expected = [
            (user - 40, query, llm)
            for user in range(40, 60)
            for query, llm in list(
                zip(choices.queries[choices.users == user], choices.llms[choices.users == user])
            )[:k]
        ]
        given = support.choices
        assert list(zip(given.users, given.queries, given.llms)) == expected
        assert result[k].seen.gain.shape == (20,)
        assert result[k].new.means()["gain"] == pytest.approx(1.0)


def test_features_of_users_are_split_with_them(world: World) -> None:
    features = np.arange(60, dtype=np.float32)[:, None]
    known, support = new_user_data(warm_data(world, 1, "choice-only", user_features=features), 1, n_new=20)
    assert known.user_features is not None
    assert support.user_features is not None
    np.testing.assert_array_equal(known.user_features, features[:40])
    np.testing.assert_array_equal(support.user_features, features[40:])


def test_one_fit_is_judged_with_and_without_features(world: World) -> None:
    cheat = Cheat(world.utilities(1))
    data = warm_data(world, 1, "choice-only", user_features=np.ones((60, 2), np.float32))
    cheat.fit(new_user_data(data, 0, n_new=20)[0])
    given = judge_new_users(world, 1, cheat, data, (0, 3), n_new=20)
    bare = judge_new_users(world, 1, cheat, replace(data, user_features=None), (0, 3), n_new=20)
    assert [support.user_features is None for support in cheat.supports] == [False, False, True, True]
    expected = evaluate_new_users(world, 1, lambda: cheat, "choice-only", (0, 3), n_new=20)
    for k in (0, 3):
        np.testing.assert_array_equal(given[k].seen.gain, expected[k].seen.gain)
        np.testing.assert_array_equal(bare[k].new.gain, expected[k].new.gain)


def test_new_llm_is_hidden(world: World) -> None:
    data = new_llm_data(world, 1, "telemetry", 2, n_events=7, n_probes=2)
    before = world.users[1].choices
    offered = data.choices.offered
    assert offered is not None
    assert offered[:, 2].sum() == 7
    assert offered[:, [0, 1, 3]].all()
    assert not (data.choices.llms[~offered[:, 2]] == 2).any()
    kept = (before.llms != 2) | offered[:, 2]
    np.testing.assert_array_equal(data.choices.llms[kept], before.llms[kept])
    assert data.features is not None
    measured = ~np.isnan(data.features[:, 2, 0])
    assert np.bincount(data.tasks[measured]).tolist() == [2, 2, 2]
    np.testing.assert_array_equal(
        ~np.isnan(data.features[:, [0, 1, 3], 0]), np.tile(world.train_queries[:, None], 3)
    )
    assert data.known_llms().all()
    hidden = new_llm_data(world, 1, "telemetry", 2, n_events=0, n_probes=0)
    np.testing.assert_array_equal(hidden.known_llms(), [True, True, False, True])


def test_choices_drawn_again_follow_the_users_law(world: World) -> None:
    data = new_llm_data(world, 1, "choice-only", 0, n_events=0, n_probes=0)
    choices = data.choices
    logits = world.utilities(1)[choices.users, choices.queries][:, 1:].astype(np.float64) / 0.4
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    observed = np.bincount(choices.llms, minlength=4)[1:]
    np.testing.assert_allclose(observed, p.sum(axis=0), atol=4 * np.sqrt((p * (1 - p)).sum(axis=0)).max())


def test_new_llm_quality(world: World) -> None:
    utilities = world.utilities(1)
    oracle = evaluate_new_llm(world, 1, lambda: Cheat(utilities), "choice-only")
    assert (oracle.recall, oracle.precision) == (1.0, 1.0)
    assert oracle.gain_where_best == pytest.approx(1.0)
    ignored = evaluate_new_llm(world, 1, lambda: Cheat(utilities, without=1), "choice-only", llms=[1])
    assert ignored.recall == 0.0
    assert np.isnan(ignored.precision)
    assert ignored.gain_where_best < 1.0
    best = utilities[:, ~world.train_queries].argmax(axis=2)
    assert ignored.quality.means()["accuracy"] == pytest.approx((best != 1).mean())
