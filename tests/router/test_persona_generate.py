from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router.baselines import UserTaskRouter
from router.errors import DataError, ParameterError
from router.loaders import read_route_profile
from router.persona import World, evaluate_warm, load_world
from router.persona.generate import COMMON, PROTOTYPES, SHARES, STRENGTHS, Answers, generate_world
from router.persona.responses import FEATURES, ROUTE_PROFILE_BILLIONS
from router.persona.world import Strength


def _answers(n_queries: int = 300, n_llms: int = 6) -> Answers:
    """Answers whose features are correlated, as real ones are."""
    rng = np.random.default_rng(0)
    mixing = np.eye(len(FEATURES)) + 0.4 * rng.normal(size=(len(FEATURES), len(FEATURES)))
    z = rng.normal(size=(n_queries, n_llms, len(FEATURES))) @ mixing
    z = (z - z.mean(axis=1, keepdims=True)).astype(np.float32)
    tasks = np.array(["gsm8k", "mbpp", "mmlu", "own task", "natural_qa"])[np.arange(n_queries) % 5]
    return Answers(
        tasks=tuple(tasks.tolist()),
        features=z,
        llm_names=tuple("abcdef"[:n_llms]),
        prices_usd=np.ones((n_llms, 2), np.float32),
        query_embeddings=rng.normal(size=(n_queries, 8)).astype(np.float32),
        llm_embeddings=rng.normal(size=(n_llms, 8)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def world() -> World:
    return generate_world(_answers(), user_seeds=(1, 2))


def _variances(world: World, seed: int) -> dict[str, float]:
    """Variance that each part contributes to h, over queries, LLMs and users."""
    users = world.of_seed(seed)
    k = users.prototypes
    own = users.weights - world.prototype_weights[k][:, None] - world.prototype_domain_weights[k]
    mean = own.mean(axis=1, keepdims=True)
    n_domains = own.shape[1]

    def of_weights(weights: np.ndarray) -> float:
        at = np.broadcast_to(weights, (len(k), n_domains, len(FEATURES)))[:, world.domains]
        return float((np.einsum("qmf,uqf->uqm", world.features, at, optimize=True) ** 2).mean())

    found = {
        "P": of_weights(world.prototype_weights[k][:, None]),
        "PD": of_weights(world.prototype_domain_weights[k]),
        "e_ug": of_weights(own - mean) * n_domains / (n_domains - 1),
        "B": float((world.prototype_llm_bias[k] ** 2).mean()),
        "b": float(((users.llm_bias - world.prototype_llm_bias[k]) ** 2).mean()),
    }
    return found | {"e_u": of_weights(mean) - found["e_ug"] / n_domains}


def test_parts_have_their_shares_of_the_variance(world: World) -> None:
    found = _variances(world, 1)
    for name, share in SHARES.items():
        # Prototypes are drawn 1,000 times, e and b with 12 and 6 numbers per user.
        assert found[name] == pytest.approx(share, rel=0.08), name


@pytest.mark.parametrize("strength", ["mild", "medium", "strong"])
def test_common_and_personal_part_are_weighed_by_strength(strength: Strength) -> None:
    world = generate_world(_answers(), strength, user_seeds=(1,))
    s = STRENGTHS[strength]
    assert world.personal_scale == pytest.approx(s / np.sqrt(1 + s * s))
    assert world.base.std() == pytest.approx(1 / np.sqrt(1 + s * s))
    direction = world.features @ np.array([COMMON.get(name, 0.0) for name in FEATURES])
    assert np.corrcoef(direction.ravel(), world.base.ravel())[0, 1] == pytest.approx(1.0)
    personal = (world.utilities(1) - world.base) / world.personal_scale
    assert personal.var() == pytest.approx(1.0, rel=0.06)


def test_prototypes_follow_their_frequencies_and_are_centred(world: World) -> None:
    shares = world.prototype_shares
    np.testing.assert_allclose(np.sort(1 / shares**2) / (1 / shares**2).min(), np.arange(1, 13), rtol=1e-9)
    for part in (world.prototype_weights, world.prototype_domain_weights, world.prototype_llm_bias):
        np.testing.assert_allclose(np.tensordot(shares, part, axes=1), 0.0, atol=1e-12)
    counts = np.bincount(world.of_seed(1).prototypes, minlength=len(PROTOTYPES))
    chi2 = ((counts - 1000 * shares) ** 2 / (1000 * shares)).sum()
    assert chi2 < 31.3  # 99.9 % of chi-squared with 11 degrees of freedom


def test_a_prototype_wants_what_is_written_down(world: World) -> None:
    frugal = list(PROTOTYPES).index("frugal")
    assert world.prototype_weights[frugal, FEATURES.index("cost")] < 0.0
    # Before the common part is taken away, weights are in the proportion of the table.
    others = np.delete(world.prototype_weights, frugal, axis=0)
    cost = world.prototype_weights[frugal, 1] - np.median(others[:, 1])
    latency = world.prototype_weights[frugal, 2] - np.median(others[:, 2])
    assert cost / latency == pytest.approx(4.0, rel=1e-6)


def test_split_and_seeds(world: World) -> None:
    for task in range(len(world.task_names)):
        assert world.train_queries[world.tasks == task].mean() == pytest.approx(0.7)
    again = generate_world(_answers(), user_seeds=(2,))
    np.testing.assert_array_equal(again.of_seed(2).choices.llms, world.of_seed(2).choices.llms)
    other = generate_world(_answers(), seed=8, user_seeds=(1,))
    assert not np.array_equal(other.prototype_llm_bias, world.prototype_llm_bias)
    assert not np.array_equal(world.of_seed(1).prototypes, world.of_seed(2).prototypes)


def test_bad_input() -> None:
    answers = _answers()
    with pytest.raises(ParameterError, match="'strength' must be one of mild, medium, strong"):
        generate_world(answers, "wild")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="'features' must be 12"):
        generate_world(replace(answers, features=answers.features[..., :5]))
    short = replace(generate_world(answers, user_seeds=()), feature_names=("quality",))
    with pytest.raises(DataError, match="must have the features"):
        Answers.of_world(short)


def test_a_world_over_responses(shared_data: Path) -> None:
    folder = shared_data / "routeprofile"
    table, catalogue = read_route_profile(
        folder / "routing_test_data.json.gz", folder / "candidate_models.json"
    )
    shipped = load_world(shared_data / "persona-sim")
    answers = Answers.of_table(
        table,
        ROUTE_PROFILE_BILLIONS,
        prices_usd=(1e6 * catalogue.prices).astype(np.float32),
        query_embeddings=shipped.query_embeddings,
        llm_embeddings=shipped.llm_embeddings,
    )
    world = generate_world(answers, user_seeds=(1,), n_users=50)
    assert world.llm_names == shipped.llm_names
    assert len(set(world.domains.tolist())) == 5
    assert np.corrcoef(world.base.ravel(), shipped.base.ravel())[0, 1] > 0.99
    np.testing.assert_allclose(
        world.prices_usd,
        load_world(shared_data / "persona-sim", llms=folder / "candidate_models.json").prices_usd,
    )


def test_a_world_like_the_shipped_one(shared_data: Path) -> None:
    shipped = load_world(shared_data / "persona-sim")
    world = generate_world(Answers.of_world(shipped), user_seeds=(1,))
    np.testing.assert_allclose(world.base, shipped.base, atol=1e-5)
    np.testing.assert_allclose(np.sort(world.prototype_shares), np.sort(shipped.prototype_shares))
    assert world.train_queries.sum() == shipped.train_queries.sum()
    n_domains = shipped.prototype_domain_weights.shape[1]
    assert world.prototype_domain_weights.shape[1] == n_domains
    found = evaluate_warm(world, 1, UserTaskRouter, "choice-only")
    expected = evaluate_warm(shipped, 1, UserTaskRouter, "choice-only")
    # Worlds of other prototypes' biases and domain tastes differ by a few hundredths.
    for part in ("seen", "new"):
        ours, theirs = (getattr(side, part).gain.mean() for side in (found, expected))
        assert ours == pytest.approx(theirs, abs=0.06)
