"""Lengths in tokens where no tokenizer is at hand: every model has its own."""

from __future__ import annotations

import math

BYTES_PER_TOKEN = 4


def tokens_of(n_bytes: int) -> int:
    """Estimated number of tokens in a text of so many bytes of UTF-8."""
    return math.ceil(n_bytes / BYTES_PER_TOKEN)
