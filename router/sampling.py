"""Neighbour sampling for graphs too large to be used as a whole.

From each row at most ``fan_out`` entries are drawn, uniformly and without replacement; the weights of those
drawn are raised by degree / drawn, so that weighted sums over them are right on average (Horvitz and
Thompson, 1952). Numbers come from a counter-based hash of seed, step, node and slot in 64-bit integers
(:mod:`ppr.kernels.rng`), so the CPU's loop and the GPU's gathers draw the same, whatever the threads or the
batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from router.errors import DataError
from router.kernels import draw_places

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MAX_DEGREE = 1 << 31


@dataclass(frozen=True, slots=True)
class Rows:
    """Compressed rows: of each node, the neighbours that it hears, and their weights.

    Attributes
    ----------
    indptr
        int64 [n + 1].
    indices
        int32 or int64 [e].
    weights
        float32 [e], or None where all are 1.
    """

    indptr: Tensor
    indices: Tensor
    weights: Tensor | None = None

    @classmethod
    def of(cls, index: Tensor, weights: Tensor, n_rows: int) -> Rows:
        """Rows of edges from sources to rows, int64 [2, e], in order of the rows."""
        counts = torch.bincount(index[1], minlength=n_rows)
        return cls(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), index[0], weights)

    def to(self, device: torch.device) -> Rows:
        """Move to a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return Rows(self.indptr.to(device), self.indices.to(device), weights)

    def check(self) -> None:
        """Check what the draws rely on.

        Raises
        ------
        DataError
            A node has 2³¹ neighbours or more.
        """
        longest = int(self.indptr.diff().max()) if len(self.indptr) > 1 else 0
        if longest >= _MAX_DEGREE:
            raise DataError(f"a node must have less than 2**31 neighbours (got {longest})")


def sample(rows: Rows, nodes: Tensor, fan_out: int, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Draw neighbours of nodes.

    Parameters
    ----------
    rows
        All neighbours.
    nodes
        int64 [b], on the device of the rows; a node may occur more than once, with the same draws.
    fan_out
        Neighbours of a node at most.
    seed, step
        Of the draws.

    Returns
    -------
    ids
        Neighbours, int64 [b, fan_out]; 0 in the padding.
    weights
        float32 [b, fan_out], corrected for what was not drawn; 0 in the padding.
    """
    draw = places_by_gathers if nodes.is_cuda else places_by_loop
    places = draw(rows, nodes, fan_out, seed=seed, step=step)
    padding = places < 0
    degree = (rows.indptr[nodes + 1] - rows.indptr[nodes]).float()
    weights = (degree / fan_out).clamp(min=1.0)[:, None].masked_fill(padding, 0.0)
    places = places.clamp_(min=0)
    if not len(rows.indices):
        return places, weights
    at = places.flatten()  # index_select is faster than brackets on a CPU
    ids = rows.indices.index_select(0, at).long().view_as(places).masked_fill_(padding, 0)
    if rows.weights is not None:
        weights = weights * rows.weights.index_select(0, at).view_as(places)
    return ids, weights


def places_by_loop(rows: Rows, nodes: Tensor, fan_out: int, *, seed: int, step: int) -> Tensor:
    """Positions of the entries drawn, int64 [b, fan_out], -1 in the padding, by a compiled loop."""
    out = np.full((len(nodes), fan_out), -1)
    draw_places(rows.indptr.numpy(), nodes.numpy(), seed, step, out)
    return torch.from_numpy(out)


def places_by_gathers(rows: Rows, nodes: Tensor, fan_out: int, *, seed: int, step: int) -> Tensor:
    """Positions as :func:`places_by_loop` gives them, by operations on whole tensors."""
    start = rows.indptr[nodes]
    degree = rows.indptr[nodes + 1] - start
    key = _mix(_mix(_mix(torch.full_like(nodes, seed)) + nodes * _signed(_GOLDEN)) + _signed(step * _GOLDEN))
    places = torch.empty(len(nodes), fan_out, dtype=torch.int64, device=nodes.device)
    for slot in range(fan_out):
        last = (degree - fan_out + slot).clamp(min=0)
        bits = _mix(key + _signed((slot + 1) * _GOLDEN))
        place = (_shifted(bits, 32) * (last + 1)) >> 32
        taken = (places[:, :slot] == place[:, None]).any(dim=1)
        places[:, slot] = torch.where(taken, last, place)
    slots = torch.arange(fan_out, device=nodes.device)
    short = (degree <= fan_out)[:, None]
    places = torch.where(short, slots, places) + start[:, None]
    return places.masked_fill(short & (slots >= degree[:, None]), -1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on words that are stored as signed integers, which wrap around alike."""
    x = (x ^ _shifted(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shifted(x, 27)) * _signed(_MIX_2)
    return x ^ _shifted(x, 31)


def _signed(word: int) -> int:
    """The signed integer of the same 64 bits."""
    return ((word + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shift right without the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
