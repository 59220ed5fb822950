r"""How far fingerprints can have moved when a graph changed: a bound for every source from one reverse solve.

A row estimates g_u = c Σ_t (1-c)ᵗ e_u Pᵗ over t = 0, 1, ..., T: the walks of at most T moves (``max_steps``;
T = ∞ without a limit) with transitions P, whose rows sum to 1, or to 0 at dangling nodes. Let P₀ be those of
the old graph, P' of the new, and Δ(v) = ‖P'(v,·) - P₀(v,·)‖₁. From

    P'ᵗ - P₀ᵗ = Σ_{s<t} P₀ˢ (P' - P₀) P'ᵗ⁻¹⁻ˢ        (it telescopes)

and because a step with P' does not make the L1 norm of a row vector larger,

    ‖g'_u - g_u‖₁ ≤ c Σ_{t≤T} (1-c)ᵗ Σ_{s<t} (P₀ˢ Δ)(u) = Σ_{s<T} w_s (P₀ˢ Δ)(u),    w_s = c Σ_{s<t≤T} (1-c)ᵗ.

Without a limit w_s = (1-c)ˢ⁺¹, and the bound is ((1-c)/c) b with b = cΔ + (1-c) P₀ b (the resolvent identity
G' - G = (1-c) G (P' - P₀) G' gives the same). Nothing was estimated: Δ and P₀ are the quantised rows that the
walks follow, and c is the one that they stop with, a multiple of 2⁻²⁰. Monte Carlo rows bound nothing.

The sum is cut where at most a given slack is left: after the term s, at most (1-c)ˢ⁺²/c · max P₀ˢΔ, for P₀
takes averages, so that the maximum cannot grow. Sources that reach no changed node at all are told apart, and
get exactly 0.

What else can change:

- *new nodes*: their rows in P₀ are empty, and no walk of the old graph comes to them. So Δ is needed for
  old nodes only.
- *removed nodes* have no edges in P'; nothing leads to them, and g'_u is 0 there. Leaving their entries out
  of a kept row brings it nearer to g'_u, and the row's mass stays: ‖g'_u‖₁ and ‖g_u‖₁ differ by no more than
  the bound.
- *restricted rows* (``target_kinds``) estimate some entries of g_u, the same ones as before, since a node
  never changes its kind: the bound holds for a part too. With ``exclude_neighbors`` they are others where
  the source's own edges name other nodes; such a row is computed anew whatever the bound.

Bounds add up over refreshes, by the triangle inequality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ppr.blocks import kernel_arrays
from ppr.errors import ParameterError
from ppr.graph import Graph
from ppr.kernels.packets import STOP_BITS
from ppr.kernels.refresh import ROUNDING, row_changes, step_back
from ppr.params import FingerprintParams

_LONGEST = 1 << 16  # moves from which on a limit is as good as none: (1 - c) ** _LONGEST < 1e-28
_EDGES_PER_RANGE = 1 << 20
_T = TypeVar("_T")


def walked_restart_prob(params: FingerprintParams) -> float:
    """The restart probability that the walks stop with, exactly."""
    return round(params.restart_prob * (1 << STOP_BITS)) / (1 << STOP_BITS)


def changed_rows(
    old: Graph, new: Graph, *, threads: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Which rows of transition probabilities changed, and how far.

    Parameters
    ----------
    old, new
        A graph and a later one of its lineage.
    threads
        Threads.

    Returns
    -------
    moved : float64 [old n]
        Δ, the L1 distance of each node's old and new row, rounded up; exactly 0 where they are equal.
    named : bool [old n]
        Whether the row names other nodes than before.
    """
    moved, named = np.empty(old.n_nodes), np.empty(old.n_nodes, np.bool_)
    arrays = kernel_arrays(old), kernel_arrays(new)

    def compare(nodes: slice) -> None:
        row_changes(*arrays, nodes.start, moved[nodes], named[nodes])

    _over_nodes(old, threads, compare)
    return moved, named


def change_bounds(
    old: Graph,
    moved: NDArray[np.float64],
    params: FingerprintParams,
    *,
    slack: float,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
    enough: Callable[[NDArray[np.float64]], bool] | None = None,
) -> NDArray[np.float64]:
    """Upper bounds on how far the true fingerprint of each source moved.

    Parameters
    ----------
    old
        The graph that the rows were computed from.
    moved
        Δ of its nodes, float64 [n].
    params
        Parameters of the rows: ``restart_prob`` and ``max_steps`` matter.
    slack
        What the bound may lose because the sum over steps ends, positive.
    threads
        Threads; they change nothing in the result.
    progress
        Called with the steps done, after each.
    enough
        Called with the sums so far, which only grow, before each step: whether to stop there. The bounds
        hold then, but may lose more than the slack.

    Returns
    -------
    float64 [n]
        Bound on ‖g'_u - g_u‖₁; exactly 0 where no walk comes to a changed row.

    Raises
    ------
    ParameterError
        The slack is not positive, so that the sum would not end.

    Notes
    -----
    Cost: one product of the matrix with a vector per step, about ``log(slack) / log(1 - c)`` of them.
    """
    if not slack > 0.0:  # also refuses NaN
        raise ParameterError(f"'slack' must be positive (got {slack})")
    stop = walked_restart_prob(params)
    weights = _weights(stop, params.max_steps)
    total, before, after = next(weights) * moved, moved, np.empty_like(moved)
    left = (1.0 - stop) ** 2 / stop  # at least the sum of the weights still to come
    steps, tail, all_found = 1, left * float(moved.max(initial=0.0)), False
    for weight in weights:
        if tail <= slack or (enough is not None and enough(total)):
            break
        largest, found = _step_back(old, weight, before, after, total, threads)
        all_found |= not found
        before, after = after, np.empty_like(after) if before is moved else before
        left *= 1.0 - stop
        steps, tail = steps + 1, left * largest
        if progress is not None:
            progress(steps)
    else:
        tail = 0.0  # the walks have no more steps
    total[total > 0.0 if all_found else slice(None)] += tail
    total *= 1.0 + (4 * steps + 16) * ROUNDING  # weights are products of as many factors
    return total


def _weights(stop: float, max_steps: int | None) -> Iterator[float]:
    """w_0, w_1, ... of the walks' steps."""
    if max_steps is not None and max_steps <= _LONGEST:
        powers = np.multiply.accumulate(np.full(max_steps, 1.0 - stop))
        yield from (stop * np.add.accumulate(powers[::-1])[::-1]).tolist()
        return
    weight = 1.0
    while True:
        weight *= 1.0 - stop
        yield weight


def _step_back(
    graph: Graph,
    weight: float,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    total: NDArray[np.float64],
    threads: int,
) -> tuple[float, int]:
    """Largest entry of ``after``, and how many sources were found to reach a changed row."""
    arrays = kernel_arrays(graph)

    def step(nodes: slice) -> tuple[float, int]:
        part: tuple[float, int] = step_back(arrays, weight, before, nodes.start, after[nodes], total[nodes])
        return part

    parts = _over_nodes(graph, threads, step)
    return max(largest for largest, _ in parts), sum(found for _, found in parts)


def _over_nodes(graph: Graph, threads: int, work: Callable[[slice], _T]) -> list[_T]:
    """Do work on ranges of nodes of about equal cost, on threads; the kernels release the GIL."""
    n_ranges = min(threads, 1 + graph.n_edges // _EDGES_PER_RANGE)
    share = np.arange(1, n_ranges) / n_ranges
    cuts = np.searchsorted(graph.indptr, share * graph.n_edges).tolist()
    ranges = [slice(*cut) for cut in pairwise([0, *cuts, graph.n_nodes])]
    if n_ranges == 1:
        return [work(ranges[0])]
    with ThreadPoolExecutor(n_ranges) as pool:
        return list(pool.map(work, ranges))
