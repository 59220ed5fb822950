"""Exports are what the batch jobs read, and hold what was told."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from jobs import serve_store_cli
from jobs.errors import ConfigurationError
from jobs.interactions import read_interactions
from ppr.build import build_graph
from ppr.errors import OutputExistsError
from ppr.inputs import EdgeInput
from router.dataset import RouterFiles, read_events, read_router_data
from router.encoders import EncoderIdentity
from router.service.store import DecisionRecord, Feedback, new_id, open_store
from tests.choice_files import LLMS, write_files

NOW = 1_764_000_000.0


def decided(store, **changed) -> str:
    record = DecisionRecord(
        decision_id=new_id(),
        created_at=NOW,
        user="u00",
        release="r1",
        llm=LLMS[0],
        propensity=0.5,
        source="trained",
        task="code",
        query_hash="h1",
        query_embedding=np.array([0.5, -0.25], dtype=np.float32),
        offered=LLMS[:2],
        cost_usd=0.01,
    )
    store.add_decision(replace(record, **changed))
    return record.decision_id


def rows(path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_choices_are_events_that_a_training_reads(store, tmp_path):
    """Queries by embeddings: ids in the events, vectors in the table of queries."""
    for number in range(40):
        embedding = np.array([number % 2, 1.0], dtype=np.float32)
        decision = decided(
            store, user=f"u{number % 4:02d}", query_hash=f"h{number % 8}", query_embedding=embedding
        )
        store.add_feedback(Feedback(decision, thumbs=-1 if number % 5 == 0 else 1, cost_usd=0.5), now=NOW)
    exported = store.export(tmp_path / "out")
    assert (exported.n_choices, exported.n_queries, exported.left_out) == (40, 8, {})
    assert exported.feedback_until == NOW
    events = read_events(tmp_path / "out" / "choices.parquet", LLMS)
    assert len(events) == 40
    assert (events.thumbs == -1).sum() == 8
    assert events.offered is not None
    assert events.offered.sum() == 80
    assert events.timestamps is not None
    np.testing.assert_array_equal(events.timestamps, NOW)
    np.testing.assert_array_equal(events.measured["cost_usd"], 0.5)
    files = RouterFiles(
        events=tmp_path / "out" / "choices.parquet",
        llms=write_files(tmp_path / "files").llms,
        queries=tmp_path / "out" / "queries.parquet",
    )
    data = read_router_data(files)
    assert data.tasks.names == ("code",)
    assert data.data.query_embeddings.shape == (8, 2)
    assert len(data.data.choices) == 32


def test_texts_are_queries_themselves(store, tmp_path):
    for text in ("why?", "how?", "why?"):
        store.add_feedback(Feedback(decided(store, query_text=text, task=None), thumbs=1), now=NOW)
    exported = store.export(tmp_path / "out")
    assert (exported.n_choices, exported.n_queries) == (3, 0)
    assert not (tmp_path / "out" / "queries.parquet").exists()
    events = read_events(tmp_path / "out" / "choices.parquet", LLMS)
    assert sorted(events.query_keys) == ["how?", "why?"]
    assert events.query_tasks is None


def test_tasks_are_queries_where_there_is_nothing_else(store, tmp_path):
    store.add_feedback(Feedback(decided(store, query_embedding=None, query_hash=None), thumbs=1))
    store.export(tmp_path / "out")
    events = read_events(tmp_path / "out" / "choices.parquet", LLMS)
    assert (events.query_keys.tolist(), events.query_tasks.tolist()) == (["code"], ["code"])


def test_what_no_training_can_read_is_left_out_and_counted(store, tmp_path):
    store.add_feedback(Feedback(decided(store, query_embedding=np.ones(3, np.float32)), thumbs=1))
    store.add_feedback(Feedback(decided(store), thumbs=1))  # the encoder has changed
    store.add_feedback(Feedback(decided(store, query_embedding=None), thumbs=1))
    store.add_feedback(Feedback(decided(store, user=None), thumbs=1))
    store.add_feedback(Feedback(user="u01", llm="kind"))
    store.add_feedback(Feedback(decided(store), cost_usd=1.0))  # nobody judged that
    exported = store.export(tmp_path / "out")
    assert (exported.n_choices, exported.n_judgements) == (1, 6)
    assert exported.left_out == {
        "of no user": 1,
        "on a decision without embedding": 1,
        "on a query of another encoder": 1,
        "on no decision": 1,
    }


def test_embeddings_keep_the_name_of_their_encoder(store, tmp_path):
    """Vectors of equal length, of two encoders: those of the one in use, which the table names."""
    encoders = {"r1": EncoderIdentity("old", 1, 2), "r2": EncoderIdentity("new", 1, 2)}
    for release in ("r1", "r2"):
        store.add_feedback(Feedback(decided(store, release=release, query_hash=release), thumbs=1))
        time.sleep(0.002)  # ids sort by milliseconds
    exported = store.export(tmp_path / "out", encoder_of=encoders.get)
    assert (exported.n_choices, exported.encoder) == (1, encoders["r2"])
    assert exported.left_out == {"on a query of another encoder": 1}
    metadata = pq.read_schema(tmp_path / "out" / "queries.parquet").metadata
    assert EncoderIdentity.from_json(json.loads(metadata[b"fairpath.encoder"])) == encoders["r2"]
    assert [row["id"] for row in rows(tmp_path / "out" / "queries.parquet")] == ["r2"]


def test_a_decision_is_one_choice_with_what_was_measured_of_it(store, tmp_path):
    first, second = sorted(decided(store) for _ in range(2))  # of one millisecond, perhaps
    store.add_feedback(Feedback(first, thumbs=-1, occurred_at=NOW + 3), now=NOW + 9)
    store.add_feedback(Feedback(first, thumbs=1, occurred_at=NOW + 2, cost_usd=0.25), now=NOW + 9)
    store.add_feedback(Feedback(second, llm="third", score=0.75), now=NOW + 4)
    store.add_feedback(Feedback(second, cost_usd=7.0, latency_ms=9.0), now=NOW + 4)
    store.export(tmp_path / "out")
    one, other = rows(tmp_path / "out" / "choices.parquet")
    assert (one["llm"], one["thumbs"], one["cost_usd"], one["latency_ms"]) == (LLMS[0], -1, 0.25, None)
    assert one["timestamp"].timestamp() == NOW + 3
    assert (other["llm"], other["thumbs"], other["reward"], other["cost_usd"]) == ("third", 0, 0.75, None)
    assert other["offered"] == [*LLMS[:2], "third"]
    judgements = rows(tmp_path / "out" / "judgements.parquet")
    assert [row["thumbs"] for row in judgements[:2]] == [1, -1]
    assert {row["routed_llm"] for row in judgements} == {LLMS[0]}
    assert {row["propensity"] for row in judgements} == {0.5}


def test_interactions_are_read_by_the_graph_builder(store, tmp_path):
    store.add_feedback(Feedback(user="u00", items=(("book", 2.0), ("pen", 0.5))), now=NOW)
    store.add_feedback(Feedback(decided(store, user="u01"), items=(("book", 1.0),)), now=NOW + 1)
    assert store.export(tmp_path / "out").n_interactions == 3
    path = tmp_path / "out" / "interactions.parquet"
    graph = build_graph([EdgeInput(path)], tmp_path / "graph")
    assert (graph.kinds, graph.n_nodes) == (("item", "user"), 4)
    assert graph.weights().sum() == 2 * 3.5
    table = read_interactions(path)
    assert sorted(time.timestamp() for time in table["timestamp"].to_pylist()) == [NOW, NOW, NOW + 1]


def test_equal_contents_give_equal_files_and_nothing_is_overwritten(store, tmp_path):
    for number in range(5):
        store.add_feedback(Feedback(decided(store), thumbs=1, items=((f"i{number}", 1.0),)))
    store.export(tmp_path / "one")
    store.export(tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["choices.parquet", "interactions.parquet", "judgements.parquet", "queries.parquet"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with pytest.raises(OutputExistsError):
        store.export(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["one", "two"]


def test_since_is_when_feedback_was_received(store, tmp_path):
    store.add_feedback(Feedback(decided(store), thumbs=1, occurred_at=NOW), now=NOW)
    store.add_feedback(Feedback(decided(store), thumbs=1, occurred_at=NOW), now=NOW + 10)
    assert store.export(tmp_path / "out", since=NOW + 10).n_choices == 1


@pytest.fixture
def program(tmp_path):
    """The commands as a program of their own, on a new store."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.add_typer(serve_store_cli.keys, name="keys")
    app.add_typer(serve_store_cli.feedback, name="feedback")
    where = f"sqlite:///{tmp_path / 'feedback.db'}"

    def run(*args: str):
        result = CliRunner().invoke(app, [*args, "--store", where])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return json.loads(result.stdout)

    run.url = where
    return run


@pytest.mark.usefixtures("plain_surroundings")
def test_keys_are_made_listed_and_revoked_by_command(program):
    made = program(
        *("keys", "create", "--name", "app", "--scope", "route", "--scope", "feedback"),
        *("--budget-usd", "2.5", "--requests-per-minute", "60", "--expires-days", "30"),
    )
    with open_store(program.url) as store:
        key = store.find_key(made["token"])
    assert key is not None
    assert (key.key_id, key.scopes, key.budget_usd) == (made["key_id"], {"route", "feedback"}, 2.5)
    assert key.expires_at == pytest.approx(key.created_at + 30 * 86400, abs=10)
    (listed,) = program("keys", "list")["keys"]
    assert listed == {name: value for name, value in made.items() if name != "token"}
    assert program("keys", "revoke", made["key_id"]) == {"key_id": made["key_id"], "revoked": True}
    assert program("keys", "list")["keys"][0]["revoked_at"] is not None
    with pytest.raises(ConfigurationError, match="'KEY_ID' must be that of a key"):
        program("keys", "revoke", made["key_id"])
    with pytest.raises(ConfigurationError, match="'--expires-days' must be positive"):
        program("keys", "create", "--name", "a", "--scope", "route", "--expires-days", "0")


@pytest.mark.usefixtures("plain_surroundings")
def test_feedback_is_exported_by_command(program, tmp_path):
    with open_store(program.url) as store:
        store.add_feedback(Feedback(user="u00", items=(("book", 2.0),)), now=NOW)
    told = program("feedback", "export", "--out", str(tmp_path / "all"), "--since", "2025-11-24")
    assert told == {
        "folder": str(tmp_path / "all"),
        "choices": 0,
        "queries": 0,
        "interactions": 1,
        "judgements": 1,
        "left_out": {},
        "encoder": None,
        "feedback_until": "2025-11-24T16:00:00.000000+00:00",
        "erased_until": None,
    }
    late = program("feedback", "export", "--out", str(tmp_path / "late"), "--since", "2025-11-24T18:00:00")
    assert late["judgements"] == 0
