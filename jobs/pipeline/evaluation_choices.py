"""Held-out choices of LLMs: how well two releases foresee them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jobs.pipeline.evaluation_figures import CANDIDATE, Doubles, activity_groups, compare, mean_by_user
from router.dataset import Events, read_events
from router.dataset.queries import EXTERNAL, describe_queries
from router.encoders import HASHING, EncoderIdentity, open_encoder
from router.persona.data import Bools, Choices, Floats, Ints
from router.scorer import Scores, User
from router.service.serving import Belief, Serving
from router.validation import baselines, log_likelihoods, on_offer

_SHOWN_BASELINES = ("popularity", "user_task")
_MOST_COUNTED = 20_000  # choices of the training that baselines are counted from; their queries are encoded


@dataclass(frozen=True, slots=True)
class _Table:
    """Choices of both files, users and queries numbered over both; the first ``n_asked`` are held out."""

    choices: Choices
    n_asked: int
    user_keys: tuple[str, ...]
    queries: tuple[tuple[str, str | None], ...]

    @property
    def asked(self) -> Choices:
        return self.choices.take(np.arange(self.n_asked))

    @property
    def past(self) -> Choices:
        return self.choices.take(np.arange(self.n_asked, len(self.choices)))


def judge_choices(
    served: Mapping[str, Serving],
    held_out: Path | None,
    training: Path | None,
    *,
    queries: Path | None,
    max_users: int,
    seed: int,
    tell: Callable[[str], None],
) -> dict[str, Any] | None:
    """Judge releases by the same choices; None where there is none to judge by.

    Parameters
    ----------
    served
        ``candidate`` and perhaps ``current``.
    held_out, training
        Events, or None.
    queries
        Table of the events' queries, or None where they are texts.
    max_users, seed, tell
        As for :func:`~jobs.pipeline.evaluation.evaluate`, where the result is described, too.
    """
    names = tuple(dict.fromkeys(name for serving in served.values() for name in serving.catalogue.names))
    if (events := _read(held_out, names)) is None:
        return None
    table, left_out, n_past = _joined(events, _read(training, names), len(names), max_users, seed)
    if not table.n_asked:
        return None
    asked = table.asked
    known = {name: _columns(serving, names) for name, serving in served.items()}
    foreseeable: Bools = np.any([(columns >= 0)[asked.llms] for columns in known.values()], axis=0)
    left_out["unforeseeable"] = int((~foreseeable).sum())
    table = _without(table, foreseeable)
    asked = table.asked
    if not len(asked):
        return None
    users, place = np.unique(asked.users, return_inverse=True)
    tell(f"choices: {len(asked):,} held out, of {users.size:,} users")
    told = _Told(table, events, queries, seed)
    logits: dict[str, Doubles] = {}
    sources: dict[str, dict[str, int]] = {}
    for name, serving in served.items():
        told.prepare(serving)
        beliefs = {user: serving.belief(table.user_keys[user]) for user in users.tolist()}
        logits[name] = _logits(serving, beliefs, asked, told, known[name])
        sources[name] = dict(sorted(Counter(belief.source for belief in beliefs.values()).items()))
    unsound = {
        name: int((~np.isfinite(x[:, known[name] >= 0])).any(axis=1).sum()) for name, x in logits.items()
    }
    shares = baselines(table.past, asked, _tasks(served[CANDIDATE], told), len(names))
    logits |= {name: np.log(shares[name]) for name in _SHOWN_BASELINES}
    common: Bools = np.all([columns >= 0 for columns in known.values()], axis=0)
    measured = {
        "log_likelihood": {name: _log_likelihoods(x, asked, common) for name, x in logits.items()},
        "accuracy": {name: _hits(x, asked) for name, x in logits.items()},
    }
    groups = activity_groups(n_past[users])
    return {
        "rows": len(asked),
        "users": int(users.size),
        "left_out": left_out,
        "sources": sources,
        "not_finite": unsound,
        "metrics": {
            metric: compare(
                {name: mean_by_user(values, place, users.size) for name, values in of.items()},
                groups,
                seed=seed,
            )
            for metric, of in measured.items()
        },
    }


def _read(path: Path | None, names: Sequence[str]) -> Events | None:
    if path is None or not pq.read_metadata(path).num_rows:
        return None
    return read_events(path, names)


def _joined(
    events: Events, training: Events | None, n_llms: int, max_users: int, seed: int
) -> tuple[_Table, dict[str, int], Ints]:
    """Both tables as one, what was left out, and how many choices of the training each user made."""
    tables = [events] if training is None else [events, training]
    user_keys = sorted({str(key) for table in tables for key in table.user_keys.to_pylist()})
    user_ids = {key: i for i, key in enumerate(user_keys)}
    asked: dict[tuple[str, str | None], int] = {}
    parts = []
    for table in tables:
        of_user = np.array([user_ids[str(key)] for key in table.user_keys.to_pylist()], dtype=np.int64)
        tasks = [None] * len(table.query_keys) if table.query_tasks is None else table.query_tasks
        pairs = zip(table.query_keys, tasks, strict=True)
        of_query = np.array([asked.setdefault(pair, len(asked)) for pair in pairs], dtype=np.int64)
        offered = np.ones((len(table), n_llms), dtype=bool) if table.offered is None else table.offered
        tells = table.thumbs >= 0  # a thumb down does not tell what was wanted instead
        parts.append(Choices(of_user[table.users], of_query[table.queries], table.llms, offered).take(tells))
    rng = np.random.default_rng(seed)
    judged = rng.permutation(np.unique(parts[0].users))[:max_users]
    chosen = parts[0].take(np.isin(parts[0].users, judged))
    left_out = {
        "thumbs_down": int((events.thumbs < 0).sum()),
        "beyond_the_sample": len(parts[0]) - len(chosen),
    }
    n_past = np.zeros(len(user_keys), dtype=np.int64)
    kept = [chosen]
    if training is not None:
        n_past = np.bincount(parts[1].users, minlength=len(user_keys))
        kept.append(parts[1].take(_counted(parts[1], judged, rng)))
    choices = Choices(
        users=np.concatenate([part.users for part in kept]),
        queries=np.concatenate([part.queries for part in kept]),
        llms=np.concatenate([part.llms for part in kept]),
        offered=np.concatenate([part.offered for part in kept if part.offered is not None]),
    )
    return _Table(choices, len(chosen), tuple(user_keys), tuple(asked)), left_out, n_past


def _counted(past: Choices, judged: Ints, rng: np.random.Generator) -> Bools:
    """Choices that baselines are counted from: of the judged users, and at most so many of the others."""
    counted: Bools = np.isin(past.users, judged)
    others = np.flatnonzero(~counted)
    counted[rng.permutation(others)[:_MOST_COUNTED]] = True
    return counted


def _without(table: _Table, kept: Bools) -> _Table:
    rows = np.concatenate([kept, np.ones(len(table.choices) - table.n_asked, dtype=bool)])
    return replace(table, choices=table.choices.take(rows), n_asked=int(kept.sum()))


class _Told:
    """What releases are told of the queries of a table: tasks, and embeddings where these are of use."""

    def __init__(self, table: _Table, events: Events, queries: Path | None, seed: int) -> None:
        self._keys = [key for key, _ in table.queries]
        self._tasks: list[str | None] = [task for _, task in table.queries]
        self._asked = set(table.asked.queries.tolist())
        self.needed: list[int] = np.unique(table.choices.queries).tolist()
        self._events, self._queries, self._seed = events, queries, seed
        self._embeddings: dict[EncoderIdentity, dict[int, Floats]] = {}

    @property
    def n_queries(self) -> int:
        return len(self._keys)

    def prepare(self, serving: Serving) -> None:
        """Encode the queries that a release does not know; of the training only those without a task."""
        identity = serving.scorer.encoder
        made = self._embeddings.setdefault(identity, {})
        lacking = []
        for query in self.needed:
            source = self.scores(serving, serving.scorer.population, query).task_source
            if query not in made and (source == "population" or (source == "given" and query in self._asked)):
                lacking.append(query)
        if lacking:
            made |= self._encoded(identity, lacking)

    def scores(self, serving: Serving, user: User, query: int) -> Scores:
        """Scores as a service gives them that is asked this query."""
        embedding = self._embeddings[serving.scorer.encoder].get(query)
        return serving.scorer.scores(user, embedding, self._tasks[query], query=self._keys[query])

    def _encoded(self, identity: EncoderIdentity, queries: Sequence[int]) -> dict[int, Floats]:
        """Embeddings by query, none where they cannot be had; tasks are taken over from the table."""
        keys = [self._keys[query] for query in queries]
        if self._queries is None:
            if identity.name == EXTERNAL:
                return {}
            return dict(zip(queries, open_encoder(identity).encode(keys), strict=True))
        tasks = [self._tasks[query] for query in queries]
        described = describe_queries(
            replace(
                self._events,
                query_keys=np.array(keys, dtype=object),
                query_tasks=None if self._events.query_tasks is None else np.array(tasks, dtype=object),
            ),
            (),
            path=self._queries,
            encoder=HASHING if identity.name == EXTERNAL else identity.name,
            seed=self._seed,
        )
        if described.tasks.given:
            for query, task in zip(queries, described.tasks_of.tolist(), strict=True):
                self._tasks[query] = described.tasks.names[task]
        if described.encoder != identity:
            return {}
        return dict(zip(queries, described.embeddings, strict=True))


def _columns(serving: Serving, names: Sequence[str]) -> Ints:
    """Place in the release's catalogue of each LLM; -1 for one of which it knows nothing. int64 [m]."""
    known = serving.scorer.bundle.weights["llm.known"]
    places = {name: i for i, name in enumerate(serving.catalogue.names) if known[i]}
    return np.array([places.get(name, -1) for name in names], dtype=np.int64)


def _logits(
    serving: Serving, beliefs: Mapping[int, Belief], asked: Choices, told: _Told, columns: Ints
) -> Doubles:
    """Logits of each choice, float64 [n, m]; -inf for LLMs of which the release knows nothing."""
    known = columns >= 0
    logits = np.full((len(asked), columns.size), -np.inf)
    for row, (user, query) in enumerate(zip(asked.users.tolist(), asked.queries.tolist(), strict=True)):
        logits[row, known] = told.scores(serving, beliefs[user].user, query).preference[columns[known]]
    return logits


def _tasks(candidate: Serving, told: _Told) -> Ints:
    """Number of the task that the candidate takes each query for, int64 [q]."""
    of_query = np.full(told.n_queries, "", dtype=object)
    for query in told.needed:
        of_query[query] = told.scores(candidate, candidate.scorer.population, query).task or ""
    return np.unique(of_query.astype(str), return_inverse=True)[1].astype(np.int64)


def _log_likelihoods(logits: Doubles, asked: Choices, common: Bools) -> Doubles:
    """Log-likelihood of each choice among the LLMs on offer that all know, float64 [n]; NaN for others."""
    rows = common[asked.llms]
    among = replace(asked, offered=common if asked.offered is None else asked.offered & common)
    result = np.full(len(asked), np.nan)
    result[rows] = log_likelihoods(logits[rows], among.take(rows))
    return result


def _hits(logits: Doubles, asked: Choices) -> Doubles:
    """Whether the best LLM on offer that a release knows was chosen, float64 [n]."""
    x = on_offer(logits, asked)
    hits: Bools = (x.argmax(axis=1) == asked.llms) & (x.max(axis=1) > -np.inf)
    return hits.astype(np.float64)
