"""The trained ranking head: messages and loss against dense algebra, training against what is planted."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from router.errors import DataError, ParameterError
from router.items import ItemRanker, LowPass, item_quality, split_interactions
from router.items.learning import Batch, Network, Progress, softmax_loss, train_network
from router.items.network import ItemNetwork, NetworkSettings, Sparse
from router.items.terms import degrees

CPU = torch.device("cpu")
SMALL = NetworkSettings(
    n_factors=8, kept=0.6, n_candidates=None, n_epochs=8, batch_users=50, learning_rate=0.05, weight_decay=0.1
)


def visits(seed: int = 0, n_users: int = 200, n_items: int = 60) -> sp.csr_array:
    """Four groups of users who mostly go for items of their own; user 3 and item 7 have none."""
    rng = np.random.default_rng(seed)
    own = rng.integers(4, size=n_users)[:, None] == np.arange(n_items) % 4
    x = (rng.random((n_users, n_items)) < np.where(own, 0.4, 0.03)).astype(np.float32)
    x[3], x[:, 7] = 0.0, 0.0
    return sp.csr_array(x)


def with_settings(**changes: object) -> NetworkSettings:
    values = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    return NetworkSettings(**(values | changes))


def network(**changes: object) -> ItemNetwork:
    return ItemNetwork(visits(), with_settings(**changes), CPU)


def dense_graph(x: np.ndarray, user: float, item: float) -> np.ndarray:
    by_user, by_item = np.maximum(x.sum(axis=1), 1.0), np.maximum(x.sum(axis=0), 1.0)
    normalised: np.ndarray = x / by_user[:, None] ** user / by_item**item
    return normalised


def test_messages_are_powers_of_the_normalised_graph() -> None:
    tried = network(n_layers=2, self_weight=0.3, user_exponent=0.4, item_exponent=0.6)
    a = dense_graph(visits().toarray(), 0.4, 0.6)
    step = a.T @ a
    for got, own in zip(tried.vectors(), (tried.source, tried.target), strict=True):
        e = own.detach().numpy()
        np.testing.assert_allclose(got.detach(), 0.3 * e + step @ e + step @ step @ e, atol=2e-5)


def test_absent_users_pass_no_messages() -> None:
    absent = np.array([1, 5, 8])
    x = visits().toarray()
    a = dense_graph(x, 0.5, 0.5)
    a[absent] = 0.0  # degrees stay those of the whole graph
    tried = network(n_layers=1)
    source, _ = tried.vectors(torch.from_numpy(absent))
    e = tried.source.detach().numpy()
    np.testing.assert_allclose(source.detach(), e + a.T @ (a @ e), atol=2e-5)


def test_smoothing_goes_on_without_the_own_vectors() -> None:
    tried = network(item_exponent=0.4)
    x = visits().toarray()
    a = dense_graph(x, 0.5, 0.4)
    expected = np.linalg.matrix_power(a.T @ a, 2) @ tried.source.detach().numpy()
    expected /= np.maximum(x.sum(axis=0), 1.0)[:, None] ** 0.4
    np.testing.assert_allclose(tried.smoothed(tried.source, 2).detach(), expected, atol=2e-5)


def test_sparse_products_have_the_gradients_of_dense_ones() -> None:
    matrix = visits()
    dense = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    slope = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    (got,) = torch.autograd.grad(Sparse.of(matrix, CPU) @ dense, dense, slope)
    np.testing.assert_allclose(got, matrix.toarray().T @ slope.numpy(), rtol=1e-4, atol=1e-5)


def test_the_map_ranks_as_the_network() -> None:
    tried = network(n_layers=1)
    rows = np.array([4, 9])
    with torch.no_grad():
        source, target = tried.vectors()
        logits = tried.logits(tried.users(Sparse.of(visits()[rows], CPU), source), target).numpy()
    scores = tried.item_map().scores(visits(), rows)
    ratio = np.linalg.norm(scores, axis=1) / np.linalg.norm(logits, axis=1)
    np.testing.assert_allclose(scores, logits * ratio[:, None], rtol=1e-3, atol=1e-4)


def drawn(n_candidates: int | None, seed: int = 0, rows: np.ndarray | None = None) -> Batch:
    x = visits()
    chosen = np.arange(40) if rows is None else rows
    rng = np.random.default_rng(seed)
    return Batch.draw(x, chosen, degrees(x, axis=0), with_settings(n_candidates=n_candidates), rng)


def test_loss_is_the_surprise_at_each_target() -> None:
    batch = drawn(None)
    logits = np.random.default_rng(1).normal(size=(40, 60))
    total = weight = 0.0
    own = batch.own.toarray()
    for user in range(40):
        targets = (visits()[[user]].toarray()[0] > 0) & (own[user] == 0)
        if not own[user].any() or not targets.any():
            continue
        rest = np.log(np.exp(logits[user][own[user] == 0]).sum())
        total += sum(rest - logits[user][targets]) / np.sqrt(targets.sum())
        weight += np.sqrt(targets.sum())
    got = softmax_loss(torch.from_numpy(logits), batch.to(CPU))
    assert float(got) == pytest.approx(total / weight, rel=1e-5)


def test_all_items_drawn_is_the_full_softmax() -> None:
    logits = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    sampled = drawn(60)
    assert sampled.candidates.size == 60
    places = sampled.to(CPU)
    full = softmax_loss(
        logits,
        type(places)(places.candidates, torch.zeros(60), places.targets, places.inputs, places.weights),
    )
    assert float(softmax_loss(logits, places)) == pytest.approx(float(full), rel=1e-6)


def test_items_are_candidates_as_often_as_is_said() -> None:
    rng = np.random.default_rng(0)
    counts, said = np.zeros(60), np.zeros(60)
    for seed in range(400):
        batch = drawn(6, seed, rng.choice(200, size=5, replace=False))
        counts[batch.candidates] += 1
        said[batch.candidates] = np.exp(batch.log_inclusion)
    met = counts > 20
    assert met.sum() > 50
    np.testing.assert_allclose(counts[met] / 400, said[met], atol=0.1)


def test_users_of_nothing_ask_for_nothing() -> None:
    batch = drawn(None, rows=np.array([3]))
    assert batch.targets.shape == (2, 0)
    assert float(softmax_loss(torch.zeros(1, 60), batch.to(CPU))) == 0.0


@pytest.mark.parametrize("n_layers", [0, 1])
def test_training_beats_its_start(n_layers: int) -> None:
    part, held_out = split_interactions(visits(), fraction=0.3, seed=1)
    told: list[Progress] = []
    trained = train_network(
        part, with_settings(n_layers=n_layers), held_out=held_out, device="cpu", progress=told.append
    )
    start = item_quality(ItemRanker.fit(part, [(LowPass(8), 1.0)]).recommend, held_out)
    reached = item_quality(ItemRanker(trained.item_map(), part).recommend, held_out)
    assert reached.mean > start.mean + 0.01
    assert reached.mean == max(state.quality.mean for state in told if state.quality is not None)
    assert told[-1].loss < told[0].loss


def test_training_ends_when_nothing_is_gained() -> None:
    part, held_out = split_interactions(visits(), fraction=0.3, seed=1)
    told: list[Progress] = []
    settings = with_settings(n_epochs=60, learning_rate=0.5, patience=2)
    train_network(part, settings, held_out=held_out, device="cpu", progress=told.append)
    values = [state.quality.mean for state in told if state.quality is not None]
    assert len(told) < 60
    assert int(np.argmax(values)) == len(values) - 3


def test_training_is_deterministic() -> None:
    left, right = (train_network(visits(), with_settings(n_epochs=2), device="cpu") for _ in range(2))
    np.testing.assert_array_equal(left.source.detach(), right.source.detach())
    np.testing.assert_array_equal(left.target.detach(), right.target.detach())


def test_a_term_beside_the_closed_forms_serves_new_users() -> None:
    ranker = ItemRanker.fit(visits(), [(LowPass(8), 0.5), (Network(SMALL, "cpu"), 1.0)])
    ids, scores = ranker.recommend([10, 20], 5)
    new_ids, new_scores = ranker.recommend_new(visits()[[10, 20]], 5)
    np.testing.assert_array_equal(ids, new_ids)
    np.testing.assert_allclose(scores, new_scores, rtol=1e-5)


def test_users_have_unit_vectors_or_none() -> None:
    tried = network()
    norms = np.linalg.norm(tried.user_vectors(visits(), 1), axis=1)
    np.testing.assert_allclose(norms[3], 0.0)
    np.testing.assert_allclose(np.delete(norms, 3), 1.0, rtol=1e-5)


def test_going_on_leaves_the_start_as_it_was() -> None:
    start = train_network(visits(), with_settings(n_epochs=1), device="cpu")
    before = start.source.detach().clone()
    gone_on = train_network(visits(), with_settings(n_epochs=1), start=start, device="cpu")
    np.testing.assert_array_equal(start.source.detach(), before)
    assert not torch.equal(gone_on.source, before)
    with pytest.raises(DataError, match=r"'start' must have vectors of shape \(60, 4\) \(got \(60, 8\)\)"):
        train_network(visits(), with_settings(n_factors=4), start=start, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_factors": 0}, r"'n_factors' must be positive \(got 0\)"),
        ({"learning_rate": float("nan")}, r"'learning_rate' must be positive \(got nan\)"),
        ({"n_layers": -1}, r"'n_layers' must not be negative \(got -1\)"),
        ({"kept": 1.0}, r"'kept' must be between 0 and 1, exclusive \(got 1.0\)"),
        ({"n_candidates": -1}, r"'n_candidates' must not be negative \(got -1\)"),
        ({"self_weight": 0.0}, r"'self_weight' must be positive where 'n_layers' is 0"),
    ],
)
def test_bad_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        with_settings(**change)


def test_bad_calls() -> None:
    with pytest.raises(DataError, match="at least one interaction"):
        train_network(sp.csr_array((5, 5), dtype=np.float32), SMALL)
    with pytest.raises(ParameterError, match="'device' must be auto, cpu, or cuda"):
        train_network(visits(), SMALL, device="abacus")
