"""Log lines: their forms, what they hide, and progress without a terminal."""

from __future__ import annotations

import json
import logging
import signal
from types import SimpleNamespace

import pytest
import structlog

from jobs import progress
from jobs.errors import ConfigurationError
from jobs.logs import configure_logs, log_failure, plain_interrupts

pytestmark = pytest.mark.usefixtures("plain_surroundings")


def json_lines(capsys) -> list[dict]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_json_lines_carry_level_time_and_fields(capsys):
    configure_logs("info", "json")
    structlog.get_logger().debug("unseen")
    structlog.get_logger().info("built", n_nodes=3)
    (line,) = json_lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "built", "level": "info", "n_nodes": 3}


def test_text_lines_go_to_standard_error(capsys):
    configure_logs("info", "text")
    structlog.get_logger().info("built", n_nodes=3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "built" in captured.err
    assert "n_nodes=3" in captured.err


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_line_is_one_write(monkeypatch, form):
    """Workers share standard error: of lines in two writes, one may get into another."""
    written: list[str] = []
    monkeypatch.setattr(
        "sys.stderr", SimpleNamespace(write=written.append, flush=lambda: 0, isatty=lambda: False)
    )
    configure_logs("info", form)
    structlog.get_logger().info("built", n_nodes=3)
    logging.getLogger("a.library").warning("failed")
    assert len(written) == 2
    assert all(text.count("\n") == 1 and text.endswith("\n") for text in written)


def test_secrets_never_reach_a_line(capsys):
    configure_logs("info", "json")
    structlog.get_logger().info("session", conf={"db.password": "hush"}, url="s3://me:hush@bucket")
    assert "hush" not in capsys.readouterr().err


def test_tracebacks_do_not_show_variables(capsys):
    configure_logs("info", "text")
    password = "hush"
    try:
        assert int(password)
    except ValueError:
        logging.getLogger("a.library").exception("failed")
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "password = " not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_under_spark_silences_libraries_and_restores_the_handler(capsys, number):
    configure_logs("info", "text")
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), plain_interrupts():
        signal.raise_signal(number)
    logging.error("interrupted while sending a command")
    logging.getLogger("py4j.clientserver").error("interrupted")
    assert capsys.readouterr().err == ""
    assert signal.getsignal(number) is before


def test_libraries_log_in_the_same_form_from_warnings_on(capsys):
    configure_logs("info", "json")
    logging.getLogger("a.library").info("unseen")
    logging.getLogger("a.library").warning("low on %s", "memory")
    (line,) = json_lines(capsys)
    assert (line["event"], line["level"]) == ("low on memory", "warning")


def test_the_last_line_of_a_failure_has_the_form_of_the_others(capsys):
    configure_logs("info", "json")
    log_failure(ConfigurationError("'k' is wrong"), 2)
    (line,) = json_lines(capsys)
    assert (line["event"], line["error"], line["exit_code"]) == ("'k' is wrong", "ConfigurationError", 2)
    configure_logs("info", "text")
    log_failure(ConfigurationError("'k' is wrong"), 2)
    assert capsys.readouterr().err == "fairpath: 'k' is wrong\n"


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys):
    configure_logs("info", "json")
    now = 0.0
    with progress._lines(clock=lambda: now) as update:
        for second in range(1, 26):
            now = float(second)
            update("read", second, 100)
    assert [line["done"] for line in json_lines(capsys)] == [10, 20]
