"""A release that was trained without tasks made up groups of queries: no record passes them off as tasks."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from jobs.settings import RouterSettings
from router.publishing import publish
from tests.choice_files import write_files


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from jobs.train_router import run as train

    folder = tmp_path_factory.mktemp("no-tasks")
    files = write_files(folder)
    pq.write_table(pq.read_table(files.events).drop_columns(["task"]), files.events)
    settings = RouterSettings(encoder="hashing", n_steps=6, n_tastes=2, n_factors=2, device="cpu")
    train(files, folder / "model", settings, lines=False)
    publish(folder / "releases", model=folder / "model")
    return folder / "releases"


@pytest.mark.parametrize("named", [None, "code"])
def test_groups_are_not_recorded_as_tasks(started, root, named):
    client = started(releases=root)
    found = client.post(
        "/v1/route", json={"user": "u02", "query": "code about topic 3", "task": named}
    ).json()
    assert found["task"].startswith("cluster ")
    record = client.app.state.service.store.decision(found["decision_id"])
    assert record.task == named
    client.post("/v1/feedback", json={"decision_id": found["decision_id"], "thumbs": 1})
    assert client.post("/v1/route", json={"user": "u02", "query": "code about topic 4"}).status_code == 200
