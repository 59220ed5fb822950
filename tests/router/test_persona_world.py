from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from router.errors import DataError, MissingDataError, ParameterError
from router.persona import load_world
from router.persona.simulate import MAX_CHOICES, MIN_CHOICES, draw_users
from tests.oracles.persona_worlds import LLMS, slow_utility, world_arrays, write_world


def test_utilities_follow_the_formula(tmp_path: Path) -> None:
    world = load_world(write_world(tmp_path))
    responses, users = world_arrays()
    utilities = world.utilities(1)
    expected = [[slow_utility(responses, users, u, q) for q in range(36)] for u in range(60)]
    np.testing.assert_allclose(utilities, expected, rtol=1e-5, atol=1e-5)
    assert world.llm_names == LLMS
    assert world.task_names == ("task0", "task1", "task2")
    assert len(world.users[1].choices) == users["event_user_1"].size


def test_prices_are_read_by_name(tmp_path: Path) -> None:
    write_world(tmp_path)
    prices = tmp_path / "llms.json"
    prices.write_text('{"two": {"input_price": 0.5, "output_price": 1.5}, "nine": {}}')
    world = load_world(tmp_path, llms=prices)
    np.testing.assert_array_equal(world.prices_usd[1], [0.5, 1.5])
    assert np.isnan(world.prices_usd[[0, 2, 3]]).all()


def test_unknown_seed(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"'seed' must be one of \[1\] \(got 4\)"):
        load_world(write_world(tmp_path)).utilities(4)


def test_damaged_files(tmp_path: Path) -> None:
    write_world(tmp_path)
    with pytest.raises(MissingDataError, match=r"world_mild.npz: no such file"):
        load_world(tmp_path, "mild")
    path = tmp_path / "world_medium.npz"
    _, users = world_arrays()
    for name in ("base", "event_choice_1"):
        np.savez(path, **{key: value for key, value in users.items() if key != name})
        with pytest.raises(MissingDataError, match=f"world_medium.npz: array '{name}' is missing"):
            load_world(tmp_path)
    np.savez(path, **users | {"base": users["base"][:-1]})
    with pytest.raises(DataError, match="a row per query"):
        load_world(tmp_path)
    np.savez(path, **users | {"event_choice_1": users["event_choice_1"] + 1})
    with pytest.raises(DataError, match=r"'llms' must lie in 0..3 \(got 1..4\)"):
        load_world(tmp_path)
    np.savez(path, **users | {"domains": np.array([["a"]], dtype=object)})
    with pytest.raises(DataError, match="not a readable"):
        load_world(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a readable"):
        load_world(tmp_path)


def test_drawn_users_follow_the_law_of_the_worlds_users(tmp_path: Path) -> None:
    world = load_world(write_world(tmp_path, n_users=800, per_task=100))
    prototypes = np.random.default_rng(0).integers(4, size=800)
    users = draw_users(world, 5, prototypes)
    centre = world.prototype_weights[:, None] + world.prototype_domain_weights
    # The world's users have deviations of .2, all of it by domain, and .2 in the biases.
    assert (users.weights - centre[prototypes]).std() == pytest.approx(0.2, rel=0.05)
    deviation = users.llm_bias - world.prototype_llm_bias[prototypes]
    assert deviation.std() == pytest.approx(0.2, rel=0.05)
    np.testing.assert_allclose(deviation.sum(axis=1), 0.0, atol=1e-5)
    choices = users.choices
    counts = np.bincount(choices.users)
    assert MIN_CHOICES <= counts.min() < counts.max() <= MAX_CHOICES
    assert world.train_queries[choices.queries].all()
    assert np.unique(choices.users * 1000 + choices.queries).size == len(choices)
    # Choices are as likely as the softmax of U / .4 says they are on average.
    logits = world.utilities_of(users.weights, users.llm_bias)[choices.users, choices.queries] / 0.4
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    chosen = np.log(p[np.arange(len(choices)), choices.llms])
    assert chosen.mean() == pytest.approx(
        (p * np.log(p)).sum(axis=1).mean(), abs=4 * float(chosen.std()) / 170
    )
    again = draw_users(world, 5, prototypes)
    np.testing.assert_array_equal(again.choices.llms, choices.llms)
    with pytest.raises(ParameterError, match=r"'prototypes' must lie in 0..3"):
        draw_users(world, 5, np.array([4]))
    small = load_world(write_world(tmp_path))
    with pytest.raises(ParameterError, match="at least 60 training queries"):
        draw_users(small, 5, prototypes)


def test_shipped_choices_follow_the_shipped_utilities(shared_data: Path) -> None:
    for strength in ("mild", "medium", "strong"):
        world = load_world(
            shared_data / "persona-sim", strength, llms=shared_data / "routeprofile" / "candidate_models.json"
        )
        assert world.utilities(1).shape == (1000, 600, 8)
        assert np.isfinite(world.prices_usd).all()
        for seed, users in world.users.items():
            choices = users.choices
            logits = world.utilities(seed)[choices.users, choices.queries].astype(np.float64) / 0.4
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            entropy = (np.exp(log_p) * log_p).sum(axis=1).mean()
            chosen = log_p[np.arange(len(choices)), choices.llms]
            assert chosen.mean() == pytest.approx(entropy, abs=4 * chosen.std() / np.sqrt(len(choices)))
