"""Joint training: what reaches the items' vectors, planted tastes, and controls."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from router.errors import DataError, ParameterError
from router.items.learning import train_network
from router.items.network import NetworkSettings, Sparse
from router.joint import Joint, JointSettings, TasteHead, train_joint

NETWORK = NetworkSettings(
    n_factors=8, n_candidates=None, n_epochs=10, batch_users=50, learning_rate=0.05, weight_decay=0.0
)
SETTINGS = JointSettings(NETWORK, llm_weight=1.0, hops=1, decay=1e-3, n_features=4)
LOG_SHARES = torch.log(torch.full((4,), 0.25))
N_USERS, N_KNOWN = 240, 120


def world(seed: int = 0) -> tuple[sp.csr_array, np.ndarray, torch.Tensor]:
    """Users of four groups, their items, and choices of LLMs that mostly point to the group's taste."""
    rng = np.random.default_rng(seed)
    group = rng.integers(4, size=N_USERS)
    own = group[:, None] == np.arange(60) % 4
    x = sp.csr_array((rng.random((N_USERS, 60)) < np.where(own, 0.3, 0.05)).astype(np.float32))
    evidence = 3.0 * np.eye(4)[group] + rng.normal(size=(N_USERS, 4))
    return x, group, torch.from_numpy(evidence.astype(np.float32))


def trained(settings: JointSettings = SETTINGS, seed: int = 0) -> Joint:
    x, _, evidence = world(seed)
    return train_joint(x, np.arange(N_KNOWN), evidence[:N_KNOWN], LOG_SHARES, settings, device="cpu")


def gain(joint: Joint, rows: np.ndarray, evidence: torch.Tensor) -> float:
    """What the prior adds to the log-probability of users' choices, in nats per user."""
    x, _, _ = world()
    flat = (LOG_SHARES + evidence).logsumexp(dim=1)
    return float(((joint.log_prior(x[rows]) + evidence).logsumexp(dim=1) - flat).mean())


def test_the_loss_is_the_evidence_under_the_prior() -> None:
    x, _, evidence = world()
    network = train_network(x, NETWORK, device="cpu")
    head = TasteHead(x[:50], evidence[:50], LOG_SHARES, JointSettings(NETWORK, llm_weight=0.5, decay=0.1), 8)
    weights = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    head.weights.data.copy_(weights)
    source, _ = network.vectors()
    h = network.users(Sparse.of(x[:50], torch.device("cpu")), network.smoothed(source, 2)).detach()
    prior = (LOG_SHARES + h @ weights).softmax(dim=1)
    surprise = -torch.log((prior * evidence[:50].exp()).sum(dim=1)).mean()
    expected = 0.5 * (surprise + 0.1 * weights.square().sum())
    assert float(head(network, source).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_tastes_of_new_users_follow_from_their_items() -> None:
    x, group, evidence = world()
    joint = trained()
    new = np.arange(N_KNOWN, N_USERS)
    assert (joint.log_prior(x[new]).argmax(dim=1).numpy() == group[new]).mean() > 0.8
    assert gain(joint, new, evidence[new]) > 0.4


def test_permuted_items_say_nothing() -> None:
    x, _, evidence = world()
    rows = np.random.default_rng(1).permutation(N_USERS)
    joint = train_joint(x, rows[:N_KNOWN], evidence[:N_KNOWN], LOG_SHARES, SETTINGS, device="cpu")
    assert gain(joint, rows[N_KNOWN:], evidence[N_KNOWN:]) < 0.1


def test_without_weight_the_items_are_trained_alone() -> None:
    x, _, _ = world()
    joint = trained(JointSettings(NETWORK, llm_weight=0.0))
    alone = train_network(x, NETWORK, device="cpu")
    np.testing.assert_array_equal(joint.network.source.detach(), alone.source.detach())
    with pytest.raises(DataError, match="'llm_weight' must be positive for a prior over tastes"):
        joint.log_prior(x)


def test_both_losses_reach_the_source_vectors() -> None:
    x, _, _ = world()
    both, alone = trained(), train_network(x, NETWORK, device="cpu")
    assert not torch.equal(both.network.source, alone.source)


def test_without_items_nothing_is_learned_of_ranking() -> None:
    joint = trained(JointSettings(NETWORK, items=False, hops=1, decay=1e-3))
    x, _, evidence = world()
    start = train_network(x, NetworkSettings(n_factors=8, n_epochs=1, learning_rate=1e-12), device="cpu")
    np.testing.assert_allclose(joint.network.target.detach(), start.target.detach(), rtol=1e-6)
    new = np.arange(N_KNOWN, N_USERS)
    assert gain(joint, new, evidence[new]) > 0.3


def test_the_vector_of_a_user_is_made_of_items_only() -> None:
    """A user's own choices may be anything: the prior given a network and head is the same."""
    x, _, _ = world()
    joint = trained()
    twice = sp.vstack([x[[200]], x[[200]]], format="csr")
    left, right = joint.log_prior(sp.csr_array(twice))
    np.testing.assert_array_equal(left, right)
    alone = joint.user_vectors(x[[200]])
    np.testing.assert_allclose(joint.user_vectors(x)[[200]], alone, rtol=1e-5)


def test_features_are_unit_rows_in_the_leading_directions() -> None:
    x, _, _ = world()
    joint = trained()
    features = joint.user_features(x)
    assert features.shape == (N_USERS, 4)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(joint.directions.T @ joint.directions, np.eye(4), atol=1e-5)


def test_going_on_from_a_network() -> None:
    x, _, evidence = world()
    start = train_network(x, NETWORK, device="cpu")
    joint = train_joint(
        x, np.arange(N_KNOWN), evidence[:N_KNOWN], LOG_SHARES, SETTINGS, start=start, device="cpu"
    )
    assert gain(joint, np.arange(N_KNOWN, N_USERS), evidence[N_KNOWN:]) > 0.4


def test_bad_input() -> None:
    x, _, evidence = world()
    with pytest.raises(DataError, match=r"'rows' must lie in 0\.\.239 \(got 0\.\.240\)"):
        train_joint(x, np.array([0, 240]), evidence[:2], LOG_SHARES, SETTINGS)
    with pytest.raises(DataError, match=r"'log_evidence' must have shape \(3, 4\) \(got \(2, 4\)\)"):
        train_joint(x, np.arange(3), evidence[:2], LOG_SHARES, SETTINGS)
    with pytest.raises(ParameterError, match=r"'llm_weight' must not be negative \(got -1\)"):
        JointSettings(llm_weight=-1)
    with pytest.raises(ParameterError, match=r"'llm_weight' must be positive where 'items' is off"):
        JointSettings(llm_weight=0.0, items=False)
