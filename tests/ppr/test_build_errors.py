"""Bad input: the right class, the place and the rule, and nothing left behind."""

from __future__ import annotations

import errno
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from ppr import readers
from ppr.build import build_graph
from ppr.errors import DataError, MissingDataError, ResourceError
from ppr.inputs import EdgeInput, NodeInput


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path) -> Iterator[None]:
    yield
    assert [path.name for path in tmp_path.iterdir() if "graph" in path.name] == []


def assert_refused(tmp_path: Path, data: Any, error: type[Exception], message: str, **options: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        build_graph(EdgeInput(data, **options), tmp_path / "graph")
    assert type(caught.value) is error
    assert not (tmp_path / "graph").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "edges.csv: empty"),
        ("# only\n\n# comments\n", "edges.csv: empty"),
        ("src,dst\n", "edges.csv: empty"),
        ("1,2\n3,4,5\n", r"edges.csv: row 2: must have 2 fields \(got 3: '3,4,5'\)"),
        ("# c\n\n1,2\n\n3\n", r"edges.csv: row 5: must have 2 fields \(got 1: '3'\)"),
        ("src,dst\n1,2\n,4\n", r"edges.csv: row 3: 'src' must not be empty"),
        ("src,dst\n1,2\na,  \n", r"edges.csv: row 3: 'dst' must not be empty"),
        (b"1,2\n\xff,4\n", "edges.csv: row 2: not valid UTF-8"),
        ("1,2,1\n\n1,3,nan\n", r"edges.csv: row 3: 'column 2' must be positive and finite \(got 'nan'\)"),
        ("src,dst,weight\n1,2,1\n1,3,inf\n", r"row 3: 'weight' must be positive and finite \(got 'inf'\)"),
        ("src,dst,weight\n1,2,1\n1,3,-2\n", r"row 3: 'weight' must be positive and finite \(got '-2'\)"),
        ("src,dst,weight\n1,2,0\n1,3,1\n", r"row 2: 'weight' must be positive and finite \(got '0'\)"),
        ("src,dst,weight\n1,2,1\n1,3,abc\n", r"row 3: 'weight' must be positive and finite \(got 'abc'\)"),
        ("src,dst,weight\n1,2,1\n1,3,\n", r"row 3: 'weight' must be positive and finite \(got ''\)"),
        ("src,dst,weight\r1,2,1\r1,3,abc\r", r"row 3: 'weight' must be positive"),
        ("1,2\r3,4\r5\r", r"row 3: must have 2 fields \(got 1: '5'\)"),
        ("user,item,user\n1,2,3\n", r"edges.csv: column names must be distinct \(got 'user' twice\)"),
        ("1,2\n".encode("utf-16"), "edges.csv: must be UTF-8 .*byte order mark of UTF-16"),
        ("1,2\n".encode("utf-16-be"), "edges.csv: row 1: must be UTF-8 text .*NUL"),
        ("who,what\n1,2\n", r"header with unknown names \(who, what\)"),
        ("1\n2\n", "must have at least 2 columns"),
        ("src,to\n1,2\n", "no columns with usual names .* name two of src, to"),
        ("src,dst,weight\n1,2,1e308\n1,2,1e308\n", "node 1: the sum of its weights must be finite"),
        ("src,dst,weight\n1,2,1e308\n1,3,1e308\n", "node 1: the sum of its weights must be finite"),
    ],
)
def test_text_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "edges.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    missing = "usual names" in message or "header" in message
    assert_refused(tmp_path, path, MissingDataError if missing else DataError, message)


def test_first_bad_row_is_named_far_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers.text, "BLOCK_BYTES", 1000)
    lines = [f"{i},{i + 1},1.5" for i in range(2000)]
    path = tmp_path / "edges.csv"
    for number, line, rule in [(1500, "1500,2,x", "'column 2' must be"), (700, "7", "must have 3 fields")]:
        path.write_text("\n".join([*lines[: number - 1], line, *lines[number:]]))
        assert_refused(tmp_path, path, DataError, f"row {number}: {rule}")


def test_integer_keys_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "edges.csv"
    path.write_text("src,dst\n1,2\n1,x\n")
    with pytest.raises(DataError, match=r"row 3: 'dst' must be an integer \(got 'x'\)"):
        build_graph(path, tmp_path / "graph", key_type="int64")
    with pytest.raises(DataError, match="column 'src' must hold integers"):
        build_graph(pa.table({"src": ["1"], "dst": ["2"]}), tmp_path / "graph", key_type="int64")


@pytest.mark.parametrize("cut", [5, 40, -200, -4])
def test_truncated_gzip(tmp_path: Path, cut: int) -> None:
    content = gzip.compress("".join(f"{i * i % 1000003},{i}\n" for i in range(20000)).encode())
    path = tmp_path / "edges.csv.gz"
    path.write_bytes(content[:cut])
    assert_refused(tmp_path, path, DataError, "edges.csv.gz: truncated or damaged gzip file")


def test_damaged_gzip(tmp_path: Path) -> None:
    content = bytearray(gzip.compress("".join(f"{i},{i}\n" for i in range(20000)).encode()))
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "edges.csv.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"edges.csv.gz: "):
        build_graph(path, tmp_path / "graph")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"src": [1, None], "dst": [2, 3]}, "input 0: row 2: 'src' must not be null"),
        (
            {"src": [1.0, 2.0], "dst": [2, 3]},
            r"input 0: column 'src' must hold integers or strings \(got double\)",
        ),
        ({"src": [True, False], "dst": [2, 3]}, r"must hold integers or strings \(got bool\)"),
        ({"src": [b"a", b"b"], "dst": [2, 3]}, r"must hold integers or strings \(got binary\)"),
        ({"src": ["a", ""], "dst": [2, 3]}, "row 2: 'src' must not be empty"),
        ({"src": np.array([1, 2**63], np.uint64), "dst": [2, 3]}, r"row 2: 'src' must be below 2\*\*63"),
        ({"src": [1, 2], "dst": [2, 3], "weight": [1.0, None]}, r"row 2: 'weight' must be .* \(got None\)"),
        (
            {"src": [1, 2], "dst": [2, 3], "weight": [1.0, float("nan")]},
            r"row 2: 'weight' must be .* \(got nan\)",
        ),
        ({"src": [1, 2], "dst": [2, 3], "weight": [0, 1]}, r"row 1: 'weight' must be .* \(got 0\)"),
        (
            {"src": [1, 2], "dst": [2, 3], "weight": ["1", "2"]},
            r"column 'weight' must hold numbers \(got string\)",
        ),
        ({"src": pa.array([], pa.int64()), "dst": pa.array([], pa.int64())}, "input 0: empty"),
    ],
)
def test_arrow_tables(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    assert_refused(tmp_path, pa.table(columns), DataError, message)


def test_row_numbers_go_on_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers.part, "BATCH_ROWS", 3)
    table = pa.table({"src": range(10), "dst": range(1, 11), "weight": [1.0] * 7 + [-1.0] + [1.0] * 2})
    assert_refused(tmp_path, table, DataError, "row 8: 'weight'")
    pq.write_table(table, tmp_path / "edges.parquet")
    assert_refused(tmp_path, tmp_path / "edges.parquet", DataError, "edges.parquet: row 8: 'weight'")


def test_strings_that_are_not_utf8(tmp_path: Path) -> None:
    wrong = pa.array([b"a", b"\xff"]).view(pa.string())
    assert_refused(tmp_path, pa.table({"src": wrong, "dst": wrong}), DataError, "not valid UTF-8")


def test_missing_files_and_columns(tmp_path: Path) -> None:
    assert_refused(tmp_path, tmp_path / "none.csv", MissingDataError, "none.csv: no such file or folder")
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "_SUCCESS").touch()
    assert_refused(tmp_path, tmp_path / "void", MissingDataError, "void: no files in this folder")
    table = pa.table({"a": [1], "b": [2]})
    assert_refused(
        tmp_path,
        table,
        MissingDataError,
        "column 'x' for 'src' is missing; there are: a, b",
        src="x",
        dst="b",
    )
    assert_refused(
        tmp_path, table, MissingDataError, "column 'w' for 'weight' is missing", src="a", dst="b", weight="w"
    )
    assert_refused(tmp_path, table, MissingDataError, "column 2 for 'dst' is missing", src=0, dst=2)
    path = tmp_path / "bare.csv"
    path.write_text("1,2\n")
    assert_refused(tmp_path, path, MissingDataError, "there are: 2 without names", src="x", dst="y")


@pytest.mark.parametrize("cut", [0, 3, 100, -5])
@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_truncated_binary_files(tmp_path: Path, suffix: str, cut: int) -> None:
    path = tmp_path / f"edges.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"src": range(1000), "dst": range(1000)}), path)
    else:
        np.savez_compressed(path, src=np.arange(1000), dst=np.arange(1000))
    path.write_bytes(path.read_bytes()[:cut])
    assert_refused(tmp_path, path, DataError, f"edges.{suffix}: not a readable")


def test_npz_contents(tmp_path: Path) -> None:
    path = tmp_path / "edges.npz"
    np.savez(path, src=np.arange(3), dst=np.arange(4))
    assert_refused(tmp_path, path, DataError, "arrays must have equal lengths")
    np.savez(path, src=np.ones((2, 2), int), dst=np.arange(4))
    assert_refused(tmp_path, path, DataError, "'src' must have one dimension")
    np.savez(path, src=np.array([{}, 1], object), dst=np.arange(2))
    assert_refused(tmp_path, path, DataError, "not a readable npz file .*pickle")
    sp.save_npz(path, sp.bsr_matrix(np.eye(2)))
    assert_refused(tmp_path, path, DataError, "must be csr, csc or coo, this one is bsr")
    sp.save_npz(path, sp.csr_matrix(np.array([[1.0, -1.0]])))
    assert_refused(tmp_path, path, DataError, "row 2: 'weight' must be positive")
    np.savez(path, a=np.arange(3))
    assert_refused(tmp_path, path, MissingDataError, "name two of a")


def test_batches_of_different_columns(tmp_path: Path) -> None:
    batches = [pa.table({"src": [1], "dst": [2]}), pa.table({"src": ["a"], "dst": [2]})]
    assert_refused(tmp_path, batches, DataError, "input 0: all batches must have the same columns")
    assert_refused(tmp_path, iter(()), DataError, "input 0: empty")


def test_error_of_a_generator_comes_through(tmp_path: Path) -> None:
    def broken() -> Iterator[pa.Table]:
        yield pa.table({"src": [1], "dst": [2]})
        raise RuntimeError("connection lost")

    with pytest.raises(RuntimeError, match="connection lost"):
        build_graph(broken(), tmp_path / "graph")


def test_too_many_nodes_and_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [f"k{i}" for i in range(257)]
    nodes = NodeInput(pa.table({"key": range(257), "kind": kinds}))
    with pytest.raises(DataError, match=r"at most 256 node kinds \(got 257\)"):
        build_graph([], tmp_path / "graph", nodes=nodes)
    monkeypatch.setattr("ppr.lineage.MAX_NODES", 3)
    assert_refused(
        tmp_path, pa.table({"src": [1, 2], "dst": [3, 4]}), DataError, r"at most 3 nodes \(got 4\)"
    )


def test_file_that_changes_between_the_passes(tmp_path: Path) -> None:
    path = tmp_path / "edges.csv"
    path.write_text("1,2\n3,4\n")

    def change(stage: str, done: int, total: int | None) -> None:
        path.write_text("1,2\n3,9\n")

    with pytest.raises(DataError, match="changed while it was being read"):
        build_graph(path, tmp_path / "graph", progress=change)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ppr.sorting.NpyWriter.append", full)
    assert_refused(tmp_path, pa.table({"src": [1], "dst": [2]}), ResourceError, "no space left on the disk")


def test_parquet_columns_of_the_same_name(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["user", "item", "user"])
    pq.write_table(table, tmp_path / "e.parquet")
    assert_refused(
        tmp_path, tmp_path / "e.parquet", DataError, r"e.parquet: .* distinct \(got 'user' twice\)"
    )
