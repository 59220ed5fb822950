"""Quality of fingerprints against the truth, and of recommendations against held-out interactions.

Accuracy follows PowerWalk (CIKM 2016): with p the true PageRank of a source,

* RAG@k = Σ p(v) over the k returned nodes / Σ p(v) over the true k best;
* precision@k = returned nodes whose p reaches that of the true k-th / min(k, nodes of positive p).

Recommendation metrics follow the all-ranking protocol of LightGCN (SIGIR 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppr.errors import ParameterError
from ppr.graph import Graph

# Error of the truth: nodes that differ by less are tied.
_TIE = 1e-10
_RELATIVE_TIE = 1e-6


def sample_sources(
    graph: Graph, *, per_bucket: int = 10, n_buckets: int = 10, seed: int = 0
) -> NDArray[np.int32]:
    """Sample sources from buckets of out-degree, so that hubs and leaves both count.

    Bucket i holds the nodes of out-degree 2^(i-1) to 2^i - 1. Where one has too few, the sample is topped up
    from all other nodes that are not dangling.

    Returns
    -------
    int32
        Ascending; ``per_bucket * n_buckets`` nodes, or all that are not dangling where there are fewer.

    Raises
    ------
    ParameterError
        A number is not positive.
    """
    for name, value in (("per_bucket", per_bucket), ("n_buckets", n_buckets)):
        if value < 1:
            raise ParameterError(f"{name!r} must be positive (got {value})")
    rng = np.random.default_rng(seed)
    degree = graph.out_degree
    taken = np.zeros(graph.n_nodes, dtype=np.bool_)
    for bucket in range(n_buckets):
        members = np.flatnonzero((degree >= 1 << bucket) & (degree < 2 << bucket))
        taken[rng.permutation(members)[:per_bucket]] = True
    others = np.flatnonzero((degree > 0) & ~taken)
    lacking = per_bucket * n_buckets - np.count_nonzero(taken)
    taken[rng.permutation(others)[:lacking]] = True
    return np.flatnonzero(taken).astype(np.int32)


def top_k_ids(scores: NDArray[np.floating], k: int) -> NDArray[np.int32]:
    """Ids of the k best positive scores of each row, ties by ascending id.

    Parameters
    ----------
    scores
        [b, n].
    k
        At least 1.

    Returns
    -------
    int32 [b, k]
        Padded with -1.
    """
    ids = np.full((len(scores), k), -1, dtype=np.int32)
    for row, values in enumerate(scores):
        least = _kth_largest(values, k)
        candidates = np.flatnonzero((values >= least) & (values > 0))
        best = candidates[np.argsort(-values[candidates], kind="stable")][:k]
        ids[row, : best.size] = best
    return ids


def rag_at_k(
    truth: NDArray[np.float64], ranked: NDArray[np.integer], k: int, *, exclude: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Relative aggregated goodness: the true value of what was returned, against the best possible.

    Parameters
    ----------
    truth
        True values, float64 [b, n], normalised or not.
    ranked
        Returned ids, best first, padded with -1, [b, w]. With ``exclude``, w should be at least k + 1.
    k
        Rank at which both lists are cut.
    exclude
        A node of each row to leave out of both lists, [b]: the source, as a recommender does.

    Returns
    -------
    float64 [b]
        Between 0 and 1; 1 where no node has a positive true value.
    """
    values = np.empty(len(truth))
    for row, (true, returned) in enumerate(_cut(truth, ranked, k, exclude)):
        best = float(np.partition(true, -k)[-k:].sum() if k < true.size else true.sum())
        values[row] = true[returned].sum() / best if best > 0 else 1.0
    return values


def precision_at_k(
    truth: NDArray[np.float64], ranked: NDArray[np.integer], k: int, *, exclude: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Share of the true k best that was returned; nodes tied with the k-th count as among them.

    Parameters
    ----------
    truth, ranked, k, exclude
        As for :func:`rag_at_k`.

    Returns
    -------
    float64 [b]
        Between 0 and 1; 1 where no node has a positive true value.
    """
    values = np.empty(len(truth))
    for row, (true, returned) in enumerate(_cut(truth, ranked, k, exclude)):
        possible = min(k, int(np.count_nonzero(true > 0)))
        kth = _kth_largest(true, k)
        reached = (true[returned] >= kth - min(_TIE, _RELATIVE_TIE * kth)) & (true[returned] > 0)
        hits = int(np.count_nonzero(reached))
        values[row] = hits / possible if possible else 1.0
    return values


def l1_error(truth: NDArray[np.float64], estimate: NDArray[np.floating]) -> NDArray[np.float64]:
    """Σ |p̂ - p| of each row, float64 [b], for arrays [b, n] that are both normalised or both not."""
    return np.asarray([np.abs(true - guess).sum() for true, guess in zip(truth, estimate, strict=True)])


def max_error(truth: NDArray[np.float64], estimate: NDArray[np.floating]) -> NDArray[np.float64]:
    """Largest |p̂ - p| of each row, float64 [b]."""
    return np.asarray([np.abs(true - guess).max() for true, guess in zip(truth, estimate, strict=True)])


def accuracy(
    truth: NDArray[np.float64],
    ranked: NDArray[np.integer],
    sources: ArrayLike,
    *,
    ks: Sequence[int] = (10, 50, 200),
) -> dict[str, float]:
    """Mean RAG@k and precision@k over the sources, with the source left out and with it.

    Parameters
    ----------
    truth, ranked
        As for :func:`rag_at_k`.
    sources
        The source of each row, [b].
    ks
        Ranks.

    Returns
    -------
    dict
        ``rag@k`` and ``precision@k`` without the source, ``rag@k_with_source`` and
        ``precision@k_with_source``.
    """
    result = {}
    for suffix, exclude in (("", sources), ("_with_source", None)):
        for k in ks:
            result[f"rag@{k}{suffix}"] = float(rag_at_k(truth, ranked, k, exclude=exclude).mean())
            result[f"precision@{k}{suffix}"] = float(precision_at_k(truth, ranked, k, exclude=exclude).mean())
    return result


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out items of each user, as compressed rows.

    Attributes
    ----------
    indptr
        int64 [b + 1].
    ids
        Items, each once within a row, int [e].
    """

    indptr: NDArray[np.int64]
    ids: NDArray[np.integer]

    @classmethod
    def from_lists(cls, items: Sequence[ArrayLike]) -> HeldOut:
        """From one list of items per user; repeated items count once."""
        rows = [np.unique(np.asarray(row, dtype=np.int64)) for row in items]
        lengths = np.asarray([row.size for row in rows], dtype=np.int64)
        ids = np.concatenate([np.empty(0, dtype=np.int64), *rows])
        return cls(np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]), ids)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Held-out items of each user, int64 [b]."""
        return np.diff(self.indptr)

    def hits(self, ranked: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
        """Which of the first k ranked items of each user are held out, bool [b, min(k, w)]."""
        if k < 1:
            raise ParameterError(f"'k' must be positive (got {k})")
        if len(ranked) != self.counts.size:
            raise ParameterError(f"'ranked' must have {self.counts.size} rows (got {len(ranked)})")
        first = np.asarray(ranked[:, :k], dtype=np.int64)
        stride = 1 + max(int(first.max(initial=0)), int(self.ids.max(initial=0)))
        users = np.arange(self.counts.size)
        wanted = np.repeat(users, self.counts) * stride + self.ids
        return np.isin(users[:, None] * stride + first, wanted) & (first >= 0)


def recall_at_k(ranked: NDArray[np.integer], held_out: HeldOut, k: int) -> NDArray[np.float64]:
    """Held-out items among the first k ranked / held-out items.

    Parameters
    ----------
    ranked
        Recommended items, best first, padded with -1, int [b, w].
    held_out
        What the users went for.
    k
        Rank at which lists are cut.

    Returns
    -------
    float64 [b]
        NaN for users without held-out items, whom the protocol leaves out: average with ``np.nanmean``.

    Raises
    ------
    ParameterError
        ``k`` is not positive, or the numbers of users differ.
    """
    return _ratio(held_out.hits(ranked, k).sum(axis=1), held_out.counts)


def ndcg_at_k(ranked: NDArray[np.integer], held_out: HeldOut, k: int) -> NDArray[np.float64]:
    """Discounted cumulative gain of the first k ranked items / that of the best possible ranking.

    A hit at rank r (from 1) gains 1 / log2(r + 1); the best ranking has min(k, held-out items) hits in front.

    Parameters
    ----------
    ranked, held_out, k
        As for :func:`recall_at_k`.

    Returns
    -------
    float64 [b]
        NaN for users without held-out items.

    Raises
    ------
    ParameterError
        As for :func:`recall_at_k`.
    """
    hits = held_out.hits(ranked, k)
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(gains)])[np.minimum(held_out.counts, k)]
    return _ratio(hits @ gains[: hits.shape[1]], ideal)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    result = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def _cut(
    truth: NDArray[np.float64], ranked: NDArray[np.integer], k: int, exclude: ArrayLike | None
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.integer]]]:
    """Yield the true values and the first k returned ids of each row, without the excluded node."""
    if k < 1:
        raise ParameterError(f"'k' must be positive (got {k})")
    left_out = np.full(len(truth), -1) if exclude is None else np.asarray(exclude)
    for true, returned, node in zip(truth, ranked, left_out, strict=True):
        if node >= 0:
            true = true.copy()
            true[node] = 0.0
        yield true, returned[(returned >= 0) & (returned != node)][:k]


def _kth_largest(values: NDArray[np.floating], k: int) -> float:
    """Return the k-th largest value, or the smallest where there are fewer."""
    return float(np.partition(values, -k)[-k]) if k < values.size else float(values.min())
