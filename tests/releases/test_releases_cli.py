"""``fairpath releases`` as its user sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from router import releases
from router.releases.places import place_of, rollback
from router.releases.push import push

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def three(tmp_path: Path, published) -> tuple[Path, list[str]]:
    root = tmp_path / "releases"
    decision = {"publish": True, "summary": "better [by 2 %]", "reasons": []}
    made = [published(root, number, decision=decision).version for number in range(3)]
    releases.record_refusal(root, {"publish": False, "summary": "worse", "reasons": []})
    return root, made


def test_list(fairpath, three):
    root, made = three
    found = fairpath("releases", "list", root).json
    assert [row["version"] for row in found["releases"]] == made[::-1]
    assert [row["state"] for row in found["releases"]] == ["current", "previous", "former"]
    assert found["releases"][0]["decision"] == "better [by 2 %]"
    assert [entry["decision"]["summary"] for entry in found["refusals"]] == ["worse"]
    table = fairpath("releases", "list", root, "--table").out
    assert [line for line in table.splitlines() if "current" in line and made[2] in line]
    assert "better [by 2 %]" in table
    assert "refused" in table
    assert "worse" in table


def test_show_and_diff(fairpath, three):
    root, made = three
    assert fairpath("releases", "show", root).json["version"] == made[2]
    assert fairpath("releases", "show", root, "previous", "--verify").json["version"] == made[1]
    found = fairpath("releases", "diff", root).json
    assert (found["before"], found["after"]) == (made[1], made[2])
    assert "u21" not in json.dumps(found)
    named = fairpath("releases", "diff", root, "--user-names", "2").json
    assert named["model"]["user"]["added_names"] == ["u21"]
    (root / made[0] / "model" / "llms.json").unlink()
    damaged = fairpath("releases", "show", root, made[0])
    assert damaged.code == 3
    assert "llms.json: missing from the store" in damaged.err
    assert fairpath("releases", "show", root, "nothing").code == 3


def test_rollback(fairpath, three):
    root, made = three
    found = fairpath("releases", "rollback", root).json
    assert (found["before"], found["current"]) == (made[2], made[1])
    assert fairpath("releases", "list", root).json["releases"][0]["state"] == "rolled back"
    wrong = fairpath("releases", "rollback", root, "--to", made[2])
    assert (wrong.code, releases.current_version(root)) == (3, made[1])
    assert f"'{made[2]}' is not a release before {made[1]}" in wrong.err
    assert fairpath("releases", "rollback", root).code == 0
    none = fairpath("releases", "rollback", root)
    assert none.code == 3
    assert f"there is no release before {made[0]}" in none.err
    assert fairpath("releases", "list", root).json["releases"][0]["state"] == "rolled back"
    forward = fairpath("releases", "activate", root, made[2]).json
    assert (forward["before"], forward["current"], forward["switched"]) == (made[0], made[2], True)
    assert fairpath("releases", "list", root).json["releases"][0]["state"] == "current"
    assert fairpath("releases", "activate", root, made[2]).json["switched"] is False
    assert fairpath("releases", "activate", root, "current").code == 3


def test_a_current_that_cannot_be_read(fairpath, three):
    root, made = three
    (root / "CURRENT").write_text("")
    for command in (("list", root), ("show", root, made[0])):
        found = fairpath("releases", *command)
        assert (found.code, len(found.json["warnings"])) == (0, 1)
        assert "CURRENT: is empty" in found.err
    assert "CURRENT: is empty" in fairpath("releases", "list", root, "--table").out
    none = fairpath("releases", "prune", root, "--keep", "1")
    assert none.code == 3
    assert "nothing was removed: 'fairpath releases activate' or 'rollback'" in none.err
    assert fairpath("releases", "rollback", root).json["current"] == made[2]


def test_prune(fairpath, three):
    root, made = three
    assert fairpath("releases", "prune", root, "--keep", "1", "--dry-run").json["left"] == made[1:]
    assert releases.versions(root) == made
    found = fairpath("releases", "prune", root, "--keep", "1").json
    assert [entry["version"] for entry in found["removed"]] == made[:1]
    assert [entry["needed"] for entry in found["kept"]] == ["a rollback goes to it"]
    assert releases.versions(root) == made[1:]
    for options, message in (
        ((), "give '--keep', '--erased-before', or both"),
        (("--keep", "0"), "'keep' must be positive"),
        (("--older-than", "3", "--erased-before", "2026-11-01"), "'older_than_days' goes with 'keep'"),
    ):
        wrong = fairpath("releases", "prune", root, *options)
        assert wrong.code == 2
        assert message in wrong.err
    erased = ("releases", "prune", root, "--erased-before", "2026-11-05T00:00:00")
    assert fairpath(*erased, "--dry-run").code == 0
    found = fairpath(*erased)
    assert found.code == 3
    assert found.json["unerased"] == [entry["version"] for entry in found.json["kept"]] == made[1:]
    assert "may hold users who were erased" in found.err


def test_a_backup(fairpath, three, tmp_path, url):
    root, made = three
    fairpath("releases", "rollback", root)
    sent = fairpath("releases", "push", root, url, "--all").json
    assert ([one["version"] for one in sent["releases"]], sent["current"]) == ([*made[::2], made[1]], made[1])
    assert fairpath("releases", "pull", url, tmp_path / "copy", "--all").json["current"] == made[1]
    listed = [fairpath("releases", "list", where).json for where in (root, tmp_path / "copy")]
    states = [[row["state"] for row in found["releases"]] for found in listed]
    assert states[0] == states[1] == ["rolled back", "current", "previous"]
    for command in (("push", root, url), ("pull", url, root)):
        wrong = fairpath("releases", *command, made[0], "--all")
        assert wrong.code == 2
        assert "'--all' takes no VERSION" in wrong.err


def test_repairs(fairpath, three, tmp_path, url):
    root, made = three
    fairpath("releases", "push", root, url)
    fairpath("releases", "pull", url, tmp_path / "copy")
    (tmp_path / "copy" / made[2] / "model" / "llms.json").unlink()
    damaged = fairpath("releases", "list", tmp_path / "copy")
    assert "llms.json: missing" in damaged.json["releases"][0]["damaged"]
    assert "damaged" in fairpath("releases", "list", tmp_path / "copy", "--table").out
    found = fairpath("releases", "pull", url, tmp_path / "copy")
    assert found.json["repaired"] == ["model/llms.json"]
    assert "a damaged release was repaired" in found.err


def test_push_and_pull(fairpath, three, tmp_path, url):
    root, made = three
    sent = fairpath("releases", "push", root, url)
    assert (sent.json["version"], sent.json["switched"]) == (made[2], True)
    assert fairpath("releases", "list", url).json["current"] == made[2]
    assert fairpath("releases", "push", root, url, made[1], "--no-activate").json["current"] == made[2]
    fetched = fairpath("releases", "pull", url, tmp_path / "copy").json
    assert fetched["version"] == releases.current_version(tmp_path / "copy") == made[2]
    assert fairpath("releases", "diff", url, made[1], made[2]).json["model"]["user"]["added"] == 1
    assert fairpath("releases", "prune", url, "--keep", "1").json["freed_bytes"] > 0
    fairpath("releases", "rollback", tmp_path / "copy")
    for command in ("push", "pull"):
        plain = ("push", root, tmp_path / "x") if command == "push" else ("pull", tmp_path / "x", root)
        wrong = fairpath("releases", *plain)
        assert wrong.code == 2
        assert "'URL' must be that of an object store" in wrong.err
    for command, arguments in (("push", (url, url)), ("pull", (url, url))):
        wrong = fairpath("releases", command, *arguments)
        assert wrong.code == 2
        assert "'FOLDER' must be a folder (got " in wrong.err
    published = fairpath("publish", "--root", "s3://me:secret@bucket/x", "--model", tmp_path)
    assert published.code == 2
    assert "'--root' must be a folder" in published.err
    assert "then 'fairpath releases push' it" in published.err
    assert "secret" not in published.err
    for options in (("--keep", "2"), ("--every", "0"), ("--every", "1", "--no-activate")):
        assert fairpath("releases", "pull", url, tmp_path / "copy", *options).code == 2


def test_places_that_are_not_there(fairpath, tmp_path):
    missing = fairpath("releases", "list", tmp_path / "nothing")
    assert (missing.code, missing.out) == (3, "")
    assert f"{tmp_path / 'nothing'}: no such folder" in missing.err
    for command in (("prune", "--keep", "1"), ("rollback",), ("list",)):
        missing = fairpath("releases", command[0], f"file://{tmp_path}/misspelt", *command[1:])
        assert (missing.code, missing.out) == (3, "")
        assert f"file://{tmp_path}/misspelt: there is nothing" in missing.err
    missing = fairpath("releases", "push", tmp_path / "nothing", "memory://x")
    assert missing.code == 3
    assert f"{tmp_path / 'nothing'}: no such folder" in missing.err
    unknown = fairpath("releases", "list", "nothing://x")
    assert (unknown.code, unknown.out) == (2, "")
    if find_spec("s3fs") is None:
        missing = fairpath("releases", "list", "s3://bucket/releases")
        assert (missing.code, missing.out) == (3, "")
        assert "pip install s3fs" in missing.err


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
def test_a_sidecar(three, tmp_path, ended_by):
    root, made = three
    url, copy = f"file://{tmp_path / 'store'}", tmp_path / "copy"
    push(root, url, made[0])
    command = [sys.executable, "-m", "jobs.cli", "releases", "pull", url, str(copy), "--every", "0.05"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAIRPATH_")}
    process = subprocess.Popen(
        [*command, "--log-format", "json"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for(copy, made[0])
        push(root, url, made[2])
        _wait_for(copy, made[2])
        rollback(place_of(url))
        _wait_for(copy, made[0])
        process.send_signal(ended_by)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (0 if ended_by == signal.SIGTERM else 130)
    assert json.loads(out) == {"switches": 3}
    lines = [json.loads(line) for line in err.splitlines()]
    assert [(line["event"], line["release"]) for line in lines] == [
        ("followed", version) for version in (made[0], made[2], made[0])
    ]


def _wait_for(root: Path, version: str) -> None:
    deadline = time.monotonic() + 30.0
    while releases.current_version(root) != version:
        assert time.monotonic() < deadline
        time.sleep(0.02)
