"""Partitioned walks on threads of this process: for a graph larger than the memory of one machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppr.errors import ParameterError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.params import FingerprintParams
from ppr.partitioned.plan import DEFAULT_MEMORY_BYTES, Sizes, plan_sizes
from ppr.partitioned.rounds import Progress, run_rounds
from ppr.partitioned.task import Receipt, RoundTask


def compute_fingerprints_partitioned(
    graph: Graph,
    out: str | Path,
    params: FingerprintParams,
    *,
    sources: NDArray[np.int32] | None = None,
    threads: int | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    sizes: Sizes | None = None,
    progress: Callable[[Progress], None] | None = None,
    cut_share: float | None = None,
) -> FingerprintStore:
    """Compute fingerprints part by part; resumes a killed run, does nothing when ``out`` is finished.

    Parameters
    ----------
    graph
        The graph; of a store, each thread maps the part that it works on.
    out
        Folder of the fingerprint store.
    params
        Parameters of the rows.
    sources
        int32 node ids, in any order; None for every node.
    threads
        Threads; by default one per processor that this process may use.
    memory_bytes
        What a thread may hold of the graph and of messages.
    sizes
        Instead of what the memory asks for.
    progress
        Called at the start and after each round.
    cut_share
        Of a part, above which a row may be cut.

    Returns
    -------
    FingerprintStore
        The finished store, with the same bits as :func:`ppr.local.compute_fingerprints` gives.

    Raises
    ------
    ParameterError
        A parameter breaks its rule, or ``out`` exists and was made otherwise.
    StoreError
        A file of messages is damaged: what is under way is discarded, and running again computes it.
    ResourceError
        The disk is full, or the memory too small.
    """
    if threads is not None and threads < 1:
        raise ParameterError(f"'threads' must be positive (got {threads})")
    n_threads = threads or len(os.sched_getaffinity(0))
    chosen = sizes or plan_sizes(graph, params, memory_bytes=memory_bytes, slots=n_threads)
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="parts")

    def execute(task: RoundTask) -> Sequence[Receipt]:
        return list(pool.map(lambda part: task.run(graph, part), range(len(task.parts))))

    try:
        return run_rounds(
            graph, out, params, execute, chosen, sources=sources, progress=progress, cut_share=cut_share
        )
    finally:
        pool.shutdown(cancel_futures=True)


def compile_kernels(folder: Path) -> None:
    """Compile the kernels of parts, or load them from numba's cache, by walking a graph of one node."""
    graph = Graph.from_arrays(np.array([0, 1]), np.zeros(1, np.int32))
    compute_fingerprints_partitioned(
        graph, folder / "out", FingerprintParams(n_walks=1, max_steps=1), threads=1, sizes=Sizes(1, 1, 4)
    )
