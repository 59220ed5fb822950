from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from router.errors import DataError
from router.model import TasteModel
from router.persona import Choices


def random_model(
    *, seed: int = 0, n_queries: int = 12, n_llms: int = 4, d: int = 2, k: int = 3
) -> TasteModel:
    g = torch.Generator().manual_seed(seed)
    return TasteModel(
        torch.randn(n_queries, n_llms, d + 1, generator=g),
        torch.randn(k, generator=g),
        2.0 * torch.randn(k, d, generator=g),
        -0.3 + 0.2 * torch.randn(k, d, generator=g),
        torch.randn(2, n_llms, d + 1, generator=g),
    )


def random_choices(n_users: int, per_user: int, *, seed: int = 0) -> Choices:
    rng = np.random.default_rng(seed)
    n = n_users * per_user
    return Choices(rng.permutation(np.arange(n) % n_users), rng.integers(12, size=n), rng.integers(4, size=n))


def grid_posterior(model: TasteModel, choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """Log-evidence of each taste and mean of one user's vector, by summing over a fine grid (d = 2)."""
    axis = np.linspace(-8.0, 8.0, 401)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    pairs = model.pairs.numpy().astype(np.float64)
    log_p = np.zeros(len(z))
    for query, llm in zip(choices.queries, choices.llms):
        logits = z @ pairs[query, :, :2].T + pairs[query, :, 2]
        log_p += logits[:, llm] - np.log(np.exp(logits).sum(axis=1))
    shares = torch.softmax(model.log_shares, 0).numpy()
    mass, mean = [], np.zeros(2)
    for share, centre, log_sd in zip(shares, model.centres.numpy(), model.log_sds.numpy()):
        log_prior = (-0.5 * ((z - centre) / np.exp(log_sd)) ** 2 - log_sd - 0.5 * np.log(2 * np.pi)).sum(
            axis=1
        )
        weight = np.exp(log_p + log_prior) * (axis[1] - axis[0]) ** 2
        mass.append(weight.sum())
        mean += share * weight @ z
    return np.log(mass), mean / (shares @ mass)


def test_laplace_is_close_to_integration_on_a_grid() -> None:
    model, choices = random_model(), random_choices(1, 6)
    posterior = model.posterior(choices, 1)
    evidence, mean = grid_posterior(model, choices)
    np.testing.assert_allclose(posterior.log_evidence[0], evidence, atol=0.15)
    np.testing.assert_allclose(posterior.mean[0], mean, atol=0.1)


def test_without_choices_the_posterior_is_the_prior() -> None:
    model = random_model()
    posterior = model.posterior(random_choices(1, 0), 3)
    np.testing.assert_allclose(posterior.shares, model.log_shares.softmax(0).expand(3, -1), rtol=1e-5)
    np.testing.assert_allclose(posterior.log_evidence, 0.0, atol=1e-5)
    np.testing.assert_allclose(posterior.mean[1], model.log_shares.softmax(0) @ model.centres, rtol=1e-4)


def test_order_of_choices_and_company_of_users_do_not_matter() -> None:
    model, choices = random_model(), random_choices(200, 5)  # more users than are handled at a time
    together = model.posterior(choices, 200).mean
    shuffled = choices.take(np.random.default_rng(1).permutation(len(choices)))
    np.testing.assert_allclose(model.posterior(shuffled, 200).mean, together, atol=1e-4)
    for user in (0, 150):
        own = choices.take(choices.users == user)
        alone = model.posterior(Choices(own.users * 0, own.queries, own.llms), 1).mean
        np.testing.assert_allclose(alone[0], together[user], atol=1e-4)


def test_permuting_users_permutes_answers() -> None:
    model, choices = random_model(), random_choices(20, 5)
    place = np.random.default_rng(2).permutation(20)
    moved = Choices(place[choices.users], choices.queries, choices.llms)
    queries = np.arange(12)
    scores = model.scores(model.posterior(choices, 20).mean, queries)
    np.testing.assert_allclose(
        model.scores(model.posterior(moved, 20).mean, queries)[place], scores, atol=1e-4
    )


def test_an_llm_that_was_not_on_offer_says_nothing() -> None:
    model, choices = random_model(), random_choices(6, 5)
    choices = choices.take(choices.llms != 3)
    offered = np.ones((len(choices), 4), dtype=bool)
    offered[:, 3] = False
    closed = Choices(choices.users, choices.queries, choices.llms, offered)
    without = replace(model, pairs=model.pairs[:, :3])
    posterior, expected = model.posterior(closed, 6), without.posterior(choices, 6)
    np.testing.assert_allclose(posterior.mean, expected.mean, atol=1e-4)
    np.testing.assert_allclose(posterior.log_evidence, expected.log_evidence, atol=1e-4)


def test_unknown_llms_are_excluded() -> None:
    model = random_model()
    known = model.without_unknown(np.array([True, False, True, True]))
    scores = known.scores(model.centres, np.arange(3))
    assert (scores[..., 1] == -np.inf).all()
    assert np.isfinite(np.delete(scores, 1, axis=2)).all()


def test_scores_by_the_formula() -> None:
    model = random_model()
    scores = model.scores(model.centres, np.array([5, 1]))
    v, b = model.pairs[1, 2, :2], model.pairs[1, 2, 2]
    assert scores.shape == (3, 2, 4)
    np.testing.assert_allclose(scores[0, 1, 2], model.centres[0] @ v + b, rtol=1e-5)


def test_unseen_queries_by_task_and_features() -> None:
    model = replace(random_model(), by_feature=torch.randn(2, 5, 3))
    features = np.random.default_rng(0).normal(size=(1, 4, 5)).astype(np.float32)
    expected = model.by_task[1].numpy() + features[0] @ model.by_feature[1].numpy()
    np.testing.assert_allclose(model.pairs_of(np.array([1]), features)[0], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="'features' must be given"):
        model.pairs_of(np.array([1]))


def test_bad_input() -> None:
    model = random_model()
    with pytest.raises(DataError, match="'users' must lie in 0"):
        model.posterior(random_choices(5, 2), 4)
    with pytest.raises(DataError, match="'log_prior' must have shape"):
        model.posterior(random_choices(2, 2), 2, torch.zeros(2, 9))
