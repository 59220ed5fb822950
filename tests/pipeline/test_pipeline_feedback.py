"""The service's feedback in a run: what takes part, once, and what of erased users does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.pipeline.collect import collect, read_summary, table
from jobs.pipeline.making import graph
from jobs.pipeline.record import Run, output
from jobs.pipeline.run import run
from jobs.pipeline.step import Context
from jobs.settings import Settings
from router.encoders import open_encoder
from router.releases import current_version, encoder_of
from router.service.store import DecisionRecord, Feedback, Store, new_id, open_store
from tests.pipeline.pipelines import JUNE, settings_of

LLMS = ("brief", "kind", "slow")
DAY = 86_400.0
START = datetime(2026, 1, 5, tzinfo=UTC)
UNTIL = START + timedelta(days=10)


def at(day: float) -> float:
    return START.timestamp() + day * DAY


@pytest.fixture
def store(tmp_path: Path):
    with open_store(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


def told(store: Store, user: str, day: float, **changed: Any) -> None:
    """A decision that the user approved of at a time."""
    items = changed.pop("items", ())
    llm = changed.get("llm", "brief")
    record = DecisionRecord(
        decision_id=new_id(),
        created_at=at(day),
        user=user,
        release="r1",
        llm=llm,
        propensity=0.5,
        source="trained",
        task="code",
        query_hash="h",
        query_text="sort a list",
        offered=LLMS,
    )
    record = replace(record, **changed)
    store.add_decision(record)
    store.add_feedback(
        Feedback(record.decision_id, thumbs=1, items=items, occurred_at=at(day)), now=at(day) + 1
    )


def settings_for(folder: Path, **pipeline: Any) -> Settings:
    pq.write_table(pa.table({"llm": LLMS}), folder / "llms.parquet")
    given = {
        "work": folder / "work",
        "releases": folder / "releases",
        "llms": folder / "llms.parquet",
        "store": f"sqlite:///{folder / 'feedback.db'}",
        "held_out_users": 0.0,
        **pipeline,
    }
    return Settings(pipeline=given)  # type: ignore[arg-type]


def collected(
    settings: Settings, until: datetime | None = UNTIL, now: datetime = UNTIL
) -> tuple[Path, dict[str, Any]]:
    context = Context(settings, Run.open(settings.pipeline.work, until), now)
    outcome = collect(context)
    assert outcome.key is not None
    assert not list((settings.pipeline.work / "steps" / "collect").glob(".*"))
    folder = output(settings.pipeline.work, "collect", outcome.key)
    return folder, read_summary(folder)


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    path = table(folder, kind)
    return [] if path is None else pq.read_table(path).to_pylist()


def deliver_choices(folder: Path, **columns: list[Any]) -> list[str]:
    (folder / "choices").mkdir(exist_ok=True)
    given = {
        "user": ["ann"],
        "query": ["sort a list"],
        "llm": ["brief"],
        "task": ["code"],
        "timestamp": [datetime.fromtimestamp(at(1), UTC)],
        **columns,
    }
    pq.write_table(pa.table(given), folder / "choices" / "0.parquet")
    return [str(folder / "choices")]


def test_feedback_becomes_choices_and_interactions(store: Store, tmp_path: Path) -> None:
    told(store, "ann", 1, items=(("pen", 2.0),))
    told(store, "bob", 2, llm="kind", items=(("cup", 1.0), ("pen", 3.0)))
    folder, summary = collected(settings_for(tmp_path))
    assert [(row["user"], row["llm"], row["task"]) for row in rows(folder, "choices")] == [
        ("ann", "brief", "code"),
        ("bob", "kind", "code"),
    ]
    assert [(row["user"], row["item"], row["weight"]) for row in rows(folder, "interactions")] == [
        ("ann", "pen", 2.0),
        ("bob", "cup", 1.0),
        ("bob", "pen", 3.0),
    ]
    last = datetime.fromtimestamp(at(2), UTC)
    assert timedelta() < datetime.fromisoformat(summary["feedback_until"]) - last <= timedelta(microseconds=1)


def test_what_was_delivered_too_counts_once(store: Store, tmp_path: Path) -> None:
    told(store, "ann", 1, items=(("pen", 2.0),))
    told(store, "ann", 2)
    (tmp_path / "in").mkdir()
    delivered = pa.table(
        {"user": ["ann"], "item": ["pen"], "weight": [1.0], "timestamp": [datetime.fromtimestamp(at(1), UTC)]}
    )
    pq.write_table(delivered, tmp_path / "in" / "0.parquet")
    settings = settings_for(
        tmp_path, choices=deliver_choices(tmp_path), interactions=[str(tmp_path / "in" / "0.parquet")]
    )
    folder, summary = collected(settings)
    assert sorted(row["timestamp"].day - START.day for row in rows(folder, "choices")) == [1, 2]
    assert [row["weight"] for row in rows(folder, "interactions")] == [1.0]
    assert summary["tables"]["choices"]["repeated_feedback"] == 1
    assert summary["tables"]["interactions"]["repeated_feedback"] == 1


def test_feedback_after_the_end_does_not_take_part(store: Store, tmp_path: Path) -> None:
    told(store, "ann", 1)
    told(store, "bob", 9.99999)  # it happened before, and was received after
    told(store, "eve", 12)
    folder, summary = collected(settings_for(tmp_path), now=UNTIL + timedelta(days=9))
    assert [row["user"] for row in rows(folder, "choices")] == ["ann"]
    assert datetime.fromisoformat(summary["feedback_until"]) < UNTIL
    told(store, "pat", 13)
    again, _ = collected(settings_for(tmp_path), now=UNTIL + timedelta(days=9))
    assert again == folder
    everything, _ = collected(settings_for(tmp_path), until=None, now=UNTIL + timedelta(days=9))
    assert [row["user"] for row in rows(everything, "choices")] == ["ann", "bob", "eve", "pat"]


def test_erased_users_are_left_out_until_they_come_back(store: Store, tmp_path: Path) -> None:
    """What is younger than the readmission counts, wherever it comes from."""
    days = [1.0, 2.0]
    deliveries = deliver_choices(
        tmp_path,
        **{
            name: cells * 2
            for name, cells in {"query": ["sort a list"], "llm": ["brief"], "task": ["code"]}.items()
        },
        user=["ann", "bob"],
        timestamp=[datetime.fromtimestamp(at(day), UTC) for day in days],
    )
    told(store, "ann", 3)
    settings = settings_for(tmp_path, choices=deliveries)
    before, _ = collected(settings)
    assert [row["user"] for row in rows(before, "choices")] == ["ann", "ann", "bob"]
    store.erase_user("ann")
    folder, summary = collected(settings)
    assert folder != before
    assert [row["user"] for row in rows(folder, "choices")] == ["bob"]
    assert len(summary["erasures"]) == 1
    assert datetime.fromisoformat(summary["erased_until"]) <= datetime.now(UTC)
    assert "ann" not in (folder / "collect.json").read_text()
    store.readmit_user("ann")
    lifted = store.erasures()[0].lifted_at
    assert lifted is not None
    late = datetime.fromtimestamp(lifted + 5, UTC)
    deliver_choices(
        tmp_path,
        user=["ann", "bob", "ann"],
        query=["sort a list"] * 3,
        llm=["brief"] * 3,
        task=["code"] * 3,
        timestamp=[datetime.fromtimestamp(at(1), UTC), datetime.fromtimestamp(at(2), UTC), late],
    )
    folder, _ = collected(settings, until=None, now=late + timedelta(days=1))
    assert [(row["user"], row["timestamp"]) for row in rows(folder, "choices")] == [
        ("ann", late),
        ("bob", datetime.fromtimestamp(at(2), UTC)),
    ]


def test_the_file_of_erased_users_has_the_last_word(store: Store, tmp_path: Path) -> None:
    told(store, "ann", 1, items=(("pen", 1.0),))
    told(store, "bob", 1, items=(("pen", 1.0),))
    (tmp_path / "erased.txt").write_text("bob\n")
    folder, _ = collected(settings_for(tmp_path, erased=tmp_path / "erased.txt"))
    assert {row["user"] for row in rows(folder, "choices") + rows(folder, "interactions")} == {"ann"}


def test_feedback_that_does_not_fit_the_deliveries_is_left_out(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(store, "ann", 2)
    told(store, "bob", 3, task=None)
    folder, summary = collected(settings_for(tmp_path, choices=deliver_choices(tmp_path)))
    assert summary["feedback_left_out"] == {"without a task": 1}
    assert [row["user"] for row in rows(folder, "choices")] == ["ann", "ann"]
    assert "choices left out" in capsys.readouterr().out


def test_embeddings_of_the_feedback_alone(store: Store, tmp_path: Path) -> None:
    for number in range(3):
        vector = np.array([1.0, number], dtype=np.float32)
        told(store, "ann", 1 + number, query_hash=f"h{number}", query_text=None, query_embedding=vector)
    folder, _ = collected(settings_for(tmp_path))
    assert [row["query"] for row in rows(folder, "choices")] == ["h0", "h1", "h2"]
    queries = pq.read_table(folder / "queries.parquet")
    assert sorted(queries["id"].to_pylist()) == ["h0", "h1", "h2"]
    with_texts, summary = collected(settings_for(tmp_path, choices=deliver_choices(tmp_path)))
    assert summary["feedback_left_out"] == {"with an embedding only": 3}  # of an encoder that nobody knows
    assert not (with_texts / "queries.parquet").exists()


def test_a_table_of_queries_decides_which_feedback_fits(store: Store, tmp_path: Path) -> None:
    told(store, "ann", 2)
    told(store, "bob", 3, query_text="something else")
    pq.write_table(pa.table({"id": ["sort a list"], "text": ["sort a list"]}), tmp_path / "queries.parquet")
    folder, summary = collected(
        settings_for(tmp_path, choices=deliver_choices(tmp_path), queries=tmp_path / "queries.parquet")
    )
    assert [row["user"] for row in rows(folder, "choices")] == ["ann", "ann"]
    assert summary["feedback_left_out"] == {"with a query not in the table": 1}


def test_no_store_yet_is_no_feedback(tmp_path: Path) -> None:
    folder, summary = collected(settings_for(tmp_path, choices=deliver_choices(tmp_path)))
    assert len(rows(folder, "choices")) == 1
    assert summary["feedback_until"] is None
    assert not (tmp_path / "feedback.db").exists()


def test_feedback_makes_edges(store: Store, tmp_path: Path) -> None:
    told(store, "ann", 1, items=(("pen", 2.0), ("cup", 1.0)))
    settings = settings_for(tmp_path)
    context = Context(settings, Run.open(settings.pipeline.work, UNTIL), UNTIL)
    outcome = collect(context)
    context.run.keep("collect", {"state": "done", "key": outcome.key, "facts": outcome.facts})
    assert graph(context).facts["edges"] == 4  # two of them, both ways


def test_queries_of_deliveries_beside_embeddings_of_the_feedback_are_no_surprise(
    out: Path, deliveries: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are texts, every night."""
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    release = current_version(out / "releases")
    assert release is not None
    encoder = open_encoder(encoder_of(out / "releases", release))
    asked = datetime(2025, 5, 20, tzinfo=UTC).timestamp()
    with open_store(url) as store:
        record = DecisionRecord(
            decision_id=new_id(),
            created_at=asked,
            user="somebody new",
            release=release,
            llm=pq.read_table(deliveries["llms"])["llm"][0].as_py(),
            propensity=1.0,
            source="trained",
            task="code",
            query_embedding=encoder.encode(["sort a list"])[0],
            offered=(),
        )
        store.add_decision(record)
        store.add_feedback(Feedback(record.decision_id, thumbs=1, occurred_at=asked), now=asked + 1)
    settings = settings_of(out, deliveries, store=url)
    run(settings, ["collect", "graph", "fingerprints", "train"], until=JUNE)
    told = [line for line in capsys.readouterr().out.splitlines() if "taken for texts" in line]
    assert len(told) == 1
    assert "[info" in told[0]
