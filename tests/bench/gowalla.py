"""Recommendations on Gowalla (LightGCN's split) through the Spark job, with parameters chosen on training data.

A tenth of each user's training interactions is held out to choose by; the test split is looked at once, with the
choice made. Choosing uses the local engine, which gives the same rows.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import scipy.sparse as sp
from datasets import shared_file
from harness import RESULTS, Figure, at_most

K = 20
TRAIN = "gowalla/s_adj_mat.npz"
N_USERS = 29_858
THREADS = 2


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over the users with held-out items."""

    recall: float
    ndcg: float


def measure() -> list[Figure]:
    """Build, choose, run and evaluate."""
    started = time.perf_counter()
    interactions = _interactions()
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        figures = list(_figures(interactions, Path(folder)))
    return [*figures, at_most("the whole run, choosing included", time.perf_counter() - started, 240, "s")]


def _interactions() -> pa.Table:
    """Read the training split: users and items, numbered from 0 each."""
    adjacency = sp.load_npz(shared_file(TRAIN)).tocoo()
    of_user = adjacency.row < N_USERS
    return pa.table({"user": adjacency.row[of_user], "item": adjacency.col[of_user] - N_USERS})
