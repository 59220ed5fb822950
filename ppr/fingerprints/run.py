"""A resumable fingerprint run: what every engine drives.

A run lives in ``<out>.partial`` until it is finished. Its blocks of sources are grouped into waves; an engine
writes each block as a Parquet file, and completes the wave with a marker, so a killed run loses the waves it
was in and no more. Blocks, and waves, are contiguous in source order, so that the store is built by reading
one wave after another, a file at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ppr.errors import ParameterError, StoreError, UnknownNodeError
from ppr.fingerprints.partial import OutputLock, partial_path, stored_plan
from ppr.fingerprints.rows import Rows
from ppr.fingerprints.store import FingerprintStore
from ppr.fingerprints.writer import StoreWriter, sources_identity, store_identity
from ppr.graph import Graph
from ppr.manifest import finished, full_disk_is_an_error, publish
from ppr.params import FingerprintParams

SUCCESS = "_SUCCESS"


def finished_fingerprints(
    graph: Graph, out: Path, params: FingerprintParams, sources: NDArray[np.int32] | None
) -> FingerprintStore | None:
    """The store at ``out``, if a run for these would give it; None where there is nothing.

    For engines that take long to start. ``sources`` are ids, ascending, or None for all nodes.

    Raises
    ------
    OutputExistsError
        Something else is there.
    """
    wanted = graph.live if sources is None else sources
    identity = store_identity(graph.checksum, params, sources_identity(wanted, graph.live.size))
    if finished(out, identity) is None:
        return None
    shutil.rmtree(
        partial_path(out), ignore_errors=True
    )  # left by a run that was killed when it had published
    return FingerprintStore.open(out, graph=graph, verify=False)


class FingerprintRun:
    """A run in progress, made by :meth:`begin`; a context manager that releases the output's lock."""

    def __init__(
        self,
        graph: Graph,
        out: Path,
        params: FingerprintParams,
        blocks: list[NDArray[np.int32]],
        wave_blocks: int,
        lock: OutputLock,
    ) -> None:
        self._graph = graph
        self._out = out
        self._partial = partial_path(out)
        self._params = params
        self._waves = [blocks[first : first + wave_blocks] for first in range(0, len(blocks), wave_blocks)]
        self._lock = lock

    @classmethod
    def begin(
        cls,
        graph: Graph,
        out: str | Path,
        params: FingerprintParams,
        plan: Callable[[], list[NDArray[np.int32]]],
        wave_blocks: int,
    ) -> FingerprintRun | None:
        """Start or resume a run.

        Parameters
        ----------
        graph
            The graph.
        out
            Folder of the store to be.
        params
            Parameters of the rows.
        plan
            Gives the blocks of sources, int32 each, ascending over all of them. A resumed run keeps the cuts
            that it was begun with.
        wave_blocks
            Blocks per wave.

        Returns
        -------
        FingerprintRun | None
            None when ``out`` is finished already, made of the same graph, parameters and sources.

        Raises
        ------
        OutputExistsError
            ``out`` or its partial folder is there, made otherwise, or another process is writing it.
        UnknownNodeError
            The plan names an unknown node, or the parameters an unknown kind.
        ParameterError
            The plan does not ascend.
        """
        if wave_blocks < 1:
            raise ParameterError(f"'wave_blocks' must be positive (got {wave_blocks})")
        for kind in params.target_kinds:
            graph.kind_id(kind)
        out = Path(out)
        sources, starts = _check_plan(plan(), graph)
        identity = store_identity(
            graph.checksum, params, sources_identity(sources, graph.n_nodes - graph.removed.size)
        )
        partial = partial_path(out)
        if finished(out, identity) is not None:
            # A run that was killed between publishing and tidying up leaves its partial folder.
            shutil.rmtree(partial, ignore_errors=True)
            return None
        with full_disk_is_an_error(out):
            lock = OutputLock(partial)
            try:
                if finished(out, identity) is not None:  # another process finished it just now
                    shutil.rmtree(partial, ignore_errors=True)
                    lock.release()
                    return None
                starts, wave_blocks = _stored_cuts(partial, identity, starts, wave_blocks)
            except BaseException:
                lock.release()
                raise
        return cls(graph, out, params, np.split(sources, starts[1:]), wave_blocks, lock)

    def __enter__(self) -> FingerprintRun:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; what is done stays done."""
        self._lock.release()

    @property
    def n_blocks(self) -> int:
        """Blocks of the whole run."""
        return sum(len(wave) for wave in self._waves)

    @property
    def n_blocks_done(self) -> int:
        """Blocks of the waves that are complete."""
        return sum(len(wave) for index, wave in enumerate(self._waves) if self._is_complete(index))

    @property
    def n_waves(self) -> int:
        """Waves of the whole run."""
        return len(self._waves)

    def pending_waves(self) -> Iterator[tuple[int, list[NDArray[np.int32]]]]:
        """Index and blocks of each wave that is not complete; what is left of a killed attempt is removed."""
        for index, blocks in enumerate(self._waves):
            if not self._is_complete(index):
                shutil.rmtree(self._wave_path(index), ignore_errors=True)
                yield index, blocks

    def begin_wave(self, index: int) -> Path:
        """Folder of a wave, made, into which an engine writes its blocks (:func:`write_block`)."""
        folder = self._wave_path(index)
        with full_disk_is_an_error(self._out):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def complete_wave(self, index: int) -> None:
        """Say that all blocks of a wave are written."""
        with full_disk_is_an_error(self._out):
            (self._wave_path(index) / SUCCESS).touch()

    def write_wave(self, index: int, tables: Iterable[pa.Table]) -> None:
        """Write a whole wave from tables of ``FINGERPRINT_SCHEMA``, such as one per block, one by one.

        Raises
        ------
        ResourceError
            The disk is full.
        """
        folder = self.begin_wave(index)
        for number, table in enumerate(tables):
            with full_disk_is_an_error(self._out):
                write_block(folder, number, table)
        self.complete_wave(index)

    def finish(self) -> FingerprintStore:
        """Build the store of all waves, publish it in one step, and remove the partial folder.

        Raises
        ------
        StoreError
            A wave is not complete, or is damaged. A damaged wave is discarded, so that running again
            computes it anew.
        ResourceError
            The disk is full.
        """
        for index in range(self.n_waves):
            if not self._is_complete(index):
                raise StoreError(f"{self._out}: wave {index} of {self.n_waves} is not complete")
        working = self._partial / "store"
        with full_disk_is_an_error(self._out):
            shutil.rmtree(working, ignore_errors=True)
            working.mkdir()
            with StoreWriter.of_graph(working, self._params, self._graph) as writer:
                for index in range(self.n_waves):
                    try:
                        for rows in self._rows_of_wave(index):
                            writer.append(rows)
                    except StoreError as error:
                        self._discard_damaged(index, error)
                writer.close()
            publish(working, self._out)
            shutil.rmtree(self._partial, ignore_errors=True)
        self.close()
        return FingerprintStore.open(self._out, verify=False)

    def _wave_path(self, index: int) -> Path:
        return self._partial / "waves" / f"{index:05d}"

    def _is_complete(self, index: int) -> bool:
        return (self._wave_path(index) / SUCCESS).exists()

    def _rows_of_wave(self, index: int) -> Iterator[Rows]:
        """Rows of a wave in source order, a file at a time, checked."""
        expected = np.concatenate(self._waves[index])
        files = [(*_bounds(path), path) for path in self._wave_path(index).glob("*.parquet")]
        files.sort()
        paths = [path for first, _, path in files if first >= 0]
        apart = all(one[1] < other[0] for one, other in pairwise(files) if one[0] >= 0)
        done = 0
        for group in ([path] for path in paths) if apart else [paths]:
            rows = Rows.concat([Rows.from_arrow(_read_table(path)) for path in group])
            rows = rows.take(np.argsort(rows.sources, kind="stable"))
            if not np.array_equal(rows.sources, expected[done : done + len(rows)]):
                raise StoreError("its rows are not those of its sources, once each")
            rows.check(n_nodes=self._graph.n_nodes, top_k=self._params.top_k)
            yield rows
            done += len(rows)
        if done != expected.size:
            raise StoreError(f"must have {expected.size} rows (got {done})")

    def _discard_damaged(self, first: int, error: StoreError) -> NoReturn:
        """Discard the wave ``first`` and every later one that is damaged, and say so."""
        damaged = [first]
        for index in range(first + 1, self.n_waves):
            try:
                for _ in self._rows_of_wave(index):
                    pass
            except StoreError:
                damaged.append(index)
        for index in damaged:
            shutil.rmtree(self._wave_path(index), ignore_errors=True)
        which = ", ".join(map(str, damaged))
        raise StoreError(
            f"{self._out}: wave {which} was damaged and is discarded; run again to compute it ({error})"
        ) from error


def write_block(folder: Path, number: int, table: pa.Table) -> Path:
    """Write the rows of a block into its wave's folder in one step: two attempts at it do no harm.

    Raises
    ------
    OSError
        The disk is full, or the folder is not there.
    """
    path = folder / f"rows-{number:05d}.parquet"
    working = folder / f".{number:05d}.{uuid4().hex}"
    try:
        pq.write_table(table, working, compression="zstd", use_dictionary=False, write_page_checksum=True)
        working.replace(path)  # not flushed: what a power cut damages is noticed, and computed anew
    finally:
        working.unlink(missing_ok=True)
    return path


def _bounds(path: Path) -> tuple[int, int]:
    """Least and largest source of a wave's file, (-1, -1) where it is empty."""
    sources = _read_table(path, ["source"]).column(0)
    if len(sources) == 0:
        return -1, -1
    bounds = pc.min_max(sources).as_py()
    return bounds["min"] or 0, bounds["max"] or 0


def _read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path.name} is not a readable Parquet file: {error}") from error


def _check_plan(blocks: list[NDArray[np.int32]], graph: Graph) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All sources, and where each block starts among them."""
    n_nodes = graph.n_nodes
    blocks = [np.asarray(block, dtype=np.int32) for block in blocks if len(block)]
    if not blocks:
        raise ParameterError("'sources' must name at least one node (got none)")
    sources = np.concatenate(blocks)
    if sources.min() < 0 or sources.max() >= n_nodes:
        raise UnknownNodeError(f"'sources' must be node ids between 0 and {n_nodes - 1} "
                               f"(got {sources.min()} to {sources.max()})")  # fmt: skip
    if np.any(sources[1:] <= sources[:-1]):
        raise ParameterError("'sources' must ascend over all blocks, each once")
    gone = np.intersect1d(sources, graph.removed)
    if gone.size:
        raise UnknownNodeError(f"'sources' must not name removed nodes (got {gone[0]})")
    starts = np.zeros(len(blocks), dtype=np.int64)
    np.cumsum([block.size for block in blocks[:-1]], out=starts[1:])
    return sources, starts


def _stored_cuts(
    partial: Path, identity: dict[str, Any], starts: NDArray[np.int64], wave_blocks: int
) -> tuple[NDArray[np.int64], int]:
    """Block starts and wave size that the run was begun with; stores the given ones in a new run."""
    plan = stored_plan(partial, identity, {"block_starts": starts.tolist(), "wave_blocks": wave_blocks})
    return np.asarray(plan["block_starts"], dtype=np.int64), int(plan["wave_blocks"])
