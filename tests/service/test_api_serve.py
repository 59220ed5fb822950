"""``fairpath serve`` as a process: its workers, its end, and what keeps it from starting."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.command_line import Result
from tests.service.served import serving


def test_one_process_serves_until_a_signal(release_root: Path, tmp_path: Path) -> None:
    with serving(release_root, tmp_path / "feedback.db") as (process, client, ready):
        assert ready["admits"].startswith("everybody on this machine, until a key is made")
        found = client.post("/v1/route", json={"user": "u03", "query": "code about topic 3"}).json()
        assert (found["chosen"], found["release"]) == ("kind", ready["release"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    # What was decided before the signal is in the store.
    from router.service.store import open_store

    with open_store(f"sqlite:///{tmp_path / 'feedback.db'}") as store:
        assert store.decision(found["decision_id"]) is not None
        _, token = store.create_key("a test", ["route"])
    with serving(release_root, tmp_path / "feedback.db") as (_, client, ready):
        assert ready["admits"] == "whoever has an API key"
        assert client.post("/v1/route", json={}, headers={"X-API-Key": token}).status_code == 200


@pytest.mark.parametrize("trusted", ["none", "127.0.0.1"])
def test_only_trusted_proxies_name_the_caller(release_root: Path, tmp_path: Path, trusted: str) -> None:
    overlay = tmp_path / "serve.toml"
    overlay.write_text(
        f"[serve]\ntrusted_proxies = '{trusted}'\n[serve.limits]\nrequests_per_minute = 2\n", encoding="utf-8"
    )
    with serving(release_root, tmp_path / "feedback.db", "--config", str(overlay)) as (_, client, _):
        statuses = {
            client.post("/v1/route", json={}, headers={"X-Forwarded-For": f"10.0.0.{i}"}).status_code
            for i in range(8)
        }
    assert (429 in statuses) == (trusted == "none")


def test_a_worker_that_starts_again_refuses_what_the_others_refuse(tmp_path: Path) -> None:
    from router.encoders import EncoderIdentity
    from router.publishing import publish
    from tests.service.synthetic import write_synthetic

    root = tmp_path / "releases"
    for name, dimension in (("first", 16), ("other", 32)):
        write_synthetic(tmp_path / name, encoder=EncoderIdentity("hashing", 1, dimension))
    first = publish(root, model=tmp_path / "first").version
    with serving(root, tmp_path / "feedback.db", "--workers", "2") as (process, _, ready):
        publish(root, model=tmp_path / "other", new_encoder=True)
        workers = _children(process.pid)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        give_up_s = time.monotonic() + 30
        answer = None
        while answer is None:
            assert time.monotonic() < give_up_s
            with suppress(httpx.TransportError):
                answer = httpx.post(f"{ready['url']}/v1/route", json={"query": "abc"}, timeout=10)
        assert answer.json()["release"] == first
        assert not set(workers) & set(_children(process.pid))


def test_workers_share_metrics_and_are_restarted(release_root: Path, tmp_path: Path) -> None:
    with serving(release_root, tmp_path / "feedback.db", "--workers", "2") as (process, client, ready):
        assert ready["workers"] == 2
        answered = 0
        for _ in range(20):
            with httpx.Client(base_url=ready["url"], timeout=30) as fresh:
                answered += fresh.post("/v1/route", json={"user": "u02", "task": "code"}).status_code == 200
        counted = re.search(
            r'fairpath_choices_total\{llm="brief",source="trained"\} (\S+)', client.get("/metrics").text
        )
        assert counted is not None
        assert float(counted[1]) == answered == 20
        workers = _children(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        give_up_s = time.monotonic() + 30
        while len(set(_children(process.pid)) - set(workers)) == 0:
            assert time.monotonic() < give_up_s
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def _children(pid: int) -> list[int]:
    """Workers of a service, without the helper that Python starts beside them."""
    import psutil

    workers = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            workers += [child.pid] if "spawn_main" in " ".join(child.cmdline()) else []
    return workers


def test_what_keeps_it_from_starting(
    fairpath: Callable[..., Result], release_root: Path, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'feedback.db'}"
    found = fairpath("serve", tmp_path / "nothing", "--store", store, "--port", 0)
    assert (found.code, "there is no current release" in found.err) == (3, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = fairpath("serve", release_root, "--store", store, "--port", port)
    assert found.code == 3
    assert f"[serve] 'port': cannot listen on 127.0.0.1:{port} (address already in use)" in found.err
    found = fairpath("serve", release_root, "--store", "mysql://nowhere", "--port", 0)
    assert found.code == 2
    found = fairpath("serve", release_root, "--host", "0.0.0.0", "--auth", "off")
    assert found.code == 2
    assert "'auth' must not be off where other machines reach the service" in found.err


def test_dry_run_hides_secrets(fairpath: Callable[..., Result], tmp_path: Path) -> None:
    overlay = tmp_path / "serve.toml"
    overlay.write_text(
        """
[serve]
workers = 2
store = "postgresql+psycopg://fairpath:hunter2@db/fairpath"
[serve.policy]
exploration = "thompson"
[[serve.upstreams]]
name = "local"
base_url = "http://localhost:9000/v1"
api_key = "sk-hunter2"
models = {kind = "kind-7b"}
""",
        encoding="utf-8",
    )
    found = fairpath("serve", tmp_path, "--config", overlay, "--port", 9, "--dry-run")
    assert found.code == 0, found.err
    shown = found.json["settings"]["serve"]
    assert (shown["port"]["value"], shown["workers"]["from"]) == (9, str(overlay))
    assert shown["policy"]["value"]["exploration"] == "thompson"
    assert shown["upstreams"]["value"][0]["models"] == {"kind": "kind-7b"}
    assert "hunter2" not in found.out
