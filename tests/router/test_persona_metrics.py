from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from router.errors import ParameterError
from router.persona import ChoiceQuality, choice_quality, paired_difference


def slow_quality(
    utilities: NDArray[np.floating], scores: NDArray[np.floating], asked: NDArray[np.bool_]
) -> list[tuple[float, float, float, float]]:
    result = []
    for u in range(len(utilities)):
        rows = []
        for q in np.flatnonzero(asked[u]):
            values, picked = utilities[u, q], int(np.argmax(scores[u, q]))
            rows.append((values[picked], values.max(), values.min(), values.mean()))
        got, best, worst, mean = np.array(rows).T
        result.append(
            (
                sum(got - mean) / sum(best - mean),
                np.mean(got == best),
                np.mean((got - worst) / (best - worst)),
                np.mean(best - got),
            )
        )
    return result


def test_quality_equals_slow_loops() -> None:
    rng = np.random.default_rng(0)
    utilities, scores = rng.normal(size=(2, 7, 9, 4))
    scores = scores.round()  # ties
    asked = rng.random((7, 9)) < 0.6
    quality = choice_quality(utilities, scores, asked)
    expected = np.array(slow_quality(utilities, scores, asked)).T
    for name, values in zip(("gain", "accuracy", "utility", "regret"), expected, strict=True):
        np.testing.assert_allclose(getattr(quality, name), values, err_msg=name)
    assert quality.means()["gain"] == pytest.approx(expected[0].mean())


def test_oracle_has_one_and_random_choice_zero() -> None:
    rng = np.random.default_rng(1)
    utilities = rng.normal(size=(200, 50, 8)).astype(np.float32)
    asked = np.ones((200, 50), dtype=bool)
    oracle = choice_quality(utilities, utilities, asked).means()
    assert oracle == pytest.approx({"gain": 1.0, "accuracy": 1.0, "utility": 1.0, "regret": 0.0})
    chance = choice_quality(utilities, rng.normal(size=utilities.shape), asked)
    margin = 4 * chance.gain.std() / np.sqrt(200)
    assert abs(chance.gain.mean()) < margin < 0.05
    assert chance.accuracy.mean() == pytest.approx(1 / 8, abs=4 * np.sqrt(7 / 64 / 10_000))


def test_users_without_queries_and_equal_llms() -> None:
    utilities = np.array([[[1.0, 2.0]], [[1.0, 2.0]], [[3.0, 3.0]]])
    asked = np.array([[True], [False], [True]])
    quality = choice_quality(utilities, np.zeros_like(utilities), asked)
    np.testing.assert_array_equal(quality.gain, [-1.0, np.nan, np.nan])
    np.testing.assert_array_equal(quality.accuracy, [0.0, np.nan, 1.0])
    assert quality.means()["regret"] == 0.5


def test_excluded_llms_are_never_picked() -> None:
    utilities = np.array([[[1.0, 2.0, 0.0]]])
    scores = np.array([[[-5.0, -np.inf, -np.inf]]])
    assert choice_quality(utilities, scores, np.array([[True]])).regret == 1.0


def test_bad_scores() -> None:
    utilities, asked = np.zeros((2, 3, 4)), np.ones((2, 3), dtype=bool)
    with pytest.raises(ParameterError, match="NaN"):
        choice_quality(utilities, np.full_like(utilities, np.nan), asked)
    with pytest.raises(ParameterError, match=r"\(2, 3, 4\).*\(2, 3, 5\)"):
        choice_quality(utilities, np.zeros((2, 3, 5)), asked)


def test_mean_of_qualities_is_by_user() -> None:
    one = ChoiceQuality(*np.arange(8.0).reshape(4, 2))
    other = ChoiceQuality(*(2 + np.arange(8.0).reshape(4, 2)))
    np.testing.assert_array_equal(ChoiceQuality.mean_of([one, other]).accuracy, [3.0, 4.0])


def test_paired_difference() -> None:
    rng = np.random.default_rng(2)
    theirs = rng.normal(size=(3, 300))
    ours = theirs + 0.1 + 0.2 * rng.normal(size=theirs.shape)
    mean, low, high = paired_difference(ours, theirs)
    assert mean == pytest.approx((ours - theirs).mean())
    # The standard error over users alone is .2 / 30; drawing seeds as well can only widen the interval.
    assert low < mean < high
    assert 3.5 * 0.2 / 30 < high - low < 8 * 0.2 / 30
    assert paired_difference(ours, theirs) == (mean, low, high)
    assert paired_difference(theirs + 0.5, theirs) == pytest.approx((0.5, 0.5, 0.5))


def test_paired_difference_leaves_out_users_without_queries() -> None:
    ours, theirs = np.array([[1.0, np.nan, 3.0]]), np.array([[0.0, 5.0, 2.0]])
    assert paired_difference(ours, theirs) == (1.0, 1.0, 1.0)
    with pytest.raises(ParameterError, match="same users"):
        paired_difference(ours, theirs[:, :2])
