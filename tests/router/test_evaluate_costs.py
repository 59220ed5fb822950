from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from router.errors import DataError, ParameterError
from router.evaluate import cost_efficiency
from router.loaders import ResponseTable, read_route_profile


def _table(quality: np.ndarray, cost: np.ndarray) -> ResponseTable:
    n, m = quality.shape
    return ResponseTable(
        queries=tuple(f"q{i}" for i in range(n)),
        tasks=tuple(f"task{i % 2}" for i in range(n)),
        llms=tuple("abcdef"[:m]),
        quality=quality,
        cost_usd=cost,
    )


def test_oracle_and_blind_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    quality, cost = rng.random((20, 3)), rng.random((20, 3))
    found = cost_efficiency(_table(quality, cost), rng.random((20, 4)).astype(np.float32))
    oracle, blind = 0.0, 0.0
    scaled = np.empty_like(cost)
    for task in (0, 1):
        part = cost[task::2]
        scaled[task::2] = (part - part.min()) / (part.max() - part.min())
    users = np.arange(2, 11) / 10
    for q in range(20):
        rewards = np.array([[p * quality[q, m] - (1 - p) * scaled[q, m] for m in range(3)] for p in users])
        oracle += rewards.max(axis=1).mean() / 20
        blind += rewards.mean(axis=0).max() / 20
    assert found.oracle == pytest.approx(oracle)
    assert found.blind == pytest.approx(blind)
    assert found.best_single <= found.blind <= found.oracle


def test_a_predictable_table_is_learned() -> None:
    x = np.random.default_rng(1).normal(size=(200, 2)).astype(np.float32)
    quality = np.stack([x[:, 0] > 0, x[:, 0] <= 0], axis=1).astype(float)
    found = cost_efficiency(_table(quality, np.zeros((200, 2))), x)
    assert found.ridge > 0.9 * found.oracle > found.best_single


def test_route_profile_has_its_known_figures(shared_data: Path) -> None:
    folder = shared_data / "routeprofile"
    table, _ = read_route_profile(folder / "routing_test_data.json.gz", folder / "candidate_models.json")
    with np.load(shared_data / "persona-sim" / "routeprofile_features.npz", allow_pickle=False) as features:
        found = cost_efficiency(table, features["query_embedding"])
    assert found.best_single == pytest.approx(0.341, abs=0.01)
    assert found.ridge == pytest.approx(0.343, abs=0.01)
    assert found.oracle == pytest.approx(0.440, abs=0.01)
    # A router that is blind to users comes near the oracle: little of this is about persons.
    assert found.blind - found.best_single > 0.95 * (found.oracle - found.best_single)


def test_bad_input() -> None:
    table = _table(np.ones((4, 2)), np.ones((4, 2)))
    with pytest.raises(DataError, match="must have 4 rows"):
        cost_efficiency(table, np.zeros((3, 2), np.float32))
    with pytest.raises(ParameterError, match="'n_folds' must be at least 2"):
        cost_efficiency(table, np.zeros((4, 2), np.float32), n_folds=1)
    with pytest.raises(DataError, match="cost of every answer"):
        cost_efficiency(_table(np.ones((4, 2)), np.full((4, 2), np.nan)), np.zeros((4, 2), np.float32))
