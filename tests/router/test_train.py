from __future__ import annotations

import subprocess
import sys
from dataclasses import astuple, replace
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
from router.train import Progress, Settings, _read_checkpoint, _Training, choose_device, train
from router.variational import Asked, QueryBlock, VariationalModel
from tests.oracles.persona_worlds import write_world

SMALL = Settings(n_factors=4, n_tastes=4, n_steps=250, learning_rate=0.05)
SHORT = replace(SMALL, n_steps=12)
_REPLACE = """
import os, sys
*files, path = sys.argv[1:]
while True:
    for file in files:
        os.link(file, path + ".part")
        os.replace(path + ".part", path)
"""

pytestmark = pytest.mark.usefixtures("one_thread")


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
    near = feature_neighbours(features, features, 50, same=True)
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
    assert steps == list(range(1, SHORT.n_steps + 1))  # those before the kill come from the checkpoint
    whole = train(data, SHORT, device="cpu")
    for name in ("pairs", "log_shares", "centres", "log_sds"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    again = train(data, SHORT, device="cpu", checkpoint=file)  # finished: nothing is left to do
    assert torch.equal(again.pairs, whole.pairs)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def random_choices(n_users: int = 30) -> tuple[ChoiceData, Choices]:
    """Choices without any rule, and as many held out: all that is learned of them is learned by heart."""
    rng = np.random.default_rng(0)
    drawn = [
        Choices(np.repeat(np.arange(n_users), 8), *(rng.integers(n, size=8 * n_users) for n in (9, 3)))
        for _ in range(2)
    ]
    return opposed().with_choices(drawn[0]), drawn[1]


def test_a_training_that_gets_no_better_ends_and_gives_its_best_state() -> None:
    data, held_out = random_choices()
    settings = replace(SMALL, n_steps=200, warmup=0.0, gaussian=0.0, patience=3)
    states: list[Progress] = []
    model = train(data, settings, device="cpu", held_out=held_out, progress=states.append)
    measured = {state.step: state.held_out for state in states if not np.isnan(state.held_out)}
    best = max(measured, key=lambda step: measured[step])
    assert len(states) == best + 3 * 10 < 200

    run = _Training(data, settings, torch.device("cpu"))
    while run.step < best:
        run.advance()
    assert torch.equal(run.result().pairs, model.pairs)
    longer = train(data, replace(settings, patience=20), device="cpu", held_out=held_out)
    assert torch.equal(longer.pairs, model.pairs)


def test_without_choices_held_out_the_last_state_is_taken(data: ChoiceData) -> None:
    nothing = data.choices.take(np.zeros(0, dtype=np.int64))
    states: list[Progress] = []
    model = train(data, SHORT, device="cpu", held_out=nothing, progress=states.append)
    assert len(states) == SHORT.n_steps
    assert torch.equal(model.pairs, train(data, SHORT, device="cpu").pairs)


@pytest.mark.parametrize("stop", [40, 75])
def test_a_resumed_training_stops_where_an_uninterrupted_one_does(tmp_path: Path, stop: int) -> None:
    data, held_out = random_choices()
    settings = replace(SMALL, n_steps=200, warmup=0.0, gaussian=0.1, patience=4)
    file = tmp_path / "checkpoint.safetensors"
    whole_states: list[Progress] = []
    whole = train(data, settings, device="cpu", held_out=held_out, progress=whole_states.append)

    class KilledError(Exception):
        pass

    def kill(state: Progress) -> None:
        if state.step == min(stop + 7, len(whole_states)):
            raise KilledError

    with pytest.raises(KilledError):
        train(
            data,
            settings,
            device="cpu",
            held_out=held_out,
            checkpoint=file,
            checkpoint_every=stop,
            progress=kill,
        )
    states: list[Progress] = []
    for _ in range(2):  # the second finds a finished training
        states.clear()
        model = train(
            data, settings, device="cpu", held_out=held_out, checkpoint=file, progress=states.append
        )
        np.testing.assert_array_equal(*([astuple(s) for s in run] for run in (states, whole_states)))
        assert torch.equal(model.pairs, whole.pairs)
    with pytest.raises(DataError, match="other data or settings"):
        train(data, settings, device="cpu", checkpoint=file)  # nothing held out


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most_rows: int) -> None:
    sample_logits = VariationalModel.sample_logits

    def limited(self: VariationalModel, z: object, asked: Asked, generator: object) -> torch.Tensor:
        if len(asked) > most_rows:
            raise torch.OutOfMemoryError("no more")
        return sample_logits(self, z, asked, generator)  # type: ignore[arg-type]

    monkeypatch.setattr(VariationalModel, "sample_logits", limited)


def test_choices_are_taken_in_parts_where_memory_is_short(
    data: ChoiceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SMALL, n_steps=100)
    whole: list[Progress] = []
    train(data, settings, device="cpu", progress=whole.append)
    n_rows = len(Asked.of(data.choices, torch.device("cpu")))
    short_of_memory(monkeypatch, n_rows // 3)
    told: list[str] = []
    states: list[Progress] = []
    file = tmp_path / "checkpoint.safetensors"
    model = train(data, settings, device="cpu", checkpoint=file, progress=states.append, tell=told.append)
    assert [text.split()[-2] for text in told] == ["2", "4"]
    late = slice(80, None)
    likelihoods = [np.mean([state.log_likelihood for state in run[late]]) for run in (whole, states)]
    assert abs(likelihoods[0] - likelihoods[1]) < 0.02
    told.clear()
    again = train(data, settings, device="cpu", checkpoint=file, tell=told.append)
    assert not told
    assert torch.equal(again.pairs, model.pairs)


def test_gradients_do_not_depend_on_the_parts(data: ChoiceData) -> None:
    run = _Training(data, SHORT, torch.device("cpu"))
    with torch.no_grad():  # without the noise of the logits
        for block in run.model.blocks.values():
            block.log_variance.fill_(-60.0)  # type: ignore[operator, union-attr]
    found = []
    for n_parts in (1, 5, len(run.asked)):
        run.n_parts = n_parts
        numbers = run._gradients(3)
        assert numbers is not None
        found.append((numbers, [p.grad.clone() for p in run.model.parameters() if p.grad is not None]))
    for numbers, gradients in found[1:]:
        np.testing.assert_allclose(numbers, found[0][0], rtol=1e-4)
        for one, other in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_memory_for_not_even_one_row(data: ChoiceData, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 0)
    with pytest.raises(ResourceError, match="the memory of cpu does not suffice"):
        train(data, SHORT, device="cpu")


def test_threads_are_as_before_afterwards(data: ChoiceData) -> None:
    used: list[int] = []
    settings = replace(SHORT, threads=2)
    model = PersonalRouter(settings, device="cpu", progress=lambda _: used.append(torch.get_num_threads()))
    model.fit(data)
    assert set(used) == {2}
    assert torch.get_num_threads() == 1


def test_the_size_is_that_of_the_track(world: World) -> None:
    for track, size in (("choice-only", (12, 800)), ("telemetry", (16, 500))):
        data = warm_data(world, 1, track)
        chosen = Settings().resolved(data)
        assert (chosen.n_factors, chosen.n_steps) == size
        assert SMALL.resolved(data) == SMALL
    model = PersonalRouter(Settings(n_steps=2), device="cpu")
    model.fit(data)
    assert model.model is not None
    assert model.model.centres.shape[1] == 16


def test_a_checkpoint_of_another_training_is_refused(data: ChoiceData, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    train(data, SHORT, device="cpu", checkpoint=file)
    with pytest.raises(DataError, match="other data or settings"):
        train(data, replace(SHORT, seed=1), device="cpu", checkpoint=file)
    assert load_file(file)["model.centres"].shape == (4, 4)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="not a readable checkpoint"):
        train(data, SHORT, device="cpu", checkpoint=file)


def test_a_checkpoint_is_read_whole_while_an_equal_training_replaces_it(
    data: ChoiceData, tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.step == 4:
            raise KilledError

    early, late = files = (tmp_path / "early", tmp_path / "late")
    with pytest.raises(KilledError):
        train(data, SHORT, device="cpu", checkpoint=early, checkpoint_every=3, progress=kill)
    train(data, SHORT, device="cpu", checkpoint=late)
    states = {len(load_file(file)["history"]): load_file(file)["model.centres"] for file in files}
    shared = tmp_path / "shared"
    replacing = subprocess.Popen([sys.executable, "-c", _REPLACE, *files, shared])  # a thread: too polite
    try:
        read = 0
        while read < 500:
            if (found := _read_checkpoint(shared, torch.device("cpu"))) is not None:
                metadata, tensors = found
                assert torch.equal(tensors["model.centres"], states[int(metadata["step"])])
                read += 1
    finally:
        replacing.kill()
        replacing.wait()


def test_a_checkpoint_that_was_cleared_away_is_none(tmp_path: Path) -> None:
    assert _read_checkpoint(tmp_path / "checkpoint", torch.device("cpu")) is None


def test_the_bound_rises(data: ChoiceData) -> None:
    states: list[Progress] = []
    train(data, replace(SMALL, n_steps=100), device="cpu", progress=states.append)
    assert states[-1].log_likelihood > states[0].log_likelihood + 0.2


def test_unasked_queries_are_expected_like_their_task(data: ChoiceData) -> None:
    model = train(data, SHORT, device="cpu")
    for task in range(data.n_tasks):
        asked = np.isin(np.arange(data.n_queries), data.choices.queries)
        unasked = np.flatnonzero(~asked & (data.tasks == task))
        assert unasked.size
        expected = model.by_task[task].expand(unasked.size, -1, -1)
        assert torch.equal(model.pairs[unasked], expected)
        mean = model.pairs[asked & (data.tasks == task)].mean(dim=0)
        # One further query without anything of its own draws the mean towards A(llm) + A(task).
        np.testing.assert_allclose(model.by_task[task], mean, atol=0.1)


def test_queries_that_differ_more_are_shrunk_less() -> None:
    rng = np.random.default_rng(0)
    n_queries, per_query = 60, 40
    wild = np.arange(n_queries) % 6 == 0
    truth = np.where(wild, 2.0, 0.2)[:, None] * rng.normal(size=(n_queries, 3))
    queries, users = np.repeat(np.arange(n_queries), per_query), np.tile(np.arange(per_query), n_queries)
    llms = (truth[queries] + rng.gumbel(size=(queries.size, 3))).argmax(axis=1)
    data = replace(
        opposed(),
        choices=Choices(users, queries, llms),
        tasks=np.zeros(n_queries, dtype=np.int64),
        query_embeddings=np.zeros((n_queries, 2), np.float32),
        train_queries=np.ones(n_queries, dtype=bool),
    )
    model = train(data, replace(SMALL, n_factors=1, n_tastes=1), device="cpu")
    z = model.posterior(data.choices, data.n_users).mean
    got = model.scores(z, np.arange(n_queries)).mean(axis=0)
    counts = np.zeros((n_queries, 3))
    np.add.at(counts, (queries, llms), 1.0)
    got, by_count = (x - x.mean(axis=1, keepdims=True) for x in (got, np.log(counts + 0.5)))
    kept = [(got[rows] * by_count[rows]).sum() / (by_count[rows] ** 2).sum() for rows in (wild, ~wild)]
    assert kept[0] > kept[1] + 0.2


def test_divergence_of_the_queries_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    block = QueryBlock(torch.tensor([0, 1, 1]), n_tasks=2, n_llms=2, n_outputs=4, generator=generator)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    query, task = 2, 1
    sds = block.log_prior_sd + block.log_scale_task[task] + block.log_scale_llm
    sds = (sds + block.log_scale_query[query] + block.log_scale_query_factor[query]).exp()
    np.testing.assert_allclose(
        block.prior_log_sds()[query].exp().detach(), sds.detach().expand(2, 4), rtol=1e-5
    )
    posterior = torch.distributions.Normal(block.mean, block.variance().sqrt())
    prior = torch.distributions.Normal(0.0, block.prior_log_sds().exp())
    expected = torch.distributions.kl_divergence(posterior, prior).sum()
    for scale, sd in ((block.log_scale_query, 0.5), (block.log_scale_query_factor, 0.3)):
        density = torch.distributions.Normal(0.0, sd)
        expected = expected + (density.log_prob(torch.tensor(0.0)) - density.log_prob(scale)).sum()
    np.testing.assert_allclose(block.divergence().detach(), expected.detach(), rtol=1e-5)


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
    with pytest.raises(ParameterError, match="'optimism' must be finite and at least 0"):
        Settings(optimism=float("nan"))
    with pytest.raises(ParameterError, match=r"'warmup' must lie in 0\.\.1"):
        Settings(warmup=2.0)
    with pytest.raises(DataError, match="'choices' must not be empty"):
        train(data.with_choices(data.choices.take(np.zeros(0, dtype=np.int64))), SHORT, device="cpu")
    for name in ("no-such-device", "meta", "cuda:99"):
        with pytest.raises(
            ParameterError, match=rf"'device' must be auto, cpu, or cuda .* \(got '{name}'\)$"
        ):
            choose_device(name)
    with pytest.raises(NotFittedError):
        PersonalRouter().scores(np.arange(1), np.arange(1))


def test_too_little_memory_of_the_cpu_is_an_error_of_resources(
    data: ChoiceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advance(self: _Training) -> Progress:
        torch.empty(1 << 60)
        raise AssertionError

    monkeypatch.setattr(_Training, "advance", advance)
    with pytest.raises(ResourceError, match="the memory does not suffice; train with fewer factors"):
        train(data, SHORT, device="cpu")


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
