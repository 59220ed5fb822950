"""The oracle of max-min shares, held to examples worked out by hand."""

from __future__ import annotations

import pytest

from tests.oracles.max_min import max_min_shares


@pytest.mark.parametrize(
    ("capacity", "demands", "weights", "shares"),
    [
        (10, {"a": 2, "b": 2.6, "c": 4, "d": 5}, None, {"a": 2, "b": 2.6, "c": 2.7, "d": 2.7}),
        # a and b are full at 4 and 2; of the 10 left, 1 to 2 for c and d, d is full at 4.
        (
            16,
            {"a": 4, "b": 2, "c": 10, "d": 4},
            {"a": 2.5, "b": 4, "c": 0.5, "d": 1},
            {"a": 4, "b": 2, "c": 6, "d": 4},
        ),
        (12, {"a": 100, "b": 100}, {"a": 2, "b": 1}, {"a": 8, "b": 4}),
        (12, {"a": 1, "b": 100}, {"a": 2, "b": 1}, {"a": 1, "b": 11}),
        (12, {"a": 1, "b": 2}, None, {"a": 1, "b": 2}),
        (12, {"a": 0, "b": 20}, None, {"a": 0, "b": 12}),
        (0, {"a": 1}, None, {"a": 0}),
        (5, {}, None, {}),
    ],
)
def test_hand_examples(
    capacity: float, demands: dict[str, float], weights: dict[str, float] | None, shares: dict[str, float]
) -> None:
    assert max_min_shares(capacity, demands, weights) == pytest.approx(shares)
