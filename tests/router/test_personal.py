from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from router.persona import ChoiceData, Choices, Support, new_user_data
from router.persona.data import UserLinks
from router.personal import PersonalRouter
from router.prior import PriorSettings
from router.train import Settings

SMALL = Settings(n_factors=3, n_tastes=3, n_steps=150, learning_rate=0.05)
SHORT = replace(SMALL, n_steps=20)
N_USERS, N_NEW, N_ITEMS, N_QUERIES = 120, 20, 24, 12
ALL = np.arange(N_QUERIES)

pytestmark = pytest.mark.usefixtures("one_thread")


def users_of_items(*, told: bool = True) -> tuple[ChoiceData, np.ndarray]:
    """Users who want LLM 0 or LLM 1 and take items of one half or the other, and which they want."""
    rng = np.random.default_rng(0)
    wanted = rng.integers(2, size=N_USERS)
    of_items = wanted if told else rng.permutation(wanted)
    likes = np.where(np.arange(N_ITEMS) % 2 == of_items[:, None], 0.5, 0.05)
    took = (rng.random((N_USERS, N_ITEMS)) < likes).astype(np.float32)
    together = took @ took.T * (rng.random((N_USERS, N_USERS)) < 0.3)
    np.fill_diagonal(together, together.sum(axis=1))  # PPR comes back to where it started
    users = np.repeat(np.arange(N_USERS), 8)
    llms = np.where(rng.random(users.size) < 0.9, wanted[users], 2)
    data = ChoiceData(
        n_users=N_USERS,
        choices=Choices(users, rng.integers(9, size=users.size), llms),
        tasks=np.arange(N_QUERIES) % 3,
        query_embeddings=np.zeros((N_QUERIES, 2), np.float32),
        train_queries=np.arange(N_QUERIES) < 9,
        llm_names=("one", "two", "three"),
        llm_embeddings=np.eye(3, dtype=np.float32),
        prices_usd=np.ones((3, 2), np.float32),
        links=UserLinks(sp.csr_array(took), sp.csr_array(together)),
    )
    return data, wanted


def fit(data: ChoiceData, settings: Settings = SMALL, **prior: bool) -> PersonalRouter:
    router = PersonalRouter(settings, PriorSettings(n_steps=200, **prior), device="cpu")  # type: ignore[arg-type]
    router.fit(data)
    return router


def share_right(router: PersonalRouter, support: Support, wanted: np.ndarray) -> float:
    picks = router.scores_new_users(support, ALL).argmax(axis=2)
    return float((picks == wanted[-N_NEW:, None]).mean())


def test_users_without_choices_are_known_by_their_items() -> None:
    data, wanted = users_of_items()
    known, support = new_user_data(data, 0, n_new=N_NEW)
    assert share_right(fit(known), support, wanted) > 0.85
    assert share_right(fit(known, near=False), support, wanted) > 0.85
    assert share_right(fit(known, items=False), support, wanted) > 0.85
    assert share_right(fit(replace(known, links=None)), replace(support, links=None), wanted) < 0.75


def test_items_that_tell_nothing_change_nothing() -> None:
    data, _ = users_of_items(told=False)
    known, support = new_user_data(data, 2, n_new=N_NEW)
    router = fit(known)
    with_links = router.scores_new_users(support, ALL)
    without = router.scores_new_users(replace(support, links=None), ALL)
    assert (with_links.argmax(axis=2) == without.argmax(axis=2)).mean() > 0.95


def test_without_masking_the_prior_learns_its_users_by_heart() -> None:
    data, _ = users_of_items(told=False)
    known, _ = new_user_data(data, 0, n_new=N_NEW)
    at = np.arange(N_USERS - N_NEW)

    def certainty(router: PersonalRouter) -> float:
        assert router.log_prior is not None
        return float(router.log_prior.exp().max(dim=1).values[torch.from_numpy(at)].mean())

    assert certainty(fit(known, masking=False)) > certainty(fit(known)) + 0.1


def test_new_users_follow_their_order() -> None:
    data, _ = users_of_items()
    known, support = new_user_data(data, 1, n_new=N_NEW)
    router = fit(known, SHORT)
    order = np.random.default_rng(1).permutation(N_NEW)
    assert support.links is not None
    choices = replace(support.choices, users=np.argsort(order)[support.choices.users])
    other = Support(N_NEW, choices, None, support.links.take(order, np.arange(known.n_users)))
    np.testing.assert_allclose(
        router.scores_new_users(other, ALL), router.scores_new_users(support, ALL)[order], atol=1e-4
    )


def test_the_same_seed_gives_the_same_scores() -> None:
    data, _ = users_of_items()
    first, second = (fit(data, SHORT).scores(np.arange(5), ALL) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_users_alike_are_not_searched_for_among_too_many() -> None:
    data, _ = users_of_items()
    features = np.random.default_rng(0).normal(size=(N_USERS, 3)).astype(np.float32)
    data = replace(data, user_features=features, links=None)
    router = PersonalRouter(SHORT, PriorSettings(n_steps=20, max_alike=N_USERS - 1), device="cpu")
    router.fit(data)
    assert router.prior is not None
    assert set(router.prior.weights) == {"own"}


def test_a_user_who_chose_nothing_may_be_there() -> None:
    data, _ = users_of_items()
    choices = data.choices.take(data.choices.users != 3)
    scores = fit(data.with_choices(choices), SHORT).scores(np.arange(6), ALL)
    assert np.isfinite(scores).all()
