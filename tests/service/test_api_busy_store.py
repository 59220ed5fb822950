"""Another process holds SQLite's write lock: whoever writes is told soon, whoever reads does not notice."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

from starlette.testclient import TestClient

from router.service.settings import ServiceSettings

WAIT_S = 0.25


@contextmanager
def locked(settings: ServiceSettings) -> Iterator[None]:
    path = settings.store_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_locked_database_holds_nobody_who_does_not_write(
    started: Callable[..., TestClient], service_settings: ServiceSettings
) -> None:
    client = started(limits={"timeout_s": 6 * WAIT_S})
    told = {"user": "new", "llm": "kind"}
    assert client.post("/v1/feedback", json=told).status_code == 201

    def tell(_: int) -> tuple[int, str | None]:
        answer = client.post("/v1/feedback", json=told)
        return answer.status_code, answer.headers.get("retry-after")

    with ThreadPoolExecutor(60) as threads:
        with locked(service_settings):
            told_soon = [threads.submit(tell, number) for number in range(60)]
            time.sleep(WAIT_S / 5)
            begun = time.monotonic()
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 200
            cold = client.post("/v1/route", json={"user": "new", "task": "code"})
            assert cold.json()["based_on"]["n_events"] == 1
            assert time.monotonic() - begun < WAIT_S
            answers = [told.result() for told in told_soon]
        assert set(answers) == {(503, "1")}
    assert client.post("/v1/feedback", json=told).status_code == 201
    store = client.app.state.service.store  # type: ignore[attr-defined]
    assert len(store.events_of("new")) == 2  # nothing that was refused is there
