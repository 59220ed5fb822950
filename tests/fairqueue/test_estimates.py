"""Learned costs: what is expected of a job, how wrong it was, and the file it is kept in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import exit_code
from jobs.fairqueue.errors import EstimatesFileError, FairQueueParameterError
from jobs.fairqueue.estimates import CostEstimator


def test_default_until_something_is_learned() -> None:
    estimator = CostEstimator(7.0)
    assert estimator.estimate("report") == estimator.estimate(None) == 7.0
    estimator.learn("report", 20.0)
    assert estimator.estimate("report") == 20.0
    assert estimator.estimate("other") == 7.0


def test_median_of_the_last_runs() -> None:
    estimator = CostEstimator()
    for core_s in (1000.0, 10.0, 12.0, 500.0, 11.0, 13.0):  # the first one is out of the window
        estimator.learn("report", core_s)
    assert estimator.estimate("report") == 12.0


def test_scaled_by_size() -> None:
    estimator = CostEstimator()
    estimator.learn("scan", 10.0, size=100.0)
    estimator.learn("scan", 60.0, size=300.0)
    estimator.learn("scan", 20.0, size=200.0)
    assert estimator.estimate("scan", 1000.0) == pytest.approx(100.0)  # 0.1, 0.2 and 0.1 per unit
    assert estimator.estimate("scan") == 20.0
    estimator.learn("mixed", 4.0)
    assert estimator.estimate("mixed", 9.0) == 4.0


def test_a_running_job_stands_for_its_class_until_one_is_over(tmp_path: Path) -> None:
    estimator = CostEstimator(1.0)
    estimator.foresee("report", 30.0)
    estimator.foresee("report", 40.0)
    assert estimator.estimate("report") == 40.0
    estimator.save(tmp_path / "estimates.json")
    assert len(CostEstimator.load(tmp_path / "estimates.json")) == 0
    estimator.learn("report", 20.0)
    estimator.foresee("report", 50.0)
    assert estimator.estimate("report") == 20.0


def test_least_recently_used_classes_are_forgotten() -> None:
    estimator = CostEstimator(1.0, max_classes=3)
    for name in "abc":
        estimator.learn(name, 5.0)
    estimator.estimate("a")
    estimator.learn("d", 5.0)
    assert len(estimator) == 3
    assert [estimator.estimate(name) for name in "abcd"] == [5.0, 1.0, 5.0, 5.0]


def test_error_is_the_distribution_of_log_ratios() -> None:
    estimator = CostEstimator()
    assert estimator.error().count == 0
    for actual, estimated in ((8.0, 4.0), (4.0, 4.0), (1.0, 4.0), (32.0, 4.0)):
        estimator.learn(None, actual, estimated_core_s=estimated)
    estimator.learn("nothing to compare", 3.0)
    estimator.learn("nothing used", 0.0, estimated_core_s=3.0)
    error = estimator.error()  # log2 ratios 1, 0, -2, 3
    assert (error.count, error.median_log2, error.p90_absolute_log2) == (4, 0.5, 3.0)
    for _ in range(2000):
        estimator.learn(None, 1.0, estimated_core_s=2.0)
    assert (estimator.error().count, estimator.error().median_log2) == (2004, -1.0)


def test_saved_and_loaded(tmp_path: Path) -> None:
    estimator = CostEstimator()
    estimator.learn("scan", 10.0, size=100.0, stages=3)
    estimator.learn("größer", 2.5)
    path = tmp_path / "estimates.json"
    estimator.save(path)
    estimator.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["estimates.json"]
    loaded = CostEstimator.load(path, default_core_s=3.0)
    assert loaded.estimate("scan", 50.0) == pytest.approx(5.0)
    assert loaded.estimate("größer") == 2.5
    assert loaded.estimate("unknown") == 3.0
    assert (loaded.stages("scan"), loaded.stages("größer"), loaded.stages(None)) == (3, None, None)
    assert len(CostEstimator.load(path, max_classes=1)) == 1


def test_the_error_survives_a_restart(tmp_path: Path) -> None:
    estimator = CostEstimator()
    for number in range(1500):
        estimator.learn(None, 2.0 ** (number % 3), estimated_core_s=1.0)
    estimator.save(tmp_path / "estimates.json")
    loaded = CostEstimator.load(tmp_path / "estimates.json")
    assert loaded.error() == estimator.error()
    assert loaded.error().count == 1500
    for each in (estimator, loaded):
        each.learn(None, 32.0, estimated_core_s=1.0)  # the same one leaves the window
    assert loaded.error() == estimator.error()


def test_a_snapshot_does_not_change_with_the_estimator(tmp_path: Path) -> None:
    estimator = CostEstimator()
    estimator.learn("scan", 10.0, size=100.0, estimated_core_s=5.0)
    snapshot = estimator.snapshot()
    before = json.dumps(snapshot)
    estimator.learn("scan", 30.0, size=100.0, estimated_core_s=5.0)
    estimator.learn("other", 1.0)
    assert json.dumps(snapshot) == before
    CostEstimator.write(snapshot, tmp_path / "estimates.json")
    assert CostEstimator.load(tmp_path / "estimates.json").snapshot() == snapshot


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = CostEstimator()
    estimator.learn("scan", 10.0)
    path = tmp_path / "estimates.json"
    estimator.save(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="no space left"):
        estimator.save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


EMPTY = {"format": 1, "classes": [], "errors_log2": [], "error_count": 0}
RUNS = {"name": "scan", "stages": None, "runs": [[1.0, None]]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "must be JSON"),
        ("[1]", "'format' of .* must be 1 \\(got None\\)"),
        ({"format": 2, "classes": []}, "'format' of .* must be 1 \\(got 2\\)"),
        ({"format": 1}, "'classes' of .* must be a list"),
        ({"format": 1, "classes": [3]}, "'classes\\[0\\]' of .* must have 'name', 'stages' and 'runs'"),
        ({"format": 1, "classes": [{**RUNS, "name": 3}]}, "'name' in .* must be a string"),
        ({"format": 1, "classes": [{**RUNS, "stages": 0}]}, "'stages' in .* must be a positive whole number"),
        ({"format": 1, "classes": [{**RUNS, "runs": []}]}, "'runs' in .* at least one run"),
        ({"format": 1, "classes": [{**RUNS, "runs": [[-1, None]]}]}, "must be \\[core-seconds, size\\]"),
        (
            {"format": 1, "classes": [{**RUNS, "runs": [[math.nan, None]]}]},
            "must be \\[core-seconds, size\\]",
        ),
        ({"format": 1, "classes": [{**RUNS, "runs": [[True, None]]}]}, "must be \\[core-seconds, size\\]"),
        ({"format": 1, "classes": [{**RUNS, "runs": [[1, "big"]]}]}, "the size of a run"),
        ({"format": 1, "classes": []}, "'errors_log2' of .* must be a list of finite numbers"),
        ({**EMPTY, "errors_log2": [1.0, math.inf]}, "'errors_log2' of .* must be a list of finite numbers"),
        ({**EMPTY, "errors_log2": [1.0]}, "'error_count' of .* must be .* at least 1 \\(got 0\\)"),
        ({**EMPTY, "error_count": True}, "'error_count' of .* must be a whole number"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, document: Any, message: str) -> None:
    path = tmp_path / "estimates.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    with pytest.raises(EstimatesFileError, match=message) as raised:
        CostEstimator.load(path)
    assert "estimates.json" in str(raised.value)
    assert exit_code(raised.value) == 3


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "estimates.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EstimatesFileError, match="must be JSON"):
        CostEstimator.load(path)
    with pytest.raises(FileNotFoundError):
        CostEstimator.load(tmp_path / "absent.json")


def test_bad_values() -> None:
    with pytest.raises(FairQueueParameterError, match="'default_core_s' must be positive"):
        CostEstimator(0)
    with pytest.raises(FairQueueParameterError, match="'max_classes' must be positive"):
        CostEstimator(max_classes=0)
    with pytest.raises(FairQueueParameterError, match="'core_s' must be finite and at least 0"):
        CostEstimator().learn("a", -1.0)
    with pytest.raises(FairQueueParameterError, match="'size' must be finite and at least 0"):
        CostEstimator().learn("a", 1.0, size=math.inf)
