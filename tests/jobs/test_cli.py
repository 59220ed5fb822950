"""The program from outside: what it prints where, its exit codes, and that bad input leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from ppr.exact import exact_ppr
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph

ROOT = Path(__file__).resolve().parents[2]
INTERACTIONS = """user,item,weight
ann,tent,2
ann,stove,1
bob,tent,1
bob,lamp,3
cat,lamp,1
cat,mug,1
dan,mug,2
"""


pytestmark = pytest.mark.usefixtures("plain_surroundings")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """Folder with ``interactions.csv``, its graph ``g`` and fingerprints ``f``; not to be changed."""
    folder = tmp_path_factory.mktemp("stores")
    (folder / "interactions.csv").write_text(INTERACTIONS)
    for command in (
        ["build-graph", folder / "interactions.csv", "--out", folder / "g"],
        ["fingerprints", folder / "g", "--out", folder / "f", "--n-walks", "20000", "--threads", "1"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in command])
        assert not ended.value.code
    return folder


@pytest.fixture
def own(stores, tmp_path) -> Path:
    """A copy of the stores that a test may damage."""
    return Path(shutil.copytree(stores, tmp_path / "own"))


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# Usage


def test_help_lists_the_jobs_and_needs_neither_spark_nor_kernels():
    heavy = "pyspark", "numba", "scipy", "matplotlib", "pyarrow"
    code = f"""
import sys
from jobs.cli import main
try:
    main(["fingerprints", "--help"])
finally:
    assert not [name for name in {heavy} if name in sys.modules], "heavy imports"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--n-walks" in done.stdout


def test_no_command_shows_the_help(fairpath):
    result = fairpath()
    assert result.code == 2
    for command in ("build-graph", "fingerprints", "query", "recommend", "evaluate", "demo"):
        assert command in result.out + result.err


@pytest.mark.parametrize(
    "args",
    [
        ["build-graph"],
        ["build-graph", "x.csv"],
        ["fingerprints", "g", "--out", "f", "--engine", "ray"],
        ["fingerprints", "g", "--out", "f", "--n-walks", "many"],
        ["fingerprints", "g", "--out", "/"],
        ["recommend", "g", "f", "--out", "f.csv"],
        ["export", "g", "f", "--out", "f.csv"],
        ["unknown"],
        ["query", "g", "--unknown"],
    ],
)
def test_wrong_usage(fairpath, args):
    result = fairpath(*args)
    assert (result.code, result.out) == (2, "")
    assert "Usage: fairpath" in result.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["query", "g", "-f", "f"], "give either KEY, or the edges of a new node"),
        (["query", "g", "ann", "--edge", "tent", "-f", "f"], "give either KEY, or the edges of a new node"),
        (["query", "g", "ann"], "give either --fingerprints or --exact"),
        (["query", "g", "ann", "--exact", "-f", "f"], "give either --fingerprints or --exact"),
        (["query", "g", "ann", "-f", "f", "--restart-prob", "0.2"], "'--restart-prob' goes with --exact"),
        (["recommend", "g", "f", "--user", "ann", "--users", "u.txt"], "give either --user or --users"),
        (["evaluate", "g", "f"], "nothing to measure"),
        (
            ["fingerprints", "g", "--out", "f", "--engine", "local", "--master", "local[2]"],
            "'--master' goes with the Spark engine",
        ),
        (
            ["fingerprints", "g", "--out", "f", "--master", "local[2]", "--scheduler", "tcp://h:8786"],
            "'--scheduler' goes with the Dask engine (got --engine spark)",
        ),
        (["query", "g", "ann", "--exact", "--config", "absent.toml"], "no such configuration file"),
    ],
)
def test_options_that_exclude_each_other(fairpath, args, message):
    result = fairpath(*args)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_dry_run_prints_the_configuration_and_does_nothing(fairpath, tmp_path, monkeypatch):
    overlay = tmp_path / "overlay.toml"
    overlay.write_text("[fingerprints]\nseed = 3\n")
    monkeypatch.setenv("FAIRPATH_FINGERPRINTS__TOP_K", "7")
    result = fairpath(
        *("fingerprints", "absent", "--out", tmp_path / "f", "--n-walks", 5, "--target-kind", "item"),
        *("--config", overlay, "--set", "fingerprints.max_steps=3", "--dry-run"),
    )
    assert (result.code, result.err) == (0, "")
    assert (
        result.json["arguments"] | {"graph": "absent", "out": str(tmp_path / "f")} == result.json["arguments"]
    )
    got = result.json["settings"]["fingerprints"]
    assert got["n_walks"] == {"value": 5, "from": "command line"}
    assert got["target_kinds"] == {"value": ["item"], "from": "command line"}
    assert got["max_steps"] == {"value": 3, "from": "--set fingerprints.max_steps"}
    assert got["top_k"] == {"value": 7, "from": "environment"}
    assert got["seed"] == {"value": 3, "from": str(overlay)}
    assert got["restart_prob"] == {"value": 0.15, "from": "default"}
    assert files_below(tmp_path) == {"overlay.toml"}


def test_a_master_implies_the_spark_engine(fairpath):
    result = fairpath("fingerprints", "g", "--out", "f", "--master", "local[2]", "--dry-run")
    engine = result.json["settings"]["fingerprints"]["engine"]
    assert engine == {"value": "spark", "from": "command line"}


def test_credentials_of_a_graph_are_not_shown(fairpath, tmp_path):
    args = ("fingerprints", "unheard://me:hush@bucket/g", "--out", tmp_path / "f")
    result = fairpath(*args)
    assert result.code == 3
    assert "unheard://(hidden)@bucket/g: cannot be read" in result.err
    assert "hush" not in result.err + fairpath(*args, "--dry-run").out


# Results


def test_results_go_to_stdout_and_logs_to_stderr(fairpath, tmp_path):
    table = tmp_path / "interactions.csv"
    table.write_text(INTERACTIONS)
    result = fairpath("build-graph", table, "--out", tmp_path / "g", "--log-format", "json")
    assert result.code == 0
    assert result.json["nodes_per_kind"] == {"item": 4, "user": 4}
    assert result.json["edges"] == 14
    assert [json.loads(line)["event"] for line in result.err.splitlines()] == ["build-graph"]
    assert Graph.open(tmp_path / "g").checksum == result.json["checksum"]


@pytest.mark.parametrize(
    ("args", "header", "nodes", "warned"),
    [
        ([], False, 4, True),
        (["--no-header"], False, 4, False),
        (["--header", "--src", 0, "--dst", 1], True, 2, False),
        (["--src", 0, "--dst", 1], False, 4, True),
        (["--src", "customer", "--dst", "product", "--delimiter", ","], True, 2, False),
    ],
)
def test_an_unknown_header_is_reported(fairpath, tmp_path, args, header, nodes, warned):
    table = tmp_path / "orders.csv"
    table.write_text("customer,product\nalice,book\n")
    result = fairpath("build-graph", table, "--out", tmp_path / "g", *args)
    assert result.code == 0
    assert result.json["inputs"] == [{"table": str(table), "header": header}]
    assert result.json["nodes"] == nodes
    message = f"no header found in {table}; its first row 'customer,product' is data"
    assert (message in result.err) == warned


def test_fingerprints_are_near_the_exact_solution(stores):
    graph = Graph.open(stores / "g")
    store = FingerprintStore.open(stores / "f", graph=graph)
    exact = exact_ppr(graph, store.sources, restart_prob=0.15)
    for source, truth in zip(store.sources, exact, strict=True):
        ids, scores, _ = store.row(source)
        dense = np.zeros(graph.n_nodes)
        dense[ids] = scores
        assert np.all(np.abs(dense - truth) <= 6 * np.sqrt(2 * truth / 20000) + 1e-6)


def test_a_finished_job_does_nothing(fairpath, own):
    before = {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    again = fairpath("build-graph", own / "interactions.csv", "--out", own / "g")
    assert again.code == 0
    again = fairpath("fingerprints", own / "g", "--out", own / "f", "--n-walks", 20000)
    assert (again.code, again.json["kept"]) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*")} == before


def test_fingerprints_of_chosen_sources(fairpath, own):
    (own / "some.txt").write_text("bob\nann\nbob\n")
    args = ["--n-walks", 100, "--source-kind", "user", "--max-steps", 3, "--target-kind", "item"]
    result = fairpath("fingerprints", own / "g", "--out", own / "some", "--sources", own / "some.txt", *args)
    assert result.code == 0, result.err
    graph = Graph.open(own / "g")
    store = FingerprintStore.open(own / "some", graph=graph)
    assert store.sources.tolist() == sorted(graph.ids(["ann", "bob"], "user").tolist())
    assert result.json["parameters"]["target_kinds"] == ["item"]
    assert not result.json["kept"]
    result = fairpath("fingerprints", own / "g", "--out", own / "users", *args)
    assert result.json["sources"] == 4


def test_query_by_fingerprints_agrees_with_the_exact_answer(fairpath, stores):
    for subject in (["ann"], ["--edge", "tent:2", "--edge", "mug"]):
        exact = fairpath("query", stores / "g", *subject, "--exact", "-k", 8).json
        composed = fairpath("query", stores / "g", *subject, "-f", stores / "f", "-k", 8).json
        truth = {(node["kind"], node["key"]): node["score"] for node in exact["nearest"]}
        got = {(node["kind"], node["key"]): node["score"] for node in composed["nearest"]}
        assert set(got) == set(truth)
        assert ("user", "ann") not in truth or subject != ["ann"]
        # two steps leave (1 - c)^2 of the mass to rows of 20000 walks each
        assert all(abs(got[node] - truth[node]) < 0.02 for node in truth)


def test_edges_of_a_new_node_may_come_from_a_file(fairpath, stores, tmp_path):
    (tmp_path / "edges.csv").write_text("tent,2\nmug\n")
    from_file = fairpath("query", stores / "g", "--edges", tmp_path / "edges.csv", "--exact")
    from_options = fairpath("query", stores / "g", "--edge", "tent:2", "--edge", "mug", "--exact")
    assert from_file.code == 0
    assert from_file.out == from_options.out


def test_recommendations_are_unseen_items_best_first(fairpath, stores, tmp_path):
    result = fairpath("recommend", stores / "g", stores / "f", "--user", "ann", "--user", "dan", "-k", 3)
    ann, dan = result.json["recommendations"]
    assert [ann["user"], dan["user"]] == ["ann", "dan"]
    assert {item["key"] for item in ann["items"]} == {"lamp", "mug"}
    assert {item["kind"] for item in ann["items"]} == {"item"}
    (tmp_path / "users.txt").write_text("ann\ndan\n")
    same = fairpath("recommend", stores / "g", stores / "f", "--users", tmp_path / "users.txt", "-k", 3)
    assert same.out == result.out


def test_recommendations_as_parquet_hold_the_same(fairpath, stores, tmp_path):
    printed = fairpath("recommend", stores / "g", stores / "f", "-k", 2).json["recommendations"]
    out = tmp_path / "deep" / "top.parquet"
    result = fairpath("recommend", stores / "g", stores / "f", "-k", 2, "--out", out)
    assert (result.code, result.json["users"]) == (0, 4)
    rows = pq.read_table(out).to_pylist()
    expected = [
        {"user": one["user"], "rank": rank, "kind": item["kind"], "item": item["key"], "score": item["score"]}
        for one in printed
        for rank, item in enumerate(one["items"], start=1)
    ]
    assert rows == expected
    written = out.stat().st_mtime_ns
    assert fairpath("recommend", stores / "g", stores / "f", "-k", 2, "--out", out).code == 0
    assert out.stat().st_mtime_ns == written
    other = fairpath("recommend", stores / "g", stores / "f", "-k", 3, "--out", out)
    assert other.code == 2
    assert "exists" in other.err
    assert files_below(out.parent) == {"top.parquet"}


def test_users_with_few_recommendations_are_counted(fairpath, stores, tmp_path):
    one = fairpath("recommend", stores / "g", stores / "f", "-k", 2)
    sizes = [len(user["items"]) for user in one.json["recommendations"]]
    assert sizes == [2, 2, 2, 2]
    assert one.json["users_with_fewer_than_k"] == 0
    assert one.err == ""
    for out in ([], ["--out", tmp_path / "top.parquet"], ["--out", tmp_path / "top.parquet"]):
        result = fairpath("recommend", stores / "g", stores / "f", "-k", 3, *out)
        assert result.code == 0
        assert result.json["users_with_fewer_than_k"] == 3
        assert "--top-k" in result.err
        assert "--exclude-neighbors" in result.err


def test_evaluation_beside_the_popularity_baseline(fairpath, stores, tmp_path):
    lists, table = tmp_path / "test.txt", tmp_path / "test.csv"
    lists.write_text("ann lamp mug tent\nbob mug\ncat\neve tent\ndan kite tent\n")
    table.write_text("user,item\nann,lamp\nann,tent\nann,mug\nbob,mug\neve,tent\ndan,kite\ndan,tent\n")
    result = fairpath("evaluate", stores / "g", stores / "f", "--test", lists, "-k", 1)
    ranking = result.json["ranking"]
    counts = {name: value for name, value in ranking.items() if isinstance(value, int)}
    expected = {"users": 3, "held_out": 4, "already_seen": 1, "unknown_users": 1, "unknown_items": 1}
    assert counts == expected
    # lamp is ann's and dan's most popular unseen item (ties go to the first id), bob's is mug
    assert ranking["most_popular"]["recall@1"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    top = fairpath("recommend", stores / "g", stores / "f", "-k", 1).json["recommendations"]
    first = {one["user"]: one["items"][0]["key"] for one in top}
    hits = [(first["ann"] in ("lamp", "mug")) / 2, first["bob"] == "mug", first["dan"] == "tent"]
    assert ranking["recommended"]["recall@1"] == pytest.approx(sum(hits) / 3)
    assert (
        fairpath("evaluate", stores / "g", stores / "f", "--test", table, "-k", 1).json["ranking"] == ranking
    )


def test_accuracy_against_the_exact_solver(fairpath, stores):
    result = fairpath("evaluate", stores / "g", stores / "f", "--exact-sample", 5)
    accuracy = result.json["accuracy"]
    assert accuracy["sources"] == 5
    assert accuracy["rows"]["rag@10"] == pytest.approx(1.0)
    assert accuracy["composed"]["rag@50_with_source"] == pytest.approx(1.0)


def test_demo_passes_on_what_it_is_told(fairpath, tmp_path, monkeypatch):
    told = {}

    def run_demo(*, echo, **arguments):
        told.update(arguments)
        echo("for people")
        return {"users": 7}

    monkeypatch.setattr("jobs.demo.run_demo", run_demo)
    monkeypatch.setenv("FAIRPATH_DEMO__ITEMS", "300")
    args = (
        "demo",
        "--out",
        tmp_path,
        "--users",
        100,
        "--n-interactions",
        900,
        "--master",
        "local[2]",
        "--seed",
        5,
        "--src",
        "customer",
    )
    result = fairpath(*args)
    assert (result.code, result.out) == (0, "for people\n")
    sizes = told.pop("sizes")
    assert (sizes.n_users, sizes.n_items, sizes.n_interactions) == (100, 300, 900)
    assert told.pop("columns") == dict.fromkeys(("dst", "weight", "delimiter", "header")) | {
        "src": "customer"
    }
    assert told.pop("spark") == {"master": "local[2]", "remote": None, "conf": {}}
    assert told == {
        "out": tmp_path,
        "interactions": None,
        "events": None,
        "llms": None,
        "engine": "spark",
        "seed": 5,
    }
    refused = fairpath(*args, "--set", "fingerprints.n_walks=5")
    assert refused.code == 2
    assert "--set fingerprints.n_walks: a demo has its own fixed parameters" in refused.err
    as_json = fairpath(*args, "--json")
    assert as_json.json == {"users": 7}
    assert as_json.err == "for people\n"


def test_validate_export_and_merge(fairpath, own):
    assert fairpath("validate", own / "g").json["valid"]
    assert fairpath("validate", own / "f", "--graph", own / "g").json["valid"]
    assert fairpath("export", own / "g", own / "f", "--out", own / "f.parquet").json["rows"] == 8
    exported = pq.read_table(own / "f.parquet", columns=["source_kind", "source_key"]).to_pylist()
    assert {"source_kind": "user", "source_key": "ann"} in exported
    written = (own / "f.parquet").stat().st_mtime_ns
    assert fairpath("export", own / "g", own / "f", "--out", own / "f.parquet").code == 0
    assert (own / "f.parquet").stat().st_mtime_ns == written
    for kind in ("user", "item"):
        args = ("--n-walks", 20000, "--source-kind", kind)
        assert fairpath("fingerprints", own / "g", "--out", own / kind, *args).code == 0
    other = fairpath("export", own / "g", own / "user", "--out", own / "f.parquet")
    assert other.code == 2
    assert "exists and is not this export" in other.err
    merged = fairpath("merge", own / "user", own / "item", "--out", own / "both")
    assert merged.json["checksum"] == FingerprintStore.open(own / "f").checksum


# Bad input: the data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "i.csv: empty"),
        ("user,item\n", "i.csv: empty"),
        ("user,thing\nann,tent\n", "i.csv: no columns with usual names"),
        ("user,item,weight\nann,tent,1\nbob,lamp\n", "i.csv: row 3: must have 3 fields (got 2: 'bob,lamp')"),
        (
            "user,item,weight\nann,tent,nan\n",
            "i.csv: row 2: 'weight' must be positive and finite (got 'nan')",
        ),
        (
            "user,item,weight\nann,tent,inf\n",
            "i.csv: row 2: 'weight' must be positive and finite (got 'inf')",
        ),
        ("user,item,weight\nann,tent,-1\n", "i.csv: row 2: 'weight' must be positive and finite (got '-1')"),
        ("user,item,weight\nann,tent,0\n", "i.csv: row 2: 'weight' must be positive and finite (got '0')"),
        ("user,item,weight\nann,,1\n", "i.csv: row 2: 'item' must not be empty"),
    ],
)
def test_bad_tables(fairpath, tmp_path, content, message):
    (tmp_path / "i.csv").write_text(content)
    result = fairpath("build-graph", tmp_path / "i.csv", "--out", tmp_path / "g")
    assert (result.code, result.out) == (3, "")
    assert message in result.err
    assert "Traceback" not in result.err
    assert files_below(tmp_path) == {"i.csv"}


def test_a_missing_column(fairpath, tmp_path):
    (tmp_path / "i.csv").write_text("user,thing\nann,tent\n")
    args = ("--src", "user", "--dst", "item")
    result = fairpath("build-graph", tmp_path / "i.csv", "--out", tmp_path / "g", *args)
    assert result.code == 3
    assert "i.csv: column 'item' for 'dst' is missing; there are: user, thing" in result.err
    assert files_below(tmp_path) == {"i.csv"}


def test_a_missing_table(fairpath, tmp_path):
    result = fairpath("build-graph", tmp_path / "absent.csv", "--out", tmp_path / "g")
    assert result.code == 3
    assert f"{tmp_path}/absent.csv: no such file" in result.err
    assert files_below(tmp_path) == set()


def test_keys_of_the_wrong_type(fairpath, tmp_path):
    pq.write_table(pa.table({"src": [1.5], "dst": [2.5]}), tmp_path / "e.parquet")
    result = fairpath("build-graph", tmp_path / "e.parquet", "--out", tmp_path / "g")
    assert result.code == 3
    assert "'src' must hold integers or strings (got double)" in result.err
    (tmp_path / "e.csv").write_text("src,dst\n1,2\n3,x\n")
    args = ("--set", "graph.key_type=int64")
    result = fairpath("build-graph", tmp_path / "e.csv", "--out", tmp_path / "g", *args)
    assert result.code == 3
    assert "e.csv: row 3: 'dst' must be an integer (got 'x')" in result.err
    assert files_below(tmp_path) == {"e.parquet", "e.csv"}


@pytest.mark.parametrize("content", ["ann tent\nbob\n", "eve kite\n", ""])
def test_a_test_split_with_nothing_to_hit(fairpath, stores, tmp_path, content):
    (tmp_path / "test.txt").write_text(content)
    result = fairpath("evaluate", stores / "g", stores / "f", "--test", tmp_path / "test.txt")
    assert (result.code, result.out) == (3, "")
    assert f"{tmp_path}/test.txt: " in result.err


# Bad input: what is asked for


@pytest.mark.parametrize("value", ["0", "1", "-0.1", "1.5", "nan"])
def test_restart_probability_outside_its_range(fairpath, stores, tmp_path, value):
    result = fairpath("fingerprints", stores / "g", "--out", tmp_path / "f", "--restart-prob", value)
    assert (result.code, result.out) == (2, "")
    assert "command line: [fingerprints] 'restart_prob' must be between 0.001 and 0.999" in result.err
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["query", "g", "zoe", "-f", "f"], "unknown node 'zoe'"),
        (
            ["query", "g", "ann", "--kind", "shop", "-f", "f"],
            "unknown node kind 'shop'; the graph has item, user",
        ),
        (["query", "g", "--edge", "kite", "-f", "f"], "unknown node 'kite'"),
        (["recommend", "g", "f", "--user", "zoe"], "unknown user node 'zoe'"),
        (["recommend", "g", "f", "--kind", "shop"], "unknown node kind 'shop'; the graph has item, user"),
        (["recommend", "g", "f", "--user-kind", "shop"], "unknown node kind 'shop'"),
        (["fingerprints", "g", "--out", "new", "--target-kind", "shop"], "unknown node kind 'shop'"),
        (["fingerprints", "g", "--out", "new", "--source-kind", "shop"], "unknown node kind 'shop'"),
        (["query", "g", "--edge", "tent:0", "-f", "f"], "'--edge' must be KEY or KEY:WEIGHT"),
    ],
)
def test_unknown_nodes_and_kinds(fairpath, own, monkeypatch, args, message):
    monkeypatch.chdir(own)
    before = files_below(own)
    result = fairpath(*args)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert files_below(own) == before


def test_output_that_exists_with_other_parameters(fairpath, own):
    before = FingerprintStore.open(own / "f").checksum
    result = fairpath("fingerprints", own / "g", "--out", own / "f", "--n-walks", 21)
    assert result.code == 2
    assert "exists, made with other parameters ('n_walks' there is 20000, asked for 21)" in result.err
    assert FingerprintStore.open(own / "f").checksum == before
    result = fairpath("build-graph", own / "interactions.csv", "--out", own / "g", "--directed")
    assert result.code == 2
    assert "exists, made with other parameters ('directed' there is None, asked for True)" in result.err


def test_output_that_is_something_else(fairpath, own):
    (own / "notes").mkdir()
    (own / "notes" / "keep.txt").write_text("mine")
    result = fairpath("fingerprints", own / "g", "--out", own / "notes", "--n-walks", 21)
    assert result.code == 2
    assert "exists and is not a store" in result.err
    assert (own / "notes" / "keep.txt").read_text() == "mine"


def test_the_working_folder_as_output(fairpath, own, monkeypatch):
    (own / "here").mkdir()
    monkeypatch.chdir(own / "here")
    result = fairpath("fingerprints", own / "g", "--out", ".", "--n-walks", 21)
    assert result.code == 2
    assert f"{own}/here: exists and is not a store" in result.err


def test_output_built_from_other_input(fairpath, own):
    (own / "interactions.csv").write_text(INTERACTIONS + "dan,tent,1\n")
    result = fairpath("build-graph", own / "interactions.csv", "--out", own / "g")
    assert result.code == 2
    assert f"{own}/g: exists, made from other input; choose another output or remove it\n" in result.err


def test_rows_that_cannot_be_composed(fairpath, own):
    args = ("--max-steps", 3, "--n-walks", 100)
    assert fairpath("fingerprints", own / "g", "--out", own / "short", *args).code == 0
    result = fairpath("query", own / "g", "ann", "-f", own / "short")
    assert result.code == 2
    assert "its walks are limited to 3 steps" in result.err


# Bad input: the stores and the machine


def damage_version(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))


def truncate(folder: Path) -> None:
    largest = max(folder.glob("*.npy"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 1)


def flip_a_byte(folder: Path) -> None:
    largest = max(folder.glob("*.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)


def remove_a_file(folder: Path) -> None:
    next(folder.glob("*.npy")).unlink()


@pytest.mark.parametrize("store", ["g", "f"])
@pytest.mark.parametrize("damage", [damage_version, truncate, flip_a_byte, remove_a_file])
def test_damaged_stores(fairpath, own, damage, store):
    damage(own / store)
    result = fairpath("recommend", own / "g", own / "f", "--out", own / "out.parquet")
    assert (result.code, result.out) == (3, "")
    assert str(own / store) in result.err
    assert "Traceback" not in result.err
    assert not (own / "out.parquet").exists()
    assert fairpath("validate", own / store).code == 3


def test_fingerprints_of_another_graph(fairpath, own):
    (own / "other.csv").write_text(INTERACTIONS + "dan,tent,1\n")
    assert fairpath("build-graph", own / "other.csv", "--out", own / "other").code == 0
    result = fairpath("recommend", own / "other", own / "f")
    assert result.code == 3
    assert "computed from another graph" in result.err


def test_no_such_store(fairpath, tmp_path):
    result = fairpath("fingerprints", tmp_path / "absent", "--out", tmp_path / "f")
    assert result.code == 3
    assert "absent: no such store" in result.err
    assert fairpath("validate", tmp_path / "absent").code == 3


@pytest.mark.parametrize("engine", ["local", "spark"])
def test_a_missing_graph_is_found_before_an_engine_starts(fairpath, tmp_path, engine):
    args = ("--engine", engine)
    result = fairpath("fingerprints", tmp_path / "absent", "--out", tmp_path / "f", *args)
    assert result.code == 3
    assert "absent: no such store" in result.err


def test_a_result_that_is_there_needs_no_cluster(fairpath, own):
    (own / "taken").mkdir()
    spark = ("--master", "spark://127.0.0.1:1", "--log-level", "error")
    graph = fairpath("build-graph", own / "interactions.csv", "--out", own / "g", *spark)
    assert graph.code == 0, graph.err
    rows = fairpath("fingerprints", own / "g", "--out", own / "f", "--n-walks", 20000, *spark)
    assert (rows.code, rows.json["kept"]) == (0, True), rows.err
    for command in (("build-graph", own / "interactions.csv"), ("fingerprints", own / "g")):
        result = fairpath(*command, "--out", own / "taken", *spark)
        assert result.code == 2
        assert "taken: exists and is not a store" in result.err


def test_sigterm_ends_a_command_as_an_interrupt_does(fairpath, own, monkeypatch):
    def ended(*_):
        signal.raise_signal(signal.SIGTERM)

    files, before = files_below(own), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("ppr.manifest.publish", ended)
    result = fairpath("build-graph", own / "interactions.csv", "--out", own / "new")
    assert (result.code, result.out) == (130, "")
    assert files_below(own) == files
    assert signal.getsignal(signal.SIGTERM) is before


def test_full_disk(fairpath, own, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = files_below(own)
    monkeypatch.setattr("ppr.manifest.publish", full)
    result = fairpath("build-graph", own / "interactions.csv", "--out", own / "new")
    assert (result.code, result.out) == (3, "")
    assert f"{own}/new: no space left on the disk" in result.err
    assert files_below(own) == before


def test_output_below_a_file(fairpath, own):
    result = fairpath("build-graph", own / "interactions.csv", "--out", own / "interactions.csv" / "g")
    assert result.code == 3
    assert "interactions.csv" in result.err
    assert "Traceback" not in result.err


def test_a_defect_shows_its_traceback(fairpath, stores, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a defect")

    monkeypatch.setattr("jobs.query.run", broken)
    result = fairpath("query", stores / "g", "ann", "--exact")
    assert (result.code, result.out) == (1, "")
    assert "Traceback" in result.err
    assert "RuntimeError: a defect" in result.err


def test_an_interrupt_ends_with_130(fairpath, stores, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.query.run", interrupted)
    assert fairpath("query", stores / "g", "ann", "--exact").code == 130


def test_an_interrupted_run_says_that_it_continues(fairpath, stores, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ppr.local.compute_fingerprints", interrupted)
    result = fairpath("fingerprints", stores / "g", "--out", tmp_path / "f", "--log-level", "error")
    assert (result.code, result.out) == (130, "")
    assert result.err == "fairpath: interrupted; the same command continues where it stopped\n"
