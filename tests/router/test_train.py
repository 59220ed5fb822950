from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from router.errors import DataError, NotFittedError, ParameterError, ResourceError
from router.graph import feature_neighbours
from router.persona import (
    ChoiceData,
    Choices,
    Support,
    World,
    evaluate_new_users,
    evaluate_warm,
    load_world,
    new_llm_data,
    new_user_data,
    warm_data,
)
from router.personal import PersonalRouter
from router.train import Progress, Settings, choose_device, train
from tests.oracles.persona_worlds import write_world

SMALL = Settings(n_factors=4, n_tastes=4, n_steps=250, learning_rate=0.05)
SHORT = replace(SMALL, n_steps=12)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load_world(write_world(tmp_path_factory.mktemp("world"), n_users=150, n_choices=20, per_task=24))


@pytest.fixture(scope="module")
def data(world: World) -> ChoiceData:
    return warm_data(world, 1, "choice-only")


@pytest.fixture(scope="module")
def fitted(data: ChoiceData) -> PersonalRouter:
    model = PersonalRouter(SMALL, device="cpu")
    model.fit(data)
    return model


def opposed() -> ChoiceData:
    """Forty users; the first half always want LLM 0, the others LLM 1."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(40), 8)
    return ChoiceData(
        n_users=40,
        choices=Choices(users, rng.integers(9, size=users.size), (users >= 20).astype(np.int64)),
        tasks=np.arange(12) % 3,
        query_embeddings=np.zeros((12, 2), np.float32),
        train_queries=np.arange(12) < 9,
        llm_names=("one", "two", "three"),
        llm_embeddings=np.eye(3, dtype=np.float32),
        prices_usd=np.ones((3, 2), np.float32),
    )


def test_planted_tastes_are_recovered(world: World) -> None:
    for track, seen, new in (("choice-only", 0.75, 0.6), ("telemetry", 0.85, 0.6)):
        result = evaluate_warm(world, 1, lambda: PersonalRouter(SMALL, device="cpu"), track)
        assert result.seen.gain.mean() > seen
        assert result.new.gain.mean() > new


def test_more_choices_make_better_answers(world: World) -> None:
    by_k = evaluate_new_users(
        world, 1, lambda: PersonalRouter(SMALL, device="cpu"), "choice-only", (0, 3, 10), n_new=50
    )
    gains = [by_k[k].seen.gain.mean() for k in (0, 3, 10)]
    assert gains[0] + 0.05 < gains[1] < gains[2]


def test_opposite_tastes_get_different_models() -> None:
    model = PersonalRouter(replace(SMALL, n_tastes=2), device="cpu")
    model.fit(opposed())
    picks = model.scores(np.arange(40), np.arange(12)).argmax(axis=2)
    np.testing.assert_array_equal(picks, np.broadcast_to((np.arange(40) >= 20)[:, None], picks.shape))
    one_each = Choices(np.array([0, 1]), np.array([0, 0]), np.array([0, 1]))
    new = model.scores_new_users(Support(2, one_each), np.arange(12)).argmax(axis=2)
    np.testing.assert_array_equal(new, np.broadcast_to([[0], [1]], new.shape))


def test_new_users_are_known_users_with_the_same_choices(fitted: PersonalRouter, data: ChoiceData) -> None:
    queries = np.arange(data.n_queries)
    known = fitted.scores(np.arange(data.n_users), queries)
    new = fitted.scores_new_users(Support(data.n_users, data.choices), queries)
    np.testing.assert_allclose(new, known, atol=1e-4)


def test_known_users_with_features_are_new_ones_too(data: ChoiceData) -> None:
    features = np.random.default_rng(0).normal(size=(data.n_users, 3)).astype(np.float32)
    model = PersonalRouter(SHORT, device="cpu")
    model.fit(replace(data, user_features=features))
    near = feature_neighbours(features, features, SHORT.n_neighbors, same=True)
    assert (near.diagonal() == 0.0).all()
    scores = model.scores_new_users(Support(data.n_users, data.choices, features), np.arange(5))
    assert np.isfinite(scores).all()


def test_the_same_seed_gives_the_same_model(data: ChoiceData) -> None:
    first, second = train(data, SHORT, device="cpu"), train(data, SHORT, device="cpu")
    assert torch.equal(first.pairs, second.pairs)
    other = train(data, replace(SHORT, seed=1), device="cpu")
    assert not torch.equal(first.pairs, other.pairs)


@pytest.mark.parametrize("stop", [3, 8])  # before and after the tastes are placed
def test_a_resumed_training_equals_an_uninterrupted_one(data: ChoiceData, tmp_path: Path, stop: int) -> None:
    class KilledError(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.step == stop + 1:
            raise KilledError

    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        train(data, SHORT, device="cpu", checkpoint=file, checkpoint_every=stop, progress=kill)
    steps: list[int] = []
    resumed = train(data, SHORT, device="cpu", checkpoint=file, progress=lambda p: steps.append(p.step))
    assert steps[0] == stop + 1
    whole = train(data, SHORT, device="cpu")
    for name in ("pairs", "log_shares", "centres", "log_sds"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    again = train(data, SHORT, device="cpu", checkpoint=file)  # finished: nothing is left to do
    assert torch.equal(again.pairs, whole.pairs)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_checkpoint_of_another_training_is_refused(data: ChoiceData, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    train(data, SHORT, device="cpu", checkpoint=file)
    with pytest.raises(DataError, match="other data or settings"):
        train(data, replace(SHORT, seed=1), device="cpu", checkpoint=file)
    assert load_file(file)["model.centres"].shape == (4, 4)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="not a readable checkpoint"):
        train(data, SHORT, device="cpu", checkpoint=file)


def test_the_bound_rises(data: ChoiceData) -> None:
    states: list[Progress] = []
    train(data, replace(SMALL, n_steps=100), device="cpu", progress=states.append)
    assert states[-1].log_likelihood > states[0].log_likelihood + 0.2


def test_an_unknown_llm_is_never_chosen_without_telemetry(world: World) -> None:
    queries = np.arange(len(world.tasks))
    for track, chosen in (("choice-only", False), ("telemetry", True)):
        data = new_llm_data(world, 1, track, 2, n_events=0, n_probes=5)
        model = PersonalRouter(SMALL, device="cpu")
        model.fit(data)
        picks = model.scores(np.arange(data.n_users), queries).argmax(axis=2)
        assert (picks == 2).any() == chosen


def test_users_without_choices_get_answers(data: ChoiceData) -> None:
    some = data.with_choices(data.choices.take(data.choices.users >= 5))
    model = PersonalRouter(SHORT, device="cpu")
    model.fit(some)
    scores = model.scores(np.arange(6), np.arange(4))
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores[0], scores[4], atol=1e-5)


def test_all_choices_the_same(data: ChoiceData) -> None:
    choices = replace(data.choices, llms=np.zeros_like(data.choices.llms))
    model = PersonalRouter(replace(SMALL, n_steps=60), device="cpu")
    model.fit(data.with_choices(choices))
    assert (model.scores(np.arange(data.n_users), np.arange(data.n_queries)).argmax(axis=2) == 0).all()


def test_bad_input(data: ChoiceData) -> None:
    with pytest.raises(ParameterError, match="'n_factors' must be positive"):
        Settings(n_factors=0)
    with pytest.raises(ParameterError, match=r"'warmup' must lie in 0\.\.1"):
        Settings(warmup=2.0)
    with pytest.raises(DataError, match="'choices' must not be empty"):
        train(data.with_choices(data.choices.take(np.zeros(0, dtype=np.int64))), SHORT, device="cpu")
    with pytest.raises(ResourceError, match="'device' must name a device of this machine"):
        choose_device("no-such-device")
    with pytest.raises(NotFittedError):
        PersonalRouter().scores(np.arange(1), np.arange(1))


def test_auto_takes_what_there_is() -> None:
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_beats_the_best_simple_router_on_real_responses(shared_data: Path) -> None:
    from router.baselines import FactorRouter

    world = load_world(shared_data / "persona-sim")
    known, _ = new_user_data(warm_data(world, 1, "choice-only"), 0, n_new=600)
    held_out = np.random.default_rng(0).random(len(known.choices)) < 0.1
    train_data, validation = known.with_choices(known.choices.take(~held_out)), known.choices.take(held_out)
    accuracies = []
    for model in (PersonalRouter(Settings(n_steps=250), device="cpu"), FactorRouter(factor_penalty=10.0)):
        model.fit(train_data)
        picks = model.scores(np.arange(known.n_users), np.arange(known.n_queries)).argmax(axis=2)
        accuracies.append((picks[validation.users, validation.queries] == validation.llms).mean())
    assert accuracies[0] > accuracies[1]
