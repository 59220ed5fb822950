"""Health, metrics, releases and switches."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from router.publishing import publish
from router.service.store import FeedbackStoreError

Started = Callable[..., TestClient]


def _samples(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = client.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(found.text)
        for sample in family.samples
    }


def _value(client: TestClient, name: str, **labels: str) -> float:
    return _samples(client).get((f"fairpath_{name}", tuple(sorted(labels.items()))), 0.0)


def test_choices_that_are_cheaper_than_the_best_single_llm_are_counted(client: TestClient) -> None:
    for predicted_usd, best_single_usd in ((0.1, 0.2), (0.4, 0.2), (math.nan, 0.2)):
        client.app.state.service.metrics.cost(predicted_usd, best_single_usd)  # type: ignore[attr-defined]
    assert _value(client, "cheaper_choices_total") == 1
    assert _value(client, "best_single_cost_usd_total") == pytest.approx(0.4)


def test_metrics_tell_what_happened(client: TestClient) -> None:
    first = client.post("/v1/route", json={"user": "u02", "query": "code"}).json()
    client.post("/v1/route", json={"user": "stranger", "task": "code", "exclude": ["brief"]})
    client.post("/v1/route", json={"candidates": ["gpt-0"]})
    for told in ({"thumbs": 1, "cost_usd": 0.5}, {"cost_usd": 0.5}):
        client.post("/v1/feedback", json={"decision_id": first["decision_id"], **told})
    client.get("/v1/users/u02/profile")
    client.get("/nowhere")
    assert _value(client, "choices_total", llm="brief", source="trained") == 1
    assert _value(client, "cold_users_total", source="population") == 1
    assert _value(client, "predicted_cost_usd_total") == pytest.approx(0.01 + 0.02)
    assert _value(client, "best_single_cost_usd_total") > 0
    assert _value(client, "reported_cost_usd_total") == 0.5
    assert _value(client, "feedback_total", kind="thumbs_up") == 1
    for stage, times in {"encode": 1, "belief": 3, "decide": 3}.items():
        assert _value(client, "stage_seconds_count", stage=stage) == times
    counts = {
        ("POST", "/v1/route", "200"): 2,
        ("POST", "/v1/route", "422"): 1,
        ("GET", "/v1/users/{user:path}/profile", "200"): 1,
        ("any", "none", "404"): 1,
    }
    for (method, route, status), times in counts.items():
        labels = {"method": method, "route": route, "status": status}
        assert _value(client, "request_seconds_count", **labels) == times
    assert "u02" not in client.get("/metrics").text


def test_made_up_methods_count_as_one(client: TestClient) -> None:
    for method in ("PURGE", "X1", "X2"):
        assert client.request(method, "/v1/route").status_code == 405
    assert _value(client, "request_seconds_count", method="other", route="/v1/route", status="405") == 3
    assert "PURGE" not in client.get("/metrics").text


def test_two_apps_count_apart(started: Started) -> None:
    one, other = started(), started()
    one.post("/v1/route", json={"user": "u02"})
    assert _value(one, "choices_total", llm="brief", source="trained") == 1
    assert _value(other, "choices_total", llm="brief", source="trained") == 0


def test_ready_unless_the_store_fails(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["reasons"]) == (200, [])
    store = client.app.state.service.store  # type: ignore[attr-defined]

    def broken() -> Any:
        raise FeedbackStoreError("the disk is gone")

    monkeypatch.setattr(store, "any_keys", broken)
    found = client.get("/readyz")
    assert found.status_code == 503
    assert found.json()["reasons"] == ["the feedback store cannot be read"]
    assert client.get("/healthz").status_code == 200
    client.app.state.service.gate._open_until = 0.0  # type: ignore[attr-defined]
    found = client.post("/v1/route", json={})
    assert found.status_code == 503
    assert found.json()["detail"].startswith("the service cannot answer this now; its log says why")


@pytest.fixture
def two_releases(release_stores: dict[str, Path], tmp_path: Path) -> Path:
    """A root with two releases: one with, and one without items; the first is current."""
    root = tmp_path / "releases"
    publish(root, **release_stores)
    publish(root, model=release_stores["model"], activate=False)
    return root


def test_reload_and_rollback(started: Started, two_releases: Path) -> None:
    from router.releases.places import Folder, activate

    client = started(releases=two_releases, poll_s=1000.0)
    releases = client.get("/v1/releases").json()
    first = releases["serving"]
    (second,) = set(releases["versions"]) - {first}
    assert (releases["current"], releases["previous"], releases["refused"]) == (first, None, None)
    assert client.post("/v1/admin/rollback").status_code == 409
    activate(Folder(two_releases), second)
    assert client.post("/v1/route", json={}).json()["release"] == first
    assert client.post("/v1/admin/reload").json() == {"release": second}
    assert client.post("/v1/route", json={"user": "u02"}).json()["release"] == second
    assert client.post("/v1/lookalike", json={"users": ["u01"]}).status_code == 404
    assert client.post("/v1/admin/rollback").json() == {"release": first}
    assert client.get("/v1/releases").json()["current"] == first
    assert _value(client, "release_switches_total") == 2


def test_a_damaged_release_is_refused_and_the_old_one_serves(started: Started, two_releases: Path) -> None:
    from router.releases import CURRENT

    client = started(releases=two_releases, poll_s=1000.0)
    first = client.get("/v1/releases").json()["serving"]
    (second,) = set(client.get("/v1/releases").json()["versions"]) - {first}
    shutil.rmtree(two_releases / second / "model" / "embeddings")
    (two_releases / CURRENT).write_text(f"{second}\n", encoding="utf-8")
    found = client.post("/v1/admin/reload")
    assert found.status_code == 409
    assert client.post("/v1/route", json={}).json()["release"] == first
    refused = client.get("/v1/releases").json()["refused"]
    assert (refused["version"], refused["reason"]) == (second, found.json()["detail"])
    assert refused["reason"].startswith(f"{second}/model/embeddings")
    assert str(two_releases) not in client.get("/v1/releases").text
    assert client.get("/readyz").status_code == 200


def test_no_release_no_start(started: Started, tmp_path: Path) -> None:
    from router.errors import ReleaseError

    with pytest.raises(ReleaseError, match="there is no current release; make one by 'fairpath publish'"):
        started(releases=tmp_path / "nothing")
