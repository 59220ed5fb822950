from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from router.answers import fit_answers
from router.model import TasteModel
from router.optimism import untried_llms, with_optimism
from router.persona import ChoiceData, Choices
from router.served import LightPairs
from router.train import Settings, train

NEW, N_LLMS, N_FEATURES, D = 2, 4, 2, 3
SETTINGS = Settings(n_factors=3, n_tastes=2, n_steps=30)


def telemetry() -> ChoiceData:
    """Choices among three LLMs, and a few measured answers of a fourth one that was never on offer."""
    rng = np.random.default_rng(0)
    n_queries, n_users = 24, 30
    features = rng.normal(size=(n_queries, N_LLMS, N_FEATURES)).astype(np.float32)
    features[6:, NEW] = np.nan
    users = np.repeat(np.arange(n_users), 10)
    offered = np.ones((users.size, N_LLMS), dtype=bool)
    offered[:, NEW] = False
    llms = rng.choice([m for m in range(N_LLMS) if m != NEW], size=users.size)
    return ChoiceData(
        n_users=n_users,
        choices=Choices(users, rng.integers(n_queries, size=users.size), llms, offered),
        tasks=np.arange(n_queries) % 2,
        query_embeddings=rng.normal(size=(n_queries, 5)).astype(np.float32),
        train_queries=np.ones(n_queries, dtype=bool),
        llm_names=("a", "b", "c", "d"),
        llm_embeddings=np.eye(N_LLMS, dtype=np.float32),
        prices_usd=np.ones((N_LLMS, 2), np.float32),
        features=features,
    )


def drawn_model(seed: int = 1) -> TasteModel:
    generator = torch.Generator().manual_seed(seed)
    by_task = torch.randn(2, N_LLMS, D + 1, generator=generator)
    return TasteModel(
        pairs=by_task[torch.arange(24) % 2],
        log_shares=torch.tensor([0.7, 0.3]).log(),
        centres=torch.randn(2, D, generator=generator),
        log_sds=0.3 * torch.randn(2, D, generator=generator),
        by_task=by_task,
        by_feature=torch.randn(2, N_FEATURES, D + 1, generator=generator),
    )


def test_the_doubt_is_that_of_users_drawn_from_the_tastes() -> None:
    data, model = telemetry(), drawn_model()
    features = fit_answers(data).complete(data)
    raised = with_optimism(model, data, features, 1.0)
    rng = np.random.default_rng(5)
    taste = rng.choice(2, p=[0.7, 0.3], size=200_000)
    z = rng.normal(model.centres.numpy()[taste], np.exp(model.log_sds.numpy()[taste]))
    z1 = np.concatenate([z, np.ones((len(z), 1))], axis=1)
    assert data.features is not None
    assert model.by_feature is not None
    tried = [m for m in range(N_LLMS) if m != NEW]
    missed = data.features[:, tried].var(axis=0).mean(axis=0) - features[:, NEW].var(axis=0)
    for task in range(2):
        own = z1 @ model.by_task[task, tried].numpy().T
        variance = own.var(axis=1).mean()  # of an LLM's weights about their mean, over LLMs and users
        variance += ((z1 @ model.by_feature[task].numpy().T) ** 2).mean(axis=0) @ missed.clip(0.0)
        bonus = raised.by_task[task, NEW, -1] - model.by_task[task, NEW, -1]
        np.testing.assert_allclose(bonus, np.sqrt(variance), rtol=0.02)


def test_only_the_bias_of_untried_llms_is_raised() -> None:
    data, model = telemetry(), drawn_model()
    np.testing.assert_array_equal(untried_llms(data), np.arange(N_LLMS) == NEW)
    features = fit_answers(data).complete(data)
    raised = with_optimism(model, data, features, 0.5)
    for name in ("pairs", "by_task"):
        change = getattr(raised, name) - getattr(model, name)
        assert (change[:, NEW, -1] > 0).all()
        change[:, NEW, -1] = 0.0
        assert not change.any()
    twice = with_optimism(model, data, features, 1.0)
    torch.testing.assert_close(twice.pairs - model.pairs, 2 * (raised.pairs - model.pairs))


@pytest.mark.parametrize("case", ["offered once", "all always offered", "choice-only", "not measured"])
def test_nobody_is_raised_without_need(case: str) -> None:
    data, model = telemetry(), drawn_model()
    choices, features = data.choices, data.features
    assert choices.offered is not None
    assert features is not None
    if case == "offered once":
        choices.offered[0, NEW] = True
    elif case == "all always offered":
        data = data.with_choices(replace(choices, offered=None))
    elif case == "choice-only":
        data = replace(data, features=None)
    else:
        features[:, NEW] = np.nan
    assert with_optimism(model, data, np.nan_to_num(features), 1.0) is model


def test_more_optimism_makes_an_untried_llm_win_more() -> None:
    data = telemetry()
    shares = []
    for optimism in (0.0, 0.5, 2.0):
        model = train(data, replace(SETTINGS, optimism=optimism), device="cpu")
        z = model.posterior(data.choices, data.n_users).mean
        picks = model.scores(z, np.arange(data.n_queries)).argmax(axis=2)
        shares.append(np.mean(picks == NEW))
    assert shares[0] < shares[1] < shares[2]


def test_a_service_is_as_optimistic() -> None:
    data = telemetry()
    without, raised = (
        train(data, replace(SETTINGS, optimism=optimism), device="cpu") for optimism in (0.0, 1.0)
    )
    gained = (raised.by_task - without.by_task)[:, NEW, -1].numpy()
    base, higher = (LightPairs.of(model, data).base for model in (without, raised))
    others = [m for m in range(N_LLMS) if m != NEW]
    change = higher[:2, :, -1] - base[:2, :, -1]
    np.testing.assert_allclose(change[:, NEW] - change[:, others].mean(axis=1), gained, rtol=1e-4)
