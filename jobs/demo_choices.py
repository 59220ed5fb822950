"""The demo's choices of LLMs: their parts before and after a moment, and how well a method foresees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.demo_quality import Truth
from jobs.splits import split_at_random, split_by_time
from ppr.errors import DataError
from router.baselines import PopularityRouter, UserTaskRouter
from router.dataset.events import Events
from router.persona.data import Bools, ChoiceData, Choices, Floats, Ints, Support

POPULAR = "most popular model"
POPULAR_BY_TASK = "most popular by task"
COUNTS = "user by task counts"
NEWCOMERS = 10  # one user in so many is kept out of the training
_HELD_OUT = 0.2  # share of the training's choices that the baseline's shrinkage is chosen on
_SHRINKAGES = (1.0, 2.0, 4.0, 8.0, 16.0)
_NO_TASK = "all questions"

FloatArray = npt.NDArray[np.float64]
Baselines = dict[str, PopularityRouter | UserTaskRouter]


@dataclass(frozen=True, slots=True)
class ChoiceParts:
    """Choices of LLMs, before and after a moment.

    Attributes
    ----------
    user_keys
        Arrow large_string, as the demo's graph has them; users, queries, tasks and LLMs are positions in
        these four.
    queries
        Texts, object [q].
    tasks, llms
        Names.
    query_tasks
        Task of each query, int64 [q].
    earlier
        Choices before the moment in the order of time, without those that got a thumb down: the router takes
        none of them for a wish.
    later
        Choices from the moment on, in the order of time.
    newcomers
        Users whose choices are kept out of the training, bool [u].
    utility
        Planted utility, float64 [u, t, m], or None where nothing is planted.
    """

    user_keys: pa.Array
    queries: npt.NDArray[Any]
    tasks: tuple[str, ...]
    llms: tuple[str, ...]
    query_tasks: Ints
    earlier: Choices
    later: Choices
    newcomers: Bools
    utility: FloatArray | None

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.user_keys)

    @property
    def has_tasks(self) -> bool:
        """Whether the choices say what kind of question each was."""
        return self.tasks != (_NO_TASK,)

    @property
    def trained(self) -> Choices:
        """Earlier choices of the users who are no newcomers."""
        return self.earlier.take(~self.newcomers[self.earlier.users])

    def counts(self) -> Ints:
        """Number of each user's earlier choices, int64 [u]."""
        return np.bincount(self.earlier.users, minlength=self.n_users)


@dataclass(frozen=True, slots=True)
class Picks:
    """LLMs that a method picks.

    Attributes
    ----------
    by_task
        For each user a question of each task, int64 [u, t].
    later
        For the later choices' questions, int64 [n].
    """

    by_task: Ints
    later: Ints


def moment_of(test: pa.Table) -> float | None:
    """First time of a test part, as :class:`router.events.Events` counts it; None without times."""
    if "timestamp" not in test.column_names:
        return None
    first = pc.min(test["timestamp"])
    if pa.types.is_temporal(first.type):
        return float(first.cast(pa.timestamp("us", tz=getattr(first.type, "tz", None))).value) / 1e6
    return float(first.as_py())


def split_events(events: Events, moment: float | None, seed: int) -> tuple[Ints, Ints]:
    """Rows of the events before and after a moment, each in the order of time.

    Parameters
    ----------
    events
        With times, or without.
    moment
        Where to split events with times; None leaves the last fifth of them to the second part. Without
        times, a random fifth of each user's events goes there.
    seed
        Of that draw.

    Raises
    ------
    DataError
        A part would be empty, or a time is missing.
    """
    rows = np.arange(len(events))
    times = events.timestamps
    if times is None:
        table = pa.table({"user": events.users, "row": rows})
        earlier, later = split_at_random(table, seed=seed)
    else:
        if np.isnan(times).any():
            raise DataError(f"'timestamp' must not be missing ({np.isnan(times).sum()} events' are)")
        table = pa.table({"row": rows, "timestamp": times}).sort_by([("timestamp", "ascending")])
        if moment is None:
            earlier, later = split_by_time(table)
        else:
            n_earlier = int(np.count_nonzero(times < moment))
            earlier, later = table[:n_earlier], table[n_earlier:]
    if not (earlier.num_rows and later.num_rows):
        raise DataError(
            f"the moment that splits the interactions leaves {earlier.num_rows} events before and "
            f"{later.num_rows} after it; both must be positive"
        )
    return earlier["row"].to_numpy(), later["row"].to_numpy()


def choice_parts(
    events: Events, llms: Sequence[str], rows: tuple[Ints, Ints], seed: int, truth: Truth | None
) -> ChoiceParts:
    """Parts of the events by their rows, with newcomers drawn by the seed."""
    n_users = len(events.user_keys)
    newcomers = np.zeros(n_users, dtype=bool)
    newcomers[np.random.default_rng(seed).permutation(n_users)[: n_users // NEWCOMERS]] = True
    tasks, query_tasks = _tasks(events)
    choices = Choices(events.users, events.queries, events.llms, events.offered)
    return ChoiceParts(
        user_keys=events.user_keys.cast(pa.large_string()),
        queries=events.query_keys,
        tasks=tasks,
        llms=tuple(llms),
        query_tasks=query_tasks,
        earlier=choices.take(rows[0][events.thumbs[rows[0]] >= 0]),
        later=choices.take(rows[1]),
        newcomers=newcomers,
        utility=None if truth is None else _utility(truth, events.user_keys, tasks, llms),
    )


def _tasks(events: Events) -> tuple[tuple[str, ...], Ints]:
    """Names of the tasks, and the task of each query; one for all where the events name none."""
    if events.query_tasks is None:
        return (_NO_TASK,), np.zeros(len(events.query_keys), dtype=np.int64)
    names, of_query = np.unique(events.query_tasks.astype(str), return_inverse=True)
    return tuple(names.tolist()), of_query.astype(np.int64)


def fit_baselines(parts: ChoiceParts, seed: int) -> Baselines:
    """Count the choices that the router is trained on.

    How much a user's own choices weigh is chosen on a random fifth of them, held out for that.
    """
    n_llms = len(parts.llms)
    data = ChoiceData(
        n_users=parts.n_users,
        choices=parts.trained,
        tasks=parts.query_tasks,
        query_embeddings=np.zeros((len(parts.queries), 1), np.float32),
        train_queries=np.ones(len(parts.queries), dtype=bool),
        llm_names=parts.llms,
        llm_embeddings=np.zeros((n_llms, 1), np.float32),
        prices_usd=np.full((n_llms, 2), np.nan, np.float32),
    )
    baselines: Baselines = {
        POPULAR: PopularityRouter("all"),
        POPULAR_BY_TASK: PopularityRouter("task"),
        COUNTS: UserTaskRouter(user_shrinkage=_best_shrinkage(data, seed)),
    }
    for baseline in baselines.values():
        baseline.fit(data)
    return baselines


def _best_shrinkage(data: ChoiceData, seed: int) -> float:
    """Shrinkage of the users' counts under which held-out choices are most probable."""
    held_out = np.random.default_rng(seed).random(len(data.choices)) < _HELD_OUT
    known, wanted = data.choices.take(~held_out), data.choices.take(held_out)
    tasks, queries = np.unique(data.tasks, return_index=True)
    found = {}
    for shrinkage in _SHRINKAGES:
        counts = UserTaskRouter(user_shrinkage=shrinkage)
        counts.fit(data.with_choices(known))
        scores = counts.scores(np.arange(data.n_users), queries)
        rows = scores[wanted.users, np.searchsorted(tasks, data.tasks[wanted.queries])]
        chances = rows[np.arange(len(wanted)), wanted.llms] / rows.sum(axis=1)
        found[shrinkage] = float(np.log(chances).sum())
    return max(found, key=lambda shrinkage: found[shrinkage])


def baseline_picks(baselines: Baselines, parts: ChoiceParts, known: Choices) -> dict[str, Picks]:
    """What the baselines pick for users of whom they know these choices."""
    _, one_of_each = np.unique(parts.query_tasks, return_index=True)
    support = Support(parts.n_users, known)
    return {
        name: picks_of(baseline.scores_new_users(support, one_of_each), parts)
        for name, baseline in baselines.items()
    }


def picks_of(scores: Floats | FloatArray, parts: ChoiceParts) -> Picks:
    """Best LLMs by scores that depend on user and task, float [u, t, m]; the first of equals."""
    best: Ints = scores.argmax(axis=2)
    return Picks(best, best[parts.later.users, parts.query_tasks[parts.later.queries]])


def gap_closed(utility: FloatArray, picks: Ints) -> FloatArray:
    """Share of the gap between a random and the best LLM that a user's picks close, float64 [u].

    Σ (utility of the pick - mean over LLMs) ÷ Σ (best utility - mean), sums over tasks: a random pick has 0
    in expectation, the best 1.

    Parameters
    ----------
    utility
        float64 [u, t, m].
    picks
        int64 [u, t].
    """
    picked = np.take_along_axis(utility, picks[..., None], axis=2)[..., 0]
    mean = utility.mean(axis=2)
    share: FloatArray = (picked - mean).sum(axis=1) / (utility.max(axis=2) - mean).sum(axis=1)
    return share


def foreseen(parts: ChoiceParts, picks: Picks) -> FloatArray:
    """Share of each user's later choices that are picked, float64 [u]; NaN for users without any."""
    hits = np.bincount(parts.later.users, picks.later == parts.later.llms, minlength=parts.n_users)
    n = np.bincount(parts.later.users, minlength=parts.n_users)
    share: FloatArray = np.divide(hits, n, out=np.full(parts.n_users, np.nan), where=n > 0)
    return share


def user_quality(parts: ChoiceParts, picks: Picks) -> FloatArray:
    """Gap closed where there is a planted truth, else share of later choices foreseen, float64 [u]."""
    return foreseen(parts, picks) if parts.utility is None else gap_closed(parts.utility, picks.by_task)


def mean_and_error(values: FloatArray) -> tuple[float, float]:
    """Mean and its standard error; NaN is left out."""
    known = values[~np.isnan(values)]
    error = known.std(ddof=1) / np.sqrt(known.size) if known.size > 1 else np.nan
    return float(known.mean()), float(error)


def first_choices(choices: Choices, k: int) -> Choices:
    """First ``k`` choices of each user, in the order given."""
    order = np.argsort(choices.users, kind="stable")
    users = choices.users[order]
    place = np.empty(len(choices), dtype=np.int64)
    place[order] = np.arange(users.size) - np.searchsorted(users, users)
    return choices.take(place < k)


def _utility(truth: Truth, users: pa.Array, tasks: Sequence[str], llms: Sequence[str]) -> FloatArray:
    """Planted utility in the order of users, tasks and LLMs, float64 [u, t, m]."""
    wanted = (users.to_pylist(), list(tasks), list(llms))
    positions = []
    for axis, names in zip(("users", "tasks", "llms"), wanted, strict=True):
        at = {str(name): i for i, name in enumerate(truth[axis])}
        positions.append([at[name] for name in names])
    utility: FloatArray = truth["llm_utility"][np.ix_(*positions)]
    return utility
