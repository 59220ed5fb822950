"""What goes wrong around a pipeline, and what it says and leaves then."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import ConfigurationError, NotYetError, exit_code
from jobs.pipeline import reporting
from jobs.pipeline.lock import only_one
from jobs.pipeline.run import run
from jobs.settings import Settings
from ppr.errors import DataError, ResourceError
from tests.command_line import Result
from tests.pipeline.pipelines import JUNE, MAY, digests, report_of, settings_of, states

MADE = ("collect", "graph", "fingerprints", "train", "evaluate")


@pytest.mark.parametrize("step", ["graph", "fingerprints", "train", "evaluate", "publish"])
def test_a_step_without_the_one_before(tmp_path: Path, items_only: dict[str, Any], step: str) -> None:
    with pytest.raises(ConfigurationError, match=r"step '[a-z]+' was not done for the run 20250501T000000Z"):
        run(settings_of(tmp_path, items_only), [step], until=MAY)


def test_an_output_that_was_removed_is_named(tmp_path: Path, items_only: dict[str, Any]) -> None:
    settings = settings_of(tmp_path, items_only)
    run(settings, ["collect", "graph"], until=MAY)
    shutil.rmtree(tmp_path / "work" / "steps" / "graph")
    with pytest.raises(ConfigurationError, match="step 'graph' was not done"):
        run(settings, ["fingerprints"], until=MAY)


def test_two_at_once(tmp_path: Path, items_only: dict[str, Any], fairpath: Callable[..., Result]) -> None:
    settings = settings_of(tmp_path, items_only)
    with only_one(settings.pipeline.work):
        with pytest.raises(
            NotYetError, match=rf"another pipeline is at work here \(process {os.getpid()} on "
        ):
            run(settings, until=MAY)
        ended = fairpath("pipeline", "ready", "--set", f"pipeline.work={str(settings.pipeline.work)!r}")
        assert ended.code == 75
        assert f"process {os.getpid()}" in ended.err
    run(settings, ["collect"], until=MAY)


def test_ready_waits_for_the_last_day(tmp_path: Path, fairpath: Callable[..., Result]) -> None:
    arguments = [
        "pipeline",
        "ready",
        "--set",
        f"pipeline.work={str(tmp_path / 'work')!r}",
        "--set",
        f"pipeline.wait_for={str(tmp_path / '{date}' / '*.csv')!r}",
        "--until",
        "2026-03-01",
    ]
    ended = fairpath(*arguments)
    assert (ended.code, "2026-02-28" in ended.err) == (75, True)
    (tmp_path / "2026-02-28").mkdir()
    (tmp_path / "2026-02-28" / "a.csv").write_text("")
    assert fairpath(*arguments).code == 75
    (tmp_path / "2026-02-28" / "a.csv").write_text("user,item\n")
    ended = fairpath(*arguments)
    assert ended.code == 0
    assert json.loads(ended.out)["ready"] is True


def test_the_command_says_what_is_wrong(tmp_path: Path, fairpath: Callable[..., Result]) -> None:
    ended = fairpath("pipeline", "colect")
    assert ended.code == 2
    assert "'STEP' must be one of ready, collect" in ended.err
    ended = fairpath("pipeline", "--until", "yesterday")
    assert ended.code == 2
    assert "'--until' must be an ISO 8601 time" in ended.err
    ended = fairpath("pipeline", "--set", "pipeline.keep_runs=0")
    assert ended.code == 2
    ended = fairpath("pipeline", "--dry-run", "--set", "pipeline.notify_url='https://hooks/secret'")
    assert ended.code == 0
    assert "secret" not in ended.out
    assert set(json.loads(ended.out)["settings"]) >= {"pipeline", "gate", "router"}


def test_a_failed_step_is_reported(tmp_path: Path, deliveries: dict[str, Any]) -> None:
    settings = settings_of(tmp_path, deliveries)
    pq.write_table(pa.table({"llm": ["nobody"]}), tmp_path / "llms.parquet")
    broken = settings_of(tmp_path, {**deliveries, "llms": tmp_path / "llms.parquet"})
    with pytest.raises(DataError, match="no choice is of an LLM that there is") as error:
        run(broken, until=MAY)
    assert exit_code(error.value) == 3
    report = report_of(tmp_path, "20250501T000000Z")
    assert (report["state"], report["error"]["step"]) == ("failed", "collect")
    assert "no choice is of an LLM" in (tmp_path / "work/runs/20250501T000000Z/report.html").read_text()
    run(settings, ["collect", "report"], until=MAY)
    assert report_of(tmp_path, "20250501T000000Z")["state"] == "done"


def test_a_failure_removes_nothing(out: Path, deliveries: dict[str, Any], tmp_path: Path) -> None:
    before = digests(out / "work" / "steps")
    pq.write_table(pa.table({"llm": ["nobody"]}), tmp_path / "llms.parquet")
    with pytest.raises(DataError):
        run(settings_of(out, {**deliveries, "llms": tmp_path / "llms.parquet"}), until=JUNE)
    assert digests(out / "work" / "steps") == before
    told = states(run(settings_of(out, deliveries), until=JUNE))
    assert {told[step] for step in (*MADE, "publish")} == {"kept"}
    assert report_of(out, "20250601T000000Z")["evaluation"] is not None


def test_not_ready_is_no_failure(tmp_path: Path, items_only: dict[str, Any]) -> None:
    settings = settings_of(tmp_path, items_only, wait_for=(str(tmp_path / "{date}.parquet"),))
    with pytest.raises(NotYetError, match=r"not delivered yet: .*2025-04-30\.parquet"):
        run(settings, until=MAY)
    assert not (tmp_path / "work" / "runs").exists()


def test_settings_that_name_no_data_make_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="must name some data"):
        run(settings_of(tmp_path, {}))
    assert not (tmp_path / "work").exists()


def test_a_full_disk_and_a_second_try(
    tmp_path: Path, items_only: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, items_only)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", full)
        with pytest.raises(ResourceError, match="no space left on the disk") as error:
            run(settings, until=MAY)
    assert exit_code(error.value) == 3
    assert not list((tmp_path / "work" / "steps" / "collect").glob("*"))
    result = run(settings, until=MAY)
    assert states(result)["fingerprints"] == "done"


class _Hook(BaseHTTPRequestHandler):
    told: list[dict[str, Any]] = []  # noqa: RUF012
    answers: list[int] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.told.append(json.loads(body))
        self.send_response(self.answers.pop(0))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.long
def test_notifying(
    tmp_path: Path,
    items_only: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(reporting, "_TIMEOUT_S", 2.0)
    monkeypatch.setattr(reporting.time, "sleep", lambda seconds: None)
    _Hook.told, _Hook.answers = [], [503, 200]
    with HTTPServer(("127.0.0.1", 0), _Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/token-of-mine"
            settings = settings_of(tmp_path, items_only, notify_url=url)
            assert states(run(settings, until=MAY))["notify"] == "done"
            assert states(run(settings, until=MAY))["notify"] == "kept"
        finally:
            server.shutdown()
            thread.join()
    assert len(_Hook.told) == 2
    assert _Hook.told[1] == _Hook.told[0]
    assert (_Hook.told[0]["run"], _Hook.told[0]["state"]) == ("20250501T000000Z", "done")
    assert states(run(settings, until=JUNE))["notify"] == "skipped"  # nobody listens any more
    said = capsys.readouterr().out
    assert "nobody was notified" in said
    assert "token-of-mine" not in said + (tmp_path / "work/runs/20250601T000000Z/run.json").read_text()


def test_leftovers_of_other_keys_go(tmp_path: Path, items_only: dict[str, Any]) -> None:
    steps = tmp_path / "work" / "steps"
    for name in ("graph/.0123456789abcdef.new-elsewhere-1-00", "fingerprints/0123456789abcdef.partial"):
        (steps / name).mkdir(parents=True)
    run(settings_of(tmp_path, items_only), until=MAY)
    left = [path.name for path in steps.rglob("*") if "0123456789abcdef" in path.name]
    assert left == []


def test_settings_of_a_pipeline_name_their_rule() -> None:
    with pytest.raises(ValueError, match="held_out_users"):
        Settings(pipeline={"held_out_users": 1.0})  # type: ignore[arg-type]
