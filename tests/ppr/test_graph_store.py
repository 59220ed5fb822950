"""The graph: lookups, weights, the transition matrix, and stores that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppr.build import build_graph
from ppr.errors import (
    DataError,
    MissingDataError,
    OutputExistsError,
    ParameterError,
    StoreError,
    UnknownNodeError,
)
from ppr.graph import Graph

WEIGHTS = st.one_of(st.floats(1e-6, 1e6), st.integers(1, 9).map(float), st.just(1.0))


@st.composite
def rows(draw: st.DrawFn) -> list[dict[int, float]]:
    n_nodes = draw(st.integers(1, 7))
    row = st.dictionaries(st.integers(0, n_nodes - 1), WEIGHTS, max_size=n_nodes)
    return draw(st.lists(row, min_size=n_nodes, max_size=n_nodes))


def graph_of(rows: list[dict[int, float]], **options: Any) -> Graph:
    ordered = [sorted(row.items()) for row in rows]
    indptr = np.cumsum([0, *map(len, ordered)])
    indices = [neighbour for row in ordered for neighbour, _ in row]
    weights = [weight for row in ordered for _, weight in row]
    return Graph.from_arrays(indptr, indices, weights, **options)


@settings(max_examples=80, deadline=None)
@given(rows())
def test_weights_and_transition_follow_the_given_weights(rows: list[dict[int, float]]) -> None:
    graph = graph_of(rows)
    dense = np.zeros((len(rows), len(rows)))
    for node, row in enumerate(rows):
        for neighbour, weight in row.items():
            dense[node, neighbour] = weight
    totals = dense.sum(axis=1, keepdims=True)
    expected = np.divide(dense, totals, out=np.zeros_like(dense), where=totals > 0)
    # A row's weights are rounded to multiples of 2**-31 of their sum, and to 1 at least.
    np.testing.assert_allclose(graph.transition().toarray(), expected, rtol=0, atol=len(rows) * 2.0**-31)
    np.testing.assert_allclose(
        np.asarray(graph.transition().sum(axis=1)).ravel(), (totals > 0).ravel(), rtol=1e-14
    )
    np.testing.assert_array_equal(graph.out_degree, (dense > 0).sum(axis=1))
    np.testing.assert_allclose(graph.strength, totals.ravel(), rtol=1e-14)
    for node, row in enumerate(rows):
        wanted = [row[neighbour] for neighbour in sorted(row)]
        np.testing.assert_allclose(
            graph.weights(node), wanted, rtol=0, atol=len(row) * 2.0**-31 * max([0, sum(wanted)])
        )
    np.testing.assert_allclose(graph.weights(), np.concatenate([graph.weights(v) for v in range(len(rows))]))


def test_largest_integer_row_is_taken_as_it_is() -> None:
    as_is = Graph.from_arrays([0, 2, 2], [0, 1], [2.0**32 - 2, 1.0])
    assert as_is.cumulative is not None
    assert as_is.cumulative.tolist() == [2**32 - 2, 2**32 - 1]
    scaled = Graph.from_arrays([0, 2, 2], [0, 1], [2.0**32 - 1, 1.0])
    assert scaled.cumulative is not None
    assert scaled.cumulative.tolist() == [2**31, 2**31 + 1]  # an edge never vanishes


def test_weights_of_one_are_no_weights() -> None:
    plain = Graph.from_arrays([0, 1, 2], [1, 0])
    ones = Graph.from_arrays([0, 1, 2], [1, 0], [1.0, 1.0])
    assert not ones.weighted
    assert ones.checksum == plain.checksum
    assert graph_of([{1: 2.0}, {0: 2.0}]).weighted


def test_save_and_open_give_the_same_graph(tmp_path: Path) -> None:
    graph = graph_of(
        [{1: 0.5, 2: 1.5}, {}, {0: 1.0}], keys=["b", "a", "é"], kinds=("x", "y"), kind_ids=[0, 1, 1]
    )
    saved = graph.save(tmp_path / "graph")
    opened = Graph.open(tmp_path / "graph")
    for other in (saved, opened):
        assert other.checksum == graph.checksum
        assert other.path == tmp_path / "graph"
        np.testing.assert_array_equal(other.cumulative, graph.cumulative)
        assert other.keys([2, 0, 0]).tolist() == ["é", "b", "b"]
    assert not opened.indices.flags.writeable
    with pytest.raises(OutputExistsError, match="exists already"):
        graph.save(tmp_path / "graph")


@pytest.mark.parametrize("as_strings", [False, True])
@pytest.mark.parametrize("n_wanted", [3, 500])
def test_keys_and_ids_are_inverse(as_strings: bool, n_wanted: int) -> None:
    """Keys in any order (as a graph that grew has them), few and many at a time."""
    rng = np.random.default_rng(1)
    n_nodes = 700
    keys = rng.permutation(10 * n_nodes)[:n_nodes] - 300
    names = [f"k{key}" for key in keys] if as_strings else keys.tolist()
    kind_ids = rng.integers(0, 2, n_nodes)
    graph = Graph.from_arrays(np.zeros(n_nodes + 1, int), [], keys=names, kind_ids=kind_ids, kinds=("a", "b"))
    wanted = rng.integers(0, n_nodes, n_wanted)
    assert graph.keys(wanted).tolist() == [names[i] for i in wanted]
    np.testing.assert_array_equal(graph.ids([names[i] for i in wanted]), wanted)
    of_a = wanted[kind_ids[wanted] == 0]
    np.testing.assert_array_equal(graph.ids(graph.keys(of_a), kind="a"), of_a)
    assert graph.ids(graph.keys(of_a), kind="a").dtype == np.int32
    assert graph.ids([]).tolist() == []
    assert graph.nodes_of_kind("b").tolist() == np.flatnonzero(kind_ids == 1).tolist()


def test_unknown_keys_kinds_and_ids() -> None:
    graph = Graph.from_arrays(
        np.zeros(4, int), [], keys=[1, 2, 1], kind_ids=[0, 0, 1], kinds=("user", "item")
    )
    assert graph.ids([2, 1], "user").tolist() == [1, 0]
    with pytest.raises(UnknownNodeError, match="unknown item node 2"):
        graph.ids([1, 2, 3], "item")
    with pytest.raises(UnknownNodeError, match="unknown node 9"):
        graph.ids([2, 9])
    with pytest.raises(ParameterError, match="'kind' must be given: key 1 is in several kinds"):
        graph.ids([1])
    with pytest.raises(UnknownNodeError, match="unknown node 'x': the keys of this graph are integers"):
        graph.ids(["x"], "user")
    with pytest.raises(UnknownNodeError, match="outside the range of int64"):
        graph.ids([2**70], "user")
    with pytest.raises(ParameterError, match="must be a sequence of keys"):
        graph.ids(1, "user")  # type: ignore[arg-type]
    for ask in (graph.kind_id, graph.nodes_of_kind, lambda kind: graph.ids([1], kind)):
        with pytest.raises(UnknownNodeError, match="unknown node kind 'llm'; the graph has user, item"):
            ask("llm")
    for wrong in (-1, 3):
        with pytest.raises(UnknownNodeError, match=f"unknown node id {wrong}; ids go from 0 to 2"):
            graph.keys([0, wrong])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indptr": []}, "'indptr' must go from 0"),
        ({"indptr": [1, 2]}, "'indptr' must go from 0"),
        ({"indptr": [0, 2, 1, 2]}, "'indptr' must not decrease"),
        ({"indices": [0, 2]}, "'indices' must be between 0 and 1"),
        ({"indices": [-1, 1]}, "'indices' must be between 0 and 1"),
        ({"indices": [1, 0]}, r"must ascend within a row without duplicates \(row 0\)"),
        ({"indices": [1, 1]}, "must ascend within a row without duplicates"),
        ({"weights": [1.0]}, "'weights' must have 2 entries"),
        ({"weights": [1.0, 0.0]}, r"edge 1: 'weight' must be positive and finite \(got 0.0\)"),
        ({"weights": [np.nan, 1.0]}, r"edge 0: 'weight' must be .* \(got nan\)"),
        ({"weights": [1e308, 1e308]}, "node 0: the sum of its weights must be finite"),
        ({"keys": [1]}, "'keys' must have 2 entries"),
        ({"keys": ["a", "a"]}, "'keys' must be unique within a kind"),
        ({"kind_ids": [0]}, "'kind_ids' must have 2 entries"),
        ({"kind_ids": [0, 1]}, "'kind_ids' must be below 1"),
        ({"kinds": ()}, "'kinds' must be 1 to 256 distinct names"),
        ({"kinds": ("a", "a")}, "'kinds' must be 1 to 256 distinct names"),
    ],
)
def test_bad_arrays(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Graph.from_arrays(**{"indptr": [0, 2, 2], "indices": [0, 1], **arguments})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    graph_of([{1: 0.5, 2: 1.5}, {}, {0: 1.0}], keys=["b", "a", "c"]).save(tmp_path / "graph")
    return tmp_path / "graph"


ARRAYS = ["indptr", "indices", "cumulative", "strength", "kinds", "keys", "ends", "order"]
FILES = [*(f"{name}.npy" for name in ARRAYS), "nodes.parquet"]


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_refused(store: Path, name: str) -> None:
    path = store / name
    content = path.read_bytes()
    for position in np.linspace(0, len(content) - 1, 25).astype(int):
        changed = bytearray(content)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(StoreError, match=f"{name}: checksum does not match"):
            Graph.open(store)
    path.write_bytes(content[:-1])
    for verify in (True, False):
        with pytest.raises(StoreError, match=f"{name}: must have {len(content)} bytes"):
            Graph.open(store, verify=verify)
    path.unlink()
    with pytest.raises(StoreError, match=f"{name}: missing"):
        Graph.open(store, verify=False)


def edit_manifest(store: Path, **changes: Any) -> None:
    path = store / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, r"'version' must be 2 \(got 3\)"),
        ({"format": "fairpath-fingerprints"}, "'format' must be 'fairpath-graph'"),
        ({"checksum": "0" * 64}, "content does not match the manifest's checksum"),
        ({"directed": False}, "content does not match the manifest's checksum"),
        ({"kinds": ["user"]}, "content does not match the manifest's checksum"),
        ({"counts": {"nodes": 4, "edges": 3}}, r"indptr.npy: must be <i8 \[5\] \(got int64 \[4\]\)"),
        ({"counts": {"nodes": 3, "edges": 2}}, "indices.npy: must be"),
        ({"counts": {"nodes": 3}}, "the manifest lacks 'edges'"),
        ({"counts": None}, "the manifest lacks"),
    ],
)
def test_edited_manifests_are_refused(store: Path, changes: dict[str, Any], message: str) -> None:
    edit_manifest(store, **changes)
    with pytest.raises(StoreError, match=message):
        Graph.open(store)


def test_arrays_of_another_type_are_refused(store: Path) -> None:
    path = store / "strength.npy"
    np.save(path, np.load(path).astype("<i8"))
    with pytest.raises(StoreError, match=r"strength.npy: must be <f8 \[3\] \(got int64 \[3\]\)"):
        Graph.open(store, verify=False)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(StoreError, match=r"strength.npy: not a NumPy array"):
        Graph.open(store, verify=False)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="no such store"):
        Graph.open(tmp_path / "none")
    with pytest.raises(MissingDataError, match="not a store"):
        Graph.open(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(OutputExistsError, match="is not a store"):
        build_graph(pa.table({"src": [1], "dst": [2]}), tmp_path / "other")
