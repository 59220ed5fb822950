from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ppr.blocks import compute_block, plan_blocks
from ppr.errors import (
    OutputExistsError,
    ParameterError,
    ResourceError,
    StoreError,
    UnknownNodeError,
)
from ppr.fingerprints import (
    FingerprintRun,
    FingerprintStore,
    Rows,
    writer,
)
from ppr.params import FingerprintParams
from tests.oracles.fingerprint_runs import GRAPH, PARAMS, TRUTH, begin, complete, file_hashes, finished
from tests.oracles.random_graphs import random_graph
from tests.oracles.rows import table_of


def test_files_do_not_depend_on_blocks_waves_or_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_PART", 25)
    monkeypatch.setattr(writer, "_ENTRIES_PER_GROUP", 200)
    first = finished(tmp_path / "first", n_blocks=1, wave_blocks=1)
    assert len(list((tmp_path / "first" / "rows").iterdir())) == 3
    first.validate()
    for name, n_blocks, wave_blocks in (("second", 60, 1), ("third", 7, 3)):
        run = begin(tmp_path / name, n_blocks=n_blocks, wave_blocks=wave_blocks)
        assert run is not None
        with run:
            for index, blocks in run.pending_waves():
                sources = np.concatenate(blocks)[::-1]
                run.write_wave(index, [table_of(sources, TRUTH[sources], PARAMS.top_k)])
            other = run.finish()
        assert other.checksum == first.checksum
        assert file_hashes(other.path) == file_hashes(first.path)


def test_waves_may_come_as_several_files(tmp_path: Path) -> None:
    run = begin(tmp_path / "several", n_blocks=1)
    assert run is not None
    with run:
        folder = run.begin_wave(0)
        for part, sources in enumerate((np.arange(40, 60), np.arange(0), np.arange(40))):
            pq.write_table(table_of(sources, TRUTH[sources], PARAMS.top_k), folder / f"part-{part}.parquet")
        (folder / "_SUCCESS").touch()
        assert run.finish().checksum == finished(tmp_path / "one").checksum


def test_run_of_computed_blocks(tmp_path: Path) -> None:
    plan = plan_blocks(GRAPH, None, PARAMS, block_moves=100_000)
    assert len(plan) > 3
    run = FingerprintRun.begin(GRAPH, tmp_path / "out", PARAMS, lambda: plan, 2)
    assert run is not None
    with run:
        for index, blocks in run.pending_waves():
            run.write_wave(index, (compute_block(GRAPH, block, PARAMS) for block in blocks))
        store = run.finish()
    store.validate(GRAPH)
    expected = Rows.from_arrow(compute_block(GRAPH, np.arange(60, dtype=np.int32), PARAMS))
    for name in writer.ARRAYS:
        np.testing.assert_array_equal(getattr(store, name), getattr(expected, name))


def test_finished_output_is_left_alone(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    before = file_hashes(tmp_path)
    (tmp_path / "out.partial").mkdir()  # left by a kill between publishing and tidying up
    assert begin(tmp_path / "out") is None
    assert file_hashes(tmp_path) == before
    assert not (tmp_path / "out.partial").exists()


def test_killed_run_resumes_with_its_own_plan(tmp_path: Path) -> None:
    run = begin(tmp_path / "out")
    assert run is not None
    with run:
        complete(run, waves={1})
        assert (run.n_blocks_done, run.n_blocks) == (2, 6)
        # A killed engine leaves half a wave, a killed finish() half a store.
        run.begin_wave(0)
        (run.begin_wave(0) / "rows-00000.parquet").write_bytes(b"half")
        (tmp_path / "out.partial" / "store").mkdir()
        (tmp_path / "out.partial" / "store" / "ids.npy").write_bytes(b"half")
    resumed = begin(tmp_path / "out", n_blocks=9, wave_blocks=4)
    assert resumed is not None
    with resumed:
        assert (resumed.n_blocks_done, resumed.n_blocks) == (2, 6)
        assert [index for index, _ in resumed.pending_waves()] == [0, 2]
        complete(resumed)
        assert resumed.finish().checksum == finished(tmp_path / "whole").checksum


@pytest.mark.parametrize("finish_first", [False, True])
def test_other_parameters_are_refused(tmp_path: Path, finish_first: bool) -> None:
    run = begin(tmp_path / "out")
    assert run is not None
    with run:
        complete(run)
        if finish_first:
            run.finish()
    before = file_hashes(tmp_path)
    with pytest.raises(OutputExistsError, match="parameters"):
        begin(tmp_path / "out", params=FingerprintParams(top_k=20, seed=1))
    with pytest.raises(OutputExistsError, match="parameters"):
        FingerprintRun.begin(GRAPH, tmp_path / "out", PARAMS, lambda: [np.arange(10)], 1)
    with pytest.raises(OutputExistsError, match=r"from other input"):
        FingerprintRun.begin(random_graph(2), tmp_path / "out", PARAMS, lambda: [np.arange(60)], 1)
    assert file_hashes(tmp_path) == before


def test_something_else_at_the_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="is not a store"):
        begin(tmp_path / "out")
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


def test_two_runs_of_one_output_are_refused(tmp_path: Path) -> None:
    run = begin(tmp_path / "out")
    assert run is not None
    with run, pytest.raises(OutputExistsError, match="another process is computing this output"):
        begin(tmp_path / "out")
    again = begin(tmp_path / "out")
    assert again is not None
    again.close()


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ([], ParameterError, "must name at least one node"),
        ([[0, 1], [1, 2]], ParameterError, "must ascend"),
        ([[3, 2]], ParameterError, "must ascend"),
        ([[0, 60]], UnknownNodeError, "between 0 and 59"),
        ([[-1, 3]], UnknownNodeError, "between 0 and 59"),
    ],
)
def test_bad_plans(tmp_path: Path, blocks: list[list[int]], error: type[Exception], message: str) -> None:
    plan = [np.asarray(block, dtype=np.int32) for block in blocks]
    with pytest.raises(error, match=message):
        FingerprintRun.begin(GRAPH, tmp_path / "out", PARAMS, lambda: plan, 1)
    assert not list(tmp_path.iterdir())


def test_unfinished_run_cannot_finish(tmp_path: Path) -> None:
    run = begin(tmp_path / "out")
    assert run is not None
    with run:
        complete(run, waves={0, 1})
        with pytest.raises(StoreError, match="wave 2 of 3 is not complete"):
            run.finish()
        assert run.n_blocks_done == 4
    assert not (tmp_path / "out").exists()


def broken_rows(kind: str, sources: NDArray[np.integer]) -> pa.Table:
    table = table_of(sources, TRUTH[sources], PARAMS.top_k)
    if kind == "missing source":
        return table.slice(1)
    if kind == "source twice":
        return pa.concat_tables([table.slice(1), table.slice(1, 1)])
    if kind == "other source":
        return table.set_column(0, "source", pa.array(np.arange(sources.size) + 40, pa.int32()))
    if kind == "other type":
        return table.set_column(3, "mass", table.column("mass").cast(pa.float32()))
    if kind == "null":
        return table.set_column(4, "moves", pa.array([None] * sources.size, pa.int64()))
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing source", r"not those of its sources"),
        ("source twice", "not those of its sources"),
        ("other source", "not those of its sources"),
        ("other type", "must have the columns"),
        ("null", "must not hold nulls"),
        ("garbage", "not a readable Parquet file"),
        ("truncated", "not a readable Parquet file"),
    ],
)
def test_damaged_wave_is_discarded_and_computed_anew(tmp_path: Path, kind: str, message: str) -> None:
    run = begin(tmp_path / "out")
    assert run is not None
    with run:
        complete(run)
        file = run.begin_wave(1) / "rows-00000.parquet"
        if kind == "garbage":
            file.write_bytes(b"PAR1 not really")
        elif kind == "truncated":
            file.write_bytes(file.read_bytes()[:-9])
        else:
            pq.write_table(broken_rows(kind, np.arange(20, 40)), file)
        with pytest.raises(StoreError, match=rf"(?s)wave 1 was damaged.*{message}"):
            run.finish()
    resumed = begin(tmp_path / "out")
    assert resumed is not None
    with resumed:
        assert [index for index, _ in resumed.pending_waves()] == [1]
        complete(resumed)
        assert resumed.finish().checksum == finished(tmp_path / "whole").checksum


@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.data())
def test_altered_wave_never_changes_the_store(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("wave")
    run = begin(folder / "out", n_blocks=2)
    assert run is not None
    with run:
        complete(run)
        file = run.begin_wave(0) / "rows-00000.parquet"
        content = bytearray(file.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        try:
            store = run.finish()
        except StoreError:
            assert not (folder / "out").exists()
            assert run.n_blocks_done == 0
        else:
            assert_same_rows(store)
    shutil.rmtree(folder)


def assert_same_rows(store: FingerprintStore) -> None:
    expected = Rows.from_arrow(table_of(np.arange(60), TRUTH, PARAMS.top_k))
    for name in writer.ARRAYS:
        np.testing.assert_array_equal(getattr(store, name), getattr(expected, name))


def test_damaged_plan_is_named(tmp_path: Path) -> None:
    run = begin(tmp_path / "out")
    assert run is not None
    run.close()
    (tmp_path / "out.partial" / "plan.json").write_text('{"identity": {}')
    with pytest.raises(StoreError, match=r"plan\.json: damaged; remove .*out\.partial"):
        begin(tmp_path / "out")


def test_full_disk_leaves_no_store_and_loses_no_wave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = begin(tmp_path / "out")
    assert run is not None
    with run:
        complete(run)
        with monkeypatch.context() as patch:
            patch.setattr(writer._ArrayFile, "append", full)
            with pytest.raises(ResourceError, match="no space left"):
                run.finish()
        assert not (tmp_path / "out").exists()
        assert run.n_blocks_done == run.n_blocks
        run.finish().validate(GRAPH)
