"""The demo: its measurements against oracles, and the whole run on small data."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import demo
from jobs.demo_data import MarketSizes, make_market
from jobs.demo_measure import packet_estimates, walk_estimate
from jobs.demo_quality import TestPart, echo_quality, planted_quality, ranking_quality
from jobs.demo_router import FORESEEN
from jobs.errors import NotYetError
from jobs.interactions import read_interactions
from jobs.pipeline.deliveries import check_ready, find_deliveries
from jobs.settings_layers import load_settings
from ppr.blocks import compute_block
from ppr.build import build_graph
from ppr.errors import DataError, OutputExistsError, ParameterError
from ppr.exact import exact_ppr
from ppr.graph import Graph
from ppr.inputs import EdgeInput
from ppr.params import FingerprintParams
from router.releases import current_version

SIZES = MarketSizes(n_users=150, n_items=120, n_interactions=3000)
SIGMAS = 6.0


def random_graph(weighted: bool) -> Graph:
    """Thirty nodes, some dangling."""
    rng = np.random.default_rng(5)
    degree = rng.integers(0, 6, size=30)
    indices = np.concatenate([np.sort(rng.choice(30, size=d, replace=False)) for d in degree])
    weights = rng.uniform(0.1, 9.0, size=len(indices)) if weighted else None
    return Graph.from_arrays(np.concatenate([[0], np.cumsum(degree)]), indices, weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_independent_walks_estimate_the_exact_solution(weighted: bool) -> None:
    graph, n_walks = random_graph(weighted), 20_000
    exact = exact_ppr(graph, np.arange(30), restart_prob=0.2)
    for source in range(30):
        found = walk_estimate(graph, source, n_walks, 0.2, np.random.default_rng(source))
        # The visits of one walk to v have a second moment of at most 2 p(v) / c^2.
        assert np.all(np.abs(found - exact[source]) <= SIGMAS * np.sqrt(2 * exact[source] / n_walks) + 1e-12)


def test_packet_estimates_are_the_block_rows() -> None:
    graph, params = random_graph(True), FingerprintParams(n_walks=500, top_k=None)
    sources = np.array([3, 1], dtype=np.int32)
    dense = packet_estimates(graph, sources, params)
    for row, expected in zip(dense, compute_block(graph, sources, params).to_pylist(), strict=True):
        assert dict(zip(expected["ids"], expected["scores"], strict=True)) == {
            int(v): row[v] for v in np.flatnonzero(row)
        }


@pytest.fixture(scope="module")
def market_graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("market")
    return build_graph(EdgeInput(make_market(0, SIZES).interactions), folder / "graph")


def naive_items(graph: Graph, table: pa.Table) -> dict[str, set[str]]:
    """New known items by known user, the slow way."""
    seen: dict[str, set[str]] = {}
    items = {str(key) for key in graph.keys(graph.nodes_of_kind("item"))}
    for user in graph.nodes_of_kind("user"):
        row = graph.indices[graph.indptr[user] : graph.indptr[user + 1]]
        seen[str(graph.keys([user])[0])] = {str(key) for key in graph.keys(row)}
    wanted: dict[str, set[str]] = {}
    for user, item in zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True):
        if user in seen and item in items and item not in seen[user]:
            wanted.setdefault(user, set()).add(item)
    return wanted


def test_test_part_keeps_new_known_items(market_graph: Graph) -> None:
    other = make_market(1, SIZES).interactions  # partly the same keys, other pairs
    strangers = pa.table({"user": ["nobody", "user-0001"], "item": ["dumbbell-01", "no-such-thing"]})
    table = pa.concat_tables([other.select(["user", "item"]), strangers])
    part = TestPart.from_table(market_graph, table)
    found = {
        str(market_graph.keys([user])[0]): {str(key) for key in market_graph.keys(sorted(part.items(row)))}
        for row, user in enumerate(part.users)
    }
    assert found == naive_items(market_graph, table)


def test_test_part_without_new_items(market_graph: Graph) -> None:
    with pytest.raises(DataError, match="no new item"):
        TestPart.from_table(market_graph, make_market(0, SIZES).interactions)


def test_planted_quality_against_brute_force(market_graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.demo_quality._CHUNK_USERS", 7)
    market, k = make_market(0, SIZES), 5
    part = TestPart.from_table(market_graph, make_market(1, SIZES).interactions)
    rng = np.random.default_rng(0)
    items = market_graph.nodes_of_kind("item")
    ranked = np.stack([rng.permutation(items)[: k + 2] for _ in part.users]).astype(np.int32)
    ranked[::3, 2:] = -1
    best, shares = planted_quality(market_graph, market.truth, part, {"random": ranked}, k)

    truth = {name: values.tolist() for name, values in market.truth.items()}
    item_position = {key: i for i, key in enumerate(truth["items"])}
    ratios = []
    for row, user in enumerate(part.users):
        taste = truth["taste"][truth["users"].index(str(market_graph.keys([user])[0]))]
        seen = set(market_graph.indices[market_graph.indptr[user] : market_graph.indptr[user + 1]].tolist())
        p = {}
        for node in items.tolist():
            i = item_position[str(market_graph.keys([node])[0])]
            p[node] = 0.0 if node in seen else taste[truth["item_category"][i]] * truth["popularity"][i]
        ideal = sorted(p, key=lambda node: (-p[node], node))[:k]
        assert best[row].tolist() == ideal
        caught = sum(p[node] for node in ranked[row, :k].tolist() if node >= 0)
        ratios.append(caught / sum(p[node] for node in ideal))
    assert shares["random"] == pytest.approx(np.mean(ratios), rel=1e-12)


def test_perfect_ranking_has_perfect_quality(market_graph: Graph) -> None:
    part = TestPart.from_table(market_graph, make_market(1, SIZES).interactions)
    ranked = np.full((len(part.users), 20), -1, dtype=np.int32)
    for row in range(len(part.users)):
        wanted = sorted(part.items(row))[:20]
        ranked[row, : len(wanted)] = wanted
    assert ranking_quality(ranked, part, 20)["NDCG@20"] == pytest.approx(1.0)


def run(out: Path, **options: object) -> tuple[dict[str, object], str]:
    lines: list[str] = []
    arguments: dict[str, object] = {"engine": "local", "sizes": SIZES, **options}
    result = demo.run_demo(out=out, echo=lines.append, **arguments)  # type: ignore[arg-type]
    return result, "\n".join(lines)


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], str]:
    out = tmp_path_factory.mktemp("demo")
    return out, *run(out)


def test_demo_beats_popularity_and_stays_below_the_truth(demo_run: tuple[Path, dict, str]) -> None:
    _, result, text = demo_run
    quality = result["quality"]
    for ours in (demo.COMPOSED, demo.THREE_HOPS):
        for metric, value in quality[ours].items():
            assert quality[demo.POPULARITY][metric] < value < quality[demo.PLANTED][metric]
        assert f"{quality[ours]['Recall@20']:.3f}" in text
    assert json.loads(json.dumps(result)) == result


def test_demo_report_tells_the_same(demo_run: tuple[Path, dict, str]) -> None:
    out, result, text = demo_run
    page = (out / "report.html").read_text(encoding="utf-8")
    for values in result["quality"].values():
        for value in values.values():
            assert f"{value:.3f}" in page
    for user, items in result["recommendations"].items():
        assert user in page
        assert user in text
        for item in items:
            assert item in page
    assert page.count("<svg ") == 11


def test_what_the_demo_made_is_a_run_of_the_pipeline(demo_run: tuple[Path, dict, str]) -> None:
    out, result, text = demo_run
    for name in ("graph", "fingerprints", "router"):
        assert not (out / name).readlink().is_absolute()
        assert (out / name / "manifest.json").is_file()
    (record,) = out.glob("pipeline/runs/*/run.json")
    steps = json.loads(record.read_text())["steps"]
    assert steps["graph"]["facts"]["checksum"] == result["graph"]["checksum"]
    assert steps["train"]["facts"]["checksum"] == result["router"]["checksum"]
    assert steps["publish"]["facts"]["release"] == result["release"] in text
    assert current_version(out / "releases") == result["release"]
    before = min(pq.read_table(out / "test.parquet")["timestamp"].to_pylist())
    assert record.parent.name == f"{before:%Y%m%dT%H%M%SZ}"


def test_the_demo_leaves_settings_to_go_on_with(demo_run: tuple[Path, dict, str]) -> None:
    out, _, text = demo_run
    assert f"--config {out / 'pipeline.toml'} --until 2025-07-01" in text
    settings = load_settings(files=[out / "pipeline.toml"]).settings.pipeline
    assert settings.work == out / "pipeline"
    found = check_ready(settings, datetime(2025, 7, 1, tzinfo=UTC))
    assert [Path(path).name for path in found] == ["2025-06-30.parquet"] * 2
    with pytest.raises(NotYetError, match=r"2025-08-31\.parquet"):
        check_ready(settings, datetime(2025, 9, 1, tzinfo=UTC))
    deliveries = find_deliveries(settings)
    assert len({delivery.path.stem for delivery in deliveries}) == len(deliveries) / 2


def test_times_that_no_calendar_has(tmp_path: Path) -> None:
    """Milliseconds that are taken for seconds still order the rows, and are no times for the pipeline."""
    table = make_market(0, SIZES).interactions
    times = table["timestamp"].cast(pa.int64())
    pq.write_table(table.set_column(3, "timestamp", times), tmp_path / "own.parquet")
    result, _ = run(tmp_path / "out", interactions=tmp_path / "own.parquet")
    assert demo.COMPOSED in result["quality"]
    assert "timestamp" in pq.read_schema(tmp_path / "out" / "train.parquet").names


def test_recommendations_are_new_to_the_user(demo_run: tuple[Path, dict, str]) -> None:
    out, result, _ = demo_run
    train = pq.read_table(out / "train.parquet").to_pylist()
    for user, items in result["recommendations"].items():
        assert not set(items) & {row["item"] for row in train if row["user"] == user}


def test_second_run_keeps_what_is_there(demo_run: tuple[Path, dict, str]) -> None:
    out, result, _ = demo_run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}
    again, text = run(out, engine="spark")  # nothing to compute: Spark is not started
    assert {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")} == before
    assert again == result
    assert text.count("kept from an earlier run") == 3


def test_other_data_do_not_overwrite(demo_run: tuple[Path, dict, str]) -> None:
    out, _, _ = demo_run
    with pytest.raises(OutputExistsError, match="'seed' there is 0, asked for 1"):
        run(out, seed=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_own_data_do_not_overwrite_either(demo_run: tuple[Path, dict, str], tmp_path: Path) -> None:
    out, _, _ = demo_run
    before = contents(out)
    pq.write_table(make_market(1, SIZES).interactions, tmp_path / "own.parquet")
    with pytest.raises(OutputExistsError, match=r"train\.parquet: exists with other data"):
        run(out, interactions=tmp_path / "own.parquet")
    assert contents(out) == before


@pytest.mark.parametrize("there", ["train.parquet", "test.parquet", "graph"])
def test_files_that_are_no_demo_are_left_alone(tmp_path: Path, there: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / there).write_text("something else")
    pq.write_table(make_market(0, SIZES).interactions, tmp_path / "own.parquet")
    with pytest.raises(OutputExistsError, match=f"{there}: exists with other data"):
        run(out, interactions=tmp_path / "own.parquet")
    assert contents(out) == {there: b"something else"}


def test_a_generated_market_does_not_mix_with_own_data(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("something else")
    with pytest.raises(OutputExistsError, match=r"train\.parquet: exists with other data"):
        run(tmp_path)
    assert contents(tmp_path) == {"train.parquet": b"something else"}


@pytest.mark.parametrize("times", [True, False])
def test_own_interactions(tmp_path: Path, times: bool) -> None:
    table = make_market(0, SIZES).interactions
    pq.write_table(table if times else table.drop_columns("timestamp"), tmp_path / "own.parquet")
    result, text = run(tmp_path / "out", interactions=tmp_path / "own.parquet")
    assert set(result["quality"]) == {demo.POPULARITY, demo.COMPOSED, demo.THREE_HOPS}
    assert "router" not in result
    assert "router        left out: it needs --events and --llms" in text
    assert ("the last fifth of the time" if times else "a random fifth of each user's") in text
    train, test = (pq.read_table(tmp_path / "out" / f"{name}.parquet") for name in ("train", "test"))
    assert train.num_rows + test.num_rows == table.num_rows
    if times:
        assert max(train["timestamp"].to_pylist()) < min(test["timestamp"].to_pylist())
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_demo_shows_the_router(demo_run: tuple[Path, dict, str]) -> None:
    out, result, text = demo_run
    page = unescape((out / "report.html").read_text(encoding="utf-8"))
    router = result["router"]
    assert (out / "router" / "manifest.json").is_file()
    for values in router["quality"].values():
        for value in values.values():
            assert f"{value:.3f}" in text
            assert f"{value:.3f}" in page
    assert router["question"] in text
    assert router["question"] in page
    assert len({user["llm"] for user in router["users"].values()}) == 2
    for user, shown in router["users"].items():
        assert f"{user} gets {shown['llm']}" in text
        for label in ("why", "own choices", "cost", "planted truth"):
            assert shown[label] in text
            assert shown[label] in page


def test_headings_stand_over_their_columns() -> None:
    lines: list[str] = []
    echo_quality("title", {"one": {"short": 0.5, FORESEEN: 0.25}}, lines.append)
    heading, row = lines[1:]
    assert heading.split() == ["short", *FORESEEN.split()]
    assert heading.index("short") + len("short") == row.index("0.500") + len("0.500")
    assert len(heading) == len(row)


def test_own_choices_of_models(tmp_path: Path) -> None:
    market = make_market(0, SIZES)
    for name, table in (("own", market.interactions), ("events", market.llm_choices), ("llms", market.llms)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    files = {name: tmp_path / f"{name}.parquet" for name in ("events", "llms")}
    result, text = run(tmp_path / "out", interactions=tmp_path / "own.parquet", **files)
    quality = result["router"]["quality"]
    assert all(set(values) == {FORESEEN} for values in quality.values())
    assert "planted truth" not in text
    assert quality["Fairpath, router"][FORESEEN] > quality["most popular model"][FORESEEN]


def test_without_the_routers_packages_the_rest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "torch" else name)
    result, text = run(tmp_path / "out")
    assert "router        left out: torch not installed (pip install 'fairpath[router]')" in text
    assert "router" not in result


def test_unknown_engine(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="'engine' must be spark or local"):
        run(tmp_path / "out", engine="dask")
    assert not (tmp_path / "out").exists()


def test_own_column_names(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    rows = [f"u{i % 30},i{(7 * i + i // 30) % 40},{i}" for i in range(600)]
    path.write_text("\n".join(["customer,film,timestamp", *rows]) + "\n")
    table = read_interactions(path, {"src": "customer", "dst": "film"})
    assert table.column_names == ["user", "item", "timestamp"]
    assert table.num_rows == 600
