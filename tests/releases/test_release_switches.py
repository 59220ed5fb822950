"""What is current, what a rollback goes to and what may be pruned, against plain lists, at every step."""

from __future__ import annotations

import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router import releases
from router.errors import ParameterError, ReleaseError
from router.publishing import publish
from router.releases import places
from router.releases.places import Folder, Place, earlier_versions, place_of, rollback, rolled_back_from
from router.releases.pruning import PruneRule, prune
from router.releases.push import push
from tests.releases.conftest import NOON
from tests.service.synthetic import write_synthetic

STEPS = settings(max_examples=12, stateful_step_count=20)


class Releases(RuleBasedStateMachine):
    """Releases in a folder beside what is expected of them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        write_synthetic(self.folder / "model")
        self.root = self.folder / "releases"
        self.place = self.start()
        self.now = NOON
        self.there: dict[str, tuple[datetime, datetime | None]] = {}  # when made, erasures until
        self.stack: list[str] = []
        self.rolled_back: set[str] = set()

    def start(self) -> Place:
        return Folder(self.root)

    def add(self, erased_until: datetime | None) -> str:
        return self.publish(erased_until)

    def publish(self, erased_until: datetime | None) -> str:
        release = publish(
            self.root,
            model=self.folder / "model",
            feedback_until=self.now,
            erased_until=erased_until,
            now=self.now,
            activate=False,
        )
        return release.version

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(activate=st.booleans(), erased_days=st.none() | st.integers(0, 5))
    def publish_one(self, activate: bool, erased_days: int | None) -> None:
        self.now += timedelta(days=1)
        until = None if erased_days is None else self.now - timedelta(days=erased_days)
        version = self.add(until)
        self.there[version] = (self.now, until)
        if activate:
            self._switch(version)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        self._switch(data.draw(st.sampled_from(sorted(self.there))))

    def _switch(self, version: str) -> None:
        self.place.switch(version, "activate")
        self.stack = [other for other in self.stack if other != version] + [version]
        self.rolled_back.discard(version)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        possible = [version for version in reversed(self.stack[:-1]) if version in self.there]
        to = data.draw(st.none() | st.sampled_from([*sorted(self.there), "nothing"]))
        if (to is None and not possible) or (to is not None and to not in possible):
            with pytest.raises(ReleaseError):
                rollback(self.place, to)
            return
        wanted = to or possible[0]
        assert rollback(self.place, to) == wanted
        while self.stack[-1] != wanted:
            self.rolled_back.add(self.stack.pop())
        self.rolled_back.discard(wanted)

    @rule(
        keep=st.none() | st.integers(1, 4),
        days=st.none() | st.integers(0, 4),
        erased=st.none() | st.integers(0, 5),
        dry_run=st.booleans(),
    )
    def prune(self, keep: int | None, days: int | None, erased: int | None, dry_run: bool) -> None:
        if (keep is None and erased is None) or (keep is None and days is not None) or not self.there:
            return
        before = None if erased is None else self.now - timedelta(days=erased)
        found = prune(self.place, PruneRule(keep, days, before), dry_run=dry_run, now=self.now)
        newest = sorted(self.there, reverse=True)
        wanted = set()
        for position, version in enumerate(newest):
            made, until = self.there[version]
            if (
                keep is not None
                and position >= keep
                and (days is None or made < self.now - timedelta(days=days))
            ):
                wanted.add(version)
            if before is not None and (until is None or until < before):
                wanted.add(version)
        unclean = {
            version
            for version, (_, until) in self.there.items()
            if before is not None and (until is None or until < before)
        }
        needed = set(newest)
        if self.stack:
            useful = self.there.keys() - (set() if self.stack[-1] in unclean else unclean)
            needed = {version for version in useful if version >= self.stack[-1]}
            needed |= set([v for v in self.stack[:-1] if v in useful][-1:])
        assert set(found["unerased"]) == needed & unclean
        assert {entry["version"] for entry in found["removed"]} == wanted - needed
        assert {entry["version"] for entry in found["kept"]} == wanted & needed
        assert found["left"] == sorted(set(newest) - (wanted - needed))
        if not dry_run:
            for version in wanted - needed:
                del self.there[version]

    @invariant()
    def it_is_as_expected(self) -> None:
        assert self.place.versions() == sorted(self.there)
        assert self.place.current() == (self.stack[-1] if self.stack else None)
        assert earlier_versions(self.place) == [v for v in reversed(self.stack[:-1]) if v in self.there]
        assert rolled_back_from(self.place) == self.rolled_back
        for version in self.stack[-1:]:
            self.place.check(version, verify=True)


class StoredReleases(Releases):
    """The same in an object store; releases are made elsewhere and pushed."""

    def start(self) -> Place:
        return place_of(f"memory://{self.folder.name}")

    def add(self, erased_until: datetime | None) -> str:
        version = self.publish(erased_until)
        push(self.root, f"memory://{self.folder.name}", version, activate=False, threads=1)
        return version

    def teardown(self) -> None:
        super().teardown()
        fsspec.filesystem("memory").store.clear()


TestFolder = Releases.TestCase
TestFolder.settings = STEPS
TestObjectStore = StoredReleases.TestCase
TestObjectStore.settings = STEPS


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "give 'keep', 'erased_before', or both"),
        ({"keep": 0}, "'keep' must be positive"),
        ({"erased_before": NOON, "older_than_days": 3.0}, "'older_than_days' goes with 'keep'"),
        ({"keep": 1, "older_than_days": -1.0}, "'older_than_days' must not be negative"),
        ({"keep": 1, "older_than_days": float("nan")}, "'older_than_days' must not be negative"),
    ],
)
def test_rules_that_are_none(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        PruneRule(**rule)


def test_a_damaged_release_is_not_the_one_to_go_back_to(tmp_path, published):
    """The one before it stays instead, because a rollback of a service would go on to that."""
    made = [published(tmp_path, number).version for number in range(4)]
    (tmp_path / made[2] / "model" / "llms.json").unlink()
    found = prune(Folder(tmp_path), PruneRule(keep=1))
    assert [entry["version"] for entry in found["removed"]] == [made[0], made[2]]
    assert releases.versions(tmp_path) == [made[1], made[3]]
    assert rollback(Folder(tmp_path)) == made[1]


def test_nothing_is_pruned_where_it_is_not_known_what_is_current(tmp_path, published):
    made = [published(tmp_path, number).version for number in range(3)]
    (tmp_path / "CURRENT").write_text("?\n")
    with pytest.raises(ReleaseError, match="CURRENT: not the name of a release"):
        prune(Folder(tmp_path), PruneRule(keep=1))
    assert releases.versions(tmp_path) == made


def test_freed_bytes_are_those_that_no_other_file_shares(tmp_path, release_parts):
    for day in range(3):
        write_synthetic(tmp_path / f"m{day}", seed=day)
        now = NOON + timedelta(days=day)
        publish(tmp_path / "releases", model=tmp_path / f"m{day}", now=now)
    shutil.rmtree(tmp_path / "m0")  # its files are now the release's alone
    place = Folder(tmp_path / "releases")
    folder = place.root / place.versions()[0]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert prune(place, PruneRule(keep=1))["freed_bytes"] == size
    assert not list(place.root.glob(".*removed*"))


def test_a_rollback_beside_a_publish_does_not_hide_what_was_published(tmp_path, published, monkeypatch):
    """Its bytes are compared for a while; what becomes current meanwhile was not rolled back from."""
    made = [published(tmp_path, number).version for number in range(2)]
    compare = releases.open_release

    def slowly(*args: Any, **options: Any) -> releases.Release:
        monkeypatch.undo()
        published(tmp_path, 2)
        return compare(*args, **options)

    monkeypatch.setattr(releases.local, "open_release", slowly)
    with pytest.raises(ReleaseError, match="became the current release meanwhile"):
        places.rollback(places.Folder(tmp_path))
    assert places.rolled_back_from(places.Folder(tmp_path)) == frozenset()
    assert next(iter(places.earlier_versions(places.Folder(tmp_path))), None) == made[1]


def test_a_release_that_was_pruned_while_it_was_published_again_is_made_anew(
    tmp_path, published, monkeypatch
):
    first = published(tmp_path, 0).version
    published(tmp_path, 1)
    published(tmp_path, 2)
    switch = releases.switch

    def after_pruning(root: Path, version: str, action: Any, **options: Any) -> None:
        monkeypatch.undo()
        assert [e["version"] for e in prune(Folder(root), PruneRule(keep=1))["removed"]] == [first]
        switch(root, version, action, **options)

    monkeypatch.setattr("router.publishing.switch", after_pruning)
    again = published(tmp_path, 0, day=5).version
    assert again == releases.current_version(tmp_path) != first
    assert again.endswith(first.rpartition("-")[2])
    releases.open_release(tmp_path, again, verify=True)
