"""Counter-based random numbers, keyed by what is drawn and never by thread, partition or order.

A draw is one output of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014): the stream is chosen by (seed, source, step), the position in the stream by the node. So every
engine, partition count and retry sees the same numbers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW_32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@njit(cache=True, inline="always")
def mix64(x):
    """SplitMix64's finaliser: a bijection of 64-bit words whose outputs pass for random."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@njit(cache=True, inline="always")
def stream_key(seed, source, step):
    """Start of the stream of (seed, source, step)."""
    return mix64(mix64(mix64(np.uint64(seed)) + np.uint64(source) * _GOLDEN) + np.uint64(step) * _GOLDEN)


@njit(cache=True, inline="always")
def draw(key, node):
    """64 random bits for ``node`` in the stream ``key``."""
    return mix64(key + (np.uint64(node) + np.uint64(1)) * _GOLDEN)


@njit(cache=True, inline="always")
def low_half(bits):
    """The lower 32 bits."""
    return np.int64(bits & _LOW_32)


@njit(cache=True, inline="always")
def below_high(bits, bound):
    """Uniform integer in [0, bound), bound < 2**32, from the upper half of ``bits``."""
    return np.int64(((bits >> _32) * np.uint64(bound)) >> _32)


@njit(cache=True, inline="always")
def below_low(bits, bound):
    """Uniform integer in [0, bound), bound < 2**32, from the lower half of ``bits``."""
    return np.int64(((bits & _LOW_32) * np.uint64(bound)) >> _32)


@njit(cache=True, inline="always")
def happens(bits, part, whole):
    """True with probability part / whole (to 2**-24), from the upper 24 bits; part < whole <= 2**40."""
    return (bits >> np.uint64(40)) * np.uint64(whole) < np.uint64(part) << np.uint64(24)
