"""The evaluation of a candidate against a naive recomputation, row by row, in plain Python."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from jobs.pipeline import evaluation_choices
from jobs.pipeline.candidate import Candidate, HeldOut
from jobs.pipeline.evaluation import evaluate
from jobs.pipeline.evaluation_figures import activity_groups, compare, interval, mean_by_user
from jobs.settings import RouterSettings
from jobs.train_router import run as train
from ppr.graph import Graph
from router.dataset import RouterFiles
from router.encoders import HashingEncoder, open_encoder
from router.errors import DataError
from router.publishing import publish
from router.releases import Release
from router.service.serving import Serving
from tests.choice_files import LLMS, events_table, fingerprints_of, llms_table, user_graph

K = 4
SETTINGS = RouterSettings(encoder="hashing", n_steps=60, n_tastes=3, n_factors=3, device="cpu")
STRANGER = "nobody knows me"


@dataclass(frozen=True)
class Market:
    """A candidate, the release before it, and what was held out of both."""

    candidate: Candidate
    current: Release
    held_out: HeldOut

    def tables(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of choices, of the training's choices, and of interactions."""
        there = self.held_out
        assert there.choices is not None
        assert there.training_choices is not None
        assert there.interactions is not None
        paths = (there.choices, there.training_choices, there.interactions)
        choices, past, items = (pq.read_table(path).to_pylist() for path in paths)
        return choices, past, items


def _first_users(graph: Graph, n: int) -> Graph:
    """The graph without most of its users, and without its last item."""
    users, items = np.arange(n), graph.nodes_of_kind("item")[:-1]
    kept = np.concatenate([users, items])
    number = np.full(graph.n_nodes, -1)
    number[kept] = np.arange(kept.size)
    rows = [graph.indices[graph.indptr[node] : graph.indptr[node + 1]] for node in kept]
    inside = [number[row] >= 0 for row in rows]
    weights = [graph.weights(int(node))[there] for node, there in zip(kept, inside, strict=True)]
    return Graph.from_arrays(
        np.concatenate([[0], np.cumsum([there.sum() for there in inside])]),
        np.concatenate([number[row[there]] for row, there in zip(rows, inside, strict=True)]),
        np.concatenate(weights),
        kind_ids=[0] * users.size + [1] * items.size,
        kinds=("user", "item"),
        keys=graph.keys(kept).tolist(),
        directed=False,
    )


def _stores(folder: Path, graph: Graph, events: pa.Table, llms: pa.Table) -> Candidate:
    folder.mkdir()
    pq.write_table(events, folder / "events.parquet")
    pq.write_table(llms, folder / "llms.parquet")
    fingerprints_of(graph.save(folder / "graph"), folder / "fingerprints")
    files = RouterFiles(
        events=folder / "events.parquet",
        llms=folder / "llms.parquet",
        graph=folder / "graph",
        fingerprints=folder / "fingerprints",
    )
    train(files, folder / "model", SETTINGS, lines=False)
    return Candidate(folder / "model", folder / "graph", folder / "fingerprints")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Last three choices of each user held out; the release before knew fewer users, an LLM and an item less.

    Of the current release's graph a held-out interaction is known, and one row is of a user nobody knows.
    """
    folder = tmp_path_factory.mktemp("market")
    events = events_table()
    places = Counter[str]()
    late = []
    for user in events["user"].to_pylist():
        places[user] += 1
        late.append(places[user] > 9)
    past, last = events.filter(pa.array([not x for x in late])), events.filter(pa.array(late))
    some = past.filter(pa.array([row["user"] < "u30" and row["llm"] != LLMS[2] for row in past.to_pylist()]))
    stranger = {**last.slice(0, 1).to_pylist()[0], "user": STRANGER}
    down = {**last.slice(5, 1).to_pylist()[0], "thumbs": -1}
    new = [  # queries that no release was trained on, one of a task that neither knows
        {**last.slice(6, 1).to_pylist()[0], "query": "write a poem on rain", "task": "poems"},
        {**last.slice(9, 1).to_pylist()[0], "query": "what code is this riddle in", "task": "riddles"},
    ]
    last = pa.concat_tables([last, pa.Table.from_pylist([stranger, down, *new], last.schema)])
    graph = user_graph()
    candidate = _stores(folder / "candidate", graph, past, llms_table())
    older = _stores(folder / "older", _first_users(graph, 30), some, llms_table().slice(0, 2))
    release = publish(
        folder / "releases", model=older.model, graph=older.graph, fingerprints=older.fingerprints
    )
    rng = np.random.default_rng(5)
    rows = [
        {"user": f"u{user:02d}", "item": f"item-{item}"}
        for user in range(0, 40, 2)
        for item in rng.choice(12, 4, replace=False)
    ]
    rows += [{"user": "u01", "item": "item-unheard-of"}, {"user": STRANGER, "item": "item-3"}]
    pq.write_table(last, folder / "held_choices.parquet")
    pq.write_table(past, folder / "past_choices.parquet")
    pq.write_table(pa.Table.from_pylist(rows), folder / "held_items.parquet")
    held_out = HeldOut(
        interactions=folder / "held_items.parquet",
        choices=folder / "held_choices.parquet",
        training_choices=folder / "past_choices.parquet",
    )
    return Market(candidate, release, held_out)


@pytest.fixture(scope="module")
def found(market: Market) -> dict[str, Any]:
    return evaluate(market.candidate, market.current, market.held_out, k=K)


@pytest.fixture(scope="module")
def served(market: Market, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Serving]:
    """The candidate published for itself, and the current release: as services would open them."""
    root = tmp_path_factory.mktemp("published") / "releases"
    stores = market.candidate
    release = publish(root, model=stores.model, graph=stores.graph, fingerprints=stores.fingerprints)
    opened = {"candidate": release, "current": market.current}
    return {name: Serving.open(each, verify=True) for name, each in opened.items()}


def _preference(serving: Serving, row: dict[str, Any]) -> dict[str, float]:
    """Score of each LLM that a release knows for the row's user and query."""
    vector = open_encoder(serving.scorer.encoder).encode([row["query"]])[0]
    user = serving.belief(row["user"]).user
    scores = serving.scorer.scores(user, vector, row["task"], query=row["query"]).preference
    return {
        name: float(score)
        for name, score in zip(serving.catalogue.names, scores, strict=True)
        if not math.isnan(score)
    }


def _mean_of_users(values: dict[str, list[float]]) -> float:
    return math.fsum(math.fsum(own) / len(own) for own in values.values()) / len(values)


def test_choices_are_judged_as_row_by_row(
    market: Market, found: dict[str, Any], served: dict[str, Serving]
) -> None:
    rows, past, _ = market.tables()
    rows = [row for row in rows if row["thumbs"] >= 0]
    common = set(LLMS[:2])
    right: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in served}
    likely: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in served}
    for name, serving in served.items():
        for row in rows:
            scores = _preference(serving, row)
            right[name][row["user"]].append(float(max(scores, key=scores.__getitem__) == row["llm"]))
            if row["llm"] in common:
                total = math.fsum(math.exp(scores[llm]) for llm in common)
                likely[name][row["user"]].append(scores[row["llm"]] - math.log(total))
    choices = found["choices"]
    assert choices["rows"] == len(rows)
    assert choices["users"] == 41
    assert choices["left_out"] == {"thumbs_down": 1, "beyond_the_sample": 0, "unforeseeable": 0}
    assert choices["not_finite"] == {"candidate": 0, "current": 0}
    for name in served:
        metrics = choices["metrics"]
        assert metrics["accuracy"][name]["mean"] == pytest.approx(_mean_of_users(right[name]))
        assert metrics["log_likelihood"][name]["mean"] == pytest.approx(
            _mean_of_users(likely[name]), abs=1e-5
        )
    for metric, values in (("accuracy", right), ("log_likelihood", likely)):
        ours, theirs = (_mean_of_users(values[name]) for name in ("candidate", "current"))
        assert choices["metrics"][metric]["difference"]["mean"] == pytest.approx(ours - theirs, abs=1e-5)
    counts = Counter(row["llm"] for row in past)
    shares = {llm: counts[llm] + 1 for llm in LLMS}
    popular: dict[str, list[float]] = defaultdict(list)
    always: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        always[row["user"]].append(float(max(shares, key=shares.__getitem__) == row["llm"]))
        if row["llm"] in common:
            popular[row["user"]].append(math.log(shares[row["llm"]] / sum(shares[llm] for llm in common)))
    assert choices["metrics"]["accuracy"]["popularity"]["mean"] == pytest.approx(_mean_of_users(always))
    assert choices["metrics"]["log_likelihood"]["popularity"]["mean"] == pytest.approx(
        _mean_of_users(popular)
    )


def test_each_release_answers_for_users_that_it_does_not_know(found: dict[str, Any]) -> None:
    # Ten of forty users came after the current release; nobody knows the stranger.
    assert found["choices"]["sources"] == {
        "candidate": {"population": 1, "trained": 40},
        "current": {"population": 11, "trained": 30},
    }
    groups = found["choices"]["metrics"]["accuracy"]["groups"]
    assert {name: group["users"] for name, group in groups.items()} == {"0 none": 1, "1 few (9-9)": 40}
    assert groups["0 none"]["candidate"]["low"] is None  # a single user has no interval
    assert found["items"]["unknown_users"]["candidate"] == 1


def test_items_are_judged_as_row_by_row(
    market: Market, found: dict[str, Any], served: dict[str, Serving]
) -> None:
    *_, rows = market.tables()
    graphs = {name: _edges(serving) for name, serving in served.items()}
    wanted: dict[str, set[str]] = defaultdict(set)
    left_out = Counter[str]()
    for user, item in sorted({(row["user"], row["item"]) for row in rows}):
        if (user, item) in graphs["candidate"]:
            left_out["seen_by_candidate"] += 1
        elif (user, item) in graphs["current"]:
            left_out["seen_by_current"] += 1
        elif item == "item-unheard-of":
            left_out["unknown_items"] += 1
        else:
            wanted[user].add(item)
    items = found["items"]
    assert items["left_out"] == {"beyond_the_sample": 0, "seen_by_current": 0, **left_out}
    assert left_out["seen_by_candidate"] > 5
    assert (items["users"], items["rows"]) == (len(wanted), sum(map(len, wanted.values())))
    lists: dict[str, dict[str, list[str]]] = {
        name: {user: [item for item, _ in serving.recommend(user, None, K)] for user in wanted}
        for name, serving in served.items()
    }
    degrees = Counter(item for _, item in graphs["candidate"])
    keys = [f"item-{i}" for i in range(12)]
    by_degree = sorted(keys, key=lambda item: (-degrees[item], keys.index(item)))
    lists["popularity"] = {
        user: [item for item in by_degree if (user, item) not in graphs["candidate"]][:K] for user in wanted
    }
    for name, of_users in lists.items():
        ndcg, recall = [], []
        for user, mine in wanted.items():
            hits = [item in mine for item in of_users[user]]
            gain = math.fsum(1 / math.log2(rank + 2) for rank, hit in enumerate(hits) if hit)
            ndcg.append(gain / math.fsum(1 / math.log2(rank + 2) for rank in range(min(K, len(mine)))))
            recall.append(sum(hits) / len(mine))
        for metric, values in (("ndcg", ndcg), ("recall", recall)):
            assert items["metrics"][metric][name]["mean"] == pytest.approx(np.mean(values)), (metric, name)


def _edges(serving: Serving) -> set[tuple[str, str]]:
    assert serving.surroundings is not None
    graph = serving.surroundings.graph
    keys = graph.keys(np.arange(graph.n_nodes)).tolist()
    return {
        (keys[user], keys[item])
        for user in graph.nodes_of_kind("user").tolist()
        for item in graph.indices[graph.indptr[user] : graph.indptr[user + 1]].tolist()
    }


def test_equal_inputs_give_equal_json(market: Market, found: dict[str, Any]) -> None:
    again = evaluate(market.candidate, market.current, market.held_out, k=K)
    assert json.dumps(again, allow_nan=False) == json.dumps(found, allow_nan=False)


def test_a_release_against_itself_differs_in_nothing(market: Market, tmp_path: Path) -> None:
    stores = market.candidate
    itself = publish(
        tmp_path / "releases", model=stores.model, graph=stores.graph, fingerprints=stores.fingerprints
    )
    found = evaluate(stores, itself, market.held_out, k=K)
    for part in ("choices", "items"):
        for metric in found[part]["metrics"].values():
            assert metric["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
            assert metric["candidate"] == metric["current"]


def test_the_first_release_is_compared_with_baselines_only(market: Market) -> None:
    told: list[str] = []
    found = evaluate(market.candidate, None, market.held_out, k=K, tell=told.append)
    assert found["current"] is None
    accuracy = found["choices"]["metrics"]["accuracy"]
    assert "current" not in accuracy
    assert accuracy["difference"] is None
    assert accuracy["over_popularity"]["low"] > 0.1  # tastes are opposite: nothing is popular with all
    assert found["ranks_items"] == {"candidate": True, "current": None}
    assert told == [
        "choices: 123 held out, of 41 users",
        f"items: {found['items']['rows']} held out, of 21 users",
    ]


def test_nothing_held_out_is_nothing_to_judge_by(market: Market, tmp_path: Path) -> None:
    found = evaluate(market.candidate, market.current, HeldOut(), k=K)
    assert (found["choices"], found["items"]) == (None, None)
    assert market.held_out.choices is not None
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(market.held_out.choices).slice(0, 0), empty)
    seen = tmp_path / "seen.parquet"
    pq.write_table(pa.table({"user": ["u01"], "item": ["item-unheard-of"]}), seen)
    found = evaluate(market.candidate, market.current, HeldOut(seen, empty), k=K)
    assert (found["choices"], found["items"]) == (None, None)


def test_the_sample_is_bounded_and_seeded(market: Market, found: dict[str, Any]) -> None:
    some = evaluate(market.candidate, market.current, market.held_out, k=K, max_users=10)
    assert some["choices"]["users"] == 10
    assert 0 < some["items"]["users"] <= 10  # some may have nothing new
    beyond = some["choices"]["left_out"]["beyond_the_sample"]
    assert some["choices"]["rows"] + beyond == found["choices"]["rows"]
    other = evaluate(market.candidate, market.current, market.held_out, k=K, max_users=10, seed=1)
    assert other["choices"]["metrics"] != some["choices"]["metrics"]


def test_baselines_without_a_past_and_a_release_without_a_graph(market: Market, tmp_path: Path) -> None:
    there = market.held_out
    bare = publish(tmp_path / "releases", model=market.current.model)
    found = evaluate(market.candidate, bare, HeldOut(there.interactions, there.choices), k=K)
    popularity = found["choices"]["metrics"]["log_likelihood"]["popularity"]
    assert popularity["mean"] == pytest.approx(math.log(0.5))  # two LLMs that both know, equally popular
    assert list(found["choices"]["metrics"]["accuracy"]["groups"]) == ["0 none"]
    assert found["items"]["metrics"]["ndcg"]["current"]["mean"] > 0


def test_an_unusable_current_release_is_not_in_the_way(market: Market, tmp_path: Path) -> None:
    broken = replace(market.current, root=tmp_path)
    found = evaluate(market.candidate, broken, market.held_out, k=K)
    assert "cannot be served" in found["current_unusable"]
    assert found["current"] == market.current.version
    assert found["choices"]["metrics"]["accuracy"]["difference"] is None


def test_an_llm_that_neither_knows_is_an_error_that_names_it(market: Market, tmp_path: Path) -> None:
    assert market.held_out.choices is not None
    rows = pq.read_table(market.held_out.choices).to_pylist()
    rows[7]["llm"] = "oracle"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "choices.parquet")
    with pytest.raises(DataError, match=r"choices.parquet: row 8: unknown LLM 'oracle'"):
        evaluate(market.candidate, market.current, HeldOut(choices=tmp_path / "choices.parquet"), k=K)


def test_only_what_must_be_is_encoded(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []

    class Spy(HashingEncoder):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            encoded.extend(texts)
            return super().encode(texts)

    monkeypatch.setattr(evaluation_choices, "open_encoder", lambda identity: Spy(identity.dimension))
    evaluate(market.candidate, market.current, market.held_out, k=K)
    assert sorted(encoded) == ["what code is this riddle in", "write a poem on rain"]


def test_queries_may_be_ids_of_a_table(market: Market, found: dict[str, Any], tmp_path: Path) -> None:
    assert market.held_out.choices is not None
    assert market.held_out.training_choices is not None
    paths = (market.held_out.choices, market.held_out.training_choices)
    texts = sorted({text for path in paths for text in pq.read_table(path)["query"].to_pylist()})
    ids = {text: f"q{i}" for i, text in enumerate(texts)}
    files = []
    for name in ("choices", "training_choices"):
        table = pq.read_table(getattr(market.held_out, name))
        keys = [ids[text] for text in table["query"].to_pylist()]
        table = table.set_column(table.column_names.index("query"), "query", pa.array(keys))
        pq.write_table(table.drop_columns(["task"]), tmp_path / f"{name}.parquet")
        files.append(tmp_path / f"{name}.parquet")
    words = [text.split()[0] for text in texts]
    pq.write_table(
        pa.table({"id": list(ids.values()), "text": texts, "task": words}), tmp_path / "queries.parquet"
    )
    by_id = HeldOut(choices=files[0], training_choices=files[1])
    told = evaluate(market.candidate, market.current, by_id, k=K, queries=tmp_path / "queries.parquet")
    # The bundles know the queries by their texts: ids are new queries, of the same text and task.
    ours = told["choices"]["metrics"]["accuracy"]
    assert ours["user_task"] == found["choices"]["metrics"]["accuracy"]["user_task"]
    assert ours["candidate"]["mean"] == pytest.approx(
        found["choices"]["metrics"]["accuracy"]["candidate"]["mean"], abs=0.05
    )


def test_means_of_users_leave_out_what_is_not_known() -> None:
    found = mean_by_user([1.0, 0.0, np.nan, np.nan], [0, 0, 0, 2], 4)
    np.testing.assert_array_equal(found, [0.5, np.nan, np.nan, np.nan])


def test_figures_are_of_the_users_that_all_have_a_value() -> None:
    of = {
        "candidate": np.array([1.0, 2.0, np.nan, 4.0]),
        "current": np.array([0.0, np.nan, 3.0, 1.0]),
        "popularity": np.array([0.5, 0.5, 0.5, 0.5]),
    }
    found = compare(of, ["a", "a", "b", "b"], seed=0)
    assert found["users"] == 2
    assert found["candidate"]["mean"] == 2.5
    assert found["difference"]["mean"] == 2.0
    assert (found["difference"]["low"], found["difference"]["high"]) == (1.0, 3.0)
    assert found["over_popularity"]["mean"] == 2.0
    assert {name: group["users"] for name, group in found["groups"].items()} == {"a": 1, "b": 1}


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    n_trials = 400
    inside = 0
    for trial in range(n_trials):
        found = interval(rng.exponential(size=60), seed=trial)
        assert found is not None
        assert found["low"] is not None
        assert found["high"] is not None
        inside += found["low"] <= 1.0 <= found["high"]
    # 95 %, a little less for a skewed law; three standard errors are 3.3 %.
    assert 0.90 <= inside / n_trials <= 0.98
    assert interval(np.array([]), 0) is None
    assert interval(np.array([2.0]), 0) == {"mean": 2.0, "low": None, "high": None}


def test_groups_are_none_and_thirds() -> None:
    assert activity_groups([0, 5, 1, 9]) == ["0 none", "2 some (5-5)", "1 few (1-1)", "3 many (9-9)"]
    assert activity_groups([0, 0]) == ["0 none", "0 none"]
