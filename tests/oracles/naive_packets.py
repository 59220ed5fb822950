"""Walk packets from their rules: dictionaries, unbounded integers, one edge at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ppr.graph import Graph
from ppr.params import FingerprintParams

ONE = 1 << 40
GOLDEN = 0x9E3779B97F4A7C15
MASK_64 = (1 << 64) - 1


def mix64(word: int) -> int:
    """Finaliser of SplitMix64."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK_64
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK_64
    return word ^ word >> 31


def splitmix64(state: int, position: int) -> int:
    """Output number ``position``, from 0, of SplitMix64 seeded with ``state``."""
    return mix64(state + (position + 1) * GOLDEN & MASK_64)


def random_bits(seed: int, source: int, step: int, node: int) -> int:
    """The 64 bits drawn for ``node`` at ``step`` of ``source``."""
    stream = mix64(mix64(mix64(seed) + source * GOLDEN & MASK_64) + step * GOLDEN & MASK_64)
    return splitmix64(stream, node)


def below_low(bits: int, bound: int) -> int:
    return bits % (1 << 32) * bound >> 32


def below_high(bits: int, bound: int) -> int:
    return (bits >> 32) * bound >> 32


@dataclass(frozen=True)
class Walked:
    """Stopped mass of every node in units of 2**-40, and the edges that were handed mass."""

    stopped: dict[int, int]
    moves: int


@dataclass(frozen=True)
class Row:
    """A fingerprint row."""

    ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    mass: float
    moves: int


def naive_row(graph: Graph, source: int, params: FingerprintParams) -> Row:
    """Fingerprint of one source."""
    walked = walk(graph, source, params)
    score = {node: np.float32(mass / ONE) for node, mass in walked.stopped.items() if mass > 0}
    if params.target_kinds:
        score = {
            node: s for node, s in score.items() if graph.kinds[graph.kind_ids[node]] in params.target_kinds
        }
    if params.exclude_neighbors:
        seen = {source, *graph.indices[graph.indptr[source] : graph.indptr[source + 1]].tolist()}
        score = {node: s for node, s in score.items() if node not in seen}
    best = sorted(score, key=lambda node: (-score[node], node))[: params.top_k]
    return Row(
        ids=np.array(best, np.int32),
        scores=np.array([score[node] for node in best], np.float32),
        mass=sum(walked.stopped.values()) / ONE,
        moves=walked.moves,
    )


def walk(graph: Graph, source: int, params: FingerprintParams) -> Walked:
    """Move the mass of one source until all of it has stopped."""
    stop = round(params.restart_prob * 2**20)
    rows: dict[int, tuple[list[int], Sequence[int]]] = {}
    stopped: dict[int, int] = defaultdict(int)
    mass, moves, step = {source: ONE}, 0, 0
    while mass:
        arriving: dict[int, int] = defaultdict(int)
        for node, m in mass.items():
            stopped[node] += m * stop >> 20
            if step == params.max_steps:
                continue
            h = m - (m * stop >> 20)
            if node not in rows:
                rows[node] = row_of(graph, node)
            targets, cumulative = rows[node]
            bits = random_bits(params.seed, source, step, node)
            for edge, share in hand_on(h, cumulative, params.n_walks, bits):
                arriving[targets[edge]] += share
                moves += 1
        mass, step = arriving, step + 1
    return Walked(stopped, moves)


def row_of(graph: Graph, node: int) -> tuple[list[int], Sequence[int]]:
    """Out-neighbours and inclusive cumulative weights."""
    edges = slice(graph.indptr[node], graph.indptr[node + 1])
    targets = graph.indices[edges].tolist()
    if graph.cumulative is None:
        return targets, range(1, len(targets) + 1)
    return targets, graph.cumulative[edges].tolist()


def hand_on(h: int, cumulative: Sequence[int], n_walks: int, bits: int) -> list[tuple[int, int]]:
    """Hand mass ``h`` on over the edges of a row: (edge, mass) each."""
    if not cumulative:
        return []
    unit = ONE // n_walks
    if len(cumulative) <= 2 * n_walks and 2 * h >= unit * len(cumulative):
        return push(h, cumulative, bits)
    if h >= unit:
        return split(h, cumulative, unit, bits)
    survives = (bits >> 40) * unit < h << 24
    return [(bisect_right(cumulative, below_low(bits, cumulative[-1])), unit)] if survives else []


def push(h: int, cumulative: Sequence[int], bits: int) -> list[tuple[int, int]]:
    """In proportion to the weights; what rounding leaves is placed by one systematic draw."""
    total = cumulative[-1]
    carry = below_low(bits, total)
    bounds = [(h * upto + carry) // total for upto in (0, *cumulative)]
    shares = [high - low for low, high in pairwise(bounds)]
    return [(edge, share) for edge, share in enumerate(shares) if share > 0]


def split(h: int, cumulative: Sequence[int], unit: int, bits: int) -> list[tuple[int, int]]:
    """Equal packets by systematic sampling; another systematic draw places what rounding leaves."""
    total = cumulative[-1]
    k = (2 * h + unit) // (2 * unit)
    offset, carry = below_low(bits, total), below_high(bits, k)
    return [
        (
            bisect_right(cumulative, (i * total + offset) // k),
            ((i + 1) * h + carry) // k - (i * h + carry) // k,
        )
        for i in range(k)
    ]
