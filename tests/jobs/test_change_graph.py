"""``change-graph`` and ``build-graph --previous`` from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppr.graph import Graph
from ppr.lineage import check_successor


@pytest.fixture
def market(fairpath, tmp_path: Path) -> Path:
    """Folder with a graph ``g`` of users and items, and files of changes."""
    files = {
        "interactions.csv": "user,item,weight\nann,tent,2\nann,stove,1\nbob,tent,1\nbob,lamp,3\ncat,lamp,1\n",
        "added.csv": "user,item,weight\ndan,tent,2\ncat,lamp,4\ncat,hat,1\n",
        "removed.csv": "user,item\nann,stove\n",
        "erased.csv": "key\nbob\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert fairpath("build-graph", tmp_path / "interactions.csv", "--out", tmp_path / "g").code == 0
    return tmp_path


def test_changes_of_all_sorts(fairpath, market: Path) -> None:
    args = ["--added", market / "added.csv", "--removed", market / "removed.csv"]
    args += ["--removed-nodes", market / "erased.csv", "--out", market / "new", "--log-format", "json"]
    result = fairpath("change-graph", market / "g", *args)
    assert result.code == 0, result.err
    old, new = Graph.open(market / "g"), Graph.open(market / "new")
    check_successor(old, new)
    assert result.json["checksum"] == new.checksum
    assert result.json["previous"] == old.checksum == new.manifest["parents"]["graph"]
    counts = {"nodes_added": 2, "nodes_removed": 1, "edges_added": 4, "edges_removed": 6, "rows_changed": 8}
    assert {name: result.json[name] for name in counts} == counts
    assert result.json["nodes_per_kind"] == {"item": 4, "user": 3}
    assert [json.loads(line)["event"] for line in result.err.splitlines()] == ["change-graph"]
    user = {key: new.ids([key], "user")[0] for key in ("ann", "cat", "dan")}
    rows = {
        key: dict(
            zip(new.keys(new.indices[slice(*new.indptr[i : i + 2])]).tolist(), new.weights(i), strict=True)
        )
        for key, i in user.items()
    }
    assert rows == {"ann": {"tent": 2.0}, "cat": {"lamp": 5.0, "hat": 1.0}, "dan": {"tent": 2.0}}
    again = fairpath("change-graph", market / "g", *args)
    assert again.code == 0
    assert again.json["checksum"] == new.checksum


def test_warnings_of_what_may_not_be_meant(fairpath, market: Path) -> None:
    files = {
        "friends.csv": "src,dst,weight\na,b,5e9\na,c,1\na,d,3\nb,a,1\n",
        "unfriended.csv": "src,dst\na,b\n",
        "other.csv": "src,dst\nb,a\n",
    }
    for name, text in files.items():
        (market / name).write_text(text)
    assert fairpath("build-graph", market / "friends.csv", "--out", market / "f").code == 0
    args = ["change-graph", market / "f", "--removed", market / "unfriended.csv"]
    result = fairpath(*args, "--out", market / "new")
    assert result.code == 0, result.err
    assert (result.json["rows_rounded"], result.json["opposites_left"]) == (1, 1)
    assert "weights that are no integers, or add up to 2^32 or more, are known to 2^-31" in result.err
    assert "the opposite of removed edges stays (--undirected" in result.err
    meant = fairpath(*args, "--directed", "--out", market / "meant")
    assert meant.json["opposites_left"] == 1
    assert "opposite" not in meant.err
    result = fairpath(*args, "--added", market / "other.csv", "--out", market / "new")
    assert result.code == 2
    assert "new: exists, made from other input; choose another output or remove it" in result.err


def test_a_build_after_another(fairpath, market: Path) -> None:
    (market / "later.csv").write_text("user,item\ncat,lamp\neve,tent\n")
    args = ["build-graph", market / "later.csv", "--previous", market / "g", "--out", market / "new"]
    result = fairpath(*args)
    assert result.code == 0, result.err
    old, new = Graph.open(market / "g"), Graph.open(market / "new")
    check_successor(old, new)
    assert new.ids(["cat", "lamp", "tent"]).tolist() == old.ids(["cat", "lamp", "tent"]).tolist()
    assert new.ids(["eve"]).tolist() == [old.n_nodes]
    assert result.json["removed"] == 3
    assert fairpath(*args, "--dry-run").json["arguments"]["previous"] == str(market / "g")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--removed", "added.csv"], 3, "added.csv: row 2: 'user': the graph has no user node 'dan'"),
        (["--added", "absent.csv"], 3, "absent.csv: no such file"),
        (["--removed", "interactions.csv", "--added", "interactions.csv"], 3, "is both removed and added"),
        ([], 2, "a change must be given: --added, --removed or --removed-nodes"),
        (["--added", "added.csv", "--set", "graph.engine=nothing"], 2, "graph.engine"),
    ],
)
def test_bad_changes(fairpath, market: Path, args: list[str], code: int, message: str) -> None:
    given = [market / arg if arg.endswith(".csv") else arg for arg in args]
    result = fairpath("change-graph", market / "g", "--out", market / "new", *given)
    assert result.code == code
    assert message in result.err
    assert not [path for path in market.iterdir() if "new" in path.name]


def test_a_previous_graph_that_is_none(fairpath, market: Path) -> None:
    args = ["build-graph", market / "interactions.csv", "--out", market / "new", "--previous"]
    result = fairpath(*args, market / "absent")
    assert result.code == 3
    assert "absent: no such store" in result.err
    assert not (market / "new").exists()
