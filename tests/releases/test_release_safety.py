"""What must not be removed, written elsewhere or believed: foreign files, hostile records."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from router import releases
from router.errors import ReleaseError, ResourceError
from router.releases.objects import ObjectStore
from router.releases.overview import overview
from router.releases.places import Folder
from router.releases.pruning import PruneRule, prune
from router.releases.pull import pull
from router.releases.push import push
from router.releases.record import content_digest
from tests.releases.conftest import NOON, tree

LATER = datetime.now(UTC) + timedelta(days=3)


def objects(url: str) -> set[str]:
    store = ObjectStore(url)
    store.file_system.invalidate_cache()
    root = store.path("")
    return {path.removeprefix(root) for path in store.file_system.find(store.path())}


def test_pruning_leaves_what_no_push_wrote(here, url, published):
    """Folders of others, also below a release and of a release's name, as long as no push began them."""
    made = [published(here, number).version for number in range(3)]
    for version in made:
        push(here, url, version)
    store = ObjectStore(url)
    foreign = {
        "backups/db.sql",
        "0archive/x",
        "20200101T000000Z-0123456789ab/data.csv",
        "20200101T000000Z-notaversion0/release.json",
        f"{made[0]}/notes.txt",
        f"{made[0]}/model/mine.npy",
    }
    for name in foreign:
        store.write(b"precious", *name.split("/"))
    found = prune(store, PruneRule(keep=1), now=LATER)
    assert [entry["version"] for entry in found["removed"]] == made[:1]
    left = objects(url)
    assert foreign <= left
    assert {name for name in left if name.startswith(made[0])} == {
        n for n in foreign if n.startswith(made[0])
    }
    assert store.versions() == made[1:]


def test_a_removal_that_broke_off_is_ended_by_the_next(here, url, published, monkeypatch):
    made = [published(here, number).version for number in range(3)]
    for version in made:
        push(here, url, version)
    store = ObjectStore(url)

    def breaks(*args: object) -> None:
        raise ResourceError("the network is gone")

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "_remove_files", breaks)
        with pytest.raises(ResourceError):
            prune(store, PruneRule(keep=1), now=NOON)
    assert made[0] not in store.versions()
    size = sum(store.sizes(made[0]).values())
    found = prune(store, PruneRule(keep=1), now=NOON)
    assert (found["leftovers"], found["freed_bytes"]) == ([made[0]], size)
    assert store.sizes(made[0]) == {}


@pytest.mark.parametrize("name", ["../../outside", "outside", "", "model/..", "/tmp/outside"])
def test_stores_of_a_hostile_record(here, copy, url, published, tmp_path, name):
    release = published(here, 0)
    push(here, url)
    store = ObjectStore(url)
    record = json.loads((release.path / "release.json").read_text())
    key = b"ssh-ed25519 attacker\n"
    files = {"authorized_keys": {"bytes": len(key), "sha256": hashlib.sha256(key).hexdigest()}}
    manifest = json.dumps({"files": files}).encode()
    record["stores"][name] = record["stores"]["model"] | {
        "manifest_sha256": hashlib.sha256(manifest).hexdigest()
    }
    digests = {store: about["manifest_sha256"] for store, about in record["stores"].items()}
    record["digest"] = content_digest(digests, None, None)
    version = f"{release.version[:17]}{record['digest']}"
    for file in tree(release.path):
        if file != "release.json":
            store.copy(f"{release.version}/{file}", f"{version}/{file}")
    base = os.path.normpath(store.path(version, name))
    for file, content in (("manifest.json", manifest), ("authorized_keys", key)):
        store.file_system.makedirs(base, exist_ok=True)
        store.file_system.pipe_file(f"{base}/{file}", content)
    store.write(json.dumps(record).encode(), version, "release.json")
    before = tree(tmp_path)
    with pytest.raises(ReleaseError, match="'stores' must be model, and may be graph and fingerprints"):
        pull(url, copy, version)
    assert tree(tmp_path).keys() - before.keys() == {"copy/.pull.lock"}


@pytest.mark.parametrize(
    "change",
    [
        {"created": "yesterday"},
        {"created": "2026-11-01T12:00:00"},
        {"feedback_until": 3},
        {"encoder": []},
        {"decision": "yes"},
        {"metrics": None},
        {"stores": []},
        {"stores": {"model": {}}},
    ],
)
def test_fields_of_a_record(tmp_path, published, change):
    release = published(tmp_path, 0)
    path = release.path / "release.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ReleaseError, match=r"release\.json: "):
        releases.open_release(tmp_path, release.version, verify=False)
    assert "damaged" in overview(Folder(tmp_path))["releases"][0]


@pytest.mark.parametrize(
    "file",
    ["../../../outside", "a/../../b", "/etc/passwd", "a//b", "./a", "a\\b", "a\nb", "manifest.json", ""],
)
def test_files_of_a_hostile_manifest(here, copy, published, tmp_path, file):
    release, url = published(here, 0), f"file://{tmp_path}/store"
    push(here, url)
    store = ObjectStore(url)
    manifest = json.loads(store.read(release.version, "model/manifest.json"))
    manifest["files"][file] = {"bytes": 3, "sha256": "ab" * 32}
    text = json.dumps(manifest).encode()
    record = json.loads(store.record_text(release.version))
    record["stores"]["model"]["manifest_sha256"] = hashlib.sha256(text).hexdigest()
    digests = {name: about["manifest_sha256"] for name, about in record["stores"].items()}
    record["digest"] = content_digest(digests, None, None)
    version = f"{release.version[:17]}{record['digest']}"
    (tmp_path / "store" / release.version).rename(tmp_path / "store" / version)
    store.write(text, version, "model/manifest.json")
    store.write(json.dumps(record).encode(), version, "release.json")
    with pytest.raises(ReleaseError, match="files must stay inside the store"):
        pull(url, copy, version)


def test_a_link_in_what_a_pull_left_is_not_written_through(here, copy, url, published, tmp_path):
    release = published(here, 0)
    push(here, url)
    victim = tmp_path / "victim"
    victim.mkdir()
    left = copy / f".{release.version}.pull"
    left.mkdir(parents=True)
    (left / "model").symlink_to(victim)
    pull(url, copy)
    assert list(victim.iterdir()) == []
    assert tree(copy / release.version) == tree(release.path)
