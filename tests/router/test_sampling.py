from __future__ import annotations

import numpy as np
import pytest
import torch

from router.sampling import Rows, places_by_gathers, places_by_loop, sample

SEEDS = [0, 1, 2**62 + 12345]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Rows of 0 to 39 entries, of random weights."""
    rng = np.random.default_rng(0)
    degrees = torch.from_numpy(rng.permutation(40))
    index = torch.stack(
        [torch.from_numpy(rng.integers(100, size=780)), torch.arange(40).repeat_interleave(degrees)]
    )
    return Rows.of(index, torch.from_numpy(rng.random(780).astype(np.float32)), 40)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fan_out", [1, 7, 50])
def test_loop_and_gathers_draw_the_same(rows: Rows, seed: int, fan_out: int) -> None:
    nodes = torch.from_numpy(np.random.default_rng(1).integers(40, size=500))
    for step in (0, 3, 10**12):
        by_loop = places_by_loop(rows, nodes, fan_out, seed=seed, step=step)
        assert torch.equal(by_loop, places_by_gathers(rows, nodes, fan_out, seed=seed, step=step))


def test_draws_are_distinct_and_within_the_row(rows: Rows) -> None:
    nodes = torch.arange(40)
    degrees = rows.indptr.diff()
    places = places_by_loop(rows, nodes, 12, seed=0, step=0)
    for node, drawn in zip(nodes.tolist(), places):
        real = drawn[drawn >= 0]
        assert len(real.unique()) == len(real) == min(12, int(degrees[node]))
        assert ((real >= rows.indptr[node]) & (real < rows.indptr[node + 1])).all()


def test_draws_depend_on_node_and_step_and_not_on_the_batch(rows: Rows) -> None:
    nodes = torch.arange(40)
    whole = places_by_loop(rows, nodes, 5, seed=0, step=0)
    assert torch.equal(whole[7:9], places_by_loop(rows, nodes[7:9], 5, seed=0, step=0))
    assert not torch.equal(whole, places_by_loop(rows, nodes, 5, seed=0, step=1))
    assert not torch.equal(whole, places_by_loop(rows, nodes, 5, seed=1, step=0))


def test_every_subset_is_as_likely() -> None:
    rows = Rows(torch.tensor([0, 5]), torch.arange(5))
    node = torch.zeros(1, dtype=torch.int64)
    counts: dict[tuple[int, ...], int] = {}
    for step in range(20_000):
        drawn = tuple(sorted(places_by_loop(rows, node, 2, seed=0, step=step)[0].tolist()))
        counts[drawn] = counts.get(drawn, 0) + 1
    assert len(counts) == 10
    expected = 20_000 / 10
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert statistic < 27.9  # χ² of 9 degrees of freedom exceeds it once in a thousand


def test_weighted_sums_are_right_on_average(rows: Rows) -> None:
    assert rows.weights is not None
    values = torch.from_numpy(np.random.default_rng(2).normal(size=100))
    nodes = torch.arange(40)
    expected = torch.zeros(40, dtype=torch.float64)
    entries = rows.weights.double() * values[rows.indices]
    expected.index_add_(0, nodes.repeat_interleave(rows.indptr.diff()), entries)
    sums = []
    for step in range(4000):
        ids, weights = sample(rows, nodes, 6, seed=0, step=step)
        sums.append((weights * values[ids]).sum(dim=1))
    each = torch.stack(sums)
    error = each.mean(dim=0) - expected
    assert (error.abs() <= 5.0 * each.std(dim=0) / 4000**0.5 + 1e-6).all()


def test_short_rows_are_taken_whole(rows: Rows) -> None:
    assert rows.weights is not None
    nodes = torch.arange(40)
    ids, weights = sample(rows, nodes, 40, seed=0, step=0)
    for node in nodes.tolist():
        first, last = int(rows.indptr[node]), int(rows.indptr[node + 1])
        n = last - first
        assert torch.equal(ids[node, :n], rows.indices[first:last])
        assert torch.equal(weights[node, :n], rows.weights[first:last])
        assert not weights[node, n:].any()


def test_nothing_is_drawn_from_nothing() -> None:
    rows = Rows(torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    ids, weights = sample(rows, torch.arange(3), 2, seed=0, step=0)
    assert not ids.any()
    assert not weights.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_gpu_draws_as_the_cpu_does(rows: Rows) -> None:
    nodes = torch.arange(40)
    gpu = torch.device("cuda")
    for drawn, expected in zip(
        sample(rows.to(gpu), nodes.to(gpu), 7, seed=3, step=2), sample(rows, nodes, 7, seed=3, step=2)
    ):
        torch.testing.assert_close(drawn.cpu(), expected)
