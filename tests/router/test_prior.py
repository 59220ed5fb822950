from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import HeteroData

from router.errors import ParameterError, ResourceError
from router.graph import build_graph, known_users, new_users
from router.persona import ChoiceData, Choices, Support
from router.persona.data import UserLinks
from router.prior import PriorSettings, Sent, TastePrior, messages_to, sent_by
from router.prior_fit import PriorFit, Whole, fit_prior, sampled_source

N_USERS, N_ITEMS, N_LLMS, N_TASTES = 240, 40, 3, 3
LOG_SHARES = torch.full((N_TASTES,), 1.0 / N_TASTES).log()
QUICK = PriorSettings(n_neighbors=10, n_steps=150)
BLOCKS = {
    "own", "alike.features", "alike.tastes", "alike.llms", "near.features", "near.tastes", "near.llms",
    "taken_by.features", "taken_by.tastes", "reached.features", "reached.tastes",
}  # fmt: skip


class Case:
    """Users in three groups; items, neighbours and features belong to a group more often than not."""

    def __init__(self, *, told: bool = True, seed: int = 0, features: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.groups = rng.integers(N_TASTES, size=N_USERS)
        eye = np.eye(N_TASTES, dtype=np.float32)
        x = eye[self.groups] + 0.3 * rng.normal(size=(N_USERS, N_TASTES)).astype(np.float32)
        of_items = np.arange(N_ITEMS) % N_TASTES
        likes = np.where(of_items == self.groups[:, None], 0.4, 0.1)
        alike = np.where(self.groups == self.groups[:, None], 0.2, 0.05)
        links = UserLinks(
            interactions=sp.csr_array(rng.poisson(likes).astype(np.float32)),
            near=sp.csr_array(rng.random((N_USERS, N_USERS)) * (rng.random((N_USERS, N_USERS)) < alike)),
            near_items=sp.csr_array(
                rng.random((N_USERS, N_ITEMS)) * (rng.random((N_USERS, N_ITEMS)) < likes)
            ),
            item_features=eye[of_items],
        )
        self.tastes = self.groups if told else rng.permutation(self.groups)
        users = np.repeat(np.arange(N_USERS - 20), 4)  # the last 20 choose nothing
        llms = np.where(
            rng.random(users.size) < 0.7, self.tastes[users], rng.integers(N_LLMS, size=users.size)
        )
        self.data = ChoiceData(
            n_users=N_USERS,
            choices=Choices(users, rng.integers(6, size=users.size), llms),
            tasks=np.arange(6) % 2,
            query_embeddings=np.zeros((6, 2), np.float32),
            train_queries=np.ones(6, dtype=bool),
            llm_names=("one", "two", "three"),
            llm_embeddings=np.eye(3, dtype=np.float32),
            prices_usd=np.ones((3, 2), np.float32),
            user_features=x if features else None,
            links=links,
        )

    def evidence(self, data: ChoiceData | None = None) -> torch.Tensor:
        """A user of taste k chooses LLM k three times as often as another."""
        choices = (data or self.data).choices
        evidence = np.zeros((N_USERS, N_TASTES), np.float32)
        np.add.at(evidence, (choices.users, choices.llms), np.log(3.0))
        return torch.from_numpy(evidence)

    def graph(self, data: ChoiceData | None = None, *, masked: bool = True) -> tuple[HeteroData, Sent]:
        graph = build_graph(data or self.data, n_neighbors=10, masked=masked)
        shares = (LOG_SHARES + self.evidence(data)).softmax(dim=1)
        return graph, sent_by(graph, shares, LOG_SHARES)

    def messages(self, data: ChoiceData | None = None, *, masked: bool = True) -> dict[str, torch.Tensor]:
        graph, sent = self.graph(data, masked=masked)
        return messages_to(known_users(graph), sent, QUICK)

    def log_prior(self, prior: TastePrior) -> torch.Tensor:
        return prior(self.messages(), N_USERS)

    def gain(self, prior: TastePrior) -> float:
        """Log-likelihood of users' choices over that under the prior of all, nats per user."""
        both = [
            (log + self.evidence()).logsumexp(dim=1).mean() for log in (self.log_prior(prior), LOG_SHARES)
        ]
        return float(both[0] - both[1])


def reordered(data: ChoiceData, order: np.ndarray) -> ChoiceData:
    """The same users, user ``order[i]`` now being user i."""
    assert data.user_features is not None
    assert data.links is not None
    choices = replace(data.choices, users=np.argsort(order)[data.choices.users])
    links = data.links.take(order, order)
    return replace(data, choices=choices, user_features=data.user_features[order], links=links)


def test_messages_are_what_the_formula_says() -> None:
    case = Case()
    data, links = case.data, case.data.links
    assert links is not None
    messages = case.messages()
    counts = np.zeros((N_USERS, N_LLMS))
    np.add.at(counts, (data.choices.users, data.choices.llms), 1)
    n = counts.sum(axis=1, keepdims=True)
    surprise = case.evidence().softmax(dim=1).double().numpy() - 1.0 / N_TASTES
    llms = np.where(n > 0, counts / np.maximum(n, 1) - 1.0 / N_LLMS, 0.0)
    near = links.near.toarray() * (n[:, 0] > 0)  # type: ignore[union-attr]
    np.fill_diagonal(near, 0.0)
    near /= np.maximum(near.sum(axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(messages["near.tastes"], near @ surprise, atol=1e-5)
    np.testing.assert_allclose(messages["near.llms"], near @ llms, atol=1e-5)
    np.testing.assert_allclose(messages["near.features"], near @ messages["own"].numpy(), atol=1e-5)
    took = links.interactions.toarray()  # type: ignore[union-attr]
    reached = links.near_items.toarray()  # type: ignore[union-attr]
    for user in (0, 7, N_USERS - 1):
        others = took * (n > 0)
        others[user] = 0.0
        said = others.T @ surprise / (1.0 + others.sum(axis=0))[:, None]
        for name, rows in (("taken_by", took), ("reached", reached)):
            expected = rows[user] / max(rows[user].sum(), 1e-12) @ said
            np.testing.assert_allclose(messages[f"{name}.tastes"][user], expected, atol=1e-6)
    assert set(messages) == BLOCKS


def test_messages_do_not_depend_on_how_many_users_get_them_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    whole = case.messages()
    monkeypatch.setattr("router.prior._USERS", 7)
    for block, message in case.messages().items():
        torch.testing.assert_close(message, whole[block])


@pytest.mark.parametrize("change", ["other choices", "no choices"])
def test_a_users_own_choices_do_not_reach_its_messages(change: str) -> None:
    case, user = Case(), 5
    before = case.messages()
    choices = case.data.choices
    own = choices.users == user
    if change == "no choices":
        changed = choices.take(~own)
    else:
        changed = replace(choices, llms=np.where(own, (choices.llms + 1) % N_LLMS, choices.llms))
    after = case.messages(case.data.with_choices(changed))
    for block in BLOCKS:
        np.testing.assert_allclose(after[block][user], before[block][user], atol=1e-7, err_msg=block)
        if block.endswith((".tastes", ".llms")):
            assert not torch.equal(after[block], before[block]), block


def test_without_masking_they_do() -> None:
    case, user = Case(), 5
    choices = case.data.choices
    own = choices.users == user
    changed = replace(choices, llms=np.where(own, (choices.llms + 1) % N_LLMS, choices.llms))
    before = case.messages(masked=False)
    after = case.messages(case.data.with_choices(changed), masked=False)
    for block in BLOCKS - {"near.tastes", "near.llms"}:  # there the case has no loops but by chance
        if block.endswith(".tastes"):
            assert (after[block][user] - before[block][user]).abs().max() > 1e-3, block


def test_messages_follow_the_users_when_they_are_reordered() -> None:
    case = Case()
    order = np.random.default_rng(3).permutation(N_USERS)
    data = reordered(case.data, order)
    graph = build_graph(data, n_neighbors=10)
    shares = (LOG_SHARES + case.evidence()[torch.from_numpy(order)]).softmax(dim=1)
    messages = messages_to(known_users(graph), sent_by(graph, shares, LOG_SHARES), QUICK)
    for block, message in case.messages().items():
        np.testing.assert_allclose(messages[block], message[torch.from_numpy(order)], atol=1e-5)


def test_a_graph_that_tells_the_taste_is_trusted() -> None:
    case = Case()
    graph, sent = case.graph()
    prior = fit_prior(graph, sent, case.evidence(), LOG_SHARES, QUICK)
    guess = case.log_prior(prior).argmax(dim=1).numpy()
    assert (guess == case.groups).mean() > 0.95
    assert case.gain(prior) > 0.5


@pytest.mark.parametrize("alone", ["attributes", "alike", "near", "items"])
def test_each_source_alone_tells_the_taste(alone: str) -> None:
    case = Case(features=alone in ("attributes", "alike"))
    graph, sent = case.graph()
    off = {name: False for name in ("attributes", "alike", "near", "items") if name != alone}
    settings = replace(QUICK, **off)
    prior = fit_prior(graph, sent, case.evidence(), LOG_SHARES, settings)
    messages = messages_to(known_users(graph), sent, settings)
    assert set(prior.weights) == set(messages)
    guess = prior(messages, N_USERS).argmax(dim=1).numpy()
    assert (guess == case.groups).mean() > 0.7


def test_a_graph_that_tells_nothing_is_not_trusted() -> None:
    case = Case(told=False)
    graph, sent = case.graph()
    prior = fit_prior(graph, sent, case.evidence(), LOG_SHARES, QUICK)
    assert case.log_prior(prior).exp().sub(1.0 / N_TASTES).abs().mean() < 0.05


def test_without_features_and_edges_the_prior_is_that_of_all() -> None:
    case = Case(features=False)
    graph, sent = case.graph(replace(case.data, links=None))
    prior = fit_prior(graph, sent, case.evidence(), LOG_SHARES, QUICK)
    assert prior.weights == {}
    messages = messages_to(known_users(graph), sent, QUICK)
    torch.testing.assert_close(prior(messages, N_USERS), LOG_SHARES.expand(N_USERS, -1))


def test_a_new_user_without_edges_has_the_prior_of_all() -> None:
    case = Case()
    graph, sent = case.graph()
    prior = fit_prior(graph, sent, case.evidence(), LOG_SHARES, QUICK)
    nobody = case.data.choices.take(np.zeros(len(case.data.choices), dtype=bool))
    links = UserLinks(near=sp.csr_array((2, N_USERS)), interactions=sp.csr_array((2, N_ITEMS)))
    for support in (Support(2, nobody), Support(2, nobody, None, links)):
        messages = messages_to(new_users(graph, support), sent, QUICK)
        torch.testing.assert_close(prior(messages, 2), LOG_SHARES.expand(2, -1))


def test_the_same_seed_gives_the_same_prior() -> None:
    case = Case()
    graph, sent = case.graph()
    first, second = (fit_prior(graph, sent, case.evidence(), LOG_SHARES, QUICK, seed=1) for _ in range(2))
    for block, weights in first.weights.items():
        assert torch.equal(weights, second.weights[block])


def test_sampled_training_equals_that_on_the_whole_graph() -> None:
    case = Case()
    graph, sent = case.graph()
    whole = fit_prior(graph, sent, case.evidence(), LOG_SHARES, QUICK)
    small = replace(QUICK, max_edges=0, batch_size=64, fan_out=4, n_steps=250)
    sampled = fit_prior(graph, sent, case.evidence(), LOG_SHARES, small)
    assert set(sampled.weights) == BLOCKS
    assert case.gain(sampled) == pytest.approx(case.gain(whole), abs=0.05)


def test_sampled_messages_with_room_for_all_are_the_whole_ones() -> None:
    case = Case()
    graph, sent = case.graph()
    settings = replace(QUICK, fan_out=N_USERS)
    source = sampled_source(graph, sent, settings, 0, torch.device("cpu"))
    users = torch.tensor([3, 100, N_USERS - 1])
    messages = source(users, 0)
    assert set(messages) == BLOCKS
    for block, message in case.messages().items():
        torch.testing.assert_close(messages[block], message[users], atol=1e-5, rtol=1e-4)


def test_sampled_messages_are_right_on_average() -> None:
    case = Case()
    graph, sent = case.graph()
    source = sampled_source(graph, sent, replace(QUICK, fan_out=3), 0, torch.device("cpu"))
    users = torch.arange(10)
    messages = case.messages()
    drawn = [source(users, step) for step in range(2000)]
    # Those of two steps are ratios of sums, and right only nearly.
    for block in ("alike.tastes", "near.llms", "taken_by.features", "reached.features"):
        each = torch.stack([message[block] for message in drawn])
        error = each.mean(dim=0) - messages[block][users]
        assert (error.abs() <= 5.0 * each.std(dim=0) / 2000**0.5 + 1e-5).all(), block


def test_a_batch_too_large_for_the_memory_is_halved_aloud() -> None:
    case = Case()
    graph, sent = case.graph()
    messages = messages_to(known_users(graph), sent, QUICK)
    told: list[str] = []

    class Small(Whole):
        def __call__(self, users: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
            if len(users) > 60 and step > 0:
                raise torch.OutOfMemoryError("too small")
            return super().__call__(users, step)

    settings = replace(QUICK, n_steps=200)
    fit = PriorFit(Small(messages), case.evidence(), LOG_SHARES, settings, N_USERS, tell=told.append)
    for step in range(settings.n_steps):
        fit.advance(step)
    assert fit.batch_size == 55
    assert told[0].endswith("does not suffice for 220 users at a time; going on with 110")
    assert len(told) == 2
    whole = fit_prior(graph, sent, case.evidence(), LOG_SHARES, QUICK)
    assert case.gain(fit.prior()) == pytest.approx(case.gain(whole), abs=0.05)


def test_a_memory_too_small_for_anyone_is_an_error() -> None:
    case = Case()
    messages = case.messages()

    class Full(Whole):
        def __call__(self, users: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
            if step > 0:
                raise torch.OutOfMemoryError("full")
            return super().__call__(users, step)

    fit = PriorFit(Full(messages), case.evidence(), LOG_SHARES, QUICK, N_USERS)
    with pytest.raises(ResourceError, match="the memory of cpu does not suffice"):
        fit.advance(1)


def test_a_graph_too_large_for_the_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    graph, sent = case.graph()

    def full(*_: object) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("router.prior_fit.messages_to", full)
    with pytest.raises(ResourceError, match="the memory of cpu does not suffice; train on 'cpu'"):
        fit_prior(graph, sent, case.evidence(), LOG_SHARES, QUICK)


def test_settings_must_make_sense() -> None:
    with pytest.raises(ParameterError, match=r"'fan_out' must be positive \(got 0\)"):
        PriorSettings(fan_out=0)
    with pytest.raises(ParameterError, match=r"'max_edges' must not be negative \(got -1\)"):
        PriorSettings(max_edges=-1)
