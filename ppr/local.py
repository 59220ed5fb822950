"""Local engine: blocks on threads of this process. The kernels release the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ppr.blocks import DEFAULT_BLOCK_MOVES, compute_block, plan_blocks
from ppr.errors import ParameterError
from ppr.fingerprints import FingerprintRun, FingerprintStore
from ppr.graph import Graph
from ppr.params import FingerprintParams

_BLOCKS_PER_THREAD = 4  # per wave


def compute_fingerprints(
    graph: Graph,
    out: str | Path,
    params: FingerprintParams,
    *,
    sources: NDArray[np.int32] | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    block_moves: float = DEFAULT_BLOCK_MOVES,
) -> FingerprintStore:
    """Compute fingerprints on threads; resumes a killed run, does nothing when ``out`` is finished.

    Parameters
    ----------
    graph
        The graph.
    out
        Folder of the fingerprint store.
    params
        Parameters of the rows.
    sources
        int32 node ids, in any order; None for every node.
    threads
        Threads; by default one per processor that this process may use.
    progress
        Called with (blocks done, blocks in all) at the start and after each wave.
    block_moves
        Predicted cost per block, in moves.

    Returns
    -------
    FingerprintStore
        The finished store.

    Raises
    ------
    ParameterError
        A parameter breaks its rule, or ``out`` exists and was made otherwise.
    ResourceError
        The disk is full.
    """
    if threads is not None and threads < 1:
        raise ParameterError(f"'threads' must be positive (got {threads})")
    n_threads = threads or len(os.sched_getaffinity(0))
    run = FingerprintRun.begin(
        graph,
        out,
        params,
        lambda: plan_blocks(graph, sources, params, block_moves=block_moves),
        _BLOCKS_PER_THREAD * n_threads,
    )
    if run is None:
        return FingerprintStore.open(out, graph=graph, verify=False)
    report = progress or (lambda done, total: None)
    with run:
        report(run.n_blocks_done, run.n_blocks)
        pool = ThreadPoolExecutor(n_threads, thread_name_prefix="fingerprints")
        try:
            computing: tuple[int, list[Future[pa.Table]]] | None = None
            for index, blocks in run.pending_waves():
                # The next wave is computed while this one is written.
                following = index, [pool.submit(compute_block, graph, block, params) for block in blocks]
                if computing is not None:
                    _write(run, *computing)
                    report(run.n_blocks_done, run.n_blocks)
                computing = following
            if computing is not None:
                _write(run, *computing)
                report(run.n_blocks_done, run.n_blocks)
        finally:
            pool.shutdown(cancel_futures=True)
        return run.finish()


def _write(run: FingerprintRun, index: int, blocks: list[Future[pa.Table]]) -> None:
    blocks.reverse()
    run.write_wave(index, (blocks.pop().result() for _ in range(len(blocks))))  # popped: freed once written
