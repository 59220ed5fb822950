from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")

from router.baselines.lightgcn import LightGcnRanker
from router.errors import DataError, NotFittedError, ParameterError


def _blocks(n: int = 60, size: int = 15) -> tuple[sp.csr_array, sp.csr_array]:
    """Three groups of users, each of which takes items of its own; one taken item per user is held out."""
    rng = np.random.default_rng(0)
    taken = np.zeros((n, 3 * size), dtype=np.float32)
    held_out = np.zeros_like(taken)
    for user in range(n):
        items = (user % 3) * size + rng.choice(size, size=9, replace=False)
        taken[user, items[1:]], held_out[user, items[0]] = 1.0, 1.0
    return sp.csr_array(taken), sp.csr_array(held_out)


def test_blocks_are_found() -> None:
    taken, held_out = _blocks()
    ranker = LightGcnRanker(n_factors=8, learning_rate=0.02, batch_size=128)
    ranker.fit(taken, 40)
    ids, scores = ranker.recommend(np.arange(60), 7)
    assert (np.diff(scores, axis=1) <= 0.0).all()
    groups = ids // 15
    # Seven items of the group are left; they should come first.
    assert (groups == (np.arange(60) % 3)[:, None]).mean() > 0.95
    assert held_out[np.arange(60)[:, None], ids].sum() > 55
    assert not taken[np.arange(60)[:, None], ids].sum()


def test_seeds_and_stopping() -> None:
    taken, _ = _blocks()
    first, again, other = (LightGcnRanker(n_factors=4, seed=seed) for seed in (1, 1, 2))
    seen: list[int] = []

    def stop_at_four(epoch: int) -> bool:
        seen.append(epoch)
        return epoch < 4

    first.fit(taken, 10, every=2, after=stop_at_four)
    assert seen == [2, 4]
    again.fit(taken, 4)
    other.fit(taken, 4)
    users = np.array([0, 5])
    np.testing.assert_array_equal(first.recommend(users, 5)[1], again.recommend(users, 5)[1])
    assert not np.array_equal(first.recommend(users, 5)[1], other.recommend(users, 5)[1])


def test_bad_input() -> None:
    with pytest.raises(ParameterError, match="'n_layers' must be positive"):
        LightGcnRanker(n_layers=0)
    with pytest.raises(NotFittedError):
        LightGcnRanker().recommend([0], 1)
    with pytest.raises(DataError, match="must not be empty"):
        LightGcnRanker().fit(sp.csr_array((2, 2), dtype=np.float32), 1)
