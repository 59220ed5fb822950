"""From files to a bundle: deterministic, honest about what was held out, light but equal to the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from router.answers import fit_answers
from router.bundle_training import Fitted, train_bundle
from router.dataset import Reading, RouterData, RouterFiles, read_router_data
from router.errors import DataError, ParameterError
from router.items import ItemRanker, default_terms, tuning
from router.items.network import NetworkSettings
from router.joint import JointSettings
from router.persona.data import ChoiceData, Choices, Support, UserLinks
from router.personal import PersonalRouter
from router.recommender import Recommender
from router.scorer import Scorer, User
from router.served import MIN_CHOICES, N_LANDMARKS, KnownQueries, LightPairs
from router.train import Settings
from router.validation import foreseen, split_choices, validate
from tests.choice_files import LLMS, N_EVENTS, N_USERS, events_table, write_files

SETTINGS = Settings(n_factors=3, n_tastes=3, n_steps=40, patience=12, seed=1)
HASHING = Reading(encoder="hashing")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RouterFiles:
    return write_files(tmp_path_factory.mktemp("files"), stores=True, users=True)


@pytest.fixture(scope="module")
def data(files: RouterFiles) -> RouterData:
    return read_router_data(files, HASHING)


def with_answers(data: RouterData) -> ChoiceData:
    """Telemetry that depends on task and LLM, unknown for some answers."""
    rng = np.random.default_rng(0)
    shape = data.data.n_queries, data.data.n_llms, 3
    x = 0.3 * rng.normal(size=shape) + np.stack([data.data.tasks[:, None] * np.arange(3)] * 3, axis=2) - 1
    x[:2] = np.nan
    return replace(data.data, features=x.astype(np.float32))


def test_equal_input_gives_an_equal_bundle(data, files, tmp_path):
    one, other = (
        train_bundle(read_router_data(files, HASHING), tmp_path / name, SETTINGS, device="cpu")
        for name in "ab"
    )
    assert one.checksum == other.checksum
    third = train_bundle(data, tmp_path / "c", replace(SETTINGS, seed=2), device="cpu")
    assert third.checksum != one.checksum


def test_bundle_holds_what_it_was_made_with(data, tmp_path):
    bundle = train_bundle(
        data, tmp_path / "b", SETTINGS, device="cpu", parameters={"more": 1}, parents={"events": "ab"}
    )
    assert bundle.parents == {"events": "ab"}
    assert bundle.parameters["settings"]["n_steps"] == 40
    assert bundle.parameters["tasks"] == ["code", "poems"]
    assert bundle.parameters["more"] == 1
    history = bundle.metrics["history"]
    assert history["step"] == list(range(1, 41))
    assert history["log_likelihood"][-1] > history["log_likelihood"][0]
    measured = [step for step, x in zip(history["step"], history["held_out"], strict=True) if x is not None]
    assert measured == list(range(18, 41, 2))  # once the tastes are there
    assert bundle.keys("user", [0]).tolist() == ["u00"]


def test_better_than_simple_baselines_on_what_was_held_out(data, tmp_path):
    settings = replace(SETTINGS, n_steps=150)
    bundle = train_bundle(data, tmp_path / "b", settings, held_out=0.2, device="cpu")
    found = bundle.metrics["validation"]
    assert found["events"] == round(0.2 * N_USERS * N_EVENTS)
    assert found["log_likelihood"] > found["baselines"]["popularity"]["log_likelihood"] + 0.2
    assert found["accuracy"] > 0.75  # 0.9 is planted


def test_a_bundle_resumes_to_the_same(data, tmp_path):
    class KilledError(Exception):
        pass

    def kill(state):
        if state.step == 25:
            raise KilledError

    whole = train_bundle(data, tmp_path / "a", SETTINGS, device="cpu")
    how = {"device": "cpu", "checkpoint": tmp_path / "state", "checkpoint_every": 10}
    with pytest.raises(KilledError):
        train_bundle(data, tmp_path / "b", SETTINGS, progress=kill, **how)
    assert not (tmp_path / "b").exists()
    steps = []
    resumed = train_bundle(data, tmp_path / "b", SETTINGS, progress=lambda s: steps.append(s.step), **how)
    assert steps == list(range(1, 41))  # those before the kill are told again
    assert resumed.checksum == whole.checksum
    with pytest.raises(DataError, match="a checkpoint of other data or settings"):
        train_bundle(data, tmp_path / "c", replace(SETTINGS, seed=9), **how)


def test_light_pairs_are_those_of_the_model_with_telemetry(data):
    given = with_answers(data)
    router = PersonalRouter(SETTINGS, device="cpu")
    router.fit(replace(given, user_features=None, links=None))
    fitted = Fitted.of(router)
    light = LightPairs.of(fitted.model, given)
    rng = np.random.default_rng(3)
    tasks = rng.integers(2, size=9)
    embeddings = (data.tasks.centroids[tasks] + 0.3 * rng.normal(size=(9, 256))).astype(np.float32)
    found = light.at(tasks, embeddings)
    answers = fit_answers(given, n_landmarks=N_LANDMARKS)
    expected = fitted.model.pairs_of(tasks, answers.predict(tasks, embeddings)).numpy()
    np.testing.assert_allclose(found, expected - expected.mean(axis=1, keepdims=True), atol=2e-4)


def test_known_queries_were_asked_often_enough(data):
    """Of a key that two tasks share, the query with most choices; of one choice, none."""
    tasks = np.array([0, 1, 0, 1, 0])
    queries = np.repeat(np.arange(5), [MIN_CHOICES, 3 * MIN_CHOICES, MIN_CHOICES - 1, 2 * MIN_CHOICES, 0])
    few = replace(
        data.data,
        tasks=tasks,
        query_embeddings=data.data.query_embeddings[:5],
        train_queries=np.ones(5, bool),
        choices=Choices(np.zeros_like(queries), queries, queries % 3),
    )
    router = PersonalRouter(SETTINGS, device="cpu")
    router.fit(replace(few, user_features=None, links=None))
    known = KnownQueries.of(router.model, few, ["same", "same", "once", "other", "never"])
    assert known.positions.tolist() == [1, 3]
    assert known.row_of.tolist() == [-1, 0, -1, 1, -1]
    own = router.model.pairs.numpy()[[1, 3]]
    np.testing.assert_allclose(known.pairs, own - own.mean(axis=1, keepdims=True), atol=1e-6)
    pairs = np.zeros((3, 3, 4), np.float32)
    known.put(pairs, np.array([3, 2, 1]))
    np.testing.assert_array_equal(pairs, np.stack([known.pairs[1], pairs[1], known.pairs[0]]))
    assert not pairs[1].any()


def test_a_bundle_without_known_queries(data, tmp_path):
    first = np.unique(data.data.choices.queries, return_index=True)[1]
    once = replace(data, data=data.data.with_choices(data.data.choices.take(first)))
    bundle = train_bundle(once, tmp_path / "b", SETTINGS, held_out=0.0, device="cpu")
    assert bundle.manifest["counts"]["query"] == 0
    scorer = Scorer(bundle)
    found = scorer.scores(scorer.population, None, "code", query=str(data.query_keys[0]))
    assert found.task_source == "given"


def test_validation_is_of_what_is_served(data, tmp_path):
    bundle = train_bundle(data, tmp_path / "b", SETTINGS, held_out=0.2, device="cpu")
    to_train, held = split_choices(data.data.choices, 0.2, SETTINGS.seed)
    router = PersonalRouter(SETTINGS.resolved(data.data), device="cpu", held_out=held)
    router.fit(data.data.with_choices(to_train))
    scorer, vectors = Scorer(bundle), router._posterior.mean.numpy()
    spread = scorer.population.spread
    logits = [
        scorer.scores(User(vectors[user], spread), None, query=data.query_keys[query]).preference
        for user, query in zip(held.users, held.queries, strict=True)
    ]
    found, expected = bundle.metrics["validation"], foreseen(np.stack(logits), held)
    assert found["log_likelihood"] == pytest.approx(expected["log_likelihood"], abs=1e-5)
    assert found["accuracy"] == expected["accuracy"]


def test_telemetry_bundle_scores_by_the_query(files, tmp_path):
    texts = sorted(set(events_table()["query"].to_pylist()))
    rng = np.random.default_rng(0)
    rows = [(text, llm) for text in texts for llm in LLMS]
    answers = pa.table(
        {
            "query": [text for text, _ in rows],
            "llm": [llm for _, llm in rows],
            "quality": rng.random(len(rows)),
            "length": [float(len(llm)) + i % 7 for i, (_, llm) in enumerate(rows)],
        }
    )
    pq.write_table(answers, tmp_path / "answers.parquet")
    data = read_router_data(replace(files, answers=tmp_path / "answers.parquet"), HASHING)
    scorer = Scorer(train_bundle(data, tmp_path / "b", SETTINGS, device="cpu"))
    user = scorer.user("u01")
    of_task = np.flatnonzero(data.data.tasks == 0)
    by_query = [scorer.scores(user, data.data.query_embeddings[q], "code").preference for q in of_task]
    assert np.std(by_query, axis=0).max() > 1e-3
    of_mean_query = scorer.scores(user, None, "code")
    np.testing.assert_allclose(np.mean(by_query, axis=0), of_mean_query.preference, atol=1e-4)
    assert np.isfinite(of_mean_query.quality).all()


def test_llms_that_were_never_offered_get_no_score(data, tmp_path):
    choices = data.data.choices
    kept = choices.take(choices.llms < 2)
    offered = np.ones((len(kept), 3), dtype=bool)
    offered[:, 2] = False
    few = replace(data, data=data.data.with_choices(Choices(kept.users, kept.queries, kept.llms, offered)))
    scorer = Scorer(train_bundle(few, tmp_path / "b", SETTINGS, device="cpu"))
    assert np.isnan(scorer.scores(scorer.user("u00"), None, "code").preference).tolist() == [
        False,
        False,
        True,
    ]


def test_all_choices_the_same(data, tmp_path):
    same = data.data.choices.take(data.data.choices.llms == 0)
    scorer = Scorer(
        train_bundle(replace(data, data=data.data.with_choices(same)), tmp_path / "b", SETTINGS, device="cpu")
    )
    scores = scorer.scores(scorer.user("u00"), None, "code").preference
    assert np.isfinite(scores).all()
    assert scores.argmax() == 0


def test_no_such_device(data, tmp_path):
    with pytest.raises(ParameterError, match="'device' must be auto, cpu, or cuda"):
        train_bundle(data, tmp_path / "b", SETTINGS, device="no-such-device")
    assert not (tmp_path / "b").exists()


def test_permuting_users_permutes_answers(tmp_path):
    """Keys in another order: each user keeps what is believed of it, as far as the training's draws allow."""
    files = write_files(tmp_path)
    data = read_router_data(files, HASHING)
    router = PersonalRouter(SETTINGS, device="cpu")
    router.fit(data.data)
    fitted = Fitted.of(router)
    order = np.random.default_rng(0).permutation(N_USERS)
    choices = data.data.choices
    permuted = Choices(order[choices.users], choices.queries, choices.llms)
    one, other = fitted.beliefs(choices, N_USERS), fitted.beliefs(permuted, N_USERS)
    np.testing.assert_allclose(other.mean[order], one.mean, atol=1e-5)


def test_split_choices():
    n = 100
    choices = Choices(np.arange(n), np.arange(n), np.zeros(n, np.int64))
    trained, held = split_choices(choices, 0.25, seed=3)
    assert (len(trained), len(held)) == (75, 25)
    np.testing.assert_array_equal(np.sort(np.concatenate([trained.users, held.users])), np.arange(n))
    assert len(split_choices(choices, 0.0, seed=3)[1]) == 0
    assert len(split_choices(choices.take([0]), 0.9, seed=3)[0]) == 1


def test_foreseen_by_hand():
    choices = Choices(
        np.zeros(2, np.int64), np.zeros(2, np.int64), np.array([0, 1]), np.array([[1, 1, 0], [0, 1, 1]], bool)
    )
    logits = np.log([[0.5, 0.25, 0.25], [0.5, 0.2, 0.3]])
    found = foreseen(logits, choices)
    assert found["log_likelihood"] == pytest.approx((np.log(0.5 / 0.75) + np.log(0.2 / 0.5)) / 2)
    assert found["accuracy"] == 0.5


def test_baselines_by_hand():
    users, queries = np.array([0, 0, 0, 1]), np.zeros(4, np.int64)
    trained = Choices(users, queries, np.array([0, 0, 1, 1]))
    held = Choices(np.array([0]), np.zeros(1, np.int64), np.array([0]))
    found = validate(trained, held, np.zeros((1, 3), np.float32), np.zeros(1, np.int64))
    of_all = np.array([3, 3, 1]) / 7
    task = (np.array([2, 2, 0]) + 2 * of_all) / 6
    own = (np.array([2, 1, 0]) + 2 * task) / 5
    for name, shares in {"popularity": of_all, "task": task, "user_task": own}.items():
        assert found["baselines"][name]["log_likelihood"] == pytest.approx(np.log(shares[0])), name
    assert found["log_likelihood"] == pytest.approx(np.log(1 / 3))


def test_items_and_tastes_may_be_trained_together(data, tmp_path):
    network = NetworkSettings(n_factors=6, n_candidates=None, n_epochs=3, batch_users=16)
    joint = JointSettings(network, hops=1, n_features=4)
    apart = train_bundle(data, tmp_path / "apart", SETTINGS, device="cpu")
    together = train_bundle(data, tmp_path / "together", SETTINGS, joint=joint, device="cpu")
    again = train_bundle(data, tmp_path / "again", SETTINGS, joint=joint, device="cpu")
    assert together.checksum == again.checksum != apart.checksum
    # The trained head is one more term: its vectors stand beside those of the closed forms.
    width = together.embeddings["item.source"].shape[1]
    assert width == apart.embeddings["item.source"].shape[1] + network.n_factors
    # The prior reads the learned vectors, and a newcomer's as the known user's of the same items.
    router = PersonalRouter(SETTINGS, joint=joint, device="cpu")
    router.fit(data.data)
    links = data.data.links
    features = router.graph["item"].x
    expected = router.joint.item_features()
    scaled = (expected - expected.mean(axis=0)) / (expected.std(axis=0) + np.float32(1e-6))
    np.testing.assert_allclose(features.numpy(), scaled, atol=1e-4)
    support = Support(1, Choices(*(np.zeros(0, np.int64),) * 3), links=UserLinks(links.interactions[[0]]))
    assert np.isfinite(router.scores_new_users(support, np.arange(2))).all()
    items, _ = Recommender(together).recommend([data.user_keys[0].as_py()], 3)
    assert len(items[0]) > 0


def test_terms_that_rank_items_are_chosen(data, tmp_path, monkeypatch):
    settings, users = replace(SETTINGS, n_steps=14), np.arange(data.data.n_users)
    rng = np.random.default_rng(0)
    liked = (users[:, None] + np.arange(12)) % 2 == 0
    visits = sp.csr_array((rng.random(liked.shape) < np.where(liked, 0.95, 0.1)).astype(np.float32))
    links = replace(data.data.links, interactions=visits)
    some = replace(data, data=replace(data.data, links=links))

    def recommended(bundle):
        found, _ = Recommender(bundle).recommend(data.user_keys.to_pylist(), 4)
        return found

    def expected(terms):
        ids, _ = ItemRanker.fit(visits, terms).recommend(users, 4)
        return [[data.item_keys[item].as_py() for item in row if item >= 0] for row in ids]

    lines = []
    default = train_bundle(some, tmp_path / "a", settings, device="cpu", tell_items=lines.append)
    assert default.metrics["items"]["chosen"] is False
    assert [one["term"] for one in default.metrics["items"]["terms"]] == [
        type(term).__name__ for term, _ in default_terms()
    ]
    assert "default terms" in lines[0]
    assert recommended(default) == expected(None)
    monkeypatch.setattr(tuning, "LEAST_USERS", 10)
    chosen = train_bundle(some, tmp_path / "b", settings, device="cpu")
    choice = tuning.choose_terms(visits, seed=settings.seed)
    assert chosen.metrics["items"] == choice.to_json()
    assert chosen.metrics["items"]["chosen"] is True
    assert recommended(chosen) == expected(choice.terms)
    # Trained together, the head that is served is the one that was trained on all interactions.
    network = NetworkSettings(n_factors=6, n_candidates=None, n_epochs=3, batch_users=16)
    joint = JointSettings(network, hops=1, n_features=4)
    together = train_bundle(some, tmp_path / "c", settings, joint=joint, device="cpu")
    assert together.metrics["items"]["alone"][-1]["term"] == "Network"
