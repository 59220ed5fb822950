"""Answers from a release, against answers by other ways: numerical, exact or by brute force."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from ppr.exact import exact_answers, exact_ppr
from ppr.graph import Graph
from ppr.verd import query_edges
from router import releases
from router.errors import DataError, NotInReleaseError, ParameterError, ReleaseError, UnknownNameError
from router.publishing import publish
from router.scorer import Event, Scorer, User
from router.service.profile import taste_shares
from router.service.serving import Serving
from tests.service.synthetic import write_synthetic

ROOT = Path(__file__).resolve().parents[2]
N_USERS, N_ITEMS = 30, 150
ITEMS = [f"i{i:03d}" for i in range(N_ITEMS)]
USERS = [f"user {i}" for i in range(N_USERS)]


def serve(root: Path, model: Path, **stores: Path) -> Serving:
    release = publish(root, model=model, **stores)
    serving = Serving.open(release, verify=True)
    serving.warm_up()
    return serving


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Serving:
    """A model alone, with random weights and items."""
    folder = tmp_path_factory.mktemp("small")
    write_synthetic(folder / "model", users=USERS, items=ITEMS)
    return serve(folder / "releases", folder / "model")


@pytest.fixture(scope="module")
def trained(release_root: Path) -> Serving:
    """A trained model with its graph and fingerprints."""
    version = releases.current_version(release_root)
    assert version is not None
    return Serving.open(releases.open_release(release_root, version, verify=False), verify=False)


EVENTS = [
    Event("one", task="code"),
    Event("two", task="poems", offered=["two", "one"]),
    Event("one"),
    Event("one", task="poems"),
]


def log_joint(scorer: Scorer, user: User, events: list[Event], z: np.ndarray) -> float:
    """Log prior and log likelihood, from the scores that a user at z would have."""
    y = np.linalg.solve(user.spread.astype(np.float64), z - user.vector)
    total = -0.5 * float(y @ y)
    at = User(z.astype(np.float32), np.zeros_like(user.spread))
    for event in events:
        logits = scorer.scores(at, event.query_embedding, event.task, event.offered).preference.astype(
            np.float64
        )
        total += logits[scorer.llms.position(event.llm)] - np.log(np.nansum(np.exp(logits)))
    return total


def test_updated_user_against_the_numerical_maximum(small):
    scorer = small.scorer
    user = scorer.user(USERS[3])
    found = scorer.updated_user(user, EVENTS)
    best = minimize(
        lambda z: -log_joint(scorer, user, EVENTS, z),
        user.vector.astype(np.float64),
        method="Nelder-Mead",
        options={"xatol": 1e-5, "fatol": 1e-7, "maxiter": 4000},
    )
    np.testing.assert_allclose(found.vector, best.x, atol=3e-3)
    step, d = 0.05, user.vector.size
    units = step * np.eye(d)

    def second(a: np.ndarray, b: np.ndarray) -> float:
        f = [log_joint(scorer, user, EVENTS, best.x + s * a + t * b) for s in (1, -1) for t in (1, -1)]
        return (f[0] - f[1] - f[2] + f[3]) / (4 * step**2)

    curvature = -np.array([[second(a, b) for b in units] for a in units])
    np.testing.assert_allclose(found.spread @ found.spread.T, np.linalg.inv(curvature), rtol=0.02, atol=0.01)
    assert np.array_equal(found.spread, np.tril(found.spread))
    assert scorer.updated_user(user, []) is user


def test_updated_population_is_the_newcomer_where_there_is_one_taste(tmp_path):
    scorer = Scorer(write_synthetic(tmp_path / "b", n_tastes=1))
    updated, newcomer = scorer.updated_user(scorer.population, EVENTS), scorer.user_from_events(EVENTS)
    np.testing.assert_allclose(updated.vector, newcomer.vector, atol=1e-4)
    np.testing.assert_allclose(updated.spread, newcomer.spread, atol=1e-4)


def test_two_updates_are_near_to_one(small):
    """The choices of someone well known are nearly linear in what is not known yet."""
    scorer = small.scorer
    user = scorer.user(USERS[0])
    user = User(user.vector, 0.2 * user.spread)
    at_once = scorer.updated_user(user, EVENTS)
    in_turn = scorer.updated_user(scorer.updated_user(user, EVENTS[:2]), EVENTS[2:])
    moved = np.abs(at_once.vector - user.vector).max()
    assert np.abs(in_turn.vector - at_once.vector).max() < 0.1 * moved


def test_what_beliefs_rest_on(trained):
    events = [Event("kind", task="code")]
    items = {"item-6": 2.0, "item-7": 1.0, "unheard of": 1.0}
    cases = {
        "trained": ("u00",),
        "trained+feedback": ("u00", events),
        "feedback": ("nobody", events),
        "interactions": ("nobody", (), items),
        "interactions+feedback": ("nobody", events, items),
        "attributes": ("nobody", (), None, {"age": 30}),
        "population": ("nobody",),
    }
    for source, asked in cases.items():
        belief = trained.belief(*asked)
        assert belief.source == source
        assert belief.in_release == source.startswith("trained")
        assert belief.n_events == (1 if "feedback" in source else 0)
        assert belief.unknown_items == (1 if "interactions" in source else 0)
    assert trained.belief(None, (), {"unheard of": 1.0, "neither": 1.0}).unknown_items == 2
    assert trained.belief(None, (), {"unheard of": 1.0}).source == "population"
    assert trained.belief("u00", (), items).source == "trained"  # the stored vector knows the user's items
    np.testing.assert_array_equal(trained.belief("nobody").user.vector, trained.scorer.population.vector)
    np.testing.assert_array_equal(trained.belief("u00").user.vector, trained.scorer.user("u00").vector)
    with pytest.raises(UnknownNameError, match="unknown attribute 'shoe'"):
        trained.belief("nobody", (), None, {"shoe": 42})
    for weight in (-1.0, 0.0, np.nan, np.inf):
        for ask in (trained.belief, lambda *asked: trained.recommend(asked[0], asked[2], 3)):
            with pytest.raises(DataError, match="the weight of item 'item-6' must be positive and finite"):
                ask("nobody", (), {"item-6": weight})


def test_beliefs_follow_planted_tastes(trained):
    """Users of even number want 'brief', of odd number 'kind', and go for other items."""
    position = trained.catalogue.position

    def lead(*asked: object) -> float:
        preference = trained.scorer.scores(trained.belief(*asked).user, None).preference
        return float(preference[position("kind")] - preference[position("brief")])

    assert lead("u00") < -0.5 < 0.5 < lead("u01")
    assert lead("nobody", [Event("brief")] * 3) < lead("nobody") < lead("nobody", [Event("kind")] * 3)
    assert lead("nobody", (), {"item-1": 1.0}) < lead("nobody", (), {"item-8": 1.0})
    assert lead("u00", [Event("kind", task="code")] * 8) > lead("u00") + 0.2
    assert trained.best_single in ("brief", "kind")


def test_fold_in_against_composing_by_hand(trained):
    graph, store = trained.surroundings.graph, trained.surroundings.fingerprints
    given = {"item-2": 3.0, "item-9": 1.0}
    ids, scores = query_edges(graph, store, [(graph.ids(list(given), "item"), list(given.values()))])
    near: dict[str, dict[str, float]] = {"user": {}, "item": {}}
    for node, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True):
        near[graph.kinds[graph.kind_ids[node]]][str(graph.keys([node])[0])] = score
    near = {kind: dict(list(weights.items())[:50]) for kind, weights in near.items()}
    wanted = trained.scorer.user_from_events([], items=given, near=near["user"], near_items=near["item"])
    found = trained.belief("nobody", (), given).user
    np.testing.assert_allclose(found.vector, wanted.vector, rtol=1e-5)
    np.testing.assert_allclose(found.spread, wanted.spread, rtol=1e-4, atol=1e-6)


def test_events_that_the_model_cannot_take(small):
    vector = np.zeros(16, np.float32)
    odd = [
        Event("retired"),  # no longer in the catalogue
        Event("three"),  # in the catalogue, and unknown to the model
        Event("one", np.zeros(99, np.float32), "code"),  # of another encoder
        Event("two", vector, offered=["two", "retired", "one"]),
        Event("one", vector, offered=["two"]),  # the one chosen was on offer, of course
    ]
    belief = small.belief(USERS[0], odd)
    assert (belief.source, belief.n_events) == ("trained+feedback", 3)
    usable = [Event("one", task="code"), *(replace(event, offered=["one", "two"]) for event in odd[3:])]
    np.testing.assert_allclose(belief.user.vector, small.belief(USERS[0], usable).user.vector, rtol=1e-5)
    assert small.belief(USERS[0], odd[:2]).source == "trained"


@pytest.mark.parametrize("users", [[7, 12, -3], ["seven", "12", "-3"]])
def test_integer_keys(tmp_path, users):
    """Both kinds integers, or one of them: then its integers are stored as text."""
    write_synthetic(tmp_path / "model", users=users, items=[100, 20, 3], seed=4)
    serving = serve(tmp_path / "releases", tmp_path / "model")
    for user in users:
        assert serving.belief(str(user)).in_release
        found = serving.recommend(str(user), None, 3, exclude_seen=False)
        assert sorted(item for item, _ in found) == ["100", "20", "3"]
    for unknown in ("07", "+7", " 7", "7.0", "\N{ARABIC-INDIC DIGIT SEVEN}", "9" * 40, "", "nobody"):
        assert not serving.belief(unknown).in_release
    assert [item for item, _ in serving.recommend(None, {"20": 1.0, "020": 1.0}, 3, allowed=["3", "x"])] == [
        "3"
    ]


# Items


def full_row(serving: Serving, row: int | None, extra: dict[int, float]) -> np.ndarray:
    """Scores of all items from the whole matrices."""
    ranker = serving.recommender._ranker
    own = np.zeros(N_ITEMS, np.float32) if row is None else ranker.interactions.toarray()[row]
    for column, weight in extra.items():
        own[column] += weight
    if not own.any():
        return ranker.interactions.toarray().sum(axis=0)
    return own @ ranker.item_map.sparse.toarray() + own @ ranker.item_map.source @ ranker.item_map.target.T


@pytest.mark.parametrize("lists", [True, False])
def test_recommend_against_the_full_row(tmp_path, lists):
    write_synthetic(tmp_path / "model", users=USERS, items=ITEMS, lists=lists)
    serving = serve(tmp_path / "releases", tmp_path / "model")
    assert ("listed_ids" in serving.scorer.bundle.arrays) == lists
    seen = serving.recommender._ranker.interactions.toarray() > 0
    rng = np.random.default_rng(1)
    for case in range(60):
        row = None if case % 4 == 0 else int(rng.integers(N_USERS))
        extra = {int(i): 1.0 + i % 3 for i in rng.choice(N_ITEMS, rng.integers(3))} if case % 3 == 0 else {}
        exclude = rng.choice(N_ITEMS, rng.integers(60)).tolist()
        allowed = None if case % 2 else rng.choice(N_ITEMS, rng.integers(1, N_ITEMS)).tolist()
        exclude_seen, k = bool(rng.random() < 0.7), int(rng.integers(1, 2 * N_ITEMS))
        scores = full_row(serving, row, extra).astype(np.float64)
        left_out = np.zeros(N_ITEMS, bool) if allowed is None else ~np.isin(np.arange(N_ITEMS), allowed)
        left_out[exclude] = True
        if exclude_seen:
            left_out[list(extra)] = True
            left_out |= False if row is None else seen[row]
        wanted = np.sort(scores[~left_out])[::-1][:k]
        found = serving.recommend(
            None if row is None else USERS[row],
            {ITEMS[i]: weight for i, weight in extra.items()} | ({"unheard of": 1.0} if extra else {}),
            k,
            exclude=[ITEMS[i] for i in exclude] + ["unheard of"],
            allowed=None if allowed is None else [ITEMS[i] for i in allowed] + ["unheard of"],
            exclude_seen=exclude_seen,
        )
        ids = [ITEMS.index(item) for item, _ in found]
        assert len(set(ids)) == len(ids) == len(wanted)
        assert not left_out[ids].any()
        np.testing.assert_allclose(scores[ids], wanted, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose([score for _, score in found], wanted, rtol=1e-4, atol=1e-4)


def test_recommend_for_strangers_and_without_items(small, tmp_path):
    stranger = small.recommend("nobody", None, 5)
    assert stranger == small.recommend(None, {"unheard of": 1.0}, 5)
    assert [item for item, _ in stranger] == [
        ITEMS[i] for i in np.argsort(-full_row(small, None, {}), kind="stable")[:5]
    ]
    with pytest.raises(ParameterError, match="'k' must be positive"):
        small.recommend(USERS[0], None, 0)
    with pytest.raises(DataError):
        small.recommend(None, {ITEMS[0]: -1.0}, 3)
    write_synthetic(tmp_path / "model")
    without = serve(tmp_path / "releases", tmp_path / "model")
    with pytest.raises(NotInReleaseError, match="ranks no items"):
        without.recommend("ann", None, 3)
    with pytest.raises(NotInReleaseError, match="no complete fingerprints"):
        without.lookalike(["ann"], 3)


# Users near to users


def test_lookalike_against_exact(trained):
    graph = trained.surroundings.graph
    restart_prob = trained.surroundings.fingerprints.params.restart_prob
    users = graph.nodes_of_kind("user")
    names = [str(key) for key in graph.keys(users)]
    for given in (["u00"], ["u01", "u03", "u99"], ["u00", "u01", "u00"]):
        nodes = sorted({int(graph.ids([user], "user")[0]) for user in given})
        exact = np.zeros(graph.n_nodes)
        for ids, scores in exact_answers(graph, nodes, restart_prob=restart_prob):
            exact[ids] += scores / len(nodes)
        found = trained.lookalike(given, 10)
        assert len(found) == 10
        assert not {user for user, _ in found} & set(given)
        wanted = {name: exact[node] for name, node in zip(names, users, strict=True) if name not in given}
        for user, score in found:
            assert score == pytest.approx(wanted[user], rel=0.15)
        tenth = sorted(wanted.values())[-10]
        assert all(wanted[user] > 0.85 * tenth for user, _ in found)
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    with_given = trained.lookalike(["u00"], 3, exclude_given=False)
    assert with_given[0][0] == "u00"
    own = exact_ppr(graph, [int(graph.ids(["u00"], "user")[0])], restart_prob=restart_prob)[0]
    assert with_given[0][1] == pytest.approx(own.max() / own.sum(), rel=0.05)


def test_lookalike_names_who_is_unknown(trained):
    with pytest.raises(UnknownNameError, match="unknown users: 'nobody', 'item-1'"):
        trained.lookalike(["u00", "nobody", "item-1"], 3)
    with pytest.raises(ParameterError, match="at least one user"):
        trained.lookalike([], 3)
    with pytest.raises(ParameterError, match="'k' must be positive"):
        trained.lookalike(["u00"], 0)


def test_threads_share_it(trained):
    users = [f"u{i:02d}" for i in range(20)]
    wanted = [trained.lookalike([user], 5) for user in users]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda user: trained.lookalike([user], 5), users * 3)) == wanted * 3


# Profiles


def test_profile(trained):
    belief = trained.belief("u00")
    profile = trained.profile("u00", belief)
    scores = trained.scorer.scores(belief.user, None, "poems")
    odds = np.exp(scores.preference - scores.preference.max())
    poems = next(task for task in profile.by_task if task.task == "poems")
    for entry in poems.llms:
        row = trained.catalogue.position(entry.llm)
        assert entry.chance == pytest.approx(odds[row] / odds.sum(), rel=1e-5)
        assert entry.sd == pytest.approx(scores.sd[row])
    assert poems.llms[0].llm == "brief"
    assert poems.llms[0].chance > poems.llms[0].population_chance + 0.1
    for task in (profile.overall, *profile.by_task):
        assert sum(entry.chance for entry in task.llms) == pytest.approx(1.0)
        assert sum(entry.population_chance for entry in task.llms) == pytest.approx(1.0)
    assert sum(taste.share for taste in profile.tastes) == pytest.approx(1.0)
    assert profile.tastes[0].llms[0][0] == "brief"
    assert profile.evidence.in_graph
    own = trained.surroundings.of("u00")["items"]
    assert profile.near_items
    assert not {near.key for near in profile.near_items} & own.keys()
    assert profile.evidence.attributes["plan"] == "free"
    assert 20 < profile.evidence.attributes["age"] < 40

    graph = trained.surroundings.graph
    node = int(graph.ids(["u00"], "user")[0])
    row = graph.indices[graph.indptr[node] : graph.indptr[node + 1]]
    weights = dict(zip(graph.keys(row).tolist(), graph.weights(node).tolist(), strict=True))
    assert {near.key: near.score for near in profile.items} == pytest.approx(weights)
    assert profile.evidence.n_items == len(row)
    nodes = {drawn.id: drawn for drawn in profile.neighborhood.nodes}
    assert [drawn.kind for drawn in nodes.values()].count("self") == 1
    assert len(profile.neighborhood.edges) > len(row)
    for edge in profile.neighborhood.edges:
        user, item = (
            int(graph.ids([nodes[end].label], kind)[0])
            for end, kind in ((edge.source, "user"), (edge.target, "item"))
        )
        place = np.flatnonzero(graph.indices[graph.indptr[user] : graph.indptr[user + 1]] == item)
        assert edge.weight == pytest.approx(graph.weights(user)[place[0]])


def test_profile_of_one_known_from_feedback_or_from_the_graph_alone(trained):
    profile = trained.profile("nobody", trained.belief("nobody", [Event("kind")]))
    assert (profile.evidence.source, profile.evidence.n_feedback) == ("feedback", 1)
    assert not profile.items
    assert not profile.neighborhood.nodes
    assert trained.profile("u99", trained.belief("u99")).near_users


def test_shares_of_tastes_against_a_grid():
    """One factor, so that the mean over the belief is an integral on a line."""
    log_shares = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    centres, log_sds = (
        np.array([[-1.0], [0.5], [2.0]], np.float32),
        np.array([[-0.5], [0.0], [-1.0]], np.float32),
    )
    user = User(np.array([0.8], np.float32), np.array([[0.6]], np.float32))
    z = np.linspace(-4, 6, 4001)[:, None]
    density = np.exp(-0.5 * ((z[:, 0] - 0.8) / 0.6) ** 2)
    p = np.exp(log_shares - log_sds[:, 0] - 0.5 * ((z - centres[:, 0]) / np.exp(log_sds[:, 0])) ** 2)
    wanted = (density[:, None] * p / p.sum(axis=1, keepdims=True)).sum(axis=0) / density.sum()
    np.testing.assert_allclose(taste_shares(user, log_shares, centres, log_sds), wanted, atol=0.02)


def test_profile_of_integer_users(tmp_path):
    """The same key is an integer in the graph and in the model, and a string outside."""
    indptr, indices = np.array([0, 2, 3, 5, 6]), np.array([2, 3, 2, 0, 1, 0])
    graph = Graph.from_arrays(
        indptr, indices, kind_ids=[0, 0, 1, 1], kinds=("user", "item"), keys=[5, 6, 50, 60], directed=False
    ).save(tmp_path / "graph")
    write_synthetic(tmp_path / "model", users=[5, 6], parents={"graph": graph.checksum})
    serving = serve(tmp_path / "releases", tmp_path / "model", graph=tmp_path / "graph")
    profile = serving.profile("5", serving.belief("5"))
    assert [item.key for item in profile.items] == ["50", "60"]
    assert {drawn.label for drawn in profile.neighborhood.nodes} == {"5", "50", "60"}


# Opening


def test_a_release_that_cannot_be_served(tmp_path):
    write_synthetic(tmp_path / "model")
    release = publish(tmp_path / "releases", model=tmp_path / "model")
    file = release.model / "embeddings" / "user.npy"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1] + b"\x7f")
    with pytest.raises(ReleaseError, match=r"user.npy: checksum"):
        Serving.open(release, verify=True)
    Serving.open(release, verify=False)  # which a start does: sizes and the record of the verification
