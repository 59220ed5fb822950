"""The whole loop of the documentation: feedback, export, training, release, and the service that follows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from router.encoders import EncoderIdentity
from router.publishing import publish
from router.releases import current_version, versions
from tests.choice_files import events_table, llms_table
from tests.service.synthetic import write_synthetic

TRAINING = ["--device", "cpu", "--factors", "3", "--tastes", "3", "--steps", "20"]


def result_of(ended: Any) -> dict[str, Any]:
    """What a command printed, behind what the service in the same process logs."""
    assert ended.code == 0, ended.err
    return json.loads(ended.out[ended.out.index("{\n") :])


def test_feedback_becomes_a_release_that_the_running_service_takes(
    started, release_stores, fairpath, tmp_path: Path
):
    root, store = tmp_path / "releases", f"sqlite:///{tmp_path / 'loop.db'}"
    publish(root, **release_stores)
    client = started(releases=root, store=store)
    for number in range(12):
        query = {"user": "u01", "query": f"code about topic {number}"}
        decision = client.post("/v1/route", json=query).json()["decision_id"]
        told = client.post("/v1/feedback", json={"decision_id": decision, "llm": "kind", "thumbs": 1})
        assert told.status_code < 300, told.text
    client.post("/v1/feedback", json={"user": "u00", "llm": "unused-price", "thumbs": 1})

    events, llms = tmp_path / "events", tmp_path / "llms.parquet"
    events.mkdir()
    text = pa.large_string()
    first = events_table()
    pq.write_table(first.set_column(0, "user", first["user"].cast(text)), events / "first.parquet")
    pq.write_table(llms_table(), llms)
    exported = fairpath(
        "feedback", "export", "--store", store, "--releases", root, "--out", tmp_path / "told"
    )
    result = result_of(exported)
    assert (result["choices"], result["left_out"]) == (12, {"on no decision": 1})
    assert result["encoder"]["name"] == "hashing"
    shutil.copy(tmp_path / "told" / "choices.parquet", events / "told.parquet")

    queries = tmp_path / "told" / "queries.parquet"
    trained = fairpath(
        "train-router", events, llms, "--queries", queries, "--out", tmp_path / "new", *TRAINING
    )
    assert result_of(trained)["encoder"] == result["encoder"]
    assert "taken for texts" in trained.err

    until = result["feedback_until"]
    published = fairpath("publish", "--root", root, "--model", tmp_path / "new", "--feedback-until", until)
    version = result_of(published)["release"]
    assert client.post("/v1/admin/reload").json()["release"] == version
    learned, told = (client.get(f"/v1/users/{user}/profile").json()["evidence"] for user in ("u01", "u00"))
    assert (learned["source"], learned["n_feedback"]) == ("trained", 0)
    assert (told["source"], told["n_feedback"]) == ("trained+feedback", 1)  # no training could read it


def test_what_publish_refuses_changes_nothing(release_stores, fairpath, tmp_path: Path):
    root = tmp_path / "releases"
    version = publish(root, **release_stores).version
    write_synthetic(tmp_path / "other", encoder=EncoderIdentity("external", 1, 16))
    refused = fairpath("publish", "--root", root, "--model", tmp_path / "other")
    assert refused.code == 3
    assert "made with encoder external (version 1, 16 dimensions), but services" in refused.err
    future = fairpath(
        "publish", "--root", root, "--model", release_stores["model"], "--feedback-until", "2999-01-01"
    )
    assert future.code == 2
    assert "'feedback_until' must not be in the future (got 2999-01-01" in future.err
    assert (current_version(root), versions(root)) == (version, [version])
    other = fairpath("publish", "--root", root, "--model", tmp_path / "other", "--new-encoder")
    assert other.code == 0, other.err
    assert current_version(root) != version
