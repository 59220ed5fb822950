from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router.answers import AnswerModel, fit_answers
from router.baselines.telemetry import complete_features
from router.persona import ChoiceData, Choices, load_world, warm_data

N_TASKS, N_LLMS, N_FEATURES = 3, 4, 2


def smooth_data(*, n_queries: int = 120, seed: int = 0, noise: float = 0.1) -> tuple[ChoiceData, np.ndarray]:
    """Features that are smooth in the embedding, and shared between LLMs 2 and 3; a third is unmeasured."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(n_queries, 3)).astype(np.float32)
    directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    tasks = np.arange(n_queries) % N_TASKS
    curves = np.sin(3.0 * directions @ rng.normal(size=(3, N_LLMS * N_FEATURES)))
    features = curves.reshape(n_queries, N_LLMS, N_FEATURES)
    features[:, 3] = features[:, 2]
    features += rng.normal(size=(N_TASKS, N_LLMS, N_FEATURES))[tasks]
    measured = rng.random(n_queries) < 2 / 3
    seen = np.where(measured[:, None, None], features + noise * rng.normal(size=features.shape), np.nan)
    nothing = np.zeros(0, dtype=np.int64)
    data = ChoiceData(
        n_users=1,
        choices=Choices(nothing, nothing, nothing),
        tasks=tasks,
        query_embeddings=embeddings,
        train_queries=measured,
        llm_names=tuple("abcd"),
        llm_embeddings=np.eye(N_LLMS, dtype=np.float32),
        prices_usd=np.ones((N_LLMS, 2), np.float32),
        features=seen.astype(np.float32),
    )
    return data, features


def without(data: ChoiceData, llm: int, kept: int) -> ChoiceData:
    """Only the first answers of an LLM are measured."""
    assert data.features is not None
    features = data.features.copy()
    features[np.flatnonzero(data.train_queries)[kept:], llm] = np.nan
    return replace(data, features=features)


def error(guess: np.ndarray, truth: np.ndarray, data: ChoiceData) -> np.ndarray:
    """Mean squared error at unmeasured queries by LLM."""
    return ((guess - truth) ** 2)[~data.train_queries].mean(axis=(0, 2))


def test_prediction_is_the_gaussian_process_posterior() -> None:
    """With every query a landmark: the textbook formula, at the noise of least leave-one-out error."""
    data, _ = smooth_data(n_queries=40)
    assert data.features is not None
    x = data.query_embeddings - data.query_embeddings.mean(axis=0)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float64)
    same_task = data.tasks[:, None] == data.tasks
    kernel = 10.0 + same_task + np.exp((x @ x.T - 1.0) / 0.2)
    known = data.train_queries
    y = data.features[known, 1, 0].astype(np.float64)
    inner, outer = kernel[np.ix_(known, known)], kernel[~known][:, known]
    posteriors = []
    for noise in np.geomspace(0.01, 300.0, 16):
        inverse = np.linalg.inv(inner + noise * np.eye(y.size))
        left_out = (inverse @ y) / np.diag(inverse)
        posteriors.append(((left_out**2).sum(), outer @ inverse @ y))
    expected = min(posteriors, key=lambda pair: pair[0])[1]
    got = fit_answers(data).predict(data.tasks, data.query_embeddings)[~known, 1, 0]
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_better_than_linear_where_answers_are_not() -> None:
    data, truth = smooth_data()
    ours = error(fit_answers(data).complete(data), truth, data)
    assert (ours < 0.7 * error(complete_features(data), truth, data)).all()


def test_an_llm_with_few_answers_learns_from_those_alike() -> None:
    data, truth = smooth_data()
    few = without(data, 3, 10)
    with_others = error(fit_answers(few).complete(few), truth, data)[3]
    alone = replace(few, features=np.where(np.arange(N_LLMS)[:, None] == 3, few.features, np.nan))
    assert with_others < 0.6 * error(fit_answers(alone).complete(alone), truth, data)[3]


def test_few_landmarks_come_close() -> None:
    data, truth = smooth_data(n_queries=300)
    model = fit_answers(data, n_landmarks=60)
    assert model.landmarks.shape == (60, 3)
    assert error(model.complete(data), truth, data).mean() < 0.1


def test_measured_answers_stay_as_they_are() -> None:
    data, _ = smooth_data()
    assert data.features is not None
    features = data.features.copy()
    row = np.flatnonzero(data.train_queries)[0]
    features[row, 2, 1] = np.nan  # one feature of one answer
    completed = fit_answers(replace(data, features=features)).complete(replace(data, features=features))
    known = ~np.isnan(features)
    np.testing.assert_array_equal(completed[known], features[known])
    assert np.isfinite(completed).all()


def test_nothing_measured_of_an_llm_or_feature() -> None:
    data, _ = smooth_data()
    assert data.features is not None
    features = data.features.copy()
    features[:, 1] = np.nan
    features[:, :, 1] = np.nan
    completed = fit_answers(replace(data, features=features)).complete(replace(data, features=features))
    np.testing.assert_allclose(completed[:, 1, 0], np.nanmean(features[..., 0]), rtol=1e-4)
    np.testing.assert_allclose(completed[..., 1], 0.0, atol=1e-6)
    nothing = replace(data, features=np.full_like(features, np.nan))
    np.testing.assert_array_equal(fit_answers(nothing).complete(nothing), np.zeros_like(features))


def test_queries_all_alike_get_their_task_mean() -> None:
    data, _ = smooth_data()
    assert data.features is not None
    alike = replace(data, query_embeddings=np.ones_like(data.query_embeddings))
    guess = fit_answers(alike).predict(np.array([1]), alike.query_embeddings[:1])[0]
    mean = data.features[data.train_queries & (data.tasks == 1)].mean(axis=0)
    np.testing.assert_allclose(guess, mean, atol=0.1)


def test_the_same_data_gives_the_same_model() -> None:
    data, _ = smooth_data()
    first, second = (fit_answers(data, n_landmarks=20, seed=3) for _ in range(2))
    for name in AnswerModel.__slots__:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_beats_the_ridge_on_real_responses(shared_data: Path) -> None:
    """On training queries held out; each LLM in turn has but every seventh of the others' answers."""
    data = warm_data(load_world(shared_data / "persona-sim"), 1, "telemetry")
    assert data.features is not None
    train = np.flatnonzero(data.train_queries)
    held_out, shown = train[::4], np.delete(train, np.s_[::4])
    data = data.with_choices(data.choices.take(np.zeros(len(data.choices), dtype=bool)))
    errors = []
    for llm in range(data.n_llms):
        features = np.full_like(data.features, np.nan)
        features[shown] = data.features[shown]
        features[np.delete(shown, np.s_[::7]), llm] = np.nan
        seen = replace(data, features=features, train_queries=np.isin(np.arange(data.n_queries), shown))
        guesses = fit_answers(seen).complete(seen), complete_features(seen)
        squares = [((guess - data.features)[held_out] ** 2).mean(axis=(0, 2)) for guess in guesses]
        errors.append([(by_llm[llm], np.delete(by_llm, llm).mean()) for by_llm in squares])
    ours, ridge = np.mean(errors, axis=0)
    assert (ours < 0.99 * ridge).all()  # the LLM with few answers, and the others


@pytest.mark.parametrize("n_landmarks", [1, 7])
def test_a_prediction_is_affine_in_the_kernels(n_landmarks: int) -> None:
    data, _ = smooth_data()
    model = fit_answers(data, n_landmarks=n_landmarks)
    kernels = model.kernels(data.query_embeddings[:2])
    assert kernels.shape == (2, n_landmarks)
    expected = model.by_task[data.tasks[0]] + np.einsum("l,lmf->mf", kernels[0], model.by_landmark)
    got = model.predict(data.tasks[:2], data.query_embeddings[:2])[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
