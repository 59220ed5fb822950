from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import fsspec
import numpy as np
import pytest

from ppr.errors import MissingDataError, ResourceError, StoreError
from ppr.graph import Graph
from ppr.local_copy import is_url, local_store
from ppr.machine import shared_folder
from ppr.manifest import MANIFEST

RACE = """
import sys, time
from ppr.machine import shared_folder
from ppr.local_copy import local_store
from ppr.graph import Graph
url, cache, start = sys.argv[1:]
time.sleep(max(0.0, float(start) - time.time()))
print(Graph.open(local_store(url, cache_dir=cache)).checksum)
"""


def make_graph(path: Path, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    indices = np.concatenate([np.sort(rng.choice(50, 4, replace=False)) for _ in range(50)])
    return Graph.from_arrays(np.arange(0, 201, 4), indices, rng.random(200) + 0.1).save(path)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_graph(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_plain_path_is_used_in_place(store: Path, cache: Path) -> None:
    assert local_store(store, cache_dir=cache) == store
    assert not cache.exists()
    assert not is_url(store)
    assert not is_url("relative/path")
    assert is_url("s3://bucket/path")


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_copy_holds_the_same_files(store: Path, cache: Path, protocol: str) -> None:
    url = f"file://{store}"
    if protocol == "memory":
        url = "memory://bucket/graph"
        fsspec.filesystem("memory").put(str(store), "/bucket/graph", recursive=True)
    copy = local_store(url + "/", cache_dir=cache)
    files = {path.name: path.read_bytes() for path in store.iterdir()}
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == files
    before = {path: path.stat().st_ino for path in copy.iterdir()}
    assert local_store(url, cache_dir=cache) == copy
    assert {path: path.stat().st_ino for path in copy.iterdir()} == before


def test_new_content_gets_a_new_copy(store: Path, cache: Path) -> None:
    first = local_store(f"file://{store}", cache_dir=cache)
    store.rename(store.with_name("old"))
    graph = make_graph(store, seed=1)
    second = local_store(f"file://{store}", cache_dir=cache)
    assert first != second
    assert Graph.open(second).checksum == graph.checksum


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest"])
def test_damaged_copy_is_replaced(store: Path, cache: Path, damage: str) -> None:
    copy = local_store(f"file://{store}", cache_dir=cache)
    if damage == "truncated":
        (copy / "indices.npy").write_bytes(b"cut")
    elif damage == "missing":
        (copy / "indptr.npy").unlink()
    else:
        (copy / MANIFEST).write_text("{")
    assert Graph.open(local_store(f"file://{store}", cache_dir=cache)).checksum == Graph.open(store).checksum


def test_altered_source_is_refused_and_nothing_is_kept(store: Path, cache: Path) -> None:
    raw = bytearray((store / "indices.npy").read_bytes())
    raw[-1] ^= 1
    (store / "indices.npy").write_bytes(raw)
    with pytest.raises(StoreError, match=r"indices\.npy"):
        local_store(f"file://{store}", cache_dir=cache)
    assert [path for path in cache.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside"])
def test_file_names_that_leave_the_store_are_refused(store: Path, cache: Path, name: str) -> None:
    manifest = json.loads((store / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    (store / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="must stay inside the store"):
        local_store(f"file://{store}", cache_dir=cache)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"files": 3}'])
def test_manifest_that_is_none_is_refused(store: Path, cache: Path, content: bytes) -> None:
    (store / MANIFEST).write_bytes(content)
    with pytest.raises(StoreError, match="not a valid manifest"):
        local_store(f"file://{store}", cache_dir=cache)


def test_missing_store(cache: Path) -> None:
    with pytest.raises(MissingDataError, match="memory://nowhere: no such store"):
        local_store("memory://nowhere", cache_dir=cache)


def test_unknown_protocol(cache: Path) -> None:
    with pytest.raises(ResourceError, match="teleport://x: cannot be read"):
        local_store("teleport://x", cache_dir=cache)


def test_unwritable_cache(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        local_store(f"file://{store}", cache_dir=tmp_path / "file" / "cache")


def test_default_cache_is_the_users(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    copy = local_store(f"file://{store}")
    assert copy.parent == tmp_path / f"fairpath-{os.getuid()}" / "stores"
    assert (tmp_path / f"fairpath-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def test_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    somebody_else = os.getuid() + 1
    monkeypatch.setattr("os.getuid", lambda: somebody_else)
    (tmp_path / f"fairpath-{somebody_else}").mkdir()
    with pytest.raises(ResourceError, match="belongs to another user"):
        shared_folder()


def test_processes_that_race_share_one_copy(tmp_path: Path, cache: Path) -> None:
    import time

    store = tmp_path / "räce d"
    checksum = make_graph(store).checksum
    url = f"file://{store}"
    assert quote(url) != url  # the path is taken as it is, not percent-decoded
    start = str(time.time() + 2.5)
    command = [sys.executable, "-c", RACE, url, str(cache), start]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert outputs == [checksum] * 4
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1
