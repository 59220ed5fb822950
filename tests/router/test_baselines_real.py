"""The baselines on the shipped world: what they are known to reach, less .015 (one seed of three)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from router.baselines import FactorRouter, PopularityRouter, TelemetryRouter, UserTaskRouter
from router.persona import ChoiceRouter, Track, World, evaluate_new_users, evaluate_warm, load_world


@pytest.fixture(scope="module")
def world(shared_data: Path) -> World:
    return load_world(shared_data / "persona-sim")


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "track", "seen", "new"),
    [
        (lambda: PopularityRouter("query"), "choice-only", 0.532, 0.258),
        (UserTaskRouter, "choice-only", 0.539, 0.551),
        (lambda: FactorRouter(("task",)), "choice-only", 0.570, 0.573),
        (FactorRouter, "choice-only", 0.826, 0.571),
        (TelemetryRouter, "telemetry", 0.914, 0.606),
    ],
    ids=["by query", "user and task", "mf", "mf and queries", "telemetry"],
)
def test_warm(world: World, make: Callable[[], ChoiceRouter], track: Track, seen: float, new: float) -> None:
    result = evaluate_warm(world, 1, make, track)
    assert result.seen.gain.mean() > seen - 0.015
    assert result.new.gain.mean() > new - 0.015


def test_new_users(world: World) -> None:
    result = evaluate_new_users(world, 1, TelemetryRouter, "telemetry", (0, 1, 10))
    seen = [result[k].seen.gain.mean() for k in (0, 1, 10)]
    # A choice tells something: Bayes, who knows the law, has .570, .664, .883.
    assert seen[0] == pytest.approx(0.570, abs=0.03)
    assert 0.05 < seen[1] - seen[0] < 0.12
    assert 0.15 < seen[2] - seen[1] < 0.25
