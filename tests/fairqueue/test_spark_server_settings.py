"""What the shared application refuses before Spark starts, and that its token stays hidden."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra 'server' is not installed")

from jobs.cli import main
from jobs.errors import ConfigurationError
from jobs.fairqueue.server.auth import TOKEN_VARIABLE, check_exposure, is_loopback, shared_token
from jobs.fairqueue.server.connect import connect_properties, token_for_spark
from jobs.settings import ServerSettings
from jobs.settings_layers import load_settings
from tests.command_line import Result

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "correct-horse-battery-staple"


pytestmark = pytest.mark.usefixtures("plain_surroundings")


@pytest.fixture(autouse=True)
def _spark_must_not_start(monkeypatch):
    def refuse(**_: object):
        pytest.fail("Spark was started")

    monkeypatch.setattr("jobs.spark_session.spark_session", refuse)


@pytest.fixture
def spark_server(fairpath: Callable[..., Result]) -> Callable[..., Result]:
    return partial(fairpath, "spark-server")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "[server] 'host' must be localhost where there is no token (got '0.0.0.0')"),
        (["--status-host", "192.0.2.1"], "[server] 'status_host' must be localhost where there is no token"),
        (["--port", "70000"], "[server] 'port' must be less than or equal to 65535 (got 70000)"),
        (["--set", "fairqueue.weights.bob=0"], "'weight' of user 'bob' must be positive and finite (got 0"),
        (["--set", "fairqueue.weights.bob=-1"], "'weight' of user 'bob' must be positive and finite (got -1"),
        (
            ["--set", "fairqueue.weights.bob=inf"],
            "'weight' of user 'bob' must be positive and finite (got inf",
        ),
        (["--set", "fairqueue.weights.bob=heavy"], "[fairqueue] 'weights.bob' must be a valid number"),
        (["--set", 'fairqueue.weights.""=2'], "[fairqueue] a user in 'weights' must have a name (got '')"),
        (["--set", 'fairqueue.weights." "=2'], "[fairqueue] a user in 'weights' must have a name (got ' ')"),
        (["--set", "fairqueue.default_weight=0"], "[fairqueue] 'default_weight' must be greater than 0"),
        (["--set", "fairqueue.poll_s=0"], "[fairqueue] 'poll_s' must be greater than 0"),
        (["--set", "spark.remote=sc://localhost"], "[spark] 'remote' does not go with spark-server"),
        (
            ["--status-host", "no-such-host.invalid", "--set", "server.allow_unauthenticated=true"],
            "the host of 'status_port' must be known",
        ),
    ],
)
def test_bad_settings_are_usage_errors(spark_server, options, message):
    result = spark_server("--status-port", 0, *options)
    assert result.code == 2
    assert message in result.err


@pytest.mark.parametrize("token", ["short", "seventeen letters"])
def test_a_bad_token_is_refused_and_not_repeated(spark_server, monkeypatch, token):
    monkeypatch.setenv("FAIRPATH_SERVER__TOKEN", token)
    result = spark_server()
    assert result.code == 2
    assert "[server] 'token' must be at least 16 letters, digits" in result.err
    assert token not in result.err


@pytest.mark.parametrize("assignment", ["server.token={}", "server.token='{}'", "server={{token='{}'}}"])
@pytest.mark.parametrize("other", [[], ["--dry-run"]])
def test_a_token_does_not_come_from_an_option(spark_server, assignment, other):
    result = spark_server("--set", assignment.format(TOKEN), *other)
    assert result.code == 2
    assert "'token' must come from FAIRPATH_SERVER__TOKEN or a --config file" in result.err
    assert TOKEN not in result.out + result.err


def test_an_option_beside_a_token_of_the_environment(spark_server, monkeypatch):
    monkeypatch.setenv("FAIRPATH_SERVER__TOKEN", TOKEN)
    assert spark_server("--set", "server.port=0", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/estimates.json", "cannot write {} (no such file or directory)"),
        ("file/estimates.json", "cannot write {} (not a directory)"),
        ("", "must be a file (got the folder {})"),
    ],
)
def test_estimates_that_cannot_be_written_are_refused_at_the_start(spark_server, tmp_path, path, message):
    (tmp_path / "file").touch()
    estimates = tmp_path / path
    result = spark_server(
        "--port", 0, "--status-port", 0, "--set", f"fairqueue.estimates={json.dumps(str(estimates))}"
    )
    assert result.code == 3
    assert "[fairqueue] 'estimates'" in result.err
    assert message.format(estimates) in result.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("option", ["--port", "--status-port"])
def test_a_port_in_use(spark_server, option):
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        other = "--status-port" if option == "--port" else "--port"
        result = spark_server(option, port, other, 0)
    assert result.code == 3
    name = option.removeprefix("--").replace("-", "_")
    assert f"[server] '{name}': cannot listen on localhost:{port} (address already in use)" in result.err


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "jinja2", "prometheus_client"])
def test_a_missing_extra_says_what_to_install(spark_server, monkeypatch, package):
    for name in [name for name in sys.modules if name.startswith("jobs.fairqueue.server")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    result = spark_server()
    assert result.code == 3
    assert f"{package} is not installed: run pip install 'fairpath[server]'" in result.err


def test_a_dry_run_shows_the_settings_and_hides_the_token(spark_server, monkeypatch):
    monkeypatch.setenv("FAIRPATH_SERVER__TOKEN", TOKEN)
    result = spark_server("--port", 0, "--policy", "cfq", "--dry-run")
    assert result.code == 0
    shown = json.loads(result.out)["settings"]
    assert set(shown) == {"fairqueue", "server", "spark", "log"}
    assert shown["server"]["port"] == {"value": 0, "from": "command line"}
    assert shown["server"]["token"] == {"value": "(hidden)", "from": "environment"}
    assert shown["fairqueue"]["policy"] == {"value": "cfq", "from": "command line"}
    assert TOKEN not in result.out + result.err


def test_the_example_overlay_is_valid():
    settings = load_settings(files=[ROOT / "conf" / "spark-server.toml"]).settings
    assert settings.fairqueue.weights == {"alice": 2.0, "airflow-nightly": 0.5}
    assert settings.fairqueue.estimates is None
    assert settings.server == ServerSettings()


def test_the_token_of_the_settings_wins_over_that_of_the_environment(monkeypatch):
    assert shared_token(ServerSettings()) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "token-of-the-environment")
    assert shared_token(ServerSettings()) == "token-of-the-environment"
    settings = ServerSettings(token=TOKEN)
    assert shared_token(settings) == TOKEN
    assert TOKEN not in repr(settings)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_addresses_of_this_machine_only(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize("field", ["host", "status_host"])
def test_other_machines_come_in_with_a_token_or_by_permission_only(field):
    exposed = ServerSettings(**{field: "0.0.0.0"})
    with pytest.raises(ConfigurationError, match=f"'{field}' must be localhost"):
        check_exposure(exposed, None)
    check_exposure(exposed, TOKEN)
    check_exposure(ServerSettings(**{field: "0.0.0.0"}, allow_unauthenticated=True), None)


def test_the_token_is_handed_over_in_the_environment_alone(monkeypatch):
    with token_for_spark(TOKEN) as properties:
        assert properties == {}
        assert os.environ[TOKEN_VARIABLE] == TOKEN
    assert TOKEN_VARIABLE not in os.environ
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    with token_for_spark(TOKEN) as properties:
        assert properties == {"spark.connect.authenticate.token": TOKEN}


def test_spark_properties_of_the_application():
    settings = ServerSettings(port=7, max_result_bytes=5, session_timeout_s=9)
    conf = {"spark.plugins": "org.example.Other", "spark.driver.maxResultSize": "2g"}
    properties = connect_properties(settings, conf)
    assert properties["spark.plugins"] == "org.example.Other,org.apache.spark.sql.connect.SparkConnectPlugin"
    assert properties["spark.connect.grpc.binding.port"] == "7"
    assert properties["spark.connect.session.manager.defaultSessionTimeout"] == "9s"
    assert properties["spark.driver.maxResultSize"] == "2g"


@pytest.mark.parametrize("name", ["grpc.binding.port", "grpc.binding.address", "authenticate.token"])
def test_what_belongs_to_the_server_must_not_stand_in_spark_conf(name):
    with pytest.raises(ConfigurationError, match=r"'conf' must not set .*: it stands in \[server\]") as error:
        connect_properties(ServerSettings(), {f"spark.connect.{name}": TOKEN})
    assert TOKEN not in str(error.value)


def test_remote_goes_with_the_spark_engine(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fingerprints", "g", "--out", "f", "--engine", "local", "--remote", "sc://localhost"])
    assert ended.value.code == 2
    assert "'--remote' goes with the Spark engine (got --engine local)" in capsys.readouterr().err


def test_remote_chooses_the_spark_engine_and_hides_the_token(capsys):
    url = f"sc://localhost:15002/;user_id=alice;token={TOKEN}"
    with pytest.raises(SystemExit) as ended:
        main(["fingerprints", "g", "--out", "f", "--remote", url, "--dry-run"])
    assert not ended.value.code
    out = capsys.readouterr().out
    settings = json.loads(out)["settings"]
    assert settings["fingerprints"]["engine"]["value"] == "spark"
    assert settings["spark"]["remote"]["value"] == "sc://localhost:15002/;user_id=alice;token=(hidden)"
