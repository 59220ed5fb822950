"""Accuracy of fingerprints and of composed queries against exact answers (protocol: :mod:`ppr.metrics`)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import RESTART_PROB, ego_twitter, protocol, wiki_vote
from harness import RESULTS, Figure, at_least, note, run_alone
from numpy.typing import NDArray

from ppr.blocks import compute_block
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.metrics import accuracy
from ppr.params import FingerprintParams
from ppr.verd import query

WIDTH = 201  # the longest cut, and the source


def ranked_ids(rows: pa.Table, width: int) -> NDArray[np.int32]:
    """Ids of a fingerprint table, best first, int32 [b, width], padded with -1."""
    ids = rows["ids"].combine_chunks()
    first, last = ids.offsets.to_numpy()[:-1, None], ids.offsets.to_numpy()[1:, None]
    positions = first + np.arange(width)
    values = np.append(ids.values.to_numpy(), np.int32(-1))
    return values[np.where(positions < last, positions, -1)]


def measure() -> list[Figure]:
    """Measure both real graphs."""
    return [
        figure
        for name, graph in (("ego-twitter", ego_twitter()), ("wiki-Vote", wiki_vote()))
        for figure in [*_rows(name, graph), *_composed(name, graph)]
    ]


def _rows(name: str, graph: Graph) -> Iterator[Figure]:
    sources, truth = protocol(graph)
    for n_walks in (3000, 2000):
        params = FingerprintParams(restart_prob=RESTART_PROB, n_walks=n_walks, top_k=WIDTH)
        ranked = ranked_ids(compute_block(graph, sources, params), WIDTH)
        found = accuracy(truth, ranked, sources)
        if n_walks == 3000:
            yield at_least(f"{name}, R=3000, without the source: RAG@50", found["rag@50"], 0.985)
            yield at_least(f"{name}, R=3000, without the source: P@10", found["precision@10"], 0.84)
        else:
            value = found["rag@200_with_source"]
            yield at_least(f"{name}, R=2000, with the source: RAG@200", value, 0.985)


def _composed(name: str, graph: Graph) -> Iterator[Figure]:
    sources, truth = protocol(graph)
    for top_k, rank, goal in ((None, 200, 0.99), (20, 10, 0.996)):
        params = FingerprintParams(restart_prob=RESTART_PROB, n_walks=100, top_k=top_k)
        with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
            store = compute_fingerprints(graph, Path(folder) / "rows", params)
            ranked, _ = query(graph, store, sources, steps=2, k=WIDTH)
        found = accuracy(truth, ranked, sources, ks=(rank,))
        what = f"{name}, VERD, R=100, T=2" + (f", rows cut to {top_k}" if top_k else "")
        yield at_least(f"{what}, with the source: RAG@{rank}", found[f"rag@{rank}_with_source"], goal)
        yield note(f"{what}, without the source: RAG@{rank}", found[f"rag@{rank}"])


if __name__ == "__main__":
    run_alone("accuracy", measure)
