"""The Spark engine against the local one: the same bits whatever the partitioning, order and kills."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from pyspark.errors import PySparkException

from ppr.errors import OutputExistsError, ParameterError, ResourceError, StoreError
from ppr.fingerprints import FingerprintRun, FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.spark import compute_fingerprints_spark
from ppr.spark.blocks import RECEIPT_DDL, BlockTask, _run_wave
from ppr.spark.failures import raise_readable
from ppr.workers import worker_graph

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
PARAMS = FingerprintParams(n_walks=200, top_k=30, seed=5)
ARRAYS = ("sources", "indptr", "ids", "scores", "mass", "moves")
SMALL_BLOCKS = 20_000  # predicted moves: the graph below falls into some tens of blocks


def assert_same_bits(store: FingerprintStore, expected: FingerprintStore) -> None:
    for name in ARRAYS:
        ours, theirs = getattr(store, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes(), name
    assert store.checksum == expected.checksum


@pytest.fixture(scope="module")
def graph_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weighted directed graph of 600 nodes with dangling and isolated nodes and one hub."""
    rng = np.random.default_rng(8)
    n_nodes = 600
    degrees = rng.geometric(0.15, n_nodes) - 1
    degrees[::17] = 0
    degrees[3] = 400
    rows = [np.sort(rng.choice(n_nodes - 10, degree, replace=False)) for degree in degrees]
    graph = Graph.from_arrays(
        np.concatenate([[0], np.cumsum(degrees)]),
        np.concatenate(rows),
        rng.lognormal(size=degrees.sum()),
    )
    path = tmp_path_factory.mktemp("graph") / "a graph, ünïcode"
    graph.save(path)
    return path


@pytest.fixture(scope="module")
def expected(graph_path: Path, tmp_path_factory: pytest.TempPathFactory) -> FingerprintStore:
    return compute_fingerprints(
        Graph.open(graph_path), tmp_path_factory.mktemp("local") / "out", PARAMS, threads=1
    )


@pytest.mark.parametrize("block_moves", [10**9, SMALL_BLOCKS])
def test_same_bits_as_local_engine(
    spark: SparkSession, graph_path: Path, tmp_path: Path, expected: FingerprintStore, block_moves: int
) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out with a space"
    store = compute_fingerprints_spark(
        spark,
        graph_path,
        out,
        PARAMS,
        block_moves=block_moves,
        wave_blocks=7,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert_same_bits(store, expected)
    total = seen[0][1]
    assert seen == [(min(done, total), total) for done in range(0, total + 7, 7)]
    assert (total == 1) == (block_moves == 10**9)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("n_partitions", [1, 7])
def test_same_bits_from_any_partitioning(
    spark: SparkSession, graph_path: Path, tmp_path: Path, expected: FingerprintStore, n_partitions: int
) -> None:
    """Blocks of one wave in one task, or spread over seven, some of them empty."""
    graph = Graph.open(graph_path)
    blocks = np.array_split(np.arange(graph.n_nodes, dtype=np.int32), 5)
    run = FingerprintRun.begin(graph, tmp_path / "out", PARAMS, lambda: blocks, len(blocks))
    assert run is not None
    task = BlockTask(str(graph_path), graph.checksum, None, PARAMS, str(run.begin_wave(0)), tuple(blocks))
    receipts = spark.range(0, len(blocks), 1, n_partitions).mapInArrow(task, RECEIPT_DDL).collect()
    assert sorted(receipt.block for receipt in receipts) == list(range(5))
    run.complete_wave(0)
    assert_same_bits(run.finish(), expected)


def test_order_of_sources_does_not_matter(spark: SparkSession, graph_path: Path, tmp_path: Path) -> None:
    sources = np.arange(0, 600, 4, dtype=np.int32)
    shuffled = np.random.default_rng(1).permutation(sources)
    graph = Graph.open(graph_path)
    local = compute_fingerprints(graph, tmp_path / "local", PARAMS, sources=sources)
    store = compute_fingerprints_spark(
        spark, graph_path, tmp_path / "out", PARAMS, sources=shuffled, block_moves=SMALL_BLOCKS
    )
    assert_same_bits(store, local)


def test_url_is_copied_once_and_gives_the_same_bits(
    spark: SparkSession, graph_path: Path, tmp_path: Path, expected: FingerprintStore
) -> None:
    cache = tmp_path / "cache"
    store = compute_fingerprints_spark(
        spark,
        f"file://{graph_path}",
        tmp_path / "out",
        PARAMS,
        block_moves=SMALL_BLOCKS,
        cache_dir=str(cache),
    )
    assert_same_bits(store, expected)
    copies = [path for path in cache.iterdir() if path.is_dir()]
    assert len(copies) == 1
    assert Graph.open(copies[0]).checksum == expected.graph_checksum


class Killed(BaseException):
    """Stands for a kill between two waves."""


def kill_after(n_waves: int) -> Callable[[int, int], None]:
    calls = iter(range(n_waves))

    def progress(done: int, total: int) -> None:
        if next(calls, None) is None:
            raise Killed

    return progress


def test_killed_run_resumes_and_keeps_finished_waves(
    spark: SparkSession, graph_path: Path, tmp_path: Path, expected: FingerprintStore
) -> None:
    out = tmp_path / "out"
    arguments = {"block_moves": SMALL_BLOCKS, "wave_blocks": 4}
    with pytest.raises(Killed):
        compute_fingerprints_spark(spark, graph_path, out, PARAMS, progress=kill_after(3), **arguments)
    assert not out.exists()
    partial = tmp_path / "out.partial"
    before = {path: path.stat().st_mtime_ns for path in partial.rglob("*.parquet")}
    assert before

    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        kept = {path: path.stat().st_mtime_ns for path in before if path.exists()}
        assert kept == before

    store = compute_fingerprints_spark(spark, graph_path, out, PARAMS, progress=progress, **arguments)
    assert seen[0] == 12
    assert_same_bits(store, expected)


def test_half_written_wave_is_computed_again(
    spark: SparkSession, graph_path: Path, tmp_path: Path, expected: FingerprintStore
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Killed):
        compute_fingerprints_spark(
            spark, graph_path, out, PARAMS, progress=kill_after(1), block_moves=SMALL_BLOCKS, wave_blocks=9
        )
    (success,) = (tmp_path / "out.partial").rglob("_SUCCESS")
    success.unlink()
    next(success.parent.glob("*.parquet")).unlink()
    assert_same_bits(compute_fingerprints_spark(spark, graph_path, out, PARAMS), expected)


def test_finished_output_is_left_alone(spark: SparkSession, graph_path: Path, tmp_path: Path) -> None:
    sources = np.arange(5, dtype=np.int32)
    out = tmp_path / "out"
    first = compute_fingerprints_spark(spark, graph_path, out, PARAMS, sources=sources)
    before = (out / "manifest.json").stat()
    again = compute_fingerprints_spark(spark, graph_path, out, PARAMS, sources=sources)
    assert (out / "manifest.json").stat().st_mtime_ns == before.st_mtime_ns
    assert again.checksum == first.checksum
    other = FingerprintParams(n_walks=201, top_k=30, seed=5)
    with pytest.raises(OutputExistsError, match="n_walks"):
        compute_fingerprints_spark(spark, graph_path, out, other, sources=sources)


def test_wave_blocks_must_be_positive(spark: SparkSession, graph_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"'wave_blocks' must be positive \(got 0\)"):
        compute_fingerprints_spark(spark, graph_path, tmp_path / "out", PARAMS, wave_blocks=0)


SOME = (np.arange(2, dtype=np.int32),)


def test_worker_without_the_graph_says_so(spark: SparkSession, tmp_path: Path) -> None:
    task = BlockTask(str(tmp_path / "gone"), "0" * 64, None, PARAMS, str(tmp_path), SOME)
    with pytest.raises(ResourceError, match=r"gone: no such store on the worker .*; put the graph on"):
        _run_wave(spark, task)


def test_worker_with_another_graph_says_so(spark: SparkSession, graph_path: Path, tmp_path: Path) -> None:
    task = BlockTask(str(graph_path), "0" * 64, None, PARAMS, str(tmp_path), SOME)
    with pytest.raises(StoreError, match="checksum on the worker"):
        _run_wave(spark, task)


def test_output_that_is_not_shared_says_so(
    spark: SparkSession, graph_path: Path, tmp_path: Path, expected: FingerprintStore
) -> None:
    wave = str(tmp_path / "wave")
    task = BlockTask(str(graph_path), expected.graph_checksum, None, PARAMS, wave, SOME)
    with pytest.raises(ResourceError, match=r"wave: not there on the worker .*; the output must lie"):
        _run_wave(spark, task)


def test_full_disk_of_a_worker_is_told(
    graph_path: Path, tmp_path: Path, expected: FingerprintStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ppr.workers.write_block", full)
    task = BlockTask(str(graph_path), expected.graph_checksum, None, PARAMS, str(tmp_path), SOME)
    batch = pa.RecordBatch.from_pydict({"id": [0]})
    with pytest.raises(RuntimeError, match=r"fairpath-error:\[\"ResourceError\", .*no space left"):
        list(task(iter([batch])))


def test_defect_in_a_worker_is_not_dressed_up(
    spark: SparkSession, graph_path: Path, tmp_path: Path, expected: FingerprintStore
) -> None:
    broken = BlockTask(
        str(graph_path),
        expected.graph_checksum,
        None,
        None,  # type: ignore[arg-type]
        str(tmp_path),
        SOME,
    )
    with pytest.raises(PySparkException, match="Traceback"):
        _run_wave(spark, broken)


TRACE = """An error occurred while calling o83.parquet.
: org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task failed while writing rows. SQLSTATE: 58030
\tat org.apache.spark.sql.errors.QueryExecutionErrors$.taskFailedWhileWritingRowsError(QueryErrors.scala:8)
Caused by: org.apache.hadoop.fs.FSError: java.io.IOException: No space left on device
Caused by: java.io.IOException: No space left on device
Caused by: java.io.EOFException
"""


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (TRACE, ResourceError, r"^a disk is full where Spark writes \(No space left on device\)"),
        ("Answer from Java side is empty", ResourceError, r"\(Answer from Java side is empty\)$"),
        (
            "Traceback (most recent call last):\nModuleNotFoundError: No module named 'ppr'",
            ResourceError,
            "py-files",
        ),
        (
            'RuntimeError: fairpath-error:["StoreError", "a: \\"b\\""]\n SQLSTATE: 38000',
            StoreError,
            '^a: "b"$',
        ),
    ],
)
def test_errors_of_spark_are_told_in_one_line(text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        raise_readable(PySparkException(text))


def test_worker_opens_the_graph_once(graph_path: Path, expected: FingerprintStore) -> None:
    first = worker_graph(str(graph_path), expected.graph_checksum, None)
    assert worker_graph(str(graph_path), expected.graph_checksum, None) is first
    assert isinstance(first.indices.base, np.memmap) or isinstance(first.indices, np.memmap)
