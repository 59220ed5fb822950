"""What was measured of answers: features for the training, and what to expect of each LLM for a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from router.dataset.columns import Columns
from router.dataset.events import SMALLEST, Events, llm_positions
from router.errors import DataError
from router.persona.data import Floats, Ints

Doubles = NDArray[np.float64]
EXPECTED = ("quality", "cost_usd", "latency_ms")
_USUAL_NAMES = {"query": ("query", "query_id"), "llm": ("llm", "model", "name")}
_LARGEST = 3.0  # standard deviations
_PRIOR_COUNT = 2.0


@dataclass(frozen=True, slots=True)
class Expected:
    """What answers of each LLM are like for each task, float32 [t, m]; NaN where nothing was measured.

    Means in which each LLM's mean over all tasks counts as two answers of each task.
    """

    quality: Floats
    cost_usd: Floats
    latency_ms: Floats

    @classmethod
    def of(
        cls, measured: Mapping[str, Doubles], tasks: Ints, llms: Ints, n_tasks: int, n_llms: int
    ) -> Expected:
        """From measured figures by name, float64 [n], of answers of ``llms`` in ``tasks``, int64 [n]."""
        nothing = np.full(tasks.size, np.nan)
        return cls(
            *(_means(measured.get(name, nothing), tasks, llms, (n_tasks, n_llms)) for name in EXPECTED)
        )

    def or_else(self, other: Expected) -> Expected:
        """These figures, and the other's for an LLM of which nothing was measured here."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in EXPECTED]
        return Expected(*(np.where(np.isnan(mine), theirs, mine) for mine, theirs in pairs))


def expected_of_events(events: Events, tasks_of: Ints, n_tasks: int, n_llms: int) -> Expected:
    """What the events tell: quality is the reward or, without rewards, whether the thumb was up.

    Parameters
    ----------
    events
        Whatever the user thought of the answers.
    tasks_of
        Task of each query, int64 [q].
    n_tasks, n_llms
        Counts.
    """
    voted = np.where(events.thumbs == 0, np.nan, events.thumbs > 0)
    measured = events.measured | {"quality": events.measured.get("reward", voted)}
    return Expected.of(measured, tasks_of[events.queries], events.llms, n_tasks, n_llms)


def read_answers(path: Path, events: Events, llm_names: tuple[str, ...]) -> tuple[tuple[str, ...], Doubles]:
    """Read measured answers to the events' queries.

    Parameters
    ----------
    path
        Columns ``query`` and ``llm``, and numbers; a null or NaN was not measured. Of several answers to a
        query by an LLM, the mean counts.
    events
        Say which queries there are.
    llm_names
        LLMs that there are.

    Returns
    -------
    names : tuple of str
        Of the features.
    features : float64 [q, m, f]
        As measured; NaN where they were not.

    Raises
    ------
    MissingDataError
        The file or a column is not there.
    DataError
        An LLM is unknown, a cell is no number, a cost or latency is negative, or no answer is to a query of
        the events.
    """
    columns = Columns.open(path, _USUAL_NAMES, ("query", "llm"))
    if not columns.extra:
        raise DataError(f"{path}: a column of measured numbers is needed")
    batch = columns.with_extra(columns.extra).whole()
    llms = llm_positions(batch, batch.texts("llm"), {name: i for i, name in enumerate(llm_names)})
    ids = batch.texts("query")
    distinct = ids.unique()
    at = pc.index_in(ids, value_set=distinct).to_numpy(), llms
    features = np.stack(
        [
            _mean_at(
                at,
                batch.numbers(name, nan=True, at_least=SMALLEST.get(name, -np.inf)),
                (len(distinct), len(llm_names)),
            )
            for name in columns.extra
        ],
        axis=2,
    )
    rows = pc.index_in(pa.array(events.query_keys, ids.type), value_set=distinct)
    if rows.null_count == len(rows):
        raise DataError(f"{path}: no answer is to a query of the events (the first is to {ids[0].as_py()!r})")
    result = features[pc.fill_null(rows, 0).to_numpy()]
    result[rows.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return columns.extra, result


def standardise(features: Doubles, tasks_of: Ints) -> Floats:
    """Features less their mean over the task, in pooled standard deviations, cut at ±3, float32 [q, m, f]."""
    tasks = np.broadcast_to(tasks_of[:, None], features.shape[:2])
    result = np.empty(features.shape, dtype=np.float32)
    for i in range(features.shape[2]):
        x = features[..., i]
        known = ~np.isnan(x)
        sums = np.bincount(tasks[known], x[known], minlength=tasks_of.max() + 1)
        counts = np.bincount(tasks[known], minlength=tasks_of.max() + 1)
        centred = x - (sums / np.maximum(counts, 1))[tasks]
        sd = float(np.sqrt(np.mean(centred[known] ** 2))) if known.any() else 0.0
        result[..., i] = (centred / (sd or 1.0)).clip(-_LARGEST, _LARGEST)
    return result


def _mean_at(at: tuple[Ints, Ints], values: Doubles, shape: tuple[int, int]) -> Doubles:
    """Mean of the values at each place, float64 ``shape``; NaN where there are none."""
    known = ~np.isnan(values)
    places = np.ravel_multi_index(at, shape)[known]
    counts = np.bincount(places, minlength=shape[0] * shape[1])
    sums = np.bincount(places, values[known], minlength=counts.size)
    means: Doubles = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).reshape(shape)
    return means


def _means(values: Doubles, tasks: Ints, llms: Ints, shape: tuple[int, int]) -> Floats:
    known = ~np.isnan(values)
    places = np.ravel_multi_index((tasks[known], llms[known]), shape)
    counts = np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape)
    sums = np.bincount(places, values[known], minlength=counts.size).reshape(shape)
    of_llm = np.where(counts.sum(axis=0) > 0, sums.sum(axis=0) / np.maximum(counts.sum(axis=0), 1), np.nan)
    return ((sums + _PRIOR_COUNT * of_llm) / (counts + _PRIOR_COUNT)).astype(np.float32)
