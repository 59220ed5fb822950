"""Decisions whether to publish are kept with what they led to; erasures are part of a release's identity."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
import structlog

from router import releases
from router.errors import ParameterError, ReleaseError
from router.releases import places
from tests.releases.conftest import NOON

GOOD = {"publish": True, "summary": "better", "reasons": [{"rule": "accuracy", "passed": True}]}
BAD = {"publish": False, "summary": "worse", "reasons": [{"rule": "accuracy", "passed": False}]}


def test_a_decision_is_in_the_record_and_among_the_decisions(tmp_path, published):
    releases.record_refusal(tmp_path / "new", BAD)  # the very first candidate
    release = published(tmp_path / "new", 0, decision=GOOD)
    releases.record_refusal(tmp_path / "new", BAD)
    assert release.manifest["decision"] == GOOD
    kept = releases.decisions(tmp_path / "new")
    assert [(entry["version"], entry["decision"]) for entry in kept] == [
        (None, BAD),
        (release.version, GOOD),
        (None, BAD),
    ]
    published(tmp_path / "new", 0, decision=GOOD)
    releases.record_refusal(tmp_path / "new", BAD)
    releases.record_refusal(tmp_path / "new", BAD)  # a step that was done again
    assert len(releases.decisions(tmp_path / "new")) == 5


def test_the_decision_is_no_part_of_the_content(tmp_path, published):
    one = published(tmp_path / "a", 0, decision=GOOD)
    assert published(tmp_path / "b", 0, decision=None).version == one.version
    assert published(tmp_path / "a", 0, day=3, decision={**GOOD, "summary": "other"}) == one


def test_erasures_are(tmp_path, published):
    without = published(tmp_path, 0, day=3)
    release = published(tmp_path, 0, day=3, erased_until=NOON)
    assert without.erased_until is None
    assert release.erased_until == NOON
    assert release.version != without.version
    path = release.path / "release.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"erased_until": (NOON + timedelta(days=1)).isoformat()}))
    with pytest.raises(ReleaseError, match="does not match its digest"):
        releases.open_release(tmp_path, release.version, verify=False)


@pytest.mark.parametrize("decision", [{"x": float("nan")}, {"x": object()}])
def test_a_decision_that_is_no_json(tmp_path, published, decision):
    with pytest.raises(ParameterError, match="'decision' must be a JSON object"):
        published(tmp_path / "new", 0, decision=decision)
    with pytest.raises(ParameterError, match="'decision' must be a JSON object"):
        releases.record_refusal(tmp_path / "new", decision)
    assert not (tmp_path / "new").exists()


def test_erasures_of_the_future(tmp_path, published):
    with structlog.testing.capture_logs() as logs:
        release = published(tmp_path, 0, erased_until=NOON + timedelta(seconds=1))
    assert release.erased_until == NOON  # a clock that is ahead keeps no release back
    assert "check the clocks" in logs[0]["event"]


def test_a_line_of_decisions_that_broke_off(tmp_path):
    releases.record_refusal(tmp_path, BAD)
    with (tmp_path / "decisions.jsonl").open("a") as file:
        file.write('\n{"at": "2026')
    releases.record_refusal(tmp_path, GOOD)
    assert [entry["decision"] for entry in releases.decisions(tmp_path)] == [BAD, GOOD]


def test_rolled_back_from(tmp_path, published):
    made = [published(tmp_path, number).version for number in range(3)]
    places.rollback(places.Folder(tmp_path), made[0])
    assert places.rolled_back_from(places.Folder(tmp_path)) == {made[1], made[2]}
    places.activate(places.Folder(tmp_path), made[2])
    assert places.rolled_back_from(places.Folder(tmp_path)) == {made[1]}
    # The line of a switch was not written, but that of going back from it was.
    history = tmp_path / "history.jsonl"
    history.write_text("\n".join(history.read_text().splitlines()[:-1]))
    assert places.rollback(places.Folder(tmp_path)) == made[0]
    assert places.rolled_back_from(places.Folder(tmp_path)) == {made[1], made[2]}
