"""Runs of the pipeline as an operator has them: again, in parts, in any order, and with faults."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.pipeline import making
from jobs.pipeline.record import STEPS, Run, output
from jobs.pipeline.run import run
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from router.erasure import user_digest
from router.releases import current_version, decisions, open_release, versions
from router.releases.diff import diff
from router.releases.places import Folder, rollback
from router.service.store import DecisionRecord, Feedback, new_id, open_store
from tests.conftest import ROOT
from tests.pipeline.pipelines import JUNE, MAY, deliver, digests, report_of, settings_of, small_market, states

MADE = ("collect", "graph", "fingerprints", "train", "evaluate")


def test_a_run_publishes_and_tells_everything(in_order: Path, deliveries: dict[str, Any]) -> None:
    report = report_of(in_order, "20250501T000000Z")
    assert report["state"] == "published"
    market = small_market()
    before = pc.less(market.interactions["timestamp"], pa.scalar(MAY, pa.timestamp("ms", "UTC")))
    kept = [d["kept"] for d in report["deliveries"] if d["kind"] == "interactions"]
    assert sum(kept) == pc.sum(before).as_py()
    assert [step["step"] for step in report["steps"]] == list(STEPS[1:7])
    assert all(step["seconds"] >= 0 and step["peak_bytes"] > 1e7 for step in report["steps"])
    assert [release["version"] for release in report["releases"]] == versions(in_order / "releases")[:1]
    page = (in_order / "work" / "runs" / "20250501T000000Z" / "report.html").read_text()
    assert str(report["release"]) in page
    june = report_of(in_order, "20250601T000000Z")
    assert june["before"] == "20250501T000000Z"
    assert june["drift"]["counts"]["interactions.rows"]["ratio"] > 1
    assert june["evaluation"]["current"] == report["release"]


def test_a_second_run_does_nothing(out: Path, deliveries: dict[str, Any]) -> None:
    before = digests(out)
    result = run(settings_of(out, deliveries), until=JUNE)
    assert set(states(result).values()) <= {"ready", "kept", "skipped"}
    after = digests(out)
    runs = {name for name in before if name.endswith("run.json")}
    assert {k: v for k, v in after.items() if k not in runs} == {
        k: v for k, v in before.items() if k not in runs
    }


def test_a_second_run_imports_nothing_heavy(out: Path, deliveries: dict[str, Any], tmp_path: Path) -> None:
    settings = settings_of(out, deliveries)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    script = (
        "import sys; from datetime import datetime\n"
        "from jobs.settings import Settings; from jobs.pipeline.run import run\n"
        f"settings = Settings(**__import__('json').load(open({str(tmp_path / 'settings.json')!r})))\n"
        "run(settings, until=datetime.fromisoformat('2025-06-01T00:00:00+00:00'))\n"
        "print(sorted({'torch', 'numba', 'pyspark', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.splitlines()[-1] == "[]"


def test_runs_in_another_order_make_the_same(
    in_order: Path, tmp_path: Path, deliveries: dict[str, Any]
) -> None:
    """The earlier run comes later: it makes what it made in order, and replaces no newer release."""
    settings = settings_of(tmp_path, deliveries)
    first = run(settings, until=JUNE)
    second = run(settings, until=MAY)
    assert first["published"]
    assert not second["published"]
    assert second["reasons"][0]["rule"] == "newer"
    assert current_version(tmp_path / "releases") == first["release"]
    for step in MADE[:4]:
        made = Run.open(in_order / "work", MAY).key(step)
        assert Run.open(tmp_path / "work", MAY).key(step) == made
        places = (output(place / "work", step, str(made)) for place in (tmp_path, in_order))
        assert len({json.dumps(digests(place)) for place in places}) == 1


def test_steps_one_by_one_are_the_same(in_order: Path, tmp_path: Path, deliveries: dict[str, Any]) -> None:
    settings = settings_of(tmp_path, deliveries)
    for step in STEPS:
        run(settings, [step], until=MAY)
    for step in MADE:
        made = Run.open(in_order / "work", MAY).key(step)
        assert Run.open(tmp_path / "work", MAY).key(step) == made
    made = Run.open(in_order / "work", MAY)
    assert (
        report_of(tmp_path, made.name)["decision"]["reasons"]
        == report_of(in_order, made.name)["decision"]["reasons"]
    )


def test_without_choices_there_is_no_release(tmp_path: Path, items_only: dict[str, Any]) -> None:
    result = run(settings_of(tmp_path, items_only), until=MAY)
    assert states(result)["fingerprints"] == "done"
    assert {states(result)[step] for step in ("train", "evaluate", "publish")} == {"skipped"}
    assert report_of(tmp_path, "20250501T000000Z")["state"] == "done"
    assert not (tmp_path / "releases").exists()


def test_a_worse_model_is_refused(out: Path, deliveries: dict[str, Any], tmp_path: Path) -> None:
    """Choices that say nothing: whatever is trained on them foresees the true ones worse."""
    current = current_version(out / "releases")
    market = small_market()
    table = market.llm_choices
    names = market.llms["llm"].to_pylist()
    early = pc.less(table["timestamp"], pa.scalar(MAY, pa.timestamp("ms", "UTC"))).to_pylist()
    wrong = [
        names[at % 6] if is_early else llm
        for at, (llm, is_early) in enumerate(zip(table["llm"].to_pylist(), early))
    ]
    worse = deliver(market, tmp_path / "worse")
    column = table.schema.get_field_index("llm")
    pq.write_table(table.set_column(column, "llm", [wrong]), tmp_path / "worse" / "choices" / "0.parquet")
    settings = settings_of(out, worse)
    rule = settings.gate.model_copy(update={"accuracy_floor": 0.99})
    result = run(settings.model_copy(update={"gate": rule}), until=datetime(2025, 7, 1, tzinfo=UTC))
    assert not result["published"]
    assert any(reason["rule"] == "floor" and not reason["passed"] for reason in result["reasons"])
    assert current_version(out / "releases") == current == result["release"]
    assert decisions(out / "releases")[-1]["version"] is None
    assert report_of(out, "20250701T000000Z")["state"] == "refused"
    again = run(settings.model_copy(update={"gate": rule}), until=datetime(2025, 7, 1, tzinfo=UTC))
    assert len(decisions(out / "releases")) == 3
    assert again["reasons"] == result["reasons"]


def test_what_was_rolled_back_is_not_published_again(out: Path, deliveries: dict[str, Any]) -> None:
    bad = current_version(out / "releases")
    rollback(Folder(out / "releases"))
    result = run(settings_of(out, deliveries), until=JUNE)
    assert not result["published"]
    assert "rolled_back" in {reason["rule"] for reason in result["reasons"] if not reason["passed"]}
    assert current_version(out / "releases") != bad


def test_what_was_rolled_back_is_not_published_again_from_another_base(
    out: Path, deliveries: dict[str, Any]
) -> None:
    """The same data after no run before have other ids and rows, but are what the operator did not want."""
    bad = open_release(out / "releases", str(current_version(out / "releases")), verify=False)
    rollback(Folder(out / "releases"))
    shutil.rmtree(out / "work")
    result = run(settings_of(out, deliveries), until=JUNE)
    assert result["steps"]["graph"]["checksum"] != bad.manifest["stores"]["graph"]["checksum"]
    assert not result["published"]
    assert "rolled_back" in {reason["rule"] for reason in result["reasons"] if not reason["passed"]}
    other = settings_of(out, deliveries, tolerance=0.9)  # something to publish again
    result = run(other, until=JUNE)
    assert "rolled_back" not in {reason["rule"] for reason in result["reasons"] if not reason["passed"]}


def test_nothing_new_is_said(out: Path, deliveries: dict[str, Any]) -> None:
    """No row is younger than the end of the run before: the stores are the same."""
    settings = settings_of(out, {**deliveries, "interactions": deliveries["interactions"]})
    later = run(settings, until=datetime(2025, 8, 1, tzinfo=UTC))
    again = run(settings, until=datetime(2025, 9, 1, tzinfo=UTC))
    assert later["published"]
    assert not again["published"]
    assert again["release"] == later["release"]
    assert again["steps"]["evaluate"]["state"] == "skipped"
    assert report_of(out, "20250901T000000Z")["state"] == "nothing new"


def test_old_runs_go(out: Path, items_only: dict[str, Any]) -> None:
    settings = settings_of(out, items_only, keep_runs=2)
    for month in (7, 8, 9):
        run(settings, until=datetime(2025, month, 1, tzinfo=UTC))
    assert sorted(path.name for path in (out / "work" / "runs").iterdir()) == [
        "20250801T000000Z",
        "20250901T000000Z",
    ]
    for name in ("20250801T000000Z", "20250901T000000Z"):
        record = json.loads((out / "work" / "runs" / name / "run.json").read_text())
        for step in ("collect", "graph", "fingerprints"):
            assert output(out / "work", step, record["steps"][step]["key"]).is_dir()
    assert len(list((out / "work" / "steps" / "train").iterdir())) == 0
    result = run(settings, until=datetime(2025, 9, 1, tzinfo=UTC))
    assert set(states(result).values()) <= {"ready", "kept", "skipped"}


def test_an_erased_user_is_gone_from_everything(
    out: Path, deliveries: dict[str, Any], tmp_path: Path
) -> None:
    before = current_version(out / "releases")
    nodes = pq.read_table(out / "releases" / str(before) / "graph" / "nodes.parquet")
    users = nodes.filter(pc.equal(nodes["kind"].cast(pa.string()), "user"))["key"]
    n_users, user = len(users), users[0].as_py()
    assert any(user.encode() in path.read_bytes() for path in out.rglob("keys.npy"))
    (tmp_path / "erased.txt").write_text(f"{user}\n")
    settings = settings_of(out, deliveries, erased=tmp_path / "erased.txt")
    result = run(settings, until=JUNE)
    assert result["published"]
    assert any(reason["rule"] == "erasure" for reason in result["reasons"])
    current = out / "releases" / str(current_version(out / "releases"))
    for folder in (out / "work", current):
        for path in folder.rglob("*"):
            if path.suffix == ".parquet" and path.is_file():
                table = pq.read_table(path)
                for name in {"user", "key"} & set(table.column_names):
                    assert user not in table[name].to_pylist(), path
            elif path.is_file():
                assert user.encode() not in path.read_bytes(), path
    # The night went on from one that knew the user: the id is taken, and no row holds it.
    graph = Graph.open(current / "graph")
    assert Run.open(out / "work", JUNE).facts("fingerprints")["base"] == "20250501T000000Z"
    assert graph.removed.size
    rows = FingerprintStore.open(current / "fingerprints", graph=graph)
    rows.validate(graph)
    assert not np.isin(rows.ids, graph.removed).any()
    assert not np.isin(rows.sources, graph.removed).any()
    told = diff(Folder(out / "releases"), str(before), current.name)
    assert told["graph"]["user"] == {"before": n_users, "after": n_users - 1, "added": 0, "gone": 1}
    assert told["graph"]["edges"]["added"] == 0
    assert told["graph"]["edges"]["gone"] == told["graph"]["edges"]["before"] - graph.n_edges > 0
    again = run(settings, until=JUNE)
    assert set(states(again).values()) <= {"ready", "kept", "skipped"}
    assert user_digest(user) in (next((out / "work/steps/collect").iterdir()) / "collect.json").read_text()


def test_the_unchanged_part_is_kept_when_a_setting_changes(out: Path, deliveries: dict[str, Any]) -> None:
    settings = settings_of(out, deliveries)
    router = settings.router.model_copy(update={"n_tastes": 2})
    result = run(settings.model_copy(update={"router": router}), until=JUNE)
    told = states(result)
    assert [told[step] for step in MADE] == ["kept", "kept", "kept", "done", "done"]


def test_making_is_the_same_job_as_the_commands(in_order: Path) -> None:
    keys = Run.open(in_order / "work", JUNE)
    for step in ("graph", "fingerprints", "train"):
        folder = in_order / "work" / "steps" / step / str(keys.key(step))
        assert making.checksum(folder) == keys.facts(step)["checksum"]


def test_choices_alone_make_a_release(tmp_path: Path, deliveries: dict[str, Any]) -> None:
    only = {name: deliveries[name] for name in ("choices", "llms")}
    result = run(settings_of(tmp_path, only), until=MAY)
    assert states(result)["graph"] == "skipped"
    assert result["published"]
    again = run(settings_of(tmp_path, only), until=MAY)
    assert set(states(again).values()) <= {"ready", "kept", "skipped"}


def test_broken_data_stay_refused(out: Path, deliveries: dict[str, Any], tmp_path: Path) -> None:
    """Two nights with the same half of the data: the second does not differ from the first."""
    market = small_market()
    few = replace(market, interactions=market.interactions[:100], llm_choices=market.llm_choices[:60])
    broken = settings_of(out, deliver(few, tmp_path / "few"))
    for month in (7, 8):
        result = run(broken, until=datetime(2025, month, 1, tzinfo=UTC))
        assert not result["published"]
        assert "collapse" in {reason["rule"] for reason in result["reasons"] if not reason["passed"]}


def test_of_feedback_only_choices_without_the_tasks_that_deliveries_have_are_left_out(
    out: Path, deliveries: dict[str, Any], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    market = small_market()
    llm = market.llm_choices["llm"][0].as_py()
    at = datetime(2025, 5, 20, tzinfo=UTC).timestamp()
    with open_store(url) as store:
        for task in ("code", None, "maths"):
            decision = DecisionRecord(
                decision_id=new_id(),
                created_at=at,
                user="somebody new",
                release="r1",
                llm=llm,
                propensity=1.0,
                source="trained",
                task=task,
                query_text=f"a question of {task}",
                offered=(llm,),
            )
            store.add_decision(decision)
            store.add_feedback(Feedback(decision.decision_id, thumbs=1, occurred_at=at), now=at + 1)
    settings = settings_of(out, deliveries, store=url)
    run(settings, ["collect"], until=JUNE)
    record = Run.open(settings.pipeline.work, JUNE)
    assert record.facts("collect")["feedback_left_out"] == {"without a task": 1}
    folder = output(settings.pipeline.work, "collect", record.steps["collect"]["key"])
    rows = [
        row
        for path in folder.glob("*choices*.parquet")
        for row in pq.read_table(path).to_pylist()
        if row["user"] == "somebody new"
    ]
    assert {row["task"] for row in rows} == {"code", "maths"}


def test_feedback_reaches_the_release_and_erased_users_leave_it(
    out: Path, deliveries: dict[str, Any], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    settings = settings_of(out, deliveries, store=url)
    market = small_market()
    user, llm = (market.llm_choices[name][0].as_py() for name in ("user", "llm"))
    at = datetime(2025, 5, 20, tzinfo=UTC).timestamp()
    with open_store(url) as store:
        decision = DecisionRecord(
            decision_id=new_id(),
            created_at=at,
            user=user,
            release="r1",
            llm=llm,
            propensity=1.0,
            source="trained",
            task="code",
            query_text="sort a list",
            offered=(llm,),
        )
        store.add_decision(decision)
        told = Feedback(decision.decision_id, thumbs=1, items=(("a new thing", 2.0),), occurred_at=at)
        store.add_feedback(told, now=at + 1)
        result = run(settings, until=JUNE)
        assert result["published"]
        release = open_release(out / "releases", result["release"], verify=True)
        assert release.feedback_until == pytest.approx(at, abs=1e-5)
        assert release.feedback_until > at
        assert "a new thing" in pq.read_table(release.path / "graph" / "nodes.parquet")["key"].to_pylist()
        store.erase_user(user)
        result = run(settings, until=JUNE)
    assert result["published"]
    assert "erasure" in {reason["rule"] for reason in result["reasons"]}
    release = open_release(out / "releases", result["release"], verify=True)
    assert release.erased_until is not None
    assert release.feedback_until is None  # the only feedback was that user's
    assert user not in pq.read_table(release.path / "graph" / "nodes.parquet")["key"].to_pylist()
    assert set(states(run(settings, until=JUNE)).values()) <= {"ready", "kept", "skipped"}
