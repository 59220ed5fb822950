"""Erasures and rollbacks that travel, damage that is repaired, backups, and what killed processes leave."""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from router import publishing, releases
from router.errors import ReleaseError
from router.releases import places
from router.releases.backup import pull_all, push_all
from router.releases.objects import ObjectStore
from router.releases.overview import overview, whole
from router.releases.places import Folder, activate, earlier_versions, place_of, rollback, rolled_back_from
from router.releases.pruning import PruneRule, prune
from router.releases.pull import pull
from router.releases.push import push
from router.releases.stored import StoredFile
from tests.releases.conftest import NOON, tree

LATER = datetime.now(UTC) + timedelta(days=3)


def test_erasures_win_over_a_way_back_once_the_current_release_is_clean(tmp_path, published):
    """Before that, what is needed stays, and the result says which and why."""
    made = [published(tmp_path, number).version for number in range(3)]
    waiting = published(tmp_path, 3, day=9, activate=False).version
    place, rule = Folder(tmp_path), PruneRule(erased_before=NOON + timedelta(days=4))
    found = prune(place, rule)
    assert [entry["version"] for entry in found["removed"]] == made[:1]
    assert found["unerased"] == [*made[1:], waiting]
    assert [e["needed"] for e in found["kept"]] == [
        "a rollback goes to it",
        "current",
        "newer than the current one",
    ]
    clean = published(tmp_path, 2, day=5, erased_until=NOON + timedelta(days=4)).version
    found = prune(place, rule)
    assert (found["unerased"], found["kept"]) == ([], [])
    assert releases.versions(tmp_path) == [clean]


def test_a_clean_release_stays_as_the_way_back(tmp_path, published):
    dirty = published(tmp_path, 0).version
    clean = [published(tmp_path, 1, erased_until=NOON).version]
    places.activate(places.Folder(tmp_path), dirty)
    clean.append(published(tmp_path, 2, erased_until=NOON).version)
    assert next(iter(places.earlier_versions(places.Folder(tmp_path))), None) == dirty
    prune(Folder(tmp_path), PruneRule(keep=1, erased_before=NOON))
    assert releases.versions(tmp_path) == clean
    assert next(iter(places.earlier_versions(places.Folder(tmp_path))), None) == clean[0]


def test_a_copy_does_not_go_back_to_what_was_rolled_back_from(here, copy, url, published):
    """It saw only the newer one before the rollback, or both in the other order."""
    made = [published(here, number).version for number in range(3)]
    for version in made[:2]:
        push(here, url, version)
    pull(url, copy)
    assert rollback(place_of(url)) == made[0]
    assert pull(url, copy).current == made[0]
    assert next(iter(places.earlier_versions(places.Folder(copy))), None) is None
    assert places.rolled_back_from(places.Folder(copy)) == frozenset()
    with pytest.raises(ReleaseError, match=f"there is no release before {made[0]}"):
        places.rollback(places.Folder(copy))
    push(here, url, made[2])
    assert pull(url, copy).current == made[2]
    assert next(iter(places.earlier_versions(places.Folder(copy))), None) == made[0]
    place_of(url).switch(made[1], "activate")
    assert pull(url, copy).current == made[1]
    assert places.rollback(places.Folder(copy)) == made[2]


def test_a_bucket_does_not_go_back_to_what_was_rolled_back_from_here(here, url, published):
    made = [published(here, number).version for number in range(2)]
    push(here, url)
    places.rollback(places.Folder(here))
    assert push(here, url).current == made[0]
    assert earlier_versions(place_of(url)) == []


@pytest.mark.parametrize("damage", ["missing", "cut", "altered"])
def test_a_push_repairs(here, copy, url, published, damage):
    release = published(here, 0)
    push(here, url)
    store, name = ObjectStore(url), "model/weights.safetensors"
    content = tree(release.path)[name]
    if damage == "missing":
        store.file_system.rm_file(store.path(release.version, name))
    else:
        store.write(content[:-1] + (b"" if damage == "cut" else b"?"), release.version, name)
    if damage == "altered":
        assert push(here, url).repaired == ()  # sizes are the same, and the store says nothing else
    done = push(here, url, verify=True)
    assert (done.repaired, done.moved_bytes) == ((name,), len(content))
    assert push(here, url, verify=True).repaired == ()
    pull(url, copy)
    assert tree(copy / release.version) == tree(release.path)


def test_a_push_repairs_the_record(here, copy, url, published):
    release = published(here, 0)
    push(here, url)
    ObjectStore(url).write(b"{", release.version, "release.json")
    assert push(here, url).repaired == ("release.json",)
    assert pull(url, copy).switched


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The object store tells digests of its objects; gives what was sent, as opposed to copied."""
    plain, put, sent = ObjectStore.objects, ObjectStore.put, list[str]()

    def with_digests(self: ObjectStore, version: str) -> dict[str, StoredFile]:
        return {name: self.about(version, name) for name in plain(self, version)}

    def about(self: ObjectStore, version: str, name: str) -> StoredFile:
        content = self.read(version, name)
        return StoredFile(len(content), hashlib.md5(content).hexdigest())

    def noted(self: ObjectStore, source: Path, *names: str) -> None:
        sent.append("/".join(names))
        put(self, source, *names)

    monkeypatch.setattr(ObjectStore, "objects", with_digests)
    monkeypatch.setattr(ObjectStore, "about", about)
    monkeypatch.setattr(ObjectStore, "put", noted)
    return sent


def test_copies_within_a_store_are_compared(here, url, published, telling):
    old = published(here, 0)
    push(here, url)
    new = published(here, 1)
    store, damaged = ObjectStore(url), "graph/indices.npy"
    content = tree(old.path)[damaged]
    store.write(content[:-1] + bytes([content[-1] ^ 1]), old.version, damaged)
    telling.clear()
    push(here, url)
    store.check(new.version, verify=True)
    assert f"{new.version}/{damaged}" in telling
    assert not [name for name in telling if name.startswith(f"{new.version}/fingerprints")]
    assert push(here, url, old.version, activate=False).repaired == (damaged,)
    store.check(old.version, verify=True)


def test_a_digest_that_is_none_of_the_file_is_no_damage(here, url, published, telling, monkeypatch):
    """Such as those of objects that the store encrypts."""
    published(here, 0)
    push(here, url)
    about = ObjectStore.about
    monkeypatch.setattr(
        ObjectStore, "about", lambda self, *names: StoredFile(about(self, *names).n_bytes, "0" * 32)
    )
    assert push(here, url).repaired == ()


@pytest.mark.parametrize("damage", ["missing", "altered", "no record", "record"])
def test_a_pull_repairs(here, copy, url, published, damage):
    release = published(here, 0)
    push(here, url)
    pull(url, copy)
    folder = copy / release.version
    file = folder / ("release.json" if "record" in damage else "model/weights.safetensors")
    content = file.read_bytes()
    file.unlink()
    if damage in ("altered", "record"):
        file.write_bytes(content[:-2] + b"??")
    done = pull(url, copy)
    assert done.repaired == (() if damage == "no record" else (file.relative_to(folder).as_posix(),))
    assert done.moved_bytes == (0 if "record" in damage else len(content))
    assert tree(folder) == tree(release.path)
    assert pull(url, copy).repaired == ()
    assert not list(copy.glob(".2*"))


@pytest.mark.parametrize("content", [b"", b"\n", b"?\n", b"\xff"])
def test_a_current_that_cannot_be_read(here, copy, url, published, content):
    made = [published(here, number).version for number in range(2)]
    push(here, url)
    pull(url, copy)

    def damage(root: Path) -> None:
        (root / "CURRENT").write_bytes(content)

    damage(here)
    found = overview(Folder(here))
    assert (found["current"], len(found["releases"])) == (None, 2)
    assert "CURRENT: " in found["warnings"][0]
    assert whole(Folder(here), made[0], verify=False)["warnings"] == found["warnings"]
    assert rollback(Folder(here)) == made[1]  # what was in use last
    assert places.rolled_back_from(places.Folder(here)) == frozenset()
    damage(here)
    assert places.rollback(places.Folder(here), made[0]) == made[0]
    damage(here)
    assert activate(Folder(here), made[1])
    damage(here)
    assert published(here, 2).version == releases.current_version(here)
    damage(here)
    assert published(here, 2).version == releases.current_version(here)
    damage(copy)
    assert pull(url, copy).current == releases.current_version(copy) == made[1]
    ObjectStore(url).write(content, "CURRENT")
    assert overview(place_of(url))["current"] is None
    assert push(here, url).switched


def test_a_current_that_is_not_there(tmp_path, published):
    made = [published(tmp_path, number).version for number in range(2)]
    shutil.rmtree(tmp_path / made[1])
    found = overview(Folder(tmp_path))
    assert f"the current release {made[1]} is not there" in found["warnings"][0]


def test_activated_again(here, url, published):
    made = [published(here, number).version for number in range(2)]
    for version in made:
        push(here, url, version)
    for place in (Folder(here), place_of(url)):
        rollback(place)
        assert rolled_back_from(place) == {made[1]}
        assert activate(place, made[1])
        assert (place.current(), rolled_back_from(place)) == (made[1], frozenset())
        assert earlier_versions(place) == made[:1]
        assert not activate(place, made[1])
        with pytest.raises(ReleaseError, match="there is no release"):
            activate(place, "20200101T000000Z-0123456789ab")


def test_a_damaged_release_is_not_activated(tmp_path, published):
    made = [published(tmp_path, number).version for number in range(2)]
    file = tmp_path / made[0] / "model" / "llms.json"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1] + b"?")
    with pytest.raises(ReleaseError, match=r"llms\.json: checksum"):
        activate(Folder(tmp_path), made[0])
    assert releases.current_version(tmp_path) == made[1]


def test_a_backup_gives_all_back(here, copy, url, published):
    made = [published(here, number, decision={"publish": True}).version for number in range(3)]
    waiting = published(here, 3, activate=False).version
    places.rollback(places.Folder(here))
    releases.record_refusal(here, {"publish": False})
    done = push_all(here, url)
    assert [one.version for one in done] == [made[0], made[2], waiting, made[1]]
    assert (done[-1].switched, place_of(url).current()) == (True, made[1])
    assert sum(one.moved_bytes for one in push_all(here, url)) == 0
    assert pull_all(url, copy)[-1].current == made[1]
    for version in (*made, waiting):
        assert tree(copy / version) == tree(here / version)
    assert releases.current_version(copy) == made[1]
    assert releases.decisions(copy) == releases.decisions(here)
    assert places.rolled_back_from(places.Folder(copy)) == {made[2]}
    assert places.earlier_versions(places.Folder(copy)) == [made[0]]
    places.rollback(places.Folder(copy))
    pull_all(url, copy)  # what happened here is kept
    assert made[1] in places.rolled_back_from(places.Folder(copy))


def test_nothing_to_back_up(tmp_path, url):
    (tmp_path / "new").mkdir()
    with pytest.raises(ReleaseError, match="there are no releases"):
        push_all(tmp_path / "new", url)
    with pytest.raises(ReleaseError, match="there are no releases"):
        pull_all(url, tmp_path / "copy")


def test_a_killed_publish_is_cleared(tmp_path, published):
    version = published(tmp_path, 0).version
    host = os.uname().nodename
    dead = tmp_path / f".{version}.new-{host}-4194399-0a1b2c3d"
    alive = tmp_path / f".{version}.new-{host}-{os.getpid()}-0a1b2c3d"
    elsewhere = tmp_path / f".{version}.new-other-1-0a1b2c3d"
    pulled = tmp_path / f".{version}.pull"
    foreign = tmp_path / ".cache.new-other-1-2"
    for folder in (dead, alive, elsewhere, pulled, foreign):
        folder.mkdir()
        (folder / "x").write_bytes(b"12345")
    rule = PruneRule(keep=1)
    assert prune(Folder(tmp_path), rule, dry_run=True)["leftovers"] == [dead.name]
    found = prune(Folder(tmp_path), rule)
    assert (found["leftovers"], found["freed_bytes"]) == ([dead.name], 5)
    assert not dead.exists()
    found = prune(Folder(tmp_path), rule, now=LATER)
    assert set(found["leftovers"]) == {alive.name, elsewhere.name, pulled.name}
    assert foreign.exists()


def test_damage_is_listed(tmp_path, published):
    made = [published(tmp_path, number).version for number in range(2)]
    (tmp_path / made[0] / "graph" / "indices.npy").unlink()
    rows = overview(Folder(tmp_path))["releases"]
    assert "damaged" not in rows[0]
    assert "indices.npy: missing" in rows[1]["damaged"]


def test_links_shared_among_those_removed_are_freed(tmp_path, published, release_parts):
    """Three share one graph, which goes with the last of them."""
    parts, root, made = tmp_path / "parts", tmp_path / "releases", []
    for name in ("graph", "fingerprints", "m0", "m1", "m2"):
        shutil.copytree(release_parts[name], parts / name)
    for number in range(3):
        stores = {name: parts / name for name in ("graph", "fingerprints")}
        now = NOON + timedelta(days=number)
        made.append(publishing.publish(root, model=parts / f"m{number}", **stores, now=now).version)
    for number in (2, 3):
        published(root, number, day=4 + number, feedback_until=NOON)
    shutil.rmtree(parts)
    before = _used(root)
    found = prune(Folder(root), PruneRule(keep=1))
    assert [entry["version"] for entry in found["removed"]] == made
    assert found["freed_bytes"] == before - _used(root) > 0
    assert found["removed"][0]["freed_bytes"] < found["removed"][2]["freed_bytes"]


def _used(root: Path) -> int:
    """Bytes of all files, each counted once however many links it has."""
    files = [path.stat() for path in root.rglob("*") if path.is_file()]
    return sum({status.st_ino: status.st_size for status in files}.values())


def test_two_that_publish_the_same_at_different_times_make_one(tmp_path, published, monkeypatch):
    fill, both = publishing._fill, Barrier(2)

    def together(*args: Any) -> None:
        fill(*args)
        both.wait(20)

    monkeypatch.setattr(publishing, "_fill", together)
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda day: published(tmp_path, 0, day=day).version, (1, 2)))
    assert made[0] == made[1]
    assert releases.versions(tmp_path) == [made[0]]
    assert not list(tmp_path.glob(".2*"))


def test_nothing_to_go_back_to(tmp_path, published):
    published(tmp_path, 0, activate=False)
    with pytest.raises(ReleaseError, match="there is no release to go back to"):
        rollback(Folder(tmp_path))


def test_a_store_of_symbolic_links_is_published_as_files(tmp_path, published, release_parts):
    model = tmp_path / "model"
    for path in release_parts["m0"].rglob("*"):
        target = model / path.relative_to(release_parts["m0"])
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    release = publishing.publish(tmp_path / "releases", model=model, now=NOON)
    assert not [path for path in release.path.rglob("*") if path.is_symlink()]
