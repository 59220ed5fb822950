"""Bundles: what was written comes back, and what is damaged or belongs elsewhere is refused."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppr.errors import OutputExistsError
from router.bundle import Bundle, write_bundle
from router.encoders import EncoderIdentity
from router.errors import BundleError, DataError, MissingDataError, ResourceError, UnknownNameError
from router.policy import Catalogue, Llm

ENCODER = EncoderIdentity("hashing", 1, 16)
N_USERS, N_ITEMS = 6, 9
FILES = [
    "weights.safetensors",
    "embeddings/user.npy",
    "embeddings/item.npy",
    "embeddings/llm.npy",
    "arrays/rows_indptr.npy",
    "nodes.parquet",
    "kinds.npy",
    "keys.npy",
    "ends.npy",
    "order.npy",
    "llms.json",
]


def content(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "weights": {
            "query.weight": rng.normal(size=(16, 4)).astype(np.float32),
            "query.bias": rng.normal(size=4),
            "steps": np.array(3),
        },
        "embeddings": {
            "user": rng.normal(size=(N_USERS, 4)).astype(np.float32),
            "user.items": rng.normal(size=(N_USERS, 8)).astype(np.float16),
            "item": rng.normal(size=(N_ITEMS, 8)).astype(np.float32),
            "llm": rng.normal(size=(2, 4)).astype(np.float32),
        },
        "keys": {
            "user": [f"user-{i}" for i in reversed(range(N_USERS))],
            "item": [f"item {i} é" for i in range(N_ITEMS)],
        },
        "llms": Catalogue(
            [
                Llm(name="a", description="A model, “quoted”", input_usd_per_mtok=0.1, context_tokens=8000),
                Llm(name="b", capabilities=frozenset({"tools", "vision"})),
            ]
        ),
        "encoder": ENCODER,
        "parameters": {"seed": 3, "width": 4},
        "parents": {"graph": "ab" * 32},
        "arrays": {"rows_indptr": np.arange(7), "rows_sent": rng.random(6) < 0.5},
        "metrics": {"gain": 0.9},
        **changes,
    }


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "model", **content()).path


@pytest.mark.parametrize("verify", [True, False])
def test_round_trip(store: Path, verify: bool) -> None:
    given, bundle = content(), Bundle.open(store, verify=verify)
    for name in ("weights", "embeddings", "arrays"):
        found = getattr(bundle, name)
        assert found.keys() == given[name].keys()
        for key, array in given[name].items():
            np.testing.assert_array_equal(found[key], array)
            assert found[key].dtype == array.dtype
            assert not found[key].flags.writeable
    assert bundle.llms.llms == given["llms"].llms
    assert bundle.encoder == ENCODER
    assert (bundle.parameters, bundle.parents, bundle.metrics) == (
        given["parameters"],
        given["parents"],
        given["metrics"],
    )
    for kind, keys in given["keys"].items():
        assert bundle.rows(kind, keys).tolist() == list(range(len(keys)))
        assert bundle.keys(kind, [1, 0]).tolist() == [keys[1], keys[0]]
    assert bundle.rows("llm", ["b", "a"]).tolist() == [1, 0]


def test_all_files_may_be_read_by_those_whom_the_umask_allows(store: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in store.rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_embeddings_are_mapped_not_read(store: Path) -> None:
    base = Bundle.open(store).embeddings["user"].base
    assert isinstance(base, np.memmap)


def test_integer_keys_and_kinds_without_rows(tmp_path: Path) -> None:
    keys = {"user": np.array([30, 10, 20]), "item": []}
    rows = {"user": np.ones((3, 2), np.float32), "item": np.ones((0, 2), np.float32)}
    bundle = write_bundle(tmp_path / "model", **content(keys=keys, embeddings=rows))
    assert bundle.rows("user", [10, 20, 30]).tolist() == [1, 2, 0]
    assert bundle.embeddings["item"].shape == (0, 2)
    assert bundle.keys("user", [0]).tolist() == [30]


def test_integer_and_text_keys_of_different_kinds(tmp_path: Path) -> None:
    keys = {"user": np.array([30, 4, 200]), "item": ["30", "b"]}
    rows = {"user": np.ones((3, 2), np.float32), "item": np.ones((2, 2), np.float32)}
    bundle = write_bundle(tmp_path / "model", **content(keys=keys, embeddings=rows))
    assert bundle.rows("user", [4, 30, 200]).tolist() == [1, 0, 2]
    assert bundle.keys("user", [0, 2]).tolist() == [30, 200]
    assert bundle.rows("item", ["b", "30"]).tolist() == [1, 0]
    assert bundle.keys("item", [0]).tolist() == ["30"]
    for key in ("30", 30.0, True):
        with pytest.raises(UnknownNameError, match=f"unknown user {key!r}: keys of users are integers"):
            bundle.rows("user", [key])
    with pytest.raises(UnknownNameError, match="unknown user node '31'"):
        bundle.rows("user", [31])


def test_equal_content_has_equal_bytes_and_checksum(store: Path, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "again", **content())
    assert again.checksum == Bundle.open(store).checksum
    for name in FILES:
        assert (again.path / name).read_bytes() == (store / name).read_bytes()
    other = write_bundle(tmp_path / "other", **content(metrics={"gain": 0.8}))
    assert other.checksum != again.checksum


def test_nothing_is_overwritten(store: Path) -> None:
    with pytest.raises(OutputExistsError, match="exists already"):
        write_bundle(store, **content(metrics={}))
    assert Bundle.open(store).metrics == {"gain": 0.9}
    assert [path.name for path in store.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_refused(store: Path, name: str) -> None:
    path = store / name
    whole = path.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 12).astype(int):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=f"{name}: checksum does not match"):
            Bundle.open(store)
    for verify in (True, False):
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(BundleError, match=f"{name}: must have {len(whole)} bytes"):
            Bundle.open(store, verify=verify)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        Bundle.open(store, verify=False)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("weights.safetensors", b"\xff\xff", "not a readable safetensors file"),
        ("embeddings/user.npy", b"\x00", "not a readable array"),
        ("llms.json", b"[1, 2]", "not a catalogue of LLMs"),
        ("llms.json", b"[]", "at least one LLM"),
        ("order.npy", b"PAR1", "order.npy: not a NumPy array"),
        ("ends.npy", b"PAR1", "ends.npy: not a NumPy array"),
    ],
)
def test_files_of_another_form_are_refused(store: Path, name: str, damage: bytes, message: str) -> None:
    path = store / name
    path.write_bytes(damage.ljust(path.stat().st_size, b" "))
    with pytest.raises(BundleError, match=message):
        Bundle.open(store, verify=False).rows("user", ["user-1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, r"'version' must be 2 \(got 3\)"),
        ({"format": "fairpath-graph"}, "'format' must be 'fairpath-router'"),
        ({"checksum": "0" * 64}, "does not match its checksum"),
        ({"parameters": {"seed": 4}}, "does not match its checksum"),
        ({"counts": {"user": 1}}, "does not match its checksum"),
        ({"metrics": {"gain": 1.0}}, "does not match its checksum"),
        ({"encoder": {**ENCODER.to_json(), "dimension": 17}}, "does not match its checksum"),
        ({"files": {}}, "does not match its checksum"),
        ({"files": None}, "the manifest is damaged"),
    ],
)
def test_edited_manifests_are_refused(store: Path, changes: dict[str, Any], message: str) -> None:
    path = store / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(BundleError, match=message):
        Bundle.open(store, verify=False)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="no such store"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(MissingDataError, match="not a store"):
        Bundle.open(tmp_path)


def test_another_encoder_is_refused(store: Path) -> None:
    Bundle.open(store, encoder=ENCODER)
    for other in (EncoderIdentity("hashing", 1, 32), EncoderIdentity("all-MiniLM", 1, 16, "0" * 64)):
        with pytest.raises(BundleError, match=r"made with encoder hashing .*, cannot be used with"):
            Bundle.open(store, encoder=other)


def test_unknown_keys(store: Path) -> None:
    bundle = Bundle.open(store)
    with pytest.raises(UnknownNameError, match="unknown user node 'nobody'"):
        bundle.rows("user", ["user-1", "nobody"])
    with pytest.raises(UnknownNameError, match="unknown LLM 'c'"):
        bundle.rows("llm", ["c"])
    for ask in (bundle.rows, bundle.keys):
        with pytest.raises(UnknownNameError, match="unknown kind 'task'; the bundle has keys of user, item"):
            ask("task", [0])
    with pytest.raises(UnknownNameError, match="unknown row 6; rows of 'user' go to 5"):
        bundle.keys("user", [0, 6])


def with_array(field: str, name: str, array: Any) -> dict[str, Any]:
    return {field: {**content()[field], name: array}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (with_array("embeddings", "user", np.ones((5, 4), np.float32)), r"'user' must be float32 .*\[6, d\]"),
        (with_array("embeddings", "llm", np.ones((3, 4), np.float32)), r"'llm' must be float32 .*\[2, d\]"),
        (with_array("embeddings", "user", np.ones((6, 4))), r"must be float32 .*got float64"),
        (with_array("embeddings", "user", np.ones(6, np.float32)), "must be float32"),
        (with_array("embeddings", "task", np.ones((6, 4), np.float32)), "the name must be a kind"),
        (with_array("embeddings", "user/x", np.ones((6, 4), np.float32)), "the name must be a kind"),
        (
            with_array("embeddings", "user", np.full((6, 4), np.nan, np.float32)),
            r"embeddings 'user' must be finite \(got nan at \[0, 0\]\)",
        ),
        (
            with_array("weights", "query.bias", np.array([1.0, np.inf])),
            r"'query.bias' must be finite .got inf",
        ),
        (with_array("weights", "query.bias", np.array([None])), "must be numbers"),
        (with_array("keys", "user", ["a"] * 6), "user has a key twice"),
        (with_array("keys", "user", np.arange(6) / 2), r"all integers or all strings \(got double\)"),
        (with_array("keys", "user", ["a", None, "c", "d", "e", "f"]), "must not be null"),
        (with_array("keys", "LLM", ["a"]), "a kind must be a lower-case name"),
        ({"parameters": {"seed": object()}}, "must be JSON values"),
        ({"metrics": {"gain": float("nan")}}, "must be JSON values"),
        (with_array("keys", "llm", ["a"]), "a kind must be a lower-case name"),
    ],
)
def test_bad_content_writes_nothing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_bundle(tmp_path / "model", **content(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("router.bundle.write_manifest", full_disk)
    with pytest.raises(ResourceError, match="model: no space left on the disk; nothing was written"):
        write_bundle(tmp_path / "model", **content())
    assert list(tmp_path.iterdir()) == []
