"""A small run with known rows, for the tests of stores and runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ppr.fingerprints import (
    FingerprintRun,
    FingerprintStore,
)
from ppr.params import FingerprintParams
from tests.oracles.dense import solve_ppr
from tests.oracles.random_graphs import random_graph
from tests.oracles.rows import table_of

PARAMS = FingerprintParams(top_k=20)
GRAPH = random_graph(1, n_nodes=60)
TRUTH = solve_ppr(GRAPH, PARAMS.restart_prob)


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def begin(
    out: Path, *, n_blocks: int = 6, wave_blocks: int = 2, params: FingerprintParams = PARAMS
) -> FingerprintRun | None:
    blocks = np.array_split(np.arange(GRAPH.n_nodes), n_blocks)
    return FingerprintRun.begin(GRAPH, out, params, lambda: blocks, wave_blocks)


def complete(run: FingerprintRun, waves: set[int] | None = None) -> None:
    for index, blocks in run.pending_waves():
        if waves is None or index in waves:
            sources = np.concatenate(blocks)
            run.write_wave(index, [table_of(sources, TRUTH[sources], PARAMS.top_k)])


def finished(out: Path, **plan: int) -> FingerprintStore:
    run = begin(out, **plan)
    assert run is not None
    with run:
        complete(run)
        return run.finish()
