"""What a night goes on from: which run, which bits, and when it is made in full after all."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import build_graph as build_job
from jobs.pipeline.record import Run, key_of, output
from jobs.pipeline.run import run
from ppr.build import build_graph
from ppr.errors import DataError
from ppr.exact import exact_ppr
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.inputs import EdgeInput
from ppr.lineage import check_successor
from ppr.local import compute_fingerprints
from ppr.manifest import file_sha256
from tests.pipeline.pipelines import JUNE, MAY, digests, report_of, settings_of, states

JULY, AUGUST = datetime(2025, 7, 1, tzinfo=UTC), datetime(2025, 8, 1, tzinfo=UTC)
MADE = ("collect", "graph", "fingerprints")  # without a page, whose pictures take most of the time
TOLERANCE = 1.0  # of the settings


@pytest.fixture(scope="module")
def _nights(tmp_path_factory: pytest.TempPathFactory, items_only: dict[str, Any]) -> Path:
    out = tmp_path_factory.mktemp("nights")
    for until in (MAY, JUNE):
        run(settings_of(out, items_only), until=until)
    return out


@pytest.fixture
def nights(_nights: Path, tmp_path: Path) -> Path:
    """A copy of a pipeline that ran for May and went on for June; no choices, so nothing is trained."""
    shutil.copytree(_nights, tmp_path / "nights")
    return tmp_path / "nights"


def made(out: Path, until: datetime | None, step: str) -> Path:
    record = Run.open(out / "work", until)
    path = output(out / "work", step, str(record.key(step)))
    assert path.is_dir()
    return path


def graphs(out: Path, *ends: datetime | None) -> list[Graph]:
    return [Graph.open(made(out, end, "graph")) for end in ends]


def facts(out: Path, until: datetime | None, step: str = "fingerprints") -> dict[str, Any]:
    return Run.open(out / "work", until).facts(step)


def row_of(store: FingerprintStore, source: int) -> tuple[list[int], list[float], float]:
    ids, scores, mass = store.row(source)
    return ids.tolist(), scores.tolist(), mass


def kept_all(result: dict[str, Any]) -> bool:
    return {states(result)[step] for step in MADE} == {"kept"}


def test_a_night_goes_on_from_the_one_before(nights: Path, tmp_path: Path) -> None:
    """Its graph is what the commands make of the old one; its rows are a full run's, or old and near."""
    old, new = graphs(nights, MAY, JUNE)
    check_successor(old, new)
    interactions = made(nights, JUNE, "collect") / "interactions.parquet"
    twin = build_graph(EdgeInput(interactions), tmp_path / "twin", key_type="string", previous=old)
    assert twin.checksum == new.checksum != old.checksum
    before, after = (FingerprintStore.open(made(nights, end, "fingerprints")) for end in (MAY, JUNE))
    full = compute_fingerprints(new, tmp_path / "full", after.params)
    bounds = np.asarray(after.bounds)
    truth = [exact_ppr(graph, np.arange(old.n_nodes), restart_prob=0.3) for graph in (old, new)]
    n_kept = 0
    for row, source in enumerate(np.asarray(after.arrays.sources).tolist()):
        if bounds[row] == 0.0:
            assert row_of(after, source) == row_of(full, source)
            continue
        n_kept += 1
        assert row_of(after, source) == row_of(before, source)
        moved = np.abs(truth[1][source][: old.n_nodes] - truth[0][source]).sum()
        assert moved + truth[1][source][old.n_nodes :].sum() <= bounds[row] <= TOLERANCE
    told = facts(nights, JUNE)
    assert told["base"] == "20250501T000000Z"
    assert 0 < n_kept < after.n_sources
    assert told["largest_bound"] == bounds.max()
    assert told["mean_bound"] == pytest.approx(bounds.mean())
    assert told["recomputed"] == full.n_sources - n_kept
    report = report_of(nights, "20250601T000000Z")
    assert report["fingerprints"]["recomputed"] == told["recomputed"]
    assert report_of(nights, "20250501T000000Z")["fingerprints"]["base"] is None
    page = (nights / "work/runs/20250601T000000Z/report.html").read_text()
    assert "they go on from the run 20250501T000000Z" in page


def test_a_night_done_again_keeps_its_base(nights: Path, items_only: dict[str, Any]) -> None:
    before = {step: digests(nights / "work" / "steps" / step) for step in MADE}
    # A run between the two comes later: it is not the base of the one that has been.
    run(settings_of(nights, items_only), MADE, until=datetime(2025, 5, 15, tzinfo=UTC))
    for step in ("graph", "fingerprints"):
        shutil.rmtree(made(nights, JUNE, step))
    run(settings_of(nights, items_only), MADE, until=JUNE)
    after = {step: digests(nights / "work" / "steps" / step) for step in MADE}
    assert facts(nights, JUNE)["base"] == "20250501T000000Z"
    assert all(after[step].items() >= before[step].items() for step in MADE)
    assert facts(nights, datetime(2025, 5, 15, tzinfo=UTC))["base"] == "20250501T000000Z"
    run(settings_of(nights, items_only), MADE, until=JULY)
    assert facts(nights, JULY)["base"] == "20250601T000000Z"


def test_late_rows_of_a_night_before_change_no_later_one(
    tmp_path: Path, nights: Path, items_only: dict[str, Any]
) -> None:
    """May is made again with other data: June keeps the base that it was made from."""
    early = pq.read_table(items_only["interactions"][0] + "/0.parquet")
    pq.write_table(early[: len(early) // 2], tmp_path / "part.parquet")
    before = Run.open(nights / "work", MAY).key("collect")
    june = {step: Run.open(nights / "work", JUNE).key(step) for step in MADE}
    run(settings_of(nights, {"interactions": [str(tmp_path / "part.parquet")]}), MADE, until=MAY)
    assert Run.open(nights / "work", MAY).key("collect") != before
    again = run(settings_of(nights, items_only), MADE, until=JUNE)
    assert kept_all(again)
    assert {step: Run.open(nights / "work", JUNE).key(step) for step in MADE} == june


def test_without_tolerance_every_night_is_on_its_own(tmp_path: Path, items_only: dict[str, Any]) -> None:
    """Keys and bits are those of a run alone, in any order."""
    for place, ends in (("a", (MAY, JUNE)), ("b", (JUNE, MAY))):
        for until in ends:
            run(settings_of(tmp_path / place, items_only, tolerance=0.0), MADE, until=until)
    assert digests(tmp_path / "a/work/steps") == digests(tmp_path / "b/work/steps")
    record = Run.open(tmp_path / "a/work", JUNE)
    assert record.base is None
    how = {
        **dict.fromkeys(("src", "dst", "weight", "src_kind", "dst_kind", "directed", "delimiter")),
        **{"weighted": True, "header": None, "self_loops": "drop", "key_type": "string"},
    }
    interactions = made(tmp_path / "a", JUNE, "collect") / "interactions.parquet"
    assert record.key("graph") == key_of("graph", {"interactions": file_sha256(interactions)}, how)
    how = {"restart_prob": 0.3, "n_walks": 300, "top_k": 200, "seed": 0, "max_steps": None}
    how |= {"target_kinds": [], "exclude_neighbors": False}
    (graph,) = graphs(tmp_path / "a", JUNE)
    assert record.key("fingerprints") == key_of("fingerprints", {"graph": graph.checksum}, how)
    told = record.facts("fingerprints")
    assert (told["base"], told.get("why"), told["largest_bound"]) == (None, None, 0.0)


@pytest.mark.parametrize("step", ["graph", "fingerprints"])
def test_a_base_that_is_gone(nights: Path, items_only: dict[str, Any], step: str) -> None:
    """This night is there: nothing is done. Its stores are not: it is made in full, and says so."""
    shutil.rmtree(made(nights, MAY, step))
    again = run(settings_of(nights, items_only), MADE, until=JUNE)
    assert kept_all(again)
    for gone in ("graph", "fingerprints"):
        shutil.rmtree(made(nights, JUNE, gone))
    again = run(settings_of(nights, items_only), until=JUNE)
    assert states(again)["fingerprints"] == "done"
    why = "made in full: the stores of the run 20250501T000000Z, which this one went on from, are gone"
    assert facts(nights, JUNE, "graph")["why"] == why
    assert facts(nights, JUNE)["base"] is None
    assert not Graph.open(made(nights, JUNE, "graph")).manifest["parents"]
    page = (nights / "work/runs/20250601T000000Z/report.html").read_text()
    assert "which this one went on from, are gone" in page
    assert kept_all(run(settings_of(nights, items_only), MADE, until=JUNE))
    run(settings_of(nights, items_only), MADE, until=JULY)
    assert facts(nights, JULY)["base"] == "20250601T000000Z"


@pytest.mark.parametrize("file", ["graph/indices.npy", "fingerprints/scores.npy"])
def test_a_damaged_base(nights: Path, items_only: dict[str, Any], file: str) -> None:
    step, _, name = file.partition("/")
    path = made(nights, JUNE, step) / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    run(settings_of(nights, items_only), MADE, until=JULY)
    assert "cannot be used" in facts(nights, JULY, step)["why"]
    assert facts(nights, JULY)["base"] is None
    assert facts(nights, JULY)["largest_bound"] == 0.0


def test_other_parameters_begin_anew(nights: Path, items_only: dict[str, Any]) -> None:
    other = settings_of(nights, items_only)
    chosen = other.fingerprints.model_copy(update={"n_walks": 200})
    other = other.model_copy(update={"fingerprints": chosen})
    run(other, until=JULY)
    assert facts(nights, JULY, "graph")["why"].endswith(
        "the run 20250601T000000Z was made with other settings"
    )
    run(settings_of(nights, items_only), MADE, until=JULY)  # changed back: a base again
    assert facts(nights, JULY)["base"] == "20250601T000000Z"


def test_a_step_with_other_parameters_goes_on_from_nothing(
    nights: Path, items_only: dict[str, Any], tmp_path: Path
) -> None:
    """Its rows are those of the settings, whether the graph is a new one or the base's."""
    usual = settings_of(nights, items_only)
    other = usual.model_copy(update={"fingerprints": usual.fingerprints.model_copy(update={"n_walks": 100})})
    run(usual, MADE, until=AUGUST)
    run(usual, ["collect", "graph"], until=datetime(2025, 9, 1, tzinfo=UTC))  # no row is new: August's graph
    for until in (JUNE, datetime(2025, 9, 1, tzinfo=UTC)):
        usual_key = Run.open(nights / "work", until).key("fingerprints")
        run(other, ["fingerprints"], until=until)
        store = FingerprintStore.open(made(nights, until, "fingerprints"))
        (graph,) = graphs(nights, until)
        full = compute_fingerprints(graph, tmp_path / f"{until.month}", other.fingerprints.params())
        assert store.params.n_walks == 100
        assert store.checksum == full.checksum
        told = facts(nights, until)
        assert told["base"] is None
        assert "was made with other settings" in told["why"]
        run(usual, ["fingerprints"], until=until)  # changed back: what it was
        assert usual_key in (None, Run.open(nights / "work", until).key("fingerprints"))
        assert facts(nights, until)["base"] is not None


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_rows_in_full_stay_so_when_the_base_is_back(
    nights: Path, items_only: dict[str, Any], tmp_path: Path, damage: str
) -> None:
    """The run says that its rows go on from nothing; done again, it gives the same bits."""
    settings = settings_of(nights, items_only)
    run(settings, ["collect", "graph"], until=JULY)
    base = made(nights, JUNE, "fingerprints")
    shutil.copytree(base, tmp_path / "base")
    if damage == "gone":
        shutil.rmtree(base)
    else:
        (base / "scores.npy").write_bytes(b"x")
    run(settings, ["fingerprints"], until=JULY)
    why = facts(nights, JULY)["why"]
    assert ("are gone" if damage == "gone" else "cannot be used") in why
    assert (
        "made in full: "
        + json.loads((nights / "work/runs/20250701T000000Z/run.json").read_text())["base"]["rows_in_full"]
        == why
    )
    before = [digests(made(nights, JULY, step)) for step in MADE]
    shutil.rmtree(base, ignore_errors=True)
    for again in range(2):  # without the base's rows, and with them
        for step in ("graph", "fingerprints"):
            shutil.rmtree(made(nights, JULY, step))
        run(settings, MADE, until=JULY)
        assert [digests(made(nights, JULY, step)) for step in MADE] == before
        assert facts(nights, JULY)["why"] == why
        if not again:
            shutil.copytree(tmp_path / "base", base)


def test_a_night_done_again_without_tolerance_has_no_base(nights: Path, items_only: dict[str, Any]) -> None:
    alone = settings_of(nights, items_only, tolerance=0.0)
    run(alone, ["fingerprints"], until=JUNE)  # of a graph that went on from May's
    assert facts(nights, JUNE)["why"] == "made in full: 'tolerance' is 0"
    run(alone, MADE, until=JUNE)
    assert Run.open(nights / "work", JUNE).base is None
    assert facts(nights, JUNE)["base"] is None
    assert not graphs(nights, JUNE)[0].manifest["parents"]
    before = digests(made(nights, JUNE, "fingerprints"))
    run(settings_of(nights, items_only), ["fingerprints"], until=JUNE)
    assert digests(made(nights, JUNE, "fingerprints")) == before


def test_nothing_new_is_nothing_made(nights: Path, items_only: dict[str, Any]) -> None:
    run(settings_of(nights, items_only), MADE, until=AUGUST)
    result = run(settings_of(nights, items_only), MADE, until=datetime(2025, 9, 1, tzinfo=UTC))
    assert {states(result)[step] for step in ("graph", "fingerprints")} == {"kept"}
    assert made(nights, datetime(2025, 9, 1, tzinfo=UTC), "graph") == made(nights, AUGUST, "graph")
    # A smaller tolerance asks more of rows that are there.
    finer = facts(nights, AUGUST)["largest_bound"] / 2
    run(settings_of(nights, items_only, tolerance=finer), MADE, until=datetime(2025, 10, 1, tzinfo=UTC))
    told = facts(nights, datetime(2025, 10, 1, tzinfo=UTC))
    assert told["recomputed"] > 0
    assert told["largest_bound"] <= finer


def test_all_rows_computed_where_nothing_changed_say_why(nights: Path, items_only: dict[str, Any]) -> None:
    """A tolerance that most rows are over, of the same graph: the reason is the rows', not a change's."""
    run(settings_of(nights, items_only, tolerance=1.99), MADE, until=AUGUST)
    end = datetime(2025, 9, 1, tzinfo=UTC)
    result = run(settings_of(nights, items_only, tolerance=1e-9), until=end)
    told, shown = facts(nights, end), result["steps"]["fingerprints"]
    assert made(nights, end, "graph") == made(nights, AUGUST, "graph")
    why = "made in full: over half of the rows are new, or may have moved by more than 1e-09 since computed"
    assert (told["base"], told["why"]) == ("20250801T000000Z", why)
    assert (shown["base"], shown["why"], shown["share_recomputed"]) == (told["base"], why, 1.0)
    assert (shown["recomputed"], shown["largest_bound"], shown["mean_bound"]) == (told["sources"], 0.0, 0.0)
    assert why[1:] in (nights / "work/runs/20250901T000000Z/report.html").read_text()


def test_a_run_up_to_now_goes_on_from_itself(tmp_path: Path, items_only: dict[str, Any]) -> None:
    first = settings_of(tmp_path / "out", {"interactions": [items_only["interactions"][0] + "/0.parquet"]})
    for _ in range(2):
        told = run(first, MADE)
    assert kept_all(told)
    old = Graph.open(made(tmp_path / "out", None, "graph"))
    both = settings_of(tmp_path / "out", items_only)
    run(both, ["collect"])
    run(both, ["graph", "fingerprints"])
    new = Graph.open(made(tmp_path / "out", None, "graph"))
    assert new.manifest["parents"] == {"graph": old.checksum}
    assert facts(tmp_path / "out", None)["base"] == "latest"
    assert kept_all(run(both, MADE))


def test_what_the_next_night_needs_is_kept(nights: Path, items_only: dict[str, Any]) -> None:
    """Old nights done again remove neither the last night nor what an unfinished one goes on from."""
    run(settings_of(nights, items_only), ["collect", "graph"], until=JULY)
    for month in (2, 3):
        run(settings_of(nights, items_only, keep_runs=1), until=datetime(2025, month, 1, tzinfo=UTC))
    assert made(nights, JUNE, "fingerprints").is_dir()
    run(settings_of(nights, items_only, keep_runs=2), until=datetime(2025, 4, 1, tzinfo=UTC))
    run(settings_of(nights, items_only), ["collect", "graph", "fingerprints"], until=JULY)
    run(settings_of(nights, items_only, keep_runs=1), ["report"], until=JULY)
    assert facts(nights, JULY)["base"] == "20250601T000000Z"
    assert sorted(path.name for path in (nights / "work/runs").iterdir()) == ["20250701T000000Z"]


def test_a_run_up_to_now_leaves_the_next_night_its_base(nights: Path, items_only: dict[str, Any]) -> None:
    run(settings_of(nights, items_only, keep_runs=1), until=None)
    assert made(nights, JUNE, "fingerprints").is_dir()
    run(settings_of(nights, items_only), MADE, until=JULY)
    assert facts(nights, JULY)["base"] == "20250601T000000Z"


def test_a_run_that_failed_is_none_of_the_last(nights: Path, items_only: dict[str, Any]) -> None:
    bad = nights / "bad.parquet"
    bad.write_bytes(b"no table")
    for month in (7, 8):
        with pytest.raises(DataError):
            run(
                settings_of(nights, {"interactions": [str(bad)]}, keep_runs=2),
                until=datetime(2025, month, 1, tzinfo=UTC),
            )
    run(settings_of(nights, items_only, keep_runs=2), until=datetime(2025, 9, 1, tzinfo=UTC))
    names = {path.name for path in (nights / "work/runs").iterdir()}
    assert names == {f"20250{month}01T000000Z" for month in (6, 7, 8, 9)}
    assert made(nights, JUNE, "fingerprints").is_dir()


def test_too_many_removed_nodes_begin_anew(nights: Path, items_only: dict[str, Any]) -> None:
    few = {"interactions": [items_only["interactions"][0] + "/0.parquet"]}
    run(settings_of(nights, few), MADE, until=JULY)
    (july,) = graphs(nights, JULY)
    removed = len(july.removed) / july.n_nodes
    assert removed > 0
    run(settings_of(nights, items_only, max_removed=removed), MADE, until=AUGUST)
    assert facts(nights, AUGUST)["base"] == "20250701T000000Z"
    (august,) = graphs(nights, AUGUST)  # all nodes again, and the removed ones besides
    removed, end = len(august.removed) / august.n_nodes, datetime(2025, 8, 2, tzinfo=UTC)
    most = removed * (1.0 - 1e-6)
    run(settings_of(nights, items_only, max_removed=most), MADE, until=end)
    (anew,) = graphs(nights, end)
    assert len(anew.removed) == 0
    assert anew.n_nodes == august.live.size
    assert not anew.manifest["parents"]
    why = facts(nights, end, "graph")["why"]
    assert facts(nights, end)["base"] is None
    found = re.fullmatch(
        "made in full: ids begin anew, since ([0-9.]+%) of the nodes of the run 20250801T000000Z are removed "
        r"ones \('max_removed' is ([0-9.]+%)\)",
        why,
    )
    assert found is not None
    share, limit = found.groups()
    assert share != limit
    assert float(share[:-1]) == pytest.approx(100 * removed, rel=1e-5)


def test_the_record_has_the_base_before_anything_is_made(
    nights: Path, items_only: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build_job, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            run(settings_of(nights, items_only), MADE, until=JULY)
    record = json.loads((nights / "work/runs/20250701T000000Z/run.json").read_text())
    assert record["base"]["run"] == "20250601T000000Z"
    # An old night that is done meanwhile, and removes what it can, changes nothing about that.
    run(settings_of(nights, items_only, keep_runs=2), until=datetime(2025, 6, 20, tzinfo=UTC))
    run(settings_of(nights, items_only), MADE, until=JULY)
    assert facts(nights, JULY)["base"] == "20250601T000000Z"
