"""The node table: keys to ids and back, against dictionaries, in memory and mapped from a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppr.errors import StoreError, UnknownNodeError
from ppr.nodes import NodeTable

KINDS = ("user", "item", "empty")
strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
integers = st.integers(-(2**63), 2**63 - 1)


def table(nodes: list[tuple[int, Any]], key_type: pa.DataType) -> NodeTable:
    return NodeTable(
        pa.array([key for _, key in nodes], key_type), np.array([kind for kind, _ in nodes], np.uint8), KINDS
    )


def check(nodes: list[tuple[int, Any]], keys: list[Any], found: NodeTable) -> None:
    """Each of the keys is found in each kind where it is, and nowhere else."""
    of = {node: i for i, node in enumerate(nodes)}
    for kind_id, kind in enumerate(KINDS):
        for key in keys:
            assert found.id_of(key, kind) == of.get((kind_id, key), -1)
        there = [key for key in keys if (kind_id, key) in of]
        wanted = [of[kind_id, key] for key in there]
        assert found.ids_of(there, kind).tolist() == wanted
        assert found.ids_of(there * 300, kind).tolist() == wanted * 300  # many are looked up in another way
    if nodes:
        assert found.keys_of(range(len(nodes))).tolist() == [key for _, key in nodes]
    ordered = sorted(range(len(nodes)), key=lambda i: (nodes[i][0], _sortable(nodes[i][1])))
    assert found.order.tolist() == ordered


def _sortable(key: Any) -> Any:
    return key.encode() if isinstance(key, str) else key


@pytest.mark.parametrize(("keys", "key_type"), [(strings, pa.large_string()), (integers, pa.int64())])
def test_against_dictionaries(tmp_path_factory, keys, key_type):
    @given(st.lists(st.tuples(st.integers(0, 1), keys), unique=True, max_size=12), st.lists(keys, max_size=3))
    def run(nodes: list[tuple[int, Any]], others: list[Any]) -> None:
        made = table(nodes, key_type)
        asked = [key for _, key in nodes] + others
        check(nodes, asked, made)
        folder = tmp_path_factory.mktemp("nodes")
        made.write(folder)
        mapped = NodeTable.read(folder, made.kind_ids, KINDS)
        check(nodes, asked, mapped)
        assert mapped.keys.equals(made.keys) or not nodes

    run()


def test_part_of_an_array(tmp_path):
    """Strings whose bytes do not begin at 0."""
    keys = pa.array(["zero", "d", "ä", "", "c"], pa.large_string())[1:]
    made = NodeTable(keys, np.zeros(4, np.uint8), ("node",))
    made.write(tmp_path)
    for found in (made, NodeTable.read(tmp_path, made.kind_ids, ("node",))):
        assert [found.id_of(key, "node") for key in ("d", "ä", "", "c", "zero")] == [0, 1, 2, 3, -1]


def test_keys_of_another_type():
    words, numbers = table([(0, "7")], pa.large_string()), table([(0, 7)], pa.int64())
    assert [words.id_of(key, "user") for key in ("7", 7, None, True, b"7", "\ud800")] == [
        0,
        -1,
        -1,
        -1,
        -1,
        -1,
    ]
    assert [numbers.id_of(key, "user") for key in (7, "7", None, True, 2**70, np.int64(7))] == [
        0,
        -1,
        -1,
        -1,
        -1,
        0,
    ]
    with pytest.raises(UnknownNodeError, match="unknown node kind 'cat'"):
        words.id_of("7", "cat")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("order", np.zeros(1, np.int32), r"order.npy: must be int32 \[2\]"),
        ("order", np.zeros(2), r"order.npy: must be int32 \[2\]"),
        ("ends", np.array([0, 1]), r"ends.npy: must be int64 \[3\]"),
        ("ends", np.array([0, 1, 9]), "ends.npy: must go from 0 to 2"),
        ("keys", np.zeros(1, np.int64), r"keys.npy: must have 2 entries \(got 1\)"),
        ("keys", np.zeros(2), "keys.npy: must be"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, name: str, array: Any, message: str) -> None:
    made = table([(0, "a"), (1, "b")], pa.large_string())
    made.write(tmp_path)
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(StoreError, match=message):
        NodeTable.read(tmp_path, made.kind_ids, KINDS)
