from __future__ import annotations

import numpy as np
import pytest

from router.errors import ParameterError
from router.evaluate import activity_thirds, by_group


def test_means_and_intervals_by_group() -> None:
    found = by_group([1.0, 3.0, 5.0, np.nan, 7.0], ["b", "b", "a", "a", "b"])
    assert list(found) == ["a", "b"]
    assert (found["a"].n_users, found["a"].mean) == (1, 5.0)
    assert np.isnan(found["a"].low)
    assert found["b"].mean == pytest.approx(11 / 3)
    values = np.array([1.0, 3.0, 7.0])
    reach = 1.96 * values.std(ddof=1) / np.sqrt(3)
    assert found["b"].high - found["b"].mean == pytest.approx(reach)
    with pytest.raises(ParameterError, match="'groups' must have 2 entries"):
        by_group([1.0, 2.0], ["a"])


def test_intervals_hold_the_mean_of_the_law() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        figure = by_group(rng.normal(2.0, 1.0, 200), ["all"] * 200)["all"]
        hits += figure.low < 2.0 < figure.high
    assert 0.92 < hits / 400 < 0.98


def test_thirds_by_activity() -> None:
    assert activity_thirds([5, 1, 3, 2, 6, 4]) == (
        "3 many (5-6)",
        "1 few (1-2)",
        "2 some (3-4)",
        "1 few (1-2)",
        "3 many (5-6)",
        "2 some (3-4)",
    )
    assert set(activity_thirds([4, 4, 4])) == {"1 few (4-4)"}
    assert activity_thirds([]) == ()
