"""What a run collects, against plain Python over the rows."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import tempfile
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import ConfigurationError, exit_code
from jobs.pipeline.collect import collect, read_summary
from jobs.pipeline.record import Run, output
from jobs.pipeline.step import Context
from jobs.settings import Settings
from ppr.errors import DataError
from router.errors import DataError as RouterDataError
from tests.pipeline.pipelines import digests

START = datetime(2026, 1, 1, tzinfo=UTC)
UNTIL = START + timedelta(days=8)
NOW = START + timedelta(days=30)
SHARE, EVENTS = 0.5, 2
LLMS = ("brief", "kind", "slow")

Row = dict[str, Any]


def fraction(key: bytes, text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "big") / 2**64


def naive_part(files: list[list[Row]], names: tuple[str, ...], erased: set[str]) -> list[Row]:
    """Rows that take part, each as often as it counts, in a fixed order."""
    most: Counter[tuple[Any, ...]] = Counter()
    for rows in files:
        here: Counter[tuple[Any, ...]] = Counter()
        for row in rows:
            late = row["timestamp"] is not None and row["timestamp"] >= UNTIL
            if not late and row["user"] not in erased:
                here[tuple(row.get(name) for name in names)] += 1
        for row, n in here.items():
            most[row] = max(most[row], 1 if row[names.index("timestamp")] is not None else n)
    rows = [dict(zip(names, row)) for row, n in most.items() for _ in range(n)]
    return sorted(rows, key=lambda row: [(row[name] is None, row[name] or 0) for name in names])


def naive_held_out(rows: list[Row], words: tuple[str, ...]) -> list[bool]:
    """Whether each row is held out: the last of each user of the sample, at most half."""
    of_user: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        of_user[row["user"]].append(at)
    out = [False] * len(rows)
    for user, places in of_user.items():
        if fraction(b"fairpath held-out users", user) >= SHARE:
            continue

        def age(at: int) -> tuple[Any, ...]:
            time = rows[at]["timestamp"]
            text = "\0".join(rows[at][word] for word in words)
            first = START - timedelta(days=9)
            return time or first, fraction(b"fairpath held-out rows", text), at

        n = min(EVENTS, len(places) // 2)
        for at in sorted(places, key=age)[len(places) - n :]:
            out[at] = True
    return out


def settings_for(folder: Path, **pipeline: Any) -> Settings:
    pq.write_table(pa.table({"llm": LLMS}), folder / "llms.parquet")
    given = {
        "work": folder / "work",
        "llms": folder / "llms.parquet",
        "held_out_users": SHARE,
        "held_out_events": EVENTS,
        **pipeline,
    }
    return Settings(pipeline=given)  # type: ignore[arg-type]


def collected(settings: Settings, until: datetime | None = UNTIL, now: datetime = NOW) -> Path:
    run = Run.open(settings.pipeline.work, until)
    outcome = collect(Context(settings, run, now))
    assert outcome.key is not None
    run.keep("collect", {"state": outcome.state, "key": outcome.key, "facts": outcome.facts})
    return output(settings.pipeline.work, "collect", outcome.key)


def rows_of(folder: Path, name: str) -> list[Row]:
    path = folder / f"{name}.parquet"
    return pq.read_table(path).to_pylist() if path.exists() else []


def write(path: Path, rows: list[Row], names: tuple[str, ...], form: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(path.name + form)
    if form == ".parquet":
        kinds = {"weight": pa.float64(), "timestamp": pa.timestamp("us", "UTC"), "thumbs": pa.int8()}
        schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
        return path
    cells = [["" if row[name] is None else row[name] for name in names] for row in rows]
    shown = [[cell.isoformat() if isinstance(cell, datetime) else str(cell) for cell in row] for row in cells]
    text = "\n".join(",".join(row) for row in [list(names), *shown]) + "\n"
    if form == ".csv":
        path.write_text(text)
    else:
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return path


times = st.one_of(st.none(), st.integers(0, 10).map(lambda day: START + timedelta(days=day, microseconds=7)))
interactions = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["ann", "bob", "7", "007", "eve"]),
        "item": st.sampled_from(["pen", "cup", "hat"]),
        "weight": st.sampled_from([1.0, 2.5]),
        "timestamp": times,
    }
)
choices = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["ann", "bob", "7", "eve"]),
        "query": st.sampled_from(["write a poem", "sort a list"]),
        "llm": st.sampled_from(LLMS),
        "thumbs": st.sampled_from([-1, 0, 1]),
        "timestamp": times,
    }
)
FORMS = st.sampled_from([".parquet", ".csv", ".csv.gz"])
INTERACTION = ("user", "item", "weight", "timestamp")
CHOICE = ("user", "query", "llm", "thumbs", "timestamp")


@settings(max_examples=12)
@given(
    st.lists(st.tuples(st.lists(interactions, min_size=1, max_size=12), FORMS), min_size=1, max_size=4),
    st.lists(st.tuples(st.lists(choices, min_size=1, max_size=8), FORMS), max_size=3),
    st.sets(st.sampled_from(["ann", "bob"]), max_size=1),
    st.randoms(use_true_random=False),
)
def test_collect_against_counting_rows(
    of_items: list[tuple[list[Row], str]],
    of_llms: list[tuple[list[Row], str]],
    erased: set[str],
    shuffling: random.Random,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for kind, files, names in (("interactions", of_items, INTERACTION), ("choices", of_llms, CHOICE)):
            (folder / kind).mkdir()
            for number, (rows, form) in enumerate(files):
                write(folder / kind / str(number), rows, names, form)
        (folder / "erased.txt").write_text("".join(f"{user}\n" for user in erased))
        settings = settings_for(
            folder,
            interactions=[str(folder / "interactions")],
            choices=[str(folder / "choices")],
            erased=folder / "erased.txt",
        )
        wanted: dict[str, list[Row]] = {}
        for kind, files, names, words in (
            ("interactions", of_items, INTERACTION, ("user", "item")),
            ("choices", of_llms, CHOICE, ("user", "query", "llm")),
        ):
            order = names if kind == "interactions" else CHOICE
            all_rows = naive_part([rows for rows, _ in files], order, erased)
            out = naive_held_out(all_rows, words)
            wanted[kind] = [row for row, held in zip(all_rows, out) if not held]
            wanted[f"held_out_{kind}"] = [row for row, held in zip(all_rows, out) if held]
        if not any(wanted.values()):
            with pytest.raises(DataError, match="no row takes part"):
                collected(settings)
            return
        folder_of = collected(settings)
        for name, expected in wanted.items():
            found = rows_of(folder_of, name)
            names = INTERACTION if "interactions" in name else CHOICE
            assert [{n: row.get(n) for n in names} for row in found] == expected
        # Neither the order of rows nor the names, places and forms of the files make a difference.
        for kind, files, names in (("interactions", of_items, INTERACTION), ("choices", of_llms, CHOICE)):
            for number, (rows, _) in enumerate(shuffling.sample(files, len(files))):
                rows = shuffling.sample(rows, len(rows))
                write(
                    folder / "other" / kind / f"{shuffling.randint(0, 9)}-{number}", rows, names, ".parquet"
                )
        other = {kind: [str(folder / "other" / kind / "*.parquet")] for kind in ("interactions", "choices")}
        again = collected(settings_for(folder, **other, erased=folder / "erased.txt"))
        tables = [{k: v for k, v in digests(f).items() if k != "collect.json"} for f in (folder_of, again)]
        assert tables[0] == tables[1]


def deliver(folder: Path, **columns: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{len(list(folder.iterdir()))}.parquet"
    pq.write_table(pa.table(columns), path)
    return path


DAYS = [START + timedelta(days=day) for day in range(4)]


def test_without_times_rows_repeat_within_a_file_only(tmp_path: Path) -> None:
    deliver(tmp_path / "in", user=["a", "a", "b"], item=["x", "x", "x"])
    deliver(tmp_path / "in", user=["a", "a", "c"], item=["x", "x", "x"])
    folder = collected(settings_for(tmp_path, interactions=[str(tmp_path / "in")], held_out_users=0.0))
    assert [(row["user"], row["item"]) for row in rows_of(folder, "interactions")] == [
        ("a", "x"),
        ("a", "x"),
        ("b", "x"),
        ("c", "x"),
    ]
    assert rows_of(folder, "held_out_interactions") == []


def test_counts_of_deliveries(tmp_path: Path) -> None:
    late = [*DAYS[:2], UNTIL, UNTIL + timedelta(days=1)]
    first = deliver(tmp_path / "in", user=list("abcd"), item=list("wxyz"), timestamp=late)
    second = deliver(tmp_path / "in", user=list("ab"), item=list("wx"), timestamp=DAYS[:2])
    (tmp_path / "erased.txt").write_text("a\n\n")
    folder = collected(
        settings_for(tmp_path, interactions=[str(tmp_path / "in")], erased=tmp_path / "erased.txt")
    )
    summary = read_summary(folder)
    found = {one["name"]: [one[n] for n in ("rows", "later", "erased")] for one in summary["deliveries"]}
    assert found == {str(first): [4, 2, 1], str(second): [2, 0, 1]}
    assert summary["tables"]["interactions"]["repeated"] == 1
    assert datetime.fromisoformat(summary["first_later"]) == UNTIL
    assert [row["user"] for row in rows_of(folder, "interactions")] == ["b"]


def test_rows_in_the_future_wait_for_their_time(tmp_path: Path) -> None:
    deliver(tmp_path / "in", user=["a", "b"], item=["x", "y"], timestamp=[START, NOW + timedelta(hours=3)])
    settings = settings_for(tmp_path, interactions=[str(tmp_path / "in")])
    now = collected(settings, until=None)
    assert [row["user"] for row in rows_of(now, "interactions")] == ["a"]
    assert collected(settings, until=None, now=NOW + timedelta(hours=3)) == now
    later = collected(settings, until=None, now=NOW + timedelta(hours=4))
    assert [row["user"] for row in rows_of(later, "interactions")] == ["a", "b"]
    assert collected(settings, until=None, now=NOW + timedelta(days=4)) == later


def test_late_rows_are_counted(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, interactions=[str(tmp_path / "in")])
    deliver(tmp_path / "in", user=["a", "b"], item=["x", "y"], timestamp=DAYS[:2])
    collected(settings, until=DAYS[2])
    deliver(
        tmp_path / "in", user=["a", "c", "d"], item=["x", "x", "y"], timestamp=[DAYS[0], DAYS[1], DAYS[3]]
    )
    collected(settings)
    facts = Run.open(settings.pipeline.work, UNTIL).facts("collect")
    assert facts["late"]["interactions"] == 1
    assert facts["before"]["run"] == "20260103T000000Z"


def test_the_same_file_twice_is_told_and_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deliver(tmp_path / "in", user=["a", "a"], item=["x", "x"])
    deliver(tmp_path / "in", user=["a", "a"], item=["x", "x"])
    folder = collected(settings_for(tmp_path, interactions=[str(tmp_path / "in")], held_out_users=0.0))
    assert len(rows_of(folder, "interactions")) == 2
    assert "twice the same delivery" in capsys.readouterr().out


def test_empty_deliveries_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "monday.csv").write_text("user,item\na,x\n")
    (tmp_path / "in" / "tuesday.csv").write_text("user,item\n")
    pq.write_table(
        pa.table({"user": ["a"], "item": ["x"]}).slice(0, 0), tmp_path / "in" / "wednesday.parquet"
    )
    folder = collected(settings_for(tmp_path, interactions=[str(tmp_path / "in")]))
    assert len(rows_of(folder, "interactions")) == 1
    assert capsys.readouterr().out.count("an empty delivery") == 2


def test_choices_of_a_retired_llm_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deliver(
        tmp_path / "in",
        user=["a", "b", "c"],
        query=["q", "q", "q"],
        llm=["brief", "gone", "kind"],
        offered=[["brief", "gone"], ["gone"], ["kind", "slow"]],
    )
    folder = collected(settings_for(tmp_path, choices=[str(tmp_path / "in")], held_out_users=0.0))
    rows = rows_of(folder, "choices")
    assert [(row["llm"], row["offered"]) for row in rows] == [
        ("brief", ["brief"]),
        ("kind", ["kind", "slow"]),
    ]
    assert "gone" in capsys.readouterr().out


def test_users_who_are_erased_lose_their_attributes(tmp_path: Path) -> None:
    deliver(tmp_path / "in", user=["a", "b"], item=["x", "y"])
    (tmp_path / "users.csv").write_text("user,age\na,30\nb,40\n")
    (tmp_path / "erased.txt").write_text("a\n")
    folder = collected(
        settings_for(
            tmp_path,
            interactions=[str(tmp_path / "in")],
            users=tmp_path / "users.csv",
            erased=tmp_path / "erased.txt",
        )
    )
    assert (folder / "users.csv").read_text().split() == ['"user","age"', '"b","40"']


GOOD = {"user": ["a"], "item": ["x"], "weight": [1.0], "timestamp": [START]}
BAD_COLUMNS = {
    "renamed": ({"customer": ["a"], "item": ["x"]}, "a column of 'user' is needed, called user or user_id"),
    "missing": ({**GOOD, "weight": None}, "column 'weight' is missing, which 2 other deliveries have"),
    "retyped": ({**GOOD, "weight": ["much"]}, "column 'weight' must hold numbers or integers (got string)"),
    "other keys": ({**GOOD, "user": [7]}, "column 'user' must hold texts as in 2 other deliveries"),
    "other times": ({**GOOD, "timestamp": [7]}, "column 'timestamp' must hold times as in 2 other"),
    "lists": ({**GOOD, "item": [["x"]]}, "column 'item' must hold texts or integers"),
    "twice": ({**GOOD, "User": ["b"]}, "column names must be distinct"),
    "null key": ({**GOOD, "user": pa.array([None], pa.string())}, "row 1: 'user' must not be null or empty"),
    "weight": ({**GOOD, "weight": [-1.0]}, "row 1: 'weight' must be positive and finite (got -1.0)"),
}


@pytest.mark.parametrize("fault", BAD_COLUMNS)
def test_bad_deliveries_write_nothing(tmp_path: Path, fault: str) -> None:
    columns, rule = BAD_COLUMNS[fault]
    for day in range(2):
        deliver(tmp_path / "in", **{**GOOD, "timestamp": [DAYS[day]]})
    bad = deliver(tmp_path / "in", **{name: cells for name, cells in columns.items() if cells is not None})
    with pytest.raises((DataError, RouterDataError)) as error:
        collected(settings_for(tmp_path, interactions=[str(tmp_path / "in")]))
    assert str(bad) in str(error.value)
    assert rule in str(error.value)
    assert exit_code(error.value) == 3
    assert not list((tmp_path / "work").rglob("*.parquet"))


def test_a_column_may_be_lacking_where_the_settings_say_so(tmp_path: Path) -> None:
    deliver(tmp_path / "in", user=["a"], item=["x"])
    deliver(tmp_path / "in", user=["b"], item=["x"], weight=[3.0])
    folder = collected(settings_for(tmp_path, interactions=[str(tmp_path / "in")], may_lack=("weight",)))
    assert [row["weight"] for row in rows_of(folder, "interactions")] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.parquet", b"PAR1 and no more", "not a readable table"),
        ("a.csv", b"\n", "not a readable table"),
        ("a.json", b"{}", "a delivery must end in .parquet, .csv or .csv.gz"),
        ("a.csv", b"user,item,timestamp\na,x,1700000000000\n", "'timestamp' must be a time in the years"),
        ("a.csv", b"user,item,timestamp\na,x,yesterday\n", "row 1: 'timestamp' must be an ISO 8601 time"),
    ],
)
def test_files_that_are_no_deliveries(tmp_path: Path, name: str, content: bytes, rule: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises((DataError, RouterDataError)) as error:
        collected(settings_for(tmp_path, interactions=[str(tmp_path / "in")]))
    assert name in str(error.value)
    assert rule in str(error.value)


def test_no_data_and_no_llms_are_faults_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="must name some data"):
        collected(settings_for(tmp_path))
    deliver(tmp_path / "in", user=["a"], query=["q"], llm=["kind"])
    with pytest.raises(ConfigurationError, match="'llms' must name the table"):
        collected(settings_for(tmp_path, choices=[str(tmp_path / "in")], llms=None))


def test_own_names_of_columns(tmp_path: Path) -> None:
    deliver(tmp_path / "in", customer=["a"], film=["x"], stars=[4])
    settings = settings_for(tmp_path, interactions=[str(tmp_path / "in")])
    graph = settings.graph.model_copy(update={"src": "customer", "dst": "film", "weight": "stars"})
    folder = collected(settings.model_copy(update={"graph": graph}))
    assert rows_of(folder, "interactions") == [{"user": "a", "item": "x", "weight": 4.0}]
    assert json.loads((folder / "collect.json").read_text())["until"] == UNTIL.isoformat()
