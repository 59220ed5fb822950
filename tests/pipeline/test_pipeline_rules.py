"""What settings, ends and deliveries of a pipeline must keep to, and what is said where they do not."""

from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import ConfigurationError, NotYetError
from jobs.pipeline import collect as collecting
from jobs.pipeline.deliveries import find_deliveries
from jobs.pipeline.lock import LOCK, only_one
from jobs.pipeline.run import run
from jobs.settings import Settings
from ppr.errors import MissingDataError, ResourceError
from tests.command_line import Result
from tests.pipeline.pipelines import JUNE, MAY, settings_of, states

DAY = datetime(2026, 1, 3, 12, tzinfo=UTC)


def deliver(folder: Path, name: str = "0.csv", content: str = "user,item\na,x\nb,x\nc,y\n") -> Path:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / name).write_text(content)
    return folder / "in"


@pytest.mark.parametrize(
    ("work", "releases", "rule"),
    [
        ("a", "a", "two folders, neither in the other"),
        ("a", "b/../a", "two folders, neither in the other"),
        ("a", "a/releases", "two folders, neither in the other"),
        ("a/work", "a", "two folders, neither in the other"),
        ("in/work", "a", "'work' must not be among the deliveries"),
        ("in", "a", "'work' must not be among the deliveries"),
        ("a", "in/releases", "'releases' must not be among the deliveries"),
        ("in/0.csv", "a", "'work' must be a folder"),
        ("a", "in/0.csv/deep", "'releases' must be a folder"),
    ],
)
@pytest.mark.parametrize("pattern", ["in", "i*", "**/in"])
def test_places_apart(tmp_path: Path, work: str, releases: str, rule: str, pattern: str) -> None:
    deliver(tmp_path)
    places = {"work": tmp_path / work, "releases": tmp_path / releases}
    settings = settings_of(tmp_path, {**places, "interactions": [str(tmp_path / pattern)]})
    before = sorted(tmp_path.rglob("*"))
    for steps in ([], ["ready"], ["publish"]):
        with pytest.raises(ConfigurationError, match=rule):
            run(settings, steps, until=MAY)
    assert sorted(tmp_path.rglob("*")) == before


def test_places_side_by_side(tmp_path: Path) -> None:
    deliver(tmp_path)
    settings = settings_of(tmp_path, {"interactions": [str(tmp_path / "*.csv"), str(tmp_path / "in" / "*")]})
    assert run(settings, ["ready"], until=MAY) == {"run": "20250501T000000Z", "ready": True, "found": []}
    assert settings.pipeline.work.is_dir()
    assert not settings.pipeline.releases.exists()


def test_the_task_may_not_be_lacking(tmp_path: Path, fairpath: Callable[..., Result]) -> None:
    with pytest.raises(ValueError, match="'may_lack' must not name 'task': a model has a task for every"):
        Settings(pipeline={"may_lack": ["reward", "task"]})  # type: ignore[arg-type]
    for number, more in enumerate(({}, {"task": ["code"]})):
        (tmp_path / "in").mkdir(exist_ok=True)
        table = pa.table({"user": ["a"], "query": ["q"], "llm": ["brief"], **more})
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet")
    pq.write_table(pa.table({"llm": ["brief"]}), tmp_path / "llms.parquet")
    given = {"choices": [str(tmp_path / "in")], "llms": tmp_path / "llms.parquet"}
    with pytest.raises(
        MissingDataError, match=r"0\.parquet: column 'task'.*must name tasks, or none"
    ) as error:
        run(settings_of(tmp_path, given), ["collect"], until=MAY)
    assert "may_lack" not in str(error.value)


@pytest.mark.parametrize(
    "pattern", ["{day}", "{date.foo}", "{date[0]}", "{}", "{0}", "{date!r}", "{", "{date:{x}}"]
)
def test_patterns_have_the_date_only(pattern: str, fairpath: Callable[..., Result]) -> None:
    ended = fairpath("pipeline", "ready", "--set", f"pipeline.wait_for={pattern!r}")
    assert ended.code == 2
    assert f"'wait_for' must have no other field than {{date}} (got {pattern!r})" in ended.err


@pytest.mark.parametrize(
    ("until", "day"),
    [
        ("2026-01-04", "2026-01-03"),
        ("2026-01-04T00:00:00-05:00", "2026-01-03"),
        ("2026-01-04T00:00:00+09:00", "2026-01-03"),
        ("2026-01-04T00:00:01+09:00", "2026-01-04"),
        ("2026-01-03T22:00:00Z", "2026-01-03"),
    ],
)
def test_the_last_day_is_that_of_the_given_zone(tmp_path: Path, until: str, day: str) -> None:
    end = datetime.fromisoformat(until)
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    settings = settings_of(tmp_path, {}, wait_for=(str(tmp_path / "{date:%Y%m%d}-{date}"),))
    name = f"{day.replace('-', '')}-{day}"
    with pytest.raises(NotYetError, match=name):
        run(settings, ["ready"], until=end)
    (tmp_path / name).write_text("")  # a marker may be empty
    assert run(settings, ["ready"], until=end)["found"] == [str(tmp_path / name)]


def test_the_zone_changes_nothing_else(tmp_path: Path, items_only: dict[str, Any]) -> None:
    settings = settings_of(tmp_path, items_only)
    first = run(settings, ["collect"], until=MAY)
    again = run(settings, ["collect"], until=MAY.astimezone(ZoneInfo("Asia/Tokyo")))
    assert (first["run"], first["until"]) == (again["run"], again["until"])
    assert states(again) == {"collect": "kept"}


def test_an_end_in_the_future_is_refused(tmp_path: Path, items_only: dict[str, Any]) -> None:
    settings = settings_of(tmp_path, items_only)
    with pytest.raises(
        ConfigurationError, match=r"'until' must not be in the future \(got .*clock says 2026"
    ):
        run(settings, ["collect"], until=DAY + timedelta(minutes=2), now=lambda: DAY)
    assert not (tmp_path / "work").exists()
    run(settings, ["ready"], until=DAY + timedelta(seconds=50), now=lambda: DAY)


@pytest.mark.parametrize("until", ["0001-01-01", "9999-12-31T23:59:59-10:00", "0001-01-01T00:00:00+10:00"])
def test_ends_at_the_edges(tmp_path: Path, until: str, fairpath: Callable[..., Result]) -> None:
    ended = fairpath("pipeline", "ready", "--until", until, "--set", f"pipeline.work={str(tmp_path / 'w')!r}")
    assert ended.code == 2
    assert "'--until' must be" in ended.err


def test_a_run_up_to_now_ends_with_its_data(out: Path, deliveries: dict[str, Any]) -> None:
    """What it knows is no newer than its newest row: a dated run after that is not older."""
    every = [
        time
        for kind in ("interactions", "choices")
        for path in Path(deliveries[kind][0]).glob("*.parquet")
        for time in pq.read_table(path)["timestamp"].to_pylist()
    ]
    newest = max(every)
    result = run(settings_of(out, deliveries))
    record = json.loads((out / "work" / "runs" / "latest" / "run.json").read_text())
    decision = record["steps"]["publish"]["facts"]["decision"]
    end = datetime.fromisoformat(decision["until"])
    assert timedelta() < end - newest <= timedelta(seconds=1)
    assert result["published"]
    # A dated run after it, of data that changed since: not refused as older, nor is one before let through.
    settings = settings_of(out, deliveries, held_out_events=2)
    result = run(settings, until=end)
    assert "newer" not in {reason["rule"] for reason in result["reasons"]}
    result = run(settings, until=JUNE if end > JUNE else MAY)
    told = {reason["rule"]: reason["text"] for reason in result["reasons"]}
    if "newer" in told:
        assert "fairpath releases rollback" in told["newer"]


@pytest.mark.parametrize("which", ["delivery", "llms", "queries", "users"])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {
        "llms": pa.table({"llm": ["brief"]}),
        "queries": pa.table({"id": ["q"], "text": ["a question"]}),
        "users": pa.table({"user": ["a"], "age": [3.0]}),
    }
    for name, content in tables.items():
        pq.write_table(content, tmp_path / f"{name}.parquet")
    files = {name: tmp_path / f"{name}.parquet" for name in tables}
    settings = settings_of(tmp_path, {"interactions": [str(deliver(tmp_path))], **files})
    changed = {**files, "delivery": tmp_path / "in" / "0.csv"}[which]
    whole = changed.read_bytes()
    write = collecting._write

    def meanwhile(*arguments: Any) -> None:
        changed.write_bytes(whole + (b"d,y\n" if which == "delivery" else whole))
        write(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(collecting, "_write", meanwhile)
        with pytest.raises(NotYetError, match=rf"{changed.name}: changed while it was read; try again"):
            run(settings, ["collect"], until=MAY)
    assert not list((tmp_path / "work" / "steps" / "collect").glob("*"))
    changed.write_bytes(whole)
    result = run(settings, ["collect"], until=MAY)
    assert result["steps"]["collect"]["tables"]["interactions"]["training"] == 3


def test_a_file_that_is_being_written_is_no_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, {"interactions": [str(deliver(tmp_path))]})
    check = collecting.check_columns

    def meanwhile(*arguments: Any) -> None:
        (tmp_path / "in" / "0.csv").write_text("user")
        check(*arguments)

    monkeypatch.setattr(collecting, "check_columns", meanwhile)
    with pytest.raises(NotYetError, match="changed while it was read"):
        run(settings, ["collect"], until=MAY)


def test_the_lock_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class _Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> _Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    plain = Path.open

    def opened(self: Path, *arguments: Any, **named: Any) -> Any:
        file = plain(self, *arguments, **named)
        return _Full(file) if self.name == LOCK else file

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(ResourceError, match=rf"{tmp_path}: no space left on the disk"), only_one(tmp_path):
        pass


def test_a_damaged_record_stops_its_own_run_only(
    tmp_path: Path, items_only: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path, items_only)
    run(settings, until=MAY)
    folder = tmp_path / "work" / "runs" / "20250501T000000Z"
    for content in ("{", "[]", '{"format": 1}'):
        (folder / "run.json").write_text(content)
        run(settings, until=JUNE)
        assert "the record of another run is left out" in capsys.readouterr().out
        with pytest.raises(ValueError, match=rf"run\.json: .*remove the folder {folder} to start"):
            run(settings, until=MAY)


def test_an_empty_file_is_not_there_yet(tmp_path: Path) -> None:
    places = {"interactions": [str(deliver(tmp_path, "1.csv", ""))]}
    settings = settings_of(tmp_path, places, wait_for=(str(tmp_path / "in" / "*"),))
    for step in ("ready", "collect"):
        with pytest.raises(NotYetError, match="not delivered yet"):
            run(settings, [step], until=MAY)
    assert not list((tmp_path / "work").glob("steps/collect/*"))


@pytest.mark.parametrize(("end", "told"), [("", True), ("\n", False), ("\r\n", False)])
def test_a_last_line_without_its_end_is_told(
    tmp_path: Path, end: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "user,item\na,x\nb,x"
    deliver(tmp_path, "1.csv", text + end)
    (tmp_path / "in" / "2.csv.gz").write_bytes(gzip.compress(text.encode()))
    run(settings_of(tmp_path, {"interactions": [str(tmp_path / "in")]}), ["collect"], until=MAY)
    said = capsys.readouterr().out
    assert ("the last line has no end" in said) is told
    assert (str(tmp_path / "in" / "1.csv") in said) is told


@pytest.mark.parametrize("place", ["in", "in/*", "in/1.csv"])
def test_links_to_nothing(tmp_path: Path, place: str) -> None:
    (deliver(tmp_path) / "1.csv").symlink_to("/nowhere.csv")
    settings = settings_of(tmp_path, {"interactions": [str(tmp_path / place)]})
    with pytest.raises(MissingDataError, match=r"in/1\.csv: a link to what is not there \(/nowhere\.csv\)"):
        find_deliveries(settings.pipeline)
    (tmp_path / "in" / "1.csv").unlink()
    (tmp_path / "in" / ".hidden").symlink_to("/nowhere.csv")
    assert len(find_deliveries(settings_of(tmp_path, {"interactions": [str(tmp_path / "in")]}).pipeline)) == 1


def test_waiting_for_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "2025-04-30.csv").symlink_to("/nowhere.csv")
    settings = settings_of(tmp_path, {}, wait_for=(str(tmp_path / "{date}*"),))
    with pytest.raises(NotYetError, match="not delivered yet"):
        run(settings, ["ready"], until=MAY)
