"""Keys and edges as people write them."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.errors import ConfigurationError
from jobs.keys import ids_of, parse_edge, read_edges, read_ids
from ppr.errors import DataError, MissingDataError, UnknownNodeError
from ppr.graph import Graph


def graph_of(keys) -> Graph:
    return Graph.from_arrays(np.zeros(len(keys) + 1, dtype=np.int64), [], keys=keys)


NUMBERS = graph_of([10, 20, 30])
WORDS = graph_of(["10", "a b", "käse"])


def test_keys_take_the_type_of_the_graph():
    assert ids_of(NUMBERS, ["30", "10"], None).tolist() == [2, 0]
    assert ids_of(WORDS, ["käse", "10"], "node").tolist() == [2, 0]


def test_a_word_is_no_key_of_a_graph_of_numbers():
    with pytest.raises(ConfigurationError, match=r"'key' must be an integer in this graph \(got 'x'\)"):
        ids_of(NUMBERS, ["10", "x"], None)


@pytest.mark.parametrize("text", ["1_0", "+10", "010", "10.0", " 10", "\u0661\u0660"])
def test_only_plain_decimals_are_integer_keys(text):
    with pytest.raises(ConfigurationError, match="'key' must be an integer in this graph"):
        ids_of(NUMBERS, [text], None)
    assert ids_of(graph_of([-10, 0]), ["0", "-10"], None).tolist() == [1, 0]


def test_unknown_keys_are_named():
    with pytest.raises(UnknownNodeError, match="40"):
        ids_of(NUMBERS, ["10", "40"], None)


def test_ids_from_a_file_keep_its_order(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("\nkäse\n\n  a b  \r\n", encoding="utf-8")
    assert read_ids(WORDS, path, None).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"10\n\n2x\n", r"keys.txt: row 3: 'key' must be an integer in this graph \(got '2x'\)"),
        (b"\n \n", "keys.txt: must hold at least one line"),
        (b"\xff\n", "keys.txt: not UTF-8"),
    ],
)
def test_wrong_files_of_keys(tmp_path, content, message):
    path = tmp_path / "keys.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_ids(NUMBERS, path, None)


def test_a_missing_file_of_keys(tmp_path):
    with pytest.raises(MissingDataError, match=r"keys\.txt: no such file"):
        read_ids(NUMBERS, tmp_path / "keys.txt", None)


@pytest.mark.parametrize(
    ("text", "edge"),
    [("a", ("a", 1.0)), ("a:2.5", ("a", 2.5)), ("a:b:3", ("a:b", 3.0)), ("a b:1", ("a b", 1.0))],
)
def test_edges_of_the_command_line(text, edge):
    assert parse_edge(text) == edge


@pytest.mark.parametrize("text", ["", ":1", "a:", "a:b", "a:0", "a:-1", "a:nan", "a:inf"])
def test_wrong_edges_of_the_command_line(text):
    with pytest.raises(ConfigurationError, match="'--edge' must be KEY or KEY:WEIGHT"):
        parse_edge(text)


def test_edges_from_a_file(tmp_path):
    path = tmp_path / "edges.csv"
    path.write_text("a\nb,2\nc:d,0.5\ne,f,3\n")
    assert read_edges(path) == [("a", 1.0), ("b", 2.0), ("c:d", 0.5), ("e,f", 3.0)]


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much", ""])
def test_wrong_weights_name_the_row(tmp_path, weight):
    path = tmp_path / "edges.csv"
    path.write_text(f"a,1\nb,{weight}\n")
    with pytest.raises(
        DataError, match=rf"edges.csv: row 2: 'weight' must be positive and finite \(got '{weight}'\)"
    ):
        read_edges(path)


def test_a_file_of_edges_may_have_a_header(tmp_path):
    path = tmp_path / "edges.csv"
    path.write_text("key,weight\ntent,2\nlamp\n")
    assert read_edges(path) == [("tent", 2.0), ("lamp", 1.0)]
    path.write_text("key,weight\n")
    with pytest.raises(DataError, match="header only"):
        read_edges(path)
