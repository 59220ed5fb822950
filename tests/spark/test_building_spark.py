"""A graph built on Spark against the local builder: the same files, the same manifest, the same errors."""

from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from py4j.protocol import Py4JError

from ppr.build import build_graph
from ppr.errors import DataError, OutputExistsError, ParameterError, PprError, ResourceError
from ppr.graph import Graph
from ppr.inputs import EdgeInput, NodeInput, open_edges, open_nodes
from ppr.kernels.edges import quantise_rows
from ppr.spark import building_tasks
from ppr.spark.building import build_graph_spark
from ppr.spark.building_inputs import ReadRows, plan_reading
from ppr.spark.building_places import PlaceRows, RowRange
from ppr.spark.building_reading import ReadPieces
from ppr.spark.building_tasks import MergeRows
from ppr.spark.failures import raise_readable
from ppr.spark.slices import SliceWriter, allocate
from ppr.urls import file_url
from tests.command_line import Result

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.usefixtures("quick_disk")]
# The order by UTF-16 units differs from that by code points, which is that by UTF-8 bytes.
AWKWARD_KEYS = [
    "\U0001d537",
    "\ufb00",
    "\uffff",
    "z",
    "Z",
    "é",
    "e\u0301",
    "10",
    "9",
    "a b",
    "0",
    "-1",
    "x\0y",
]
AWKWARD_WEIGHTS = [1.0, 1.0, 3.0, 0.1, 0.2, 0.3, 2.0**31, 1e-300, 1e300, 0.5]


Inputs = tuple[list[Any], list[Any], dict[str, Any]]


def strings_of_several_kinds(spark: SparkSession, folder: Path) -> Inputs:
    """Text, gzip, Parquet and a table in memory; weights in one of them; nodes that no edge names."""
    rng = np.random.default_rng(1)

    def table(n: int, keys: list[str]) -> pa.Table:
        src, dst = rng.choice(keys, (2, n))
        return pa.table({"src": src, "dst": dst, "weight": rng.choice(AWKWARD_WEIGHTS, n)})

    pq.write_table(table(300, AWKWARD_KEYS), folder / "a.parquet", row_group_size=40)
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write(
            "# a comment\n\n" + "".join(f"{a}\t{b}\n" for a, b in rng.choice(AWKWARD_KEYS[:9], (50, 2)))
        )
    (folder / "nodes.csv").write_text("key,kind\nlonely,ünit\nz,item\n1,other\n", encoding="utf-8")
    inputs = [
        EdgeInput(folder / "a.parquet", src_kind="user", dst_kind="item", directed=False),
        EdgeInput(folder / "b.txt.gz", src_kind="ünit", dst_kind="ünit", directed=True),
        EdgeInput(table(40, AWKWARD_KEYS), src_kind="user", dst_kind="user", directed=False, weighted=False),
    ]
    lists = [NodeInput(folder / "nodes.csv"), NodeInput(pa.table({"key": ["solo"]}), kind="user")]
    return inputs, lists, {"self_loops": "keep"}


def integers_everywhere(spark: SparkSession, folder: Path) -> Inputs:
    """Integers, typed and in text; duplicates make an unweighted table weighted."""
    rng = np.random.default_rng(2)
    keys = np.array([-(2**63), 2**63 - 1, 10**12, 2**31, *range(-3, 40)])
    src, dst = rng.choice(keys, (2, 400))
    pq.write_table(pa.table({"src": src, "dst": dst}), folder / "a.parquet", row_group_size=70)
    (folder / "part").mkdir()
    for i in range(2):
        rows = "".join(f"{a}, {b}\n" for a, b in rng.integers(0, 50, (30, 2)))
        (folder / "part" / f"{i}.csv").write_text("src,dst\n" + rows)
    lists = [NodeInput(pa.table({"node": pa.array([77, 3], pa.uint8())}))]
    return [EdgeInput(folder / "a.parquet", directed=False), EdgeInput(folder / "part")], lists, {}


def integers_beside_strings(spark: SparkSession, folder: Path) -> Inputs:
    """One key that is not an integer makes strings of all, also of those in a Spark DataFrame."""
    (folder / "a.csv").write_text("src,dst\n1,2\n2,10\n007,3\n")
    frame = spark.createDataFrame([(2, 1), (10, 2), (-5, 2), (2, 1)], "src bigint, dst int")
    return [EdgeInput(folder / "a.csv"), EdgeInput(frame)], [], {}


def hub_of_many_partitions(spark: SparkSession, folder: Path) -> Inputs:
    """One row far beyond what a task sorts at a time, and empty partitions."""
    rng = np.random.default_rng(3)
    n = 300_000
    src = np.where(rng.random(n) < 0.9, 7, rng.integers(0, 60, n))
    weight = rng.choice([*AWKWARD_WEIGHTS, 2.5], n)
    return [EdgeInput(pa.table({"src": src, "dst": rng.integers(0, 100_000, n), "weight": weight}))], [], {}


def loops_only(spark: SparkSession, folder: Path) -> Inputs:
    return [pa.table({"src": [3, 1, 3], "dst": [3, 1, 3]})], [], {}


def nodes_only(spark: SparkSession, folder: Path) -> Inputs:
    return [], [NodeInput(pa.table({"key": ["b", "a", "b"]}))], {"key_type": "string"}


@pytest.mark.parametrize(
    "make",
    [
        strings_of_several_kinds,
        integers_everywhere,
        integers_beside_strings,
        hub_of_many_partitions,
        loops_only,
        nodes_only,
    ],
)
def test_same_store_as_the_local_builder(
    spark: SparkSession, tmp_path: Path, make: Callable[..., Inputs]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    inputs, lists, options = make(spark, folder)
    local = build_graph(inputs, tmp_path / "local", nodes=lists, **options)
    before = spark.conf.getAll
    n_rows = local.manifest["counts"]["edges_before_merging"]
    steps: list[tuple[str, int, int | None]] = []
    graph = build_graph_spark(
        spark,
        inputs,
        tmp_path / "on [Spark] {1,2} 100%",
        nodes=lists,
        task_edges=n_rows // 3 + 1,
        progress=lambda *step: steps.append(step),
        **options,
    )
    assert spark.conf.getAll == before
    assert graph.manifest == local.manifest
    Graph.open(graph.path or "")  # which compares every file with the manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "local", graph.path.name]
    assert steps[-1] == ("checksum", 1, 1)
    assert all(done <= (total or 0) for _, done, total in steps)


@pytest.mark.parametrize("as_strings", [False, True])
def test_same_lineage_as_the_local_builder(spark: SparkSession, tmp_path: Path, as_strings: bool) -> None:
    """Nodes that stay, go, come and come back; a new kind whose name sorts before the others."""
    rng = np.random.default_rng(6)

    def generation(number: int) -> list[EdgeInput]:
        src, dst = rng.integers(10 * number, 10 * number + 60, (2, 60))
        dst[0] = 3  # there at first, gone in the second graph, back in the third
        if number == 1:
            dst[0] = 40
        keys = [np.char.add("ü", side.astype(str)) if as_strings else side for side in (src, dst)]
        table = pa.table({"src": keys[0], "dst": keys[1], "weight": rng.random(60)})
        kinds = ("user", "item") if number == 0 else ("alpha", "user")
        return [EdgeInput(table, src_kind=kinds[0], dst_kind=kinds[1])]

    previous = None
    for number in range(3 if as_strings else 2):
        before = previous
        inputs = generation(number)
        previous = build_graph(inputs, tmp_path / f"local-{number}", previous=before)
    assert previous is not None
    assert len(previous.removed)
    graph = build_graph_spark(spark, inputs, tmp_path / "graph", previous=before, task_edges=40)
    assert graph.manifest == previous.manifest


def test_previous_graph_in_memory_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"'previous' must be a store \(got a graph in memory\)"):
        build_graph_spark(
            spark, tmp_path / "edges.csv", tmp_path / "graph", previous=Graph.from_arrays([0, 0], [])
        )


def test_command(spark: SparkSession, tmp_path: Path, fairpath: Callable[..., Result]) -> None:
    (tmp_path / "edges.csv").write_text("user,item\na,x\n", encoding="utf-8")
    local = fairpath("build-graph", tmp_path / "edges.csv", "--out", tmp_path / "local")
    ended = fairpath("build-graph", tmp_path / "edges.csv", "--out", tmp_path / "graph", "--engine", "spark")
    assert ended.code == 0, ended.err
    told, expected = ended.json, local.json
    assert (told["engine"], expected["engine"]) == ("spark", "local")
    assert told["checksum"] == expected["checksum"]


def test_master_goes_with_the_spark_engine(tmp_path: Path, fairpath: Callable[..., Result]) -> None:
    ended = fairpath(
        "build-graph", "x.csv", "--out", tmp_path / "g", "--engine", "local", "--master", "local[2]"
    )
    assert ended.code == 2
    assert "'--master' goes with the Spark engine (got --engine local)" in ended.err


def test_finished_output_is_left_alone(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text("1,2\n")
    (tmp_path / "other.csv").write_text("1,3\n")
    build_graph(tmp_path / "edges.csv", tmp_path / "graph")
    before = (tmp_path / "graph" / "manifest.json").stat()
    build_graph_spark(spark, tmp_path / "edges.csv", tmp_path / "graph")
    assert (tmp_path / "graph" / "manifest.json").stat() == before
    with pytest.raises(OutputExistsError, match="graph: exists, made from other input"):
        build_graph_spark(spark, tmp_path / "other.csv", tmp_path / "graph")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2,1\n1,3,1\n3,4,5,6\n", r"edges.csv: row 3: must have 3 fields \(got 4: '3,4,5,6'\)"),
        ("src,dst,weight\n1,2,1e308\n2,3,1\n1,2,1e308\n", "node 1: the sum of its weights must be finite"),
    ],
)
def test_bad_data_leaves_nothing_behind(
    spark: SparkSession, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "edges.csv").write_text(content)
    for build in (build_graph, lambda *args: build_graph_spark(spark, *args)):
        with pytest.raises(DataError, match=message):
            build(tmp_path / "edges.csv", tmp_path / "graph")
        assert [path.name for path in tmp_path.iterdir()] == ["edges.csv"]


def test_task_edges_must_be_positive(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"'task_edges' must be positive \(got 0\)"):
        build_graph_spark(spark, tmp_path / "edges.csv", tmp_path / "graph", task_edges=0)


def read(task: ReadPieces, tables: list[Any]) -> ReadRows:
    """Run the tasks of the first stage in this process, the last piece first."""
    ids = pa.RecordBatch.from_pydict({"id": range(len(task.pieces))[::-1]})
    receipts = [json.loads(batch.column("receipt")[0].as_py()) for batch in task(iter([ids]))]
    return ReadRows.of(task, tables, receipts[::-1])


BAD = {
    "key after weight": ["1,2,x\n1,,1\n"],
    "key of a later file": ["1,2,x\n", "1,2,1\n,2,1\n"],
    "weights in the order of files": ["1,2,1\n1,2,0\n", "1,2,nan\n"],
    "empty before malformed": ["src,dst\n", "1,2\n3\n"],
    "malformed before empty": ["1,2\n3\n", "src,dst\n"],
    "bad list of nodes": ["1,2,x\n", "key,kind\n1,\n"],
    "not UTF-8": [b"1,2\n\xff,4\n"],
}


@pytest.mark.parametrize("contents", BAD.values(), ids=BAD)
def test_the_error_is_the_one_that_the_local_builder_meets_first(
    tmp_path: Path, contents: list[str | bytes]
) -> None:
    paths = []
    for i, content in enumerate(contents):
        paths.append(tmp_path / f"{i}.csv")
        paths[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
    n_edge_tables = sum(b"key" not in path.read_bytes() for path in paths)
    edges, lists = map(EdgeInput, paths[:n_edge_tables]), map(NodeInput, paths[n_edge_tables:])
    inputs, nodes = list(edges), list(lists)
    with pytest.raises(PprError) as expected:
        build_graph(inputs, tmp_path / "graph", nodes=nodes)
    tables = [
        *(open_edges(source, "edges", tmp_path / "s") for source in inputs),
        *(open_nodes(source, "nodes", tmp_path / "s") for source in nodes),
    ]
    with pytest.raises(PprError) as found:
        read(plan_reading(tables, "auto", tmp_path / "read"), tables)
    assert (type(found.value), str(found.value)) == (type(expected.value), str(expected.value))


@pytest.mark.parametrize("column", ["src", "weight"])
def test_row_of_a_parquet_file_that_is_read_in_pieces(tmp_path: Path, column: str) -> None:
    bad = pa.table({"src": ["a"] * 90, "dst": ["b"] * 90, "weight": np.ones(90)}).to_pydict()
    bad[column][71] = None
    pq.write_table(pa.table(bad), tmp_path / "edges.parquet", row_group_size=8)
    table = open_edges(EdgeInput(tmp_path / "edges.parquet"), "edges", tmp_path / "s")
    task = plan_reading([table], "auto", tmp_path / "read", piece_rows=20)
    assert [piece.source.table.n_rows for piece in task.pieces] == [24, 24, 24, 18]
    with pytest.raises(DataError, match=rf"edges.parquet: row 72: '{column}' must"):
        read(task, [table])


@pytest.mark.parametrize("name", ["edges.csv", "edges.parquet"])
def test_input_that_is_not_shared_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    table = pa.table({"src": [1], "dst": [2]})
    pq.write_table(table, path) if path.suffix == ".parquet" else path.write_text("src,dst\n1,2\n")
    source = open_edges(EdgeInput(path), "edges", tmp_path / "s")
    task = plan_reading([source], "auto", tmp_path / "read")
    path.unlink()  # as on a worker that does not have the file
    with pytest.raises(RuntimeError, match=rf"ResourceError.*{name}: not there on the worker .*; the input"):
        read(task, [source])


def test_strings_that_nothing_has_parsed(tmp_path: Path) -> None:
    keys = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff"))
    table = open_edges(EdgeInput(pa.table({"src": keys, "dst": keys})), "edges", tmp_path / "s")
    with pytest.raises(DataError, match="a string key is not valid UTF-8"):
        read(plan_reading([table], "auto", tmp_path / "read"), [table])


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_merged_and_placed_in_the_smallest_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    """Duplicates and rows that go on over many batches, rows longer than a batch, nodes without edges."""
    rng = np.random.default_rng(4)
    n, n_nodes, first_edge = 3000, 100, 5
    src, dst = rng.choice([3, 4, 9, 50], n, p=[0.1, 0.8, 0.05, 0.05]), rng.zipf(1.3, n) % 90
    weight = rng.choice(AWKWARD_WEIGHTS, n) if weighted else np.ones(n)
    edge = src << 32 | dst
    order = np.lexsort([weight, edge])
    monkeypatch.setattr(building_tasks, "_partition", lambda: 0)
    monkeypatch.setattr("ppr.spark.building_places._BATCH_NODES", 7)
    columns = {"edge": edge[order], **({"weight": weight[order]} if weighted else {})}
    batches = pa.table(columns).to_batches(max_chunksize=11)
    list(MergeRows(str(tmp_path), keep_loops=True)(iter(batches)))

    rows: list[dict[int, list[float]]] = [{} for _ in range(n_nodes)]
    for a, b, w in zip(src.tolist(), dst.tolist(), weight.tolist(), strict=True):
        rows[a].setdefault(b, []).append(w)
    sums = [np.cumsum(np.sort(rows[a][b]))[-1] for a in range(n_nodes) for b in sorted(rows[a])]
    indptr = np.cumsum([0, *map(len, rows)])
    cumulative, strength = np.empty(len(sums), np.uint32), np.empty(n_nodes)
    assert quantise_rows(indptr, np.array(sums), cumulative, strength) == -1

    arrays = {
        "indptr": ("<i8", n_nodes + 1),
        "strength": ("<f8", n_nodes),
        "indices": ("<i4", first_edge + len(sums)),
        "cumulative": ("<u4", first_edge + len(sums)),
    }
    for name, (dtype, length) in arrays.items():
        allocate(tmp_path / f"{name}.npy", dtype, length)
    part = RowRange(part=0, first_node=0, end_node=n_nodes, first_edge=first_edge)
    place = PlaceRows((part,), str(tmp_path), str(tmp_path), weighted=True, batch_edges=13)
    list(place(iter([pa.RecordBatch.from_pydict({"id": [0]})])))
    found = {name: np.load(tmp_path / f"{name}.npy") for name in arrays}
    assert found["indptr"][1:].tolist() == (first_edge + indptr[1:]).tolist()
    assert found["indices"][first_edge:].tolist() == [b for row in rows for b in sorted(row)]
    assert found["cumulative"][first_edge:].tobytes() == cumulative.tobytes()
    assert found["strength"].tobytes() == strength.tobytes()


def test_slices_give_the_file_that_numpy_saves(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.int32)
    np.save(tmp_path / "whole.npy", values)
    allocate(tmp_path / "sliced.npy", "<i4", len(values))
    for start in (600, 0, 300, 600):  # in any order, one of them twice
        with SliceWriter(tmp_path / "sliced.npy", start) as out:
            out.append(values[start : start + 150])
            out.append(values[start + 150 : start + 400].astype(np.int64))
    assert (tmp_path / "sliced.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_full_disk_of_a_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Iterator[None]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(building_tasks, "_partition", lambda: 0)
    monkeypatch.setattr("ppr.spark.building_tasks.merge_sorted", full)
    batch = pa.RecordBatch.from_pydict({"edge": [1]})
    folder = tmp_path / ".out.new-vm-1-ab" / "spill"
    folder.mkdir(parents=True)
    message = rf"fairpath-error:\[\"ResourceError\", \"{tmp_path}/out: no space left"
    with pytest.raises(RuntimeError, match=message):
        list(MergeRows(str(folder), keep_loops=True)(iter([batch])))
    assert not list(folder.iterdir())


@pytest.mark.parametrize("reason", ["No space left on device", "Disk quota exceeded"])
@pytest.mark.parametrize(
    "where", ["Caused by: java.io.IOException: ", "Traceback (most recent call last):\nOSError: "]
)
def test_full_disk_of_spark_itself_is_told(reason: str, where: str) -> None:
    error = Py4JError(f"An error occurred while calling o1.collect.\n{where}{reason}\n\tat java.base")
    with pytest.raises(
        ResourceError, match=rf"disk is full .*\({reason}\).*'spark.local.dir' or SPARK_LOCAL_DIRS"
    ):
        raise_readable(error)


def test_folder_that_is_not_shared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building_tasks, "_partition", lambda: 0)
    task = MergeRows(str(tmp_path / "gone"), keep_loops=True)
    with pytest.raises(RuntimeError, match=r"gone: not there on the worker .*; the output must lie"):
        list(task(iter([])))


def test_urls_are_no_patterns() -> None:
    assert file_url(Path("/a [1]/{b}*?")) == r"file:///a \[1\]/\{b\}\*\?"
