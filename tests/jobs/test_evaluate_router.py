from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog

pytest.importorskip("torch", reason="PyTorch is not installed")

from jobs.errors import ConfigurationError
from jobs.evaluate_router import run_benchmark, run_bundle
from jobs.settings import RouterSettings
from jobs.train_router import run as train
from router.dataset import RouterFiles
from router.errors import DataError, MissingDataError
from router.scorer import Scorer
from tests.command_line import Result
from tests.oracles.persona_worlds import write_world

LLMS = ("terse", "wordy", "cheap")
N_USERS, N_EVENTS = 30, 12


def _events(start: int, n: int, users: int = N_USERS) -> pa.Table:
    """User i wants LLM i mod 3 nine times of ten."""
    rng = np.random.default_rng(start)
    rows = [(user, number) for user in range(users) for number in range(start, start + n)]
    noise = rng.random(len(rows)) < 0.1
    return pa.table(
        {
            "user": [f"user {user}" for user, _ in rows],
            "query": [f"question number {number}" for _, number in rows],
            "task": ["facts" if number % 2 else "advice" for _, number in rows],
            "llm": [
                LLMS[int(rng.integers(3)) if odd else user % 3]
                for (user, _), odd in zip(rows, noise, strict=True)
            ],
            "timestamp": [float(number) for _, number in rows],
        }
    )


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events for training, later ones, and the bundle trained on the first."""
    folder = tmp_path_factory.mktemp("market")
    pq.write_table(_events(0, N_EVENTS), folder / "past.parquet")
    pq.write_table(_events(N_EVENTS, 4), folder / "later.parquet")
    pq.write_table(pa.table({"llm": LLMS}), folder / "llms.parquet")
    files = RouterFiles(events=folder / "past.parquet", llms=folder / "llms.parquet")
    train(files, folder / "router", RouterSettings(encoder="hashing", n_steps=60, device="cpu"))
    return folder


def test_a_bundle_is_judged_beside_its_baselines(market: Path, tmp_path: Path) -> None:
    found = run_bundle(
        market / "router",
        market / "later.parquet",
        history=market / "past.parquet",
        report=tmp_path / "page.html",
    )
    assert (found["events"], found["users"]) == (N_USERS * 4, N_USERS)
    # Nine times of ten the wanted one, or one of three: at best .93, a share of a third for all alike.
    assert found["accuracy"] > 0.8
    assert found["baselines"]["popularity"]["accuracy"] < 0.5
    assert found["log_likelihood"] > found["baselines"]["popularity"]["log_likelihood"] + 0.3
    assert sum(one["events"] for one in found["calibration"]["bins"]) == found["events"]
    (group,) = found["accuracy_by_group"]  # all users made equally many choices
    assert group == f"1 few ({N_EVENTS}-{N_EVENTS})"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Beside simple baselines" in page
    assert "<svg" in page
    json.dumps(found)


def test_held_out_by_time_equals_the_two_files(market: Path, tmp_path: Path) -> None:
    both = pa.concat_tables([_events(0, N_EVENTS), _events(N_EVENTS, 4)])
    pq.write_table(both.take(np.random.default_rng(0).permutation(both.num_rows)), tmp_path / "all.parquet")
    split = run_bundle(market / "router", tmp_path / "all.parquet", held_out_share=4 / 16)
    given = run_bundle(market / "router", market / "later.parquet", history=market / "past.parquet")
    assert split["accuracy"] == given["accuracy"]
    assert split["log_likelihood"] == pytest.approx(given["log_likelihood"])
    assert split["baselines"]["user_task"] == pytest.approx(given["baselines"]["user_task"])


def test_without_a_history_there_are_no_baselines(market: Path) -> None:
    found = run_bundle(market / "router", market / "later.parquet")
    assert "baselines" not in found
    assert list(found["accuracy_by_group"]) == ["all"]


def test_users_unknown_to_the_bundle_are_judged_as_such(market: Path, tmp_path: Path) -> None:
    table = _events(N_EVENTS, 4)
    strangers = table.set_column(0, "user", pa.array([f"new {name}" for name in table["user"].to_pylist()]))
    pq.write_table(strangers, tmp_path / "new.parquet")
    found = run_bundle(market / "router", tmp_path / "new.parquet", history=market / "past.parquet")
    assert found["accuracy"] < 0.55
    assert list(found["accuracy_by_group"]) == ["0 none"]


def test_keys_are_compared_in_the_type_of_the_bundle(market: Path, tmp_path: Path) -> None:
    """A bundle with users "0", "1" ..., and events that hold them as integers, or the other way round."""

    def write(table: pa.Table, name: str, as_text: bool) -> Path:
        keys = [key.removeprefix("user ") for key in table["user"].to_pylist()]
        users = pa.array(keys if as_text else [int(key) for key in keys])
        pq.write_table(table.set_column(0, "user", users), tmp_path / name)
        return tmp_path / name

    past, later = _events(0, N_EVENTS), _events(N_EVENTS, 4)
    for in_bundle in (True, False):
        files = RouterFiles(events=write(past, "past.parquet", in_bundle), llms=market / "llms.parquet")
        bundle = tmp_path / f"router-{in_bundle}"
        train(files, bundle, RouterSettings(encoder="hashing", n_steps=20, device="cpu"))
        same = run_bundle(bundle, write(later, "same.parquet", in_bundle), history=files.events)
        other = run_bundle(bundle, write(later, "other.parquet", not in_bundle), history=files.events)
        assert same == other
        assert (same["users"], same["users_unknown"]) == (N_USERS, 0)


def test_unknown_users_are_counted_and_warned_of(market: Path, tmp_path: Path) -> None:
    table = _events(N_EVENTS, 2, users=N_USERS + 10)
    pq.write_table(table, tmp_path / "some.parquet")
    with structlog.testing.capture_logs() as logs:
        assert run_bundle(market / "router", tmp_path / "some.parquet")["users_unknown"] == 10
    assert logs == []
    strangers = table.set_column(0, "user", pa.array([f"new {key}" for key in table["user"].to_pylist()]))
    pq.write_table(strangers, tmp_path / "strangers.parquet")
    with structlog.testing.capture_logs() as logs:
        found = run_bundle(market / "router", tmp_path / "strangers.parquet")
    assert found["users_unknown"] == found["users"] == N_USERS + 10
    assert "does not know most of the users" in logs[0]["event"]


def test_what_queries_are_known_by(market: Path, tmp_path: Path) -> None:
    """Vectors of an encoder that is not here do not help."""
    past = _events(0, N_EVENTS)
    ids = sorted(set(past["query"].to_pylist()))
    vectors = np.random.default_rng(0).normal(size=(len(ids), 4)).tolist()
    pq.write_table(pa.table({"id": ids, "embedding": vectors}), tmp_path / "queries.parquet")
    files = RouterFiles(
        events=market / "past.parquet", llms=market / "llms.parquet", queries=tmp_path / "queries.parquet"
    )
    train(files, tmp_path / "router", RouterSettings(n_steps=20, device="cpu"))
    pq.write_table(_events(N_EVENTS, 2).drop_columns(["task"]), tmp_path / "taskless.parquet")
    known_by = {
        name: run_bundle(bundle, events)["queries_known_by"]
        for name, bundle, events in (
            ("texts", market / "router", tmp_path / "taskless.parquet"),
            ("tasks", tmp_path / "router", market / "later.parquet"),
            ("ids", tmp_path / "router", tmp_path / "taskless.parquet"),
        )
    }
    assert known_by == {"texts": "text", "tasks": "task", "ids": "nothing"}


def test_the_page_says_whether_the_router_was_trained_on_the_events(market: Path, tmp_path: Path) -> None:
    for name, words in (("past", "was trained on, which flatters it"), ("later", "was not trained on")):
        run_bundle(market / "router", market / f"{name}.parquet", report=tmp_path / "page.html")
        assert f"Choices that the router {words}" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_events_of_the_training_are_noticed(market: Path) -> None:
    assert run_bundle(market / "router", market / "past.parquet")["trained_on_these_events"]
    assert not run_bundle(market / "router", market / "later.parquet")["trained_on_these_events"]


def test_questions_known_from_training_are_judged_as_they_are_served(market: Path) -> None:
    table, scorer = _events(0, N_EVENTS), Scorer.open(market / "router")
    columns = (table[name].to_pylist() for name in ("user", "query", "task", "llm"))
    picks = []
    for user, query, task, llm in zip(*columns, strict=True):
        scores = scorer.scores(scorer.user(user), None, task, query=query)
        assert scores.task_source == "query"
        picks.append(scorer.llms.names[scores.preference.argmax()] == llm)
    assert run_bundle(market / "router", market / "past.parquet")["accuracy"] == np.mean(picks)


def test_thumbs_down_are_left_out(market: Path, tmp_path: Path) -> None:
    table = _events(N_EVENTS, 4)
    thumbs = np.where(np.arange(table.num_rows) % 4 == 0, -1, 0)
    pq.write_table(table.append_column("thumbs", pa.array(thumbs)), tmp_path / "thumbs.parquet")
    found = run_bundle(market / "router", tmp_path / "thumbs.parquet")
    assert found["left_out"]["thumbs_down"] == N_USERS
    assert found["events"] == 3 * N_USERS


def test_bad_input(market: Path, tmp_path: Path) -> None:
    bundle, later = market / "router", market / "later.parquet"
    with pytest.raises(ConfigurationError, match="either '--history' or '--held-out-share'"):
        run_bundle(bundle, later, history=later, held_out_share=0.2)
    with pytest.raises(ConfigurationError, match=r"'--held-out-share' must lie between 0 and 1 \(got 1.5\)"):
        run_bundle(bundle, later, held_out_share=1.5)
    pq.write_table(_events(0, 2).drop_columns(["timestamp"]), tmp_path / "timeless.parquet")
    with pytest.raises(DataError, match="no column 'timestamp'"):
        run_bundle(bundle, tmp_path / "timeless.parquet", held_out_share=0.5)
    table = _events(0, 2)
    times = pa.array([None, *table["timestamp"].to_pylist()[1:]])
    pq.write_table(
        table.drop_columns("timestamp").append_column("timestamp", times), tmp_path / "gap.parquet"
    )
    with pytest.raises(DataError, match=r"gap.parquet: 'timestamp' must not be missing .*\(1 events' are\)"):
        run_bundle(bundle, tmp_path / "gap.parquet", held_out_share=0.5)
    unhappy = table.append_column("thumbs", pa.array(np.full(table.num_rows, -1)))
    pq.write_table(unhappy, tmp_path / "unhappy.parquet")
    with pytest.raises(DataError, match="no event that tells a choice"):
        run_bundle(bundle, tmp_path / "unhappy.parquet")
    with pytest.raises(MissingDataError):
        run_bundle(tmp_path / "nothing", later)


def test_command(market: Path, fairpath: Callable[..., Result]) -> None:
    bundle, later = market / "router", market / "later.parquet"
    done = fairpath("evaluate-router", "--bundle", bundle, "--events", later)
    assert done.code == 0
    assert done.json == run_bundle(bundle, later)
    wrong = fairpath("evaluate-router", "--bundle", bundle, "--events", later, "--strength", "mild")
    assert (wrong.code, "'--strength' goes with --benchmark" in wrong.err) == (2, True)
    assert fairpath("evaluate-router", "--events", later).code == 2
    assert fairpath("evaluate-router", "--bundle", market / "nothing", "--events", later).code == 3


def test_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_world(tmp_path)
    _train_quickly(monkeypatch)
    found = run_benchmark(
        tmp_path, seeds=(1,), tracks=("choice-only",), protocols=("warm",), report=tmp_path / "page.html"
    )
    assert "simulated users" in found["benchmark"]
    assert list(found["figures"]) == ["warm, choice-only"]
    figures = found["figures"]["warm, choice-only"]
    assert set(figures) == {"seen_gain", "seen_accuracy", "new_gain", "new_accuracy"}
    assert 0.0 < figures["seen_gain"] <= 1.0
    assert "warm, choice-only" in (tmp_path / "page.html").read_text(encoding="utf-8")
    found = run_benchmark(tmp_path, seeds=(1,), tracks=("choice-only",), protocols=("new-llm",))
    (row,) = found["new_llm"].values()
    assert row["recall"] == 0.0  # an LLM nobody chose is not known in this track
    assert "precision" not in row
    with pytest.raises(ConfigurationError, match=r"'--strength' must be among .* \(got 'wild'\)"):
        run_benchmark(tmp_path, strength="wild")
    with pytest.raises(ConfigurationError, match=r"'--protocols' must be among warm, new-users"):
        run_benchmark(tmp_path, protocols=("cold",))
    with pytest.raises(MissingDataError, match="world_mild"):
        run_benchmark(tmp_path, strength="mild")


def _train_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    from router import personal
    from router.train import Settings

    def quick(*args: Any, **options: Any) -> Any:
        return personal.PersonalRouter(Settings(n_factors=2, n_tastes=2, n_steps=60), device="cpu")

    monkeypatch.setattr("jobs.evaluate_router.default_router", quick)
