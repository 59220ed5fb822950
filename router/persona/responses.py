"""Features of LLMs' answers: what simulated users may like or dislike about them.

Twelve numbers per answer: quality, cost, latency (an assumption, see :func:`latency_proxy`), length, and
eight of its style and tone, counted by regular expressions. List items, formulas and the like count as
log(1 + n), words of a kind as log(1 + n per 100 words), ten words being added to each answer so that short
ones do not dominate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.errors import DataError
from router.loaders import ResponseTable
from router.persona.data import Floats

Doubles = NDArray[np.float64]

FEATURES = (
    "quality",
    "cost",
    "latency",
    "length",
    "structure",
    "codemath",
    "hedge",
    "warmth",
    "formality",
    "explain",
    "direct",
    "specific",
)
# Active parameters of RouteProfile's LLMs in the order of its file, in billions.
ROUTE_PROFILE_BILLIONS = (7.0, 9.0, 8.0, 13.0, 39.0, 3.0, 24.0, 70.0)

_CLIP = 3.0
_DAMPING = 10  # words
_WORD_LENGTH = 4.5  # of English
_CONTRACTION_WEIGHT = 4.0

_WORD = re.compile(r"[A-Za-z']+|\d+")
_LETTERS = re.compile(r"[A-Za-z']+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")
_CONTRACTION = re.compile(r"\b\w+'(?:t|s|re|ve|ll|d|m)\b", re.IGNORECASE)
_STRUCTURE = re.compile(
    r"^\s*(?:[-*+•]|\d+[.)])\s+"  # list items
    r"|^\s*#{1,6}\s"  # headings
    r"|^\s*\|.*\|",  # rows of tables
    re.MULTILINE,
)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")
_CODE_MATHS = re.compile(
    r"```|`[^`\n]+`|\\\(|\\\[|\$[^$\n]+\$|\\(?:frac|boxed|sqrt|sum|cdot|begin)|\bdef \w+|\breturn\b"
)
_SPECIFIC = re.compile(r"\d[\d,.]*|(?<=[a-z,] )[A-Z][a-z]+")


def _any_of(*phrases: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(phrases)})\b", re.IGNORECASE)


_HEDGE = _any_of(
    *("however", "could", "may", "might", "likely", "possibly", "perhaps", "probably", "seems?", "appears?"),
    *("typically", "usually", "generally", "assuming", "unable", "sorry"),
    *("i don't", "i can't", "i cannot", "i couldn't"),
)
_WARMTH = re.compile(
    r"!|\b(?:we|us|our|you|your|me|we'll|we've|we're|you're|you've|let's|sure|please|help|happy|glad|enjoy"
    r"|hope|great|wonderful|welcome)\b",
    re.IGNORECASE,
)
_EXPLAIN = re.compile(
    r"\b(?:because|since|therefore|thus|hence|means|due to|so that|as a result|for example|reason"
    r"|explanation)\b|\bstep \d",
    re.IGNORECASE,
)


def response_features(table: ResponseTable, active_billions: Sequence[float]) -> Floats:
    """Features of all answers, float32 [q, m, 12], in the order of ``FEATURES``.

    Parameters
    ----------
    table
        With the answers' text and tokens. A quality that is NaN counts as 0.
    active_billions
        Active parameters of each LLM, in billions [m].

    Raises
    ------
    DataError
        The table has no text or no tokens, a cost is unknown, or the LLMs differ in number.
    """
    if table.responses is None or table.tokens is None:
        raise DataError("'table' must have responses and tokens")
    if len(active_billions) != len(table.llms):
        raise DataError(f"'active_billions' must have {len(table.llms)} entries (got {len(active_billions)})")
    if np.isnan(table.cost_usd).any():
        raise DataError("'table' must have the cost of every answer (got NaN)")
    measured = (
        np.nan_to_num(table.quality),
        scaled_by_group(table.cost_usd, np.unique(np.array(table.tasks), return_inverse=True)[1]),
        latency_proxy(table.tokens[..., 1], active_billions),
    )
    texts = np.array([[text_features(answer) for answer in answers] for answers in table.responses])
    return np.concatenate([np.stack(measured, axis=2), texts], axis=2).astype(np.float32)


def text_features(answer: str) -> tuple[float, ...]:
    """Features of the text alone: the last nine of ``FEATURES``."""
    n_words = len(_WORD.findall(answer))

    def density(pattern: re.Pattern[str]) -> float:
        return float(np.log1p(100.0 * len(pattern.findall(answer)) / (n_words + _DAMPING)))

    n_structure = len(_STRUCTURE.findall(answer)) + len(_BOLD.findall(answer))
    first_sentence = _SENTENCE_END.split(answer.strip(), maxsplit=1)[0]
    return (
        float(np.log1p(n_words)),
        float(np.log1p(n_structure)),
        float(np.log1p(len(_CODE_MATHS.findall(answer)))),
        density(_HEDGE),
        density(_WARMTH),
        _formality(answer, n_words),
        density(_EXPLAIN),
        -float(np.log1p(max(1, len(_WORD.findall(first_sentence))))),
        density(_SPECIFIC),
    )


def latency_proxy(completion_tokens: ArrayLike, active_billions: Sequence[float]) -> Doubles:
    """log(20 + tokens · (5 + B / 2)) ms, B active parameters in billions: an assumption, not a measurement.

    Parameters
    ----------
    completion_tokens
        [q, m].
    """
    per_token = 5.0 + 0.5 * np.asarray(active_billions, dtype=np.float64)
    return np.asarray(np.log(20.0 + np.asarray(completion_tokens, dtype=np.float64) * per_token))


def standardise(features: ArrayLike) -> Floats:
    """Differences between the answers to one query, in units of their pooled standard deviation.

    Centred over the LLMs, divided, clipped to ±3 and centred again; a feature in which answers never differ
    becomes 0.

    Parameters
    ----------
    features
        [q, m, f].

    Returns
    -------
    float32 [q, m, f]
    """
    x = np.asarray(features, dtype=np.float64)
    centred = x - x.mean(axis=1, keepdims=True)
    sd = np.sqrt((centred**2).mean(axis=(0, 1)))
    z = np.clip(centred / np.where(sd > 0.0, sd, 1.0), -_CLIP, _CLIP)
    return np.asarray(z - z.mean(axis=1, keepdims=True), dtype=np.float32)


def _formality(answer: str, n_words: int) -> float:
    """Mean length of the words, shrunk towards English's, less contractions."""
    words = _LETTERS.findall(answer)
    length = (sum(map(len, words)) + _DAMPING * _WORD_LENGTH) / (len(words) + _DAMPING)
    return length - _CONTRACTION_WEIGHT * len(_CONTRACTION.findall(answer)) / (n_words + _DAMPING)


def scaled_by_group(values: Doubles, groups: NDArray[np.int64]) -> Doubles:
    """Scale rows [n, m] to 0..1 within each group of rows; 0 where they do not differ."""
    result = np.zeros_like(values)
    for group in np.unique(groups):
        part = values[groups == group]
        spread = part.max() - part.min()
        result[groups == group] = (part - part.min()) / (spread if spread > 0.0 else 1.0)
    return result
