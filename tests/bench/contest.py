"""What the contests of methods share: who judges their answers, and how their time is taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from datasets import protocol
from numpy.typing import NDArray

from ppr.graph import Graph

GOAL = 0.99  # of RAG@50, source left out
RANK = 50
WIDTH = RANK + 1  # and the source
SEEDS = (0, 1, 2)  # the mean over these decides on a number of walks, so that no lucky draw does
LUCK = 0.002  # by which one draw may miss the goal
FINE_STEPS = 8  # settings per doubling: a ratio of 1.09
TURNS = 5

Key = TypeVar("Key")


class Judge:
    """The sources of the accuracy protocol on a graph, and RAG@50 of what a method says about them."""

    def __init__(self, graph: Graph) -> None:
        self.sources, self.truth = protocol(graph)
        self._others = np.array(self.truth)
        self._others[np.arange(len(self.sources)), self.sources] = 0.0
        self._best = np.array([np.partition(row, -RANK)[-RANK:].sum() for row in self._others])

    def rag(self, ids: NDArray[np.int32], rows: NDArray[np.int64] | None = None) -> float:
        """Mean RAG@50 without the source, as :func:`ppr.metrics.rag_at_k` has it, of all sources or some."""
        rows = np.arange(len(self.sources)) if rows is None else rows
        kept = (ids >= 0) & (ids != self.sources[rows, None])
        kept &= np.cumsum(kept, axis=1) <= RANK
        found = np.where(kept, self._others[rows[:, None], np.maximum(ids, 0)], 0.0)
        return float((found.sum(axis=1) / self._best[rows]).mean())


def cpu_s(work: Callable[[], object]) -> float:
    """CPU time of this process, which other processes on the machine disturb less than wall time."""
    started = time.process_time()
    work()
    return time.process_time() - started


def best_turns(runs: Sequence[tuple[Key, Callable[[], object]]], enough_s: float) -> dict[Key, float]:
    """Best CPU time of each run, in turns; one that has taken ``enough_s`` takes no further turn."""
    turns: dict[Key, list[float]] = {key: [] for key, _ in runs}
    for _ in range(TURNS):
        for key, run in runs:
            if sum(turns[key]) < enough_s:
                turns[key].append(cpu_s(run))
    return {key: min(seconds) for key, seconds in turns.items()}
