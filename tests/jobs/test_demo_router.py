"""The demo's router on a small market, and what is shown of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import demo
from jobs.demo_choices import ChoiceParts, foreseen, gap_closed, user_quality
from jobs.demo_data import MarketSizes, make_market, write_market
from jobs.demo_pipeline import ROUTER as TRAINING
from jobs.demo_quality import Truth
from jobs.demo_router import (
    CHOICES,
    FORESEEN,
    GAP,
    OURS,
    PLANTED,
    ROUTER,
    RouterRun,
    judge_router,
    prepare_choices,
)
from jobs.demo_router_report import (
    READABLE,
    ShownRouter,
    cost,
    own_choices,
    planted,
    principal_components,
    readable_users,
    shares_of,
    surest_pair,
)
from jobs.train_router import run as train_router
from ppr.build import build_graph
from ppr.errors import OutputExistsError, ParameterError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.inputs import EdgeInput
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from router.dataset import RouterFiles
from router.policy import Catalogue, Llm, Policy
from router.surroundings import Surroundings

SIZES = MarketSizes(n_users=150, n_items=80, n_interactions=1500, n_choices=1800)
TRUTH = make_market(0, SIZES).truth
Router = Callable[..., RouterRun]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, FingerprintStore]:
    folder = tmp_path_factory.mktemp("stores")
    graph = build_graph(EdgeInput(make_market(0, SIZES).interactions), folder / "graph")
    return graph, compute_fingerprints(graph, folder / "fingerprints", FingerprintParams(n_walks=300))


@pytest.fixture(scope="module")
def routed(stores: tuple[Graph, FingerprintStore]) -> Router:
    graph, fingerprints = stores

    def run(out: Path, market: Path, seed: int = 0, truth: Truth | None = TRUTH) -> RouterRun:
        events, llms = market / "llm_choices.parquet", market / "llms.parquet"
        parts = prepare_choices(out, events=events, llms=llms, moment=None, truth=truth, seed=seed)
        files = RouterFiles(events=out / CHOICES, llms=llms, graph=graph.path, fingerprints=fingerprints.path)
        train_router(files, out / ROUTER, TRAINING.model_copy(update={"seed": seed}), lines=False)
        return judge_router(
            out / ROUTER, parts, graph=graph, fingerprints=fingerprints, truth=truth, seed=seed
        )

    return run


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_market(tmp_path_factory.mktemp("market") / "market", 0, SIZES)


@pytest.fixture(scope="module")
def router(routed: Router, market: Path, tmp_path_factory: pytest.TempPathFactory) -> RouterRun:
    return routed(tmp_path_factory.mktemp("router"), market)


def test_the_router_beats_counting_and_stays_below_the_truth(router: RouterRun) -> None:
    gap = {name: values[GAP] for name, values in router.quality.items()}
    assert max(value for name, value in gap.items() if name not in (OURS, PLANTED)) < gap[OURS] < 1.0
    assert gap[PLANTED] == 1.0


def test_quality_is_what_the_picks_make_of_it(router: RouterRun) -> None:
    parts = router.parts
    assert parts.utility is not None
    for name, picks in router.picks.items():
        assert router.quality[name] == {
            GAP: pytest.approx(gap_closed(parts.utility, picks.by_task).mean()),
            FORESEEN: pytest.approx(np.mean(picks.later == parts.later.llms)),
        }


def test_newcomers_choices_are_kept_from_the_training(router: RouterRun) -> None:
    known = set(pq.read_table(router.path.parent / CHOICES)["user"].to_pylist())
    keys = np.array(router.parts.user_keys.to_pylist())
    assert not known & set(keys[router.parts.newcomers].tolist())
    assert set(keys[router.parts.trained.users].tolist()) <= known


def test_curves_are_means_over_the_users_of_each_bin(router: RouterRun) -> None:
    parts, curve = router.parts, router.curves[0]
    quality, counts = user_quality(parts, router.picks[OURS]), parts.counts()
    who = ~parts.newcomers & (counts >= 3) & (counts <= 5)
    at = curve.bins.index("3-5")
    assert curve.n_users[at] == who.sum()
    assert curve.means[OURS][at] == pytest.approx(quality[who].mean())
    known, arrived = router.curves
    assert arrived.means[OURS][-1] > arrived.means[OURS][0]
    assert arrived.n_users[0] == parts.newcomers.sum()
    assert known.bins[-1] == "11+"


def test_users_who_swap_their_choices_swap_their_models(
    routed: Router, router: RouterRun, market: Path, tmp_path: Path
) -> None:
    other = tmp_path / "market"
    other.mkdir()
    table = pq.read_table(market / "llm_choices.parquet")
    users = router.parts.user_keys.to_pylist()
    swapped = np.random.default_rng(1).permutation(len(users))
    names = dict(zip(users, [users[i] for i in swapped], strict=True))
    column = [names[user] for user in table["user"].to_pylist()]
    pq.write_table(table.set_column(0, "user", [column]), other / "llm_choices.parquet")
    (other / "llms.parquet").write_bytes((market / "llms.parquet").read_bytes())
    again = routed(tmp_path / "out", other, truth=None)
    before, after = router.picks[OURS].by_task, again.picks[OURS].by_task[swapped]
    informed = np.flatnonzero(router.parts.counts() >= 5)
    assert np.mean(before[informed] == after[informed]) > 0.85
    assert np.mean(before[informed] == again.picks[OURS].by_task[informed]) < 0.6


def test_a_second_run_keeps_the_bundle(routed: Router, router: RouterRun, market: Path) -> None:
    before = (router.path / "manifest.json").stat().st_mtime_ns
    again = routed(router.path.parent, market)
    assert (router.path / "manifest.json").stat().st_mtime_ns == before
    assert again.checksum == router.checksum
    assert again.quality == router.quality


def test_equal_arguments_give_equal_bundles_in_silence(
    routed: Router, router: RouterRun, market: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = routed(tmp_path / "out", market)
    assert capfd.readouterr() == ("", "")
    assert again.checksum == router.checksum
    assert ShownRouter(again, 0).users == ShownRouter(router, 0).users


def test_other_choices_do_not_overwrite(routed: Router, router: RouterRun, market: Path) -> None:
    with pytest.raises(OutputExistsError, match=r"choices\.parquet: exists with other data"):
        routed(router.path.parent, market, seed=1)


def test_the_same_without_planted_truth(routed: Router, market: Path, tmp_path: Path) -> None:
    run = routed(tmp_path / "out", market, truth=None)
    assert all(set(values) == {FORESEEN} for values in run.quality.values())
    assert PLANTED not in run.quality
    shown = ShownRouter(run, 0)
    report = shown.report()
    assert [table.title for table in report.shares] == ["by task"]
    assert report.user_map is not None
    assert list(report.user_map.colourings) == ["model that the user mostly gets"]
    assert not any(label == "planted truth" for user in shown.users for label, _ in user.reasons)
    quality = foreseen(run.parts, run.picks[OURS])
    assert run.curves[0].means[OURS][-1] == pytest.approx(
        np.nanmean(quality[~run.parts.newcomers & (run.parts.counts() >= 11)])
    )


def test_the_pair_against_brute_force() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        chances = rng.dirichlet(np.ones(4), size=12)
        own = chances.argmax(axis=1)

        margins = {
            (i, j): min(chances[i, own[i]] - chances[i, own[j]], chances[j, own[j]] - chances[j, own[i]])
            for i, j in permutations(range(12), 2)
        }
        assert margins[surest_pair(chances)] == max(margins.values()) > 0.0  # type: ignore[index]


def test_no_pair_where_all_prefer_one_model() -> None:
    assert surest_pair(np.array([[0.9, 0.1], [0.6, 0.4]])) == ()
    assert surest_pair(np.zeros((0, 3))) == ()


def test_users_shown_have_a_history_to_survey(router: RouterRun) -> None:
    parts = router.parts
    counts = parts.counts()
    wanted = [u for u in range(parts.n_users) if counts[u] in READABLE and not parts.newcomers[u]]
    assert readable_users(parts) == wanted


def test_the_pair_gets_what_the_router_decides(router: RouterRun) -> None:
    shown = ShownRouter(router, 0)
    one, other = shown.users
    assert one.model != other.model
    lines: list[str] = []
    shown.tell(lines.append)
    text = "\n".join(lines)
    for user in shown.users:
        assert f"{user.user} gets {user.model}" in text
        for _, sentence in user.reasons:
            assert sentence in text
        assert dict(user.reasons)["why"].startswith(user.model)
    found = shown.to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["users"]) == {one.user, other.user}


def test_own_choices_are_counted(router: RouterRun) -> None:
    parts = router.parts
    for user in range(20):
        rows = np.flatnonzero(parts.earlier.users == user)
        if not len(rows):
            continue
        llm, task = int(parts.earlier.llms[rows[0]]), int(parts.query_tasks[parts.earlier.queries[rows[0]]])
        hits = [int(parts.earlier.llms[i]) == llm for i in rows]
        of_task = [
            h for h, i in zip(hits, rows, strict=True) if parts.query_tasks[parts.earlier.queries[i]] == task
        ]
        assert own_choices(parts, user, llm, task) == (
            f"took {parts.llms[llm]} {sum(hits)} of {len(hits)} times, "
            f"{sum(of_task)} of {len(of_task)} for {parts.tasks[task]}"
        )


def test_a_model_never_taken_is_said_to_be(router: RouterRun) -> None:
    parts = router.parts
    user = int(parts.earlier.users[0])
    never = sorted(set(range(6)) - set(parts.earlier.llms[parts.earlier.users == user].tolist()))
    assert own_choices(parts, user, never[0], 0).startswith(f"never took {parts.llms[never[0]]}; ")
    stranger = next((u for u in range(parts.n_users) if parts.counts()[u] == 0), None)
    if stranger is not None:
        assert own_choices(parts, stranger, 0, 0) == "none yet"


def decision_of(scores: list[float], cost_usd: list[float]):  # type: ignore[no-untyped-def]
    catalogue = Catalogue(Llm(name=name) for name in "abc")
    return Policy(catalogue=catalogue).decide(scores, cost_usd=cost_usd)


def test_sentences_say_the_decisions_numbers() -> None:
    decision = decision_of([0.2, 0.6, 0.2], [0.002, 0.004, 0.001])
    assert cost(decision) == "4.00 USD per thousand answers (from 1.00 for c to 4.00 for b)"


def test_planted_truth_is_a_rank(router: RouterRun) -> None:
    parts: ChoiceParts = router.parts
    utility = np.array([0.5, 2.0, 1.0, 0.0, -1.0, 0.2])
    names = parts.llms
    assert planted(parts, utility, 1, "frugal") == f"frugal: {names[1]} is the best for this user and task"
    expected = f"expert: {names[0]} is number 3 of 6 after {names[1]} for this user and task"
    assert planted(parts, utility, 0, "expert") == expected


def test_shares_against_counting() -> None:
    rng = np.random.default_rng(2)
    rows, picks = rng.integers(4, size=(30, 3)), rng.integers(2, size=(30, 3))
    rows[rows == 2] = 3
    table = shares_of("t", rows, ("p", "q", "r", "s"), picks, ("a", "b"))
    assert table.rows == ("p", "q", "s")
    for name, row in zip((0, 1, 3), table.shares, strict=True):
        assert row[1] == pytest.approx(picks[rows == name].mean())
        assert row.sum() == pytest.approx(1.0)


def test_principal_components_keep_distances_of_a_plane() -> None:
    rng = np.random.default_rng(3)
    plane = rng.normal(size=(50, 2)) * (3.0, 1.0)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    points, explained = principal_components(plane @ rotation[:2] + 7.0)
    wanted = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    np.testing.assert_allclose(np.linalg.norm(points[:, None] - points[None], axis=2), wanted, atol=1e-9)
    assert explained[0] > explained[1]
    assert sum(explained) == pytest.approx(1.0)


def test_surroundings_against_brute_force(stores: tuple[Graph, FingerprintStore]) -> None:
    graph, fingerprints = stores
    top_k = 7
    surroundings = Surroundings(graph, fingerprints, top_k)
    for node in graph.nodes_of_kind("user")[:10].tolist():
        key = str(graph.keys([node])[0])
        found = surroundings.of(key)
        own = graph.indices[graph.indptr[node] : graph.indptr[node + 1]]
        assert found["items"] == dict(zip(graph.keys(own), graph.weights(node), strict=True))
        near: dict[str, dict[str, float]] = {"user": {}, "item": {}}
        ids, scores, _ = fingerprints.row(node)
        for other, score in sorted(zip(ids.tolist(), scores.tolist(), strict=True), key=lambda e: -e[1]):
            kind = graph.kinds[graph.kind_ids[other]]
            if other != node and len(near[kind]) < top_k:
                near[kind][str(graph.keys([other])[0])] = score
        assert sorted(found["near"].values()) == sorted(near["user"].values())
        assert sorted(found["near_items"].values()) == sorted(near["item"].values())
        assert key not in found["near"]
    assert surroundings.of("nobody") == {}


def test_events_without_llms_or_interactions(tmp_path: Path) -> None:
    for options in ({"events": tmp_path}, {"llms": tmp_path}, {"events": tmp_path, "llms": tmp_path}):
        with pytest.raises(ParameterError, match="'events' and 'llms' must be given together"):
            demo.run_demo(out=tmp_path / "out", engine="local", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_few_users_have_no_curves_and_a_second_run_is_equal(tmp_path: Path) -> None:
    sizes = MarketSizes(n_users=30, n_items=30, n_interactions=300, n_choices=90)
    market = write_market(tmp_path / "market", 0, sizes)
    for _ in range(2):
        result = demo.run_demo(
            out=tmp_path / "out",
            interactions=market / "interactions.parquet",
            events=market / "llm_choices.parquet",
            llms=market / "llms.parquet",
            engine="local",
            echo=lambda line: None,
        )
        page = Path(str(result["report"])).read_text()
        assert "Choice of model" in page
