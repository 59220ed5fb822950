"""The scorer without PyTorch: equal to the model that it was written from, and clear about what it lacks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from router.bundle import Bundle
from router.bundle_training import train_bundle
from router.dataset import Reading, RouterData, read_router_data
from router.errors import BundleError, DataError, UnknownNameError
from router.model import TasteModel
from router.persona.data import Choices, Support, UserLinks
from router.personal import PersonalRouter
from router.policy import Policy
from router.posterior import Tastes, infer
from router.recommender import Recommender
from router.scorer import Event, Scorer, User, packed
from router.train import Settings
from tests.choice_files import LLMS, write_files

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(n_factors=3, n_tastes=3, n_steps=60, seed=1)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RouterData:
    files = write_files(tmp_path_factory.mktemp("files"), stores=True, users=True)
    return read_router_data(files, Reading(encoder="hashing"))


@pytest.fixture(scope="module")
def scorer(data: RouterData, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    bundle = train_bundle(data, tmp_path_factory.mktemp("bundle") / "b", SETTINGS, held_out=0.0, device="cpu")
    return Scorer.open(bundle.path)


@pytest.fixture(scope="module")
def router(data: RouterData) -> PersonalRouter:
    router = PersonalRouter(SETTINGS, device="cpu")
    router.fit(data.data)
    return router


@pytest.fixture(scope="module", params=["choice-only", "telemetry"])
def trained(
    request: pytest.FixtureRequest, data: RouterData, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """A router of each track, and the scorer of its bundle."""
    if request.param == "telemetry":
        shape = data.data.n_queries, data.data.n_llms, 2
        answers = np.random.default_rng(5).normal(size=shape).astype(np.float32)
        answers[1] = np.nan
        data = replace(data, data=replace(data.data, features=answers), answer_features=("length", "tone"))
    router = PersonalRouter(SETTINGS.resolved(data.data), device="cpu")
    router.fit(data.data)
    out = tmp_path_factory.mktemp("trained") / "b"
    scorer = Scorer(train_bundle(data, out, SETTINGS, held_out=0.0, device="cpu"))
    return SimpleNamespace(data=data, router=router, scorer=scorer)


def random_model(rng: np.random.Generator, n_queries: int, n_llms: int, d: int, k: int) -> TasteModel:
    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    pairs, by_task = normal(n_queries, n_llms, d + 1), normal(2, n_llms, d + 1)
    return TasteModel(pairs, normal(k), normal(k, d), 0.2 * normal(k, d) - 0.5, by_task)


def tastes_of(model: TasteModel) -> Tastes:
    log_shares = model.log_shares.log_softmax(0)
    return Tastes(*(x.numpy() for x in (log_shares, model.centres, model.log_sds)))


@pytest.mark.parametrize("n_users", [0, 1, 150])
def test_posterior_is_that_of_the_model(n_users):
    rng = np.random.default_rng(n_users)
    model = random_model(rng, 20, 5, 4, 3)
    n = 8 * n_users
    llms = rng.integers(5, size=n)
    offered = rng.random((n, 5)) < 0.7
    offered[np.arange(n), llms] = True
    users = rng.integers(max(n_users - 1, 1), size=n)  # the last one made no choice
    choices = Choices(users, rng.integers(20, size=n), llms, offered)
    log_prior = np.log(rng.dirichlet(np.ones(3), size=n_users)).astype(np.float32).reshape(n_users, 3)
    expected = model.posterior(choices, n_users, torch.from_numpy(log_prior))
    found = infer(tastes_of(model), model.pairs.numpy(), choices, n_users, log_prior)
    np.testing.assert_allclose(found.mean, expected.mean.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.shares, expected.shares.numpy(), atol=1e-4)


def test_covariance_is_that_of_the_mixture():
    """Without choices it is known in closed form."""
    model = random_model(np.random.default_rng(0), 3, 4, 2, 3)
    tastes = tastes_of(model)
    nobody = np.zeros(0, dtype=np.int64)
    beliefs = infer(tastes, model.pairs.numpy(), Choices(nobody, nobody, nobody), 1)
    shares = np.exp(tastes.log_shares.astype(np.float64))
    mean = shares @ tastes.centres
    second = np.einsum("k,kd,ke->de", shares, tastes.centres, tastes.centres)
    expected = second + np.diag(shares @ np.exp(2.0 * tastes.log_sds)) - np.outer(mean, mean)
    np.testing.assert_allclose(beliefs.mean[0], mean, atol=1e-5)
    np.testing.assert_allclose(beliefs.covariance[0], expected, atol=1e-4)


def test_choices_make_surer():
    model = random_model(np.random.default_rng(1), 30, 4, 2, 1)
    rng = np.random.default_rng(2)
    n = 30
    many = Choices(np.zeros(n, np.int64), np.arange(n), rng.integers(4, size=n))
    few = many.take(np.arange(3))
    sizes = [
        np.linalg.slogdet(infer(tastes_of(model), model.pairs.numpy(), c, 1).covariance[0])[1]
        for c in (few, many)
    ]
    assert sizes[1] < sizes[0]


def test_packed_factors_come_back():
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(4, 3, 3))
    covariances = roots @ roots.transpose(0, 2, 1) + np.eye(3)
    factors = np.zeros((4, 3, 3))
    rows, columns = np.tril_indices(3)
    factors[:, rows, columns] = packed(covariances)
    np.testing.assert_allclose(factors @ factors.transpose(0, 2, 1), covariances, rtol=1e-5)


def test_stored_users_are_those_of_the_router(scorer, router, data):
    vectors = router._posterior.mean.numpy()
    for row in (0, 7, len(data.user_keys) - 1):
        user = scorer.user(data.user_keys[row].as_py())
        np.testing.assert_allclose(user.vector, vectors[row], atol=1e-4)


def test_scores_are_those_of_the_model(scorer, router, data):
    user = scorer.user("u05")
    model = router.model
    assert model is not None
    for row, task in enumerate(scorer.tasks):
        pairs = model.pairs_of(np.array([row]))[0].numpy()
        logits = pairs[:, :-1] @ user.vector + pairs[:, -1]
        scores = scorer.scores(user, None, task)
        np.testing.assert_allclose(scores.preference, logits - logits.mean(), atol=1e-4)
        base = pairs[:, :-1] @ scorer.population.vector + pairs[:, -1]
        np.testing.assert_allclose(scores.base_preference, base - base.mean(), atol=1e-4)
        v = pairs[:, :-1] - pairs[:, :-1].mean(axis=0)
        variances = np.einsum("md,de,me->m", v, user.spread @ user.spread.T, v)
        np.testing.assert_allclose(scores.sd, np.sqrt(variances), rtol=1e-3)


def assert_scores_are(found: np.ndarray, expected: np.ndarray) -> None:
    """Only differences between LLMs count."""
    np.testing.assert_allclose(found, expected - expected.mean(), atol=1e-4)


def test_known_queries_are_scored_as_by_the_router(trained):
    data, router, scorer = trained.data, trained.router, trained.scorer
    every = np.arange(data.data.n_queries)
    of_users = router.scores(np.array([2, 7]), every)
    for row, key in enumerate(data.query_keys):
        for place, user in enumerate((2, 7)):
            found = scorer.scores(scorer.user(data.user_keys[user].as_py()), None, query=key)
            assert_scores_are(found.preference, of_users[place, row])
        assert (found.task, found.task_source) == (scorer.tasks[data.data.tasks[row]], "query")


def test_newcomers_of_known_queries_are_those_of_the_router(trained):
    data, router, scorer = trained.data, trained.router, trained.scorer
    choices = Choices(np.zeros(4, np.int64), np.array([0, 3, 5, 3]), np.array([1, 1, 0, 2]))
    support = Support(1, choices, None, UserLinks())
    events = [
        Event(scorer.llms.names[llm], query=data.query_keys[query])
        for llm, query in zip(choices.llms, choices.queries, strict=True)
    ]
    user = scorer.user_from_events(events)
    np.testing.assert_allclose(user.vector, router.posterior_of(support).mean[0].numpy(), atol=1e-4)
    expected = router.scores_new_users(support, np.arange(data.data.n_queries))[0]
    for row, key in enumerate(data.query_keys):
        assert_scores_are(scorer.scores(user, None, query=key).preference, expected[row])


def test_unknown_queries_are_scored_as_without_a_key(trained):
    data, scorer = trained.data, trained.scorer
    user, embedding = scorer.user("u05"), data.data.query_embeddings[4] + np.float32(0.01)
    for given in ((None,), (None, "code"), (embedding,), (embedding, "poems")):
        known, unknown = scorer.scores(user, *given), scorer.scores(user, *given, query="never asked")
        assert (known.task, known.task_source) == (unknown.task, unknown.task_source)
        for name in ("preference", "base_preference", "sd", "cost_usd"):
            np.testing.assert_array_equal(getattr(known, name), getattr(unknown, name))
    events = [(embedding, "code"), (None, "poems")]
    one = scorer.user_from_events([Event("kind", *about) for about in events])
    other = scorer.user_from_events([Event("kind", *about, query="never asked") for about in events])
    np.testing.assert_array_equal(one.vector, other.vector)


def test_a_known_text_asked_as_another_task_is_another_query(trained):
    data, scorer = trained.data, trained.scorer
    key, task = data.query_keys[0], scorer.tasks[data.data.tasks[0]]
    (other,) = set(scorer.tasks) - {task}
    for given, source in ((task, "query"), ("no such task", "query"), (other, "given")):
        assert scorer.scores(scorer.population, None, given, query=key).task_source == source
    found = scorer.scores(scorer.population, None, other, query=key)
    np.testing.assert_array_equal(found.preference, scorer.scores(scorer.population, None, other).preference)


def support_of(data: RouterData, **ties) -> SimpleNamespace:
    """One newcomer as the scorer and as the router take it: choices, attributes, items and near ones."""
    n_users, links = data.data.n_users, data.data.links
    assert links is not None
    queries = [data.data.tasks.tolist().index(task) for task in (0, 1)]
    events = [Event("kind", task="code"), Event("kind", task="poems"), Event("unused-price", task="code")]
    choices = Choices(np.zeros(3, np.int64), np.array([*queries, queries[0]]), np.array([1, 1, 2]))
    keys = {"items": data.item_keys.to_pylist(), "users": data.user_keys.to_pylist()}

    def row(weights: dict[str, float] | None, names: list[str]) -> sp.csr_array | None:
        if weights is None:
            return None
        columns = [names.index(name) for name in weights]
        return sp.csr_array((list(weights.values()), ([0] * len(columns), columns)), shape=(1, len(names)))

    own = UserLinks(
        row(ties.get("items"), keys["items"]),
        row(ties.get("near"), keys["users"]),
        row(ties.get("near_items"), keys["items"]),
    )
    features = None
    if ties.get("attributes"):
        assert data.attributes is not None
        features = data.attributes.encode(ties["attributes"])[None]
    del n_users
    return SimpleNamespace(events=events, support=Support(1, choices, features, own))


@pytest.mark.parametrize(
    "ties",
    [
        {},
        {"attributes": {"age": 51.0, "plan": "paid"}},
        {"attributes": {"age": 28.0}},
        {"items": {"item-7": 2.0, "item-8": 1.0}},
        {"near": {"u03": 0.2, "u05": 0.1, "u40": 0.5}, "near_items": {"item-1": 0.3}},
        {"attributes": {"plan": "team"}, "items": {"item-0": 1.0}, "near": {"u02": 0.4}},
    ],
)
@pytest.mark.parametrize("n_events", [0, 3])
def test_newcomers_are_those_of_the_router(scorer, router, data, ties, n_events):
    given = support_of(data, **ties)
    support = Support(
        1, given.support.choices.take(np.arange(n_events)), given.support.user_features, given.support.links
    )
    pairs_by_task = router.model.by_task[torch.from_numpy(data.data.tasks)]
    served = PersonalRouter(SETTINGS)
    served.__dict__ |= router.__dict__
    served.model = TasteModel(
        pairs_by_task, *(getattr(router.model, n) for n in ("log_shares", "centres", "log_sds", "by_task"))
    )
    expected = served.posterior_of(support).mean[0].numpy()
    user = scorer.user_from_events(given.events[:n_events], **ties)
    np.testing.assert_allclose(user.vector, expected, atol=1e-4)


def test_what_is_heard_can_be_looked_up_once(scorer):
    around = {"near": {"u02": 0.5, "u03": 0.2}}
    heard = scorer.heard(**around)
    for events in ([], [Event("kind", task="code")]):
        user, again = scorer.user_from_events(events, **around), scorer.user_from_heard(events, heard)
        np.testing.assert_array_equal(user.vector, again.vector)
        np.testing.assert_array_equal(user.spread, again.spread)


def test_order_of_events_does_not_matter(scorer):
    events = [Event("kind", task="code"), Event("brief", task="poems"), Event("kind")]
    one, other = scorer.user_from_events(events), scorer.user_from_events(events[::-1])
    np.testing.assert_allclose(one.vector, other.vector, atol=1e-5)


def test_users_with_opposite_tastes_get_different_llms(scorer):
    policy = Policy(catalogue=scorer.llms)
    chosen = []
    for key in ("u02", "u03"):
        scores = scorer.scores(scorer.user(key), None, "code")
        decision = policy.decide(scores.preference, base_scores=scores.base_preference)
        chosen.append(scorer.llms.names[decision.chosen])
    assert chosen == ["brief", "kind"]


def test_task_of_a_query(scorer, data):
    from router.encoders import open_encoder

    (embedding,) = open_encoder(scorer.encoder).encode(["poems about topic 3"])
    found = scorer.scores(scorer.population, embedding)
    assert (found.task, found.task_source) == ("poems", "nearest")
    found = scorer.scores(scorer.population, embedding, "no such task")
    assert (found.task, found.task_source) == ("poems", "nearest")
    found = scorer.scores(scorer.population, None)
    assert (found.task, found.task_source) == (None, "population")
    np.testing.assert_array_equal(found.preference, found.base_preference)


def test_costs_to_expect(scorer):
    np.testing.assert_allclose(
        scorer.scores(scorer.population, None, "code").cost_usd, [0.01, 0.02, 0.03], rtol=1e-5
    )
    assert np.isnan(scorer.scores(scorer.population, None, "code").quality).all()


def test_candidates(scorer):
    user = scorer.user("u02")
    everything = scorer.scores(user, None, "code")
    some = scorer.scores(user, None, "code", candidates=["kind", "brief"])
    np.testing.assert_array_equal(some.preference[:2], everything.preference[:2])
    assert np.isnan(some.preference[2])


def test_items(scorer, data):
    recommender = Recommender(scorer.bundle)
    (keys,), _ = recommender.recommend(["u02"], 2)
    assert all(int(key.removeprefix("item-")) < 6 for key in keys)
    keys, _ = recommender.rank(None, {"item-7": 1.0, "item-9": 2.0}, 2)
    assert all(int(key.removeprefix("item-")) >= 6 for key in keys)
    assert len(recommender.rank(None, {}, 3)[0]) == 3


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda s: s.user("nobody"), UnknownNameError, "unknown user node 'nobody'"),
        (lambda s: s.user_from_events([Event("no-llm")]), UnknownNameError, "no-llm"),
        (
            lambda s: s.user_from_events([], attributes={"hair": 1}),
            UnknownNameError,
            "unknown attribute 'hair'",
        ),
        (
            lambda s: s.user_from_events([], attributes={"age": "old"}),
            DataError,
            "'age' must be a finite number",
        ),
        (lambda s: s.user_from_events([], items={"item-1": 0.0}), DataError, "must be positive"),
        (lambda s: s.user_from_events([], items={"sock": 1.0}), UnknownNameError, "'sock'"),
        (lambda s: s.user_from_events([Event("kind", offered=["brief"])]), DataError, "'offered' must hold"),
        (
            lambda s: s.scores(s.population, np.zeros(7, np.float32)),
            DataError,
            r"'query_embedding' must have shape \(256,\), as encoder hashing .* \(got \(7,\)\)",
        ),
        (
            lambda s: s.scores(s.population, np.full(256, np.nan, np.float32)),
            DataError,
            "'query_embedding' must be finite",
        ),
        (lambda s: s.scores(s.population, None, candidates=["x"]), UnknownNameError, "'x'"),
    ],
)
def test_unknown_names_and_wrong_values(scorer, ask, error, message):
    with pytest.raises(error, match=message):
        ask(scorer)


def test_a_bundle_without_its_arrays_is_refused(scorer, tmp_path):
    from router.bundle import write_bundle

    bundle = scorer.bundle
    write_bundle(
        tmp_path / "b",
        weights={"task.base": bundle.weights["task.base"]},
        embeddings={},
        keys={"user": ["a"]},
        llms=bundle.llms,
        encoder=bundle.encoder,
        parameters={},
        parents={},
        metrics={},
    )
    with pytest.raises(BundleError, match="not a bundle that can score"):
        Scorer.open(tmp_path / "b")


def test_opening_and_scoring_need_no_pytorch(scorer):
    code = f"""
import sys
from router.scorer import Scorer
scorer = Scorer.open({str(scorer.bundle.path)!r})
scorer.scores(scorer.user("u02"), None, "code")
assert not [name for name in ("torch", "numba", "dask") if name in sys.modules]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_it_opens_a_bundle_once_made(scorer):
    assert isinstance(scorer.user("u02"), User)
    assert Bundle.open(scorer.bundle.path).checksum == scorer.bundle.checksum
    assert set(LLMS) == set(scorer.llms.names)


def test_what_features_are_worth(trained):
    """The slope of the preference along a feature, over all tasks; nothing in the choice-only track."""
    scorer = trained.scorer
    users = scorer.user("u00"), scorer.population
    names, found = scorer.feature_weights(users)
    if not names:
        assert found.shape == (2, 0)
        return
    assert names == ("length", "tone")
    by_feature = scorer.bundle.weights["task.by_feature"].mean(axis=0)
    for user, weights in zip(users, found, strict=True):
        np.testing.assert_allclose(weights, by_feature @ np.append(user.vector, 1.0), rtol=1e-5)


def test_attributes_come_back(scorer, data):
    plans = {f"u{i:02d}": ("free", "paid", "team")[i % 3] for i in range(41)}
    for user, plan in plans.items():
        found = scorer.attributes_of(user)
        assert found["plan"] == plan
        assert 10 < found["age"] < 75
    assert scorer.attributes_of("u99") == {}  # has items alone
