"""``fairpath users`` and ``fairpath feedback prune``, as an operator runs them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.erasure import user_digest
from router.service.store import DecisionRecord, Feedback, open_store
from tests.command_line import Result

DAY_S = 86_400.0


@pytest.fixture
def run(fairpath: Callable[..., Result], tmp_path: Path) -> Callable[..., Any]:
    """Runs a command on a store; gives what it printed, or the code and the errors where it failed."""

    def ran(*args: str, store: Path = tmp_path / "feedback.db") -> Any:
        ended = fairpath(*args, "--store", f"sqlite:///{store}")
        return json.loads(ended.out) if ended.code == 0 else (ended.code, ended.err)

    return ran


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    with open_store(url) as store:
        for user in ("anna", "ben"):
            store.add_feedback(Feedback(user=user, llm="kind"))
        for decision_id, age_days in (("0" * 32, 40.0), ("f" * 32, 0.0)):
            at = 1_764_000_000.0 - age_days * DAY_S
            store.add_decision(DecisionRecord(decision_id, at, "ben", "r1", "brief", 1.0, "trained"))
    return url


def test_a_user_is_erased_listed_and_readmitted(run, url):
    erased = run("users", "erase", "anna")
    assert (erased["deleted"].pop("feedback"), sum(erased["deleted"].values())) == (1, 0)
    assert (erased["user_digest"], erased["readmitted_at"]) == (user_digest("anna"), None)
    listed = {name: erased[name] for name in ("user_digest", "requested_at", "readmitted_at")}
    assert (erased["known"], erased["in_release"], erased["swept"]) == (True, None, True)
    assert run("users", "erased") == run("users", "erased", "anna") == {"erased": [listed]}
    assert run("users", "erased", "ben") == {"erased": []}
    assert run("users", "readmit", "anna") == {"readmitted": True}
    (again,) = run("users", "erased")["erased"]
    assert again["readmitted_at"] > again["requested_at"]
    code, errors = run("users", "readmit", "anna")
    assert (code, "anna" in errors) == (2, False)
    assert "'USER' must be one who is erased" in errors
    with open_store(url) as store:
        assert (len(store.events_of("anna")), len(store.events_of("ben"))) == (0, 1)


NEEDS_A_STORE = [
    ("users", "erase", "anna"),
    ("users", "erased"),
    ("feedback", "prune", "--older-than", "30"),
    ("feedback", "export", "--out", "never"),
    ("keys", "list"),
    ("keys", "revoke", "k"),
]


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize("command", NEEDS_A_STORE)
def test_a_store_that_is_not_there_is_not_made(run, tmp_path, command):
    code, errors = run(*command, store=tmp_path / "misspelt.db")
    assert code == 3
    assert "misspelt.db: there is no store" in errors
    assert not (tmp_path / "misspelt.db").exists()


def test_what_piles_up_is_pruned(run, url):
    removed = run("feedback", "prune", "--older-than", "30")["removed"]
    assert removed == {"decisions": 1, "sessions": 0, "reservations": 0, "rates": 0}
    with open_store(url) as store:
        assert (store.decision("0" * 32), store.decision("f" * 32) is None) == (None, False)
    for wrong in ("0.5", "nan", "inf"):
        code, errors = run("feedback", "prune", "--older-than", wrong)
        assert code == 2
        assert f"'--older-than' must be finite, at least 1 (got {wrong})" in errors


@pytest.mark.usefixtures("url")
def test_feedback_is_exported_up_to_a_time(run, tmp_path):
    early = run("feedback", "export", "--out", str(tmp_path / "early"), "--until", "2001-01-01")
    late = run("feedback", "export", "--out", str(tmp_path / "late"), "--until", "2999-01-01T00:00:00")
    assert (early["judgements"], late["judgements"]) == (0, 2)


@pytest.mark.usefixtures("url")
def test_the_export_tells_which_erasures_it_heeded(run, tmp_path):
    assert run("feedback", "export", "--out", str(tmp_path / "before"))["erased_until"] is None
    at = run("users", "erase", "anna")["requested_at"]
    told = run("feedback", "export", "--out", str(tmp_path / "after"), "--until", "2999-01-01T00:00:00.5")
    assert (told["erased_until"], told["judgements"]) == (at, 1)


@pytest.mark.usefixtures("url")
def test_a_misspelt_user_is_told(run, fairpath, tmp_path, release_root):
    ended = fairpath("users", "erase", "anan", "--store", f"sqlite:///{tmp_path / 'feedback.db'}")
    assert json.loads(ended.out)["known"] is False
    assert "is it the key?" in ended.err
    assert "anan" not in ended.err
    in_release = run("users", "erase", "u03", "--releases", str(release_root))
    assert (in_release["known"], in_release["in_release"]) == (True, True)
    nowhere = run("users", "erase", "u0x", "--releases", str(release_root))
    assert (nowhere["known"], nowhere["in_release"]) == (False, False)
    assert run("users", "erase", "ben", "--releases", str(tmp_path / "no"))[0] == 3
    assert run("users", "erased", "ben") == {"erased": []}


def test_a_restored_backup_is_told_whom_to_forget(run, url, tmp_path):
    backup = tmp_path / "backup.db"
    with sqlite3.connect(tmp_path / "feedback.db") as there, sqlite3.connect(backup) as copy:
        there.backup(copy)
    run("users", "erase", "anna")
    listed = tmp_path / "erased.json"
    for n_times in range(2):  # also over the one of yesterday
        assert run("users", "erased", "--out", str(listed)) == {"file": str(listed), "erased": 1}, n_times
    assert "anna" not in listed.read_text()
    applied = run("users", "erase", "--digests", str(listed), store=backup)
    assert (applied["listed"], applied["new"], applied["deleted"]["feedback"]) == (1, 1, 1)
    assert run("users", "erased", store=backup) == run("users", "erased")
    with open_store(f"sqlite:///{backup}") as store:
        assert (len(store.events_of("anna")), len(store.events_of("ben"))) == (0, 1)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("no json", "not a list that"),
        ("[]", "not a list that"),
        ('{"erased": {}}', "'erased' must be a list (got dict)"),
        (
            '{"erased": [{"user_digest": "ab", "requested_at": "2026-01-01", "readmitted_at": null}]}',
            "entry 1",
        ),
        ('{"erased": ["anna"]}', "entry 1 must have 'user_digest' (64 hex digits)"),
    ],
)
def test_a_wrong_list_changes_nothing(run, tmp_path, content, told):
    (tmp_path / "list.json").write_text(content)
    code, errors = run("users", "erase", "--digests", str(tmp_path / "list.json"))
    assert (code, told in " ".join(errors.split())) == (3, True), errors
    assert run("users", "erased") == {"erased": []}


@pytest.mark.usefixtures("url")
def test_either_a_user_or_a_list(run, tmp_path):
    assert run("users", "erase")[0] == 2
    assert run("users", "erase", "anna", "--digests", "x.json")[0] == 2
    assert run("users", "erase", "--digests", str(tmp_path / "x.json"))[0] == 3
