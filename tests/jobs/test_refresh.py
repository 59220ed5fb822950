from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from tests.command_line import Result
from tests.oracles.fingerprint_runs import file_hashes
from tests.oracles.refreshes import NEW, OLD, PARAMS, TOLERANCE, refresh, walk

Program = Callable[..., Result]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Old and new graph, and fingerprints of the old one."""
    folder = tmp_path_factory.mktemp("stores")
    OLD.save(folder / "old-graph")
    NEW.save(folder / "new-graph")
    walk(OLD)(None, folder / "old")
    return folder


def arguments(stores: Path, out: Path, *further: object) -> list[object]:
    given = [stores / "new-graph", "--from", stores / "old", "--from-graph", stores / "old-graph"]
    return ["refresh", *given, "--out", out, *further]


def test_refresh(fairpath: Program, stores: Path, tmp_path: Path) -> None:
    given = arguments(stores, tmp_path / "out", "--tolerance", TOLERANCE)
    ended = fairpath(*given)
    assert ended.code == 0
    plan, expected = refresh(
        Graph.open(stores / "old-graph"),
        FingerprintStore.open(stores / "old"),
        Graph.open(stores / "new-graph"),
        tmp_path / "expected",
    )
    assert file_hashes(tmp_path / "out") == file_hashes(expected.path)
    result = ended.json
    seconds = {name: result.pop(name) for name in ("bound_seconds", "walk_seconds", "seconds")}
    assert 0 < seconds["walk_seconds"] < seconds["seconds"]
    assert "are within 60% of the" in result.pop("why")
    assert result == {
        "fingerprints": str(tmp_path / "out"),
        "checksum": expected.checksum,
        "graph_checksum": NEW.checksum,
        "refreshed_from": FingerprintStore.open(stores / "old").checksum,
        "parameters": PARAMS.to_json(),
        "tolerance": TOLERANCE,
        "sources": expected.n_sources,
        "entries": expected.ids.size,
        **plan.facts,
        "share_recomputed": plan.due.size / plan.sources.size,
        "kept": False,
        "engine": "local",
        "partitioned": False,
    }
    (line,) = (line for line in ended.err.splitlines() if "rows to compute" in line)
    assert f"recomputed={plan.due.size}" in line
    again = fairpath(*given).json
    assert again["kept"]
    assert {name: again[name] for name in result} == {**result, "kept": True, "partitioned": None}
    assert again.keys() == result.keys() | seconds.keys() | {"why"}
    ended = fairpath("fingerprints", stores / "new-graph", "--out", tmp_path / "out")
    assert ended.code == 2


def test_over_parts_of_the_graph(
    fairpath: Program, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows, told and shown as what they came by."""
    fairpath(*arguments(stores, tmp_path / "whole", "--tolerance", TOLERANCE))
    monkeypatch.setattr("jobs.progress.LOG_EVERY_S", 0.0)
    given = ["--tolerance", TOLERANCE, "--partitioned", "always", "--worker-memory", "7MB"]
    ended = fairpath(*arguments(stores, tmp_path / "parts", *given))
    assert ended.code == 0, ended.err
    assert ended.json["partitioned"]
    assert ended.json["why"] == "asked for: 'partitioned' is 'always'"
    assert "fingerprints, rounds" in ended.err
    assert "fingerprints, blocks" not in ended.err
    assert file_hashes(tmp_path / "parts") == file_hashes(tmp_path / "whole")


def test_all_are_computed_where_so_many_are_due(fairpath: Program, stores: Path, tmp_path: Path) -> None:
    ended = fairpath(*arguments(stores, tmp_path / "out", "--set", "refresh.tolerance=0.0001"))
    assert "so many rows moved that all are computed" in ended.err
    result = ended.json
    assert (result["share_recomputed"], result["largest_bound"]) == (1.0, 0.0)
    again = fairpath(*arguments(stores, tmp_path / "out", "--set", "refresh.tolerance=0.0001")).json
    differing = {"kept", "seconds", "bound_seconds", "walk_seconds", "partitioned", "why"}
    assert {name for name in result.keys() | again.keys() if result.get(name) != again.get(name)} == differing
    walk(NEW)(None, tmp_path / "full")
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "full")


def test_sources_may_be_named(fairpath: Program, stores: Path, tmp_path: Path) -> None:
    given = ["--source-kind", "user", "--tolerance", 1.5]
    result = fairpath(*arguments(stores, tmp_path / "users", *given)).json
    assert result["sources"] == NEW.nodes_of_kind("user").size
    file = tmp_path / "sources.txt"
    file.write_text("".join(f"{key}\n" for key in NEW.keys(np.array([3, 4])).tolist()))
    fairpath(*arguments(stores, tmp_path / "few", "--sources", file, "--tolerance", 1.5))
    assert FingerprintStore.open(tmp_path / "few").sources.tolist() == [3, 4]


def test_new_users_get_rows_or_a_warning(fairpath: Program, stores: Path, tmp_path: Path) -> None:
    """Where the old rows are those of all users there were, and of some."""
    old, new = Graph.open(stores / "old-graph"), Graph.open(stores / "new-graph")
    of_users, of_some = tmp_path / "users", tmp_path / "some"
    users = old.nodes_of_kind("user")
    params = replace(PARAMS, target_kinds=("item",))
    compute_fingerprints(old, of_users, params, sources=users)
    compute_fingerprints(old, of_some, params, sources=users[:-1])

    def of(store: Path, out: Path) -> Result:
        given = ["--from", store, "--from-graph", stores / "old-graph", "--tolerance", 1.5]
        return fairpath("refresh", stores / "new-graph", *given, "--out", out)

    ended = of(of_users, tmp_path / "all")
    assert ended.json["sources"] == new.nodes_of_kind("user").size
    assert "new nodes" not in ended.err
    ended = of(of_some, tmp_path / "few")
    assert ended.json["sources"] == np.setdiff1d(users[:-1], new.removed).size
    assert f"new_nodes={new.n_nodes - old.n_nodes}" in ended.err
    assert fairpath("recommend", stores / "new-graph", tmp_path / "all").code == 0
    ended = fairpath("recommend", stores / "new-graph", tmp_path / "few")
    assert ended.code == 2
    (key,) = new.keys(np.setdiff1d(new.nodes_of_kind("user"), users[:-1])[:1]).tolist()
    problem = "has no fingerprint in this store; compute or refresh the store with it among the sources"
    assert f"{tmp_path}/few: user {key!r} {problem}" in ended.err


def test_outputs_that_cannot_be_written(fairpath: Program, stores: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = fairpath(*arguments(stores, tmp_path / "file" / "x", "--tolerance", TOLERANCE))
    assert ended.code == 3
    assert f"{tmp_path}/file/x: cannot be written (Not a directory)" in ended.err
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        ended = fairpath(*arguments(stores, tmp_path / "out", "--tolerance", TOLERANCE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert ended.code == 3
    assert f"{tmp_path}/out.partial/due: cannot be written (File too large)" in ended.err
    assert not (tmp_path / "out").exists()
    assert fairpath(*arguments(stores, tmp_path / "out", "--tolerance", TOLERANCE)).code == 0


def test_bad_input_is_named(fairpath: Program, stores: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = fairpath(*arguments(stores, out, "--tolerance", 2))
    assert ended.code == 2
    assert "[refresh] 'tolerance' must be less than 2 (got 2.0)" in ended.err
    ended = fairpath(*arguments(stores, out, "--engine", "local", "--master", "local[1]"))
    assert ended.code == 2
    assert "'--master' goes with the Spark engine" in ended.err
    swapped = ["--from", stores / "old", "--from-graph", stores / "new-graph"]
    ended = fairpath("refresh", stores / "old-graph", *swapped, "--out", out)
    assert ended.code == 3
    assert "computed from another graph" in ended.err
    missing = ["--from", tmp_path / "none", "--from-graph", stores / "old-graph"]
    ended = fairpath("refresh", stores / "new-graph", *missing, "--out", out)
    assert ended.code == 3
    assert "no such store" in ended.err
    ended = fairpath(*arguments(stores, stores / "old"))
    assert ended.code == 2
    assert "exists, made" in ended.err
    assert not out.exists()
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_the_tolerance(fairpath: Program, stores: Path, tmp_path: Path) -> None:
    printed = fairpath(*arguments(stores, tmp_path / "out", "--tolerance", 0.1, "--dry-run")).json
    assert printed["arguments"]["from_graph"] == str(stores / "old-graph")
    assert "0.1" in json.dumps(printed["settings"]["refresh"])
    assert not list(tmp_path.iterdir())
