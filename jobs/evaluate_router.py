"""Job: how well a router foresees choices: a bundle on held-out events, the built-in one on persona-sim."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import structlog
from numpy.typing import NDArray

from jobs.errors import ConfigurationError
from jobs.report.data import Fact
from jobs.report.evaluation import Reliability, rows_of, write_evaluation
from router.bundle import USER
from router.dataset import Events, read_events, table_checksum
from router.encoders import open_encoder
from router.errors import DataError, UnknownNameError
from router.evaluate import Calibration, activity_thirds, by_group, calibration
from router.persona import NewLlmQuality
from router.persona.data import ChoiceRouter, Choices, Floats, Ints
from router.scorer import Scorer, User
from router.validation import validate

EXTERNAL = "external"
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
PROTOCOLS = ("warm", "new-users", "new-llm")
_N_PROBES = 5  # answers of a new LLM that are measured, of each task


def run_bundle(
    bundle: Path,
    events: Path,
    *,
    history: Path | None = None,
    held_out_share: float | None = None,
    report: Path | None = None,
) -> dict[str, Any]:
    """Judge a bundle by events that it was not trained on.

    Parameters
    ----------
    bundle, events
        The router, and what users chose. Events with a thumb down do not say what was wanted instead and are
        left out; users that the bundle does not know are judged as users of whom nothing is known.
    history
        Events that the bundle was trained on: baselines are counted from them, users grouped by them.
    held_out_share
        Judge the last share of each user's events by time, and take the others as the history.
    report
        HTML page to write.

    Returns
    -------
    dict
        Events, users and how many of those are unknown, log-likelihood (nats), accuracy, calibration, the
        same of popularity and user × task where there is a history, and accuracy by group of users.

    Raises
    ------
    ConfigurationError
        Both ``history`` and ``held_out_share`` are given, or the share lies outside 0..1.
    DataError
        No event is left to judge, or times to hold out by are missing; a file breaks its rule.
    """
    if history is not None and held_out_share is not None:
        raise ConfigurationError("give either '--history' or '--held-out-share'")
    if held_out_share is not None and not 0.0 < held_out_share < 1.0:
        raise ConfigurationError(f"'--held-out-share' must lie between 0 and 1 (got {held_out_share})")
    scorer = Scorer.open(bundle)
    names = scorer.llms.names
    files = [events, *([history] if history is not None else [])]
    table = _Choices.of(files, [read_events(file, names) for file in files], scorer)
    judged = table.of_file == 0
    if held_out_share is not None:
        judged = table.last_of_each_user(held_out_share, events)
    past = table.choices.take(~judged)
    asked = table.choices.take(judged)
    logits = _preferences(scorer, table, asked)
    possible = np.isfinite(logits[np.arange(len(asked)), asked.llms])
    if not possible.any():
        raise DataError(
            f"{events}: no event to judge (of {len(asked)}, none chose an LLM that can be foreseen)"
        )
    asked, logits = asked.take(possible), logits[possible]
    found = calibration(logits, asked.llms, offered=asked.offered)
    result: dict[str, Any] = {
        "bundle": scorer.bundle.checksum,
        "users": int(np.unique(asked.users).size),
        "users_unknown": _count_unknown(scorer, table, asked),
        "left_out": {"thumbs_down": table.n_thumbs_down, "unforeseeable": int((~possible).sum())},
        "queries_known_by": table.queries_known_by(scorer),
    }
    if len(past):
        result |= validate(past, asked, logits.astype(np.float32), table.tasks)
    else:
        accuracy = float((_offered(logits, asked).argmax(axis=1) == asked.llms).mean())
        result |= {"events": len(asked), "log_likelihood": found.log_likelihood, "accuracy": accuracy}
    result["trained_on_these_events"] = scorer.bundle.parents.get("events") == table_checksum(events)
    if result["trained_on_these_events"]:
        structlog.get_logger().warning(
            "the bundle was trained on these very events: it foresees them too well"
        )
    result["calibration"] = _calibration_json(found)
    result["accuracy_by_group"] = _by_group(table, asked, logits, past)
    if report is not None:
        result["report"] = str(_write(report, f"Router {bundle.name} on {events.name}", result, found))
    return result


def run_benchmark(
    data: Path,
    *,
    strength: str = "medium",
    seeds: Sequence[int] = (1, 2, 3),
    tracks: Sequence[str] = ("choice-only", "telemetry"),
    protocols: Sequence[str] = PROTOCOLS[:2],
    report: Path | None = None,
) -> dict[str, Any]:
    """Train and judge the built-in router on persona-sim: real responses, simulated users.

    Parameters
    ----------
    data
        Folder of ``routeprofile_features.npz`` and ``world_<strength>.npz``.
    strength, seeds, tracks, protocols
        What to measure: ``warm`` are users known in training, ``new-users`` unknown ones after k choices,
        ``new-llm`` each LLM in turn as one that nobody has chosen yet (a training for each).
    report
        HTML page to write.

    Returns
    -------
    dict
        Share of the gap between a random choice and the oracle that is closed (``gain``), and accuracy, on
        queries seen in training and new ones; means over users and seeds.

    Raises
    ------
    ConfigurationError
        There is no such strength, track or protocol.
    """
    from router.persona import TRACKS, evaluate_new_llm, evaluate_new_users, evaluate_warm, load_world
    from router.persona.world import Strength

    _check("--strength", [strength], get_args(Strength))
    _check("--tracks", tracks, TRACKS)
    _check("--protocols", protocols, PROTOCOLS)
    world = load_world(data, cast(Strength, strength))
    figures: dict[str, dict[str, float]] = {}
    of_new_llms: dict[str, dict[str, float]] = {}
    for track in TRACKS:
        if track not in tracks:
            continue
        found: dict[str, list[Any]] = {}
        for seed in seeds:
            if "warm" in protocols:
                warm = evaluate_warm(world, seed, default_router, track)
                found.setdefault(f"warm, {track}", []).append(warm)
            if "new-users" in protocols:
                for k, by_k in evaluate_new_users(world, seed, default_router, track).items():
                    found.setdefault(f"new users, {track}, k={k}", []).append(by_k)
        figures |= {name: _means(results) for name, results in found.items()}
        if "new-llm" in protocols:
            of_new_llms[f"new LLM, {track}, {_N_PROBES} probes a task"] = _means_of_new_llm(
                [evaluate_new_llm(world, s, default_router, track, n_probes=_N_PROBES) for s in seeds]
            )
    result: dict[str, Any] = {
        "benchmark": "persona-sim: real responses, simulated users",
        "strength": strength,
        "seeds": list(seeds),
        "figures": figures,
        "new_llm": of_new_llms,
    }
    if report is not None:
        title = f"persona-sim, {strength}"
        summary = f"{result['benchmark']}. Gain: 0 for a random choice, 1 for each user's best one."
        tables = {
            name: (("protocol", *next(iter(rows.values()))), rows_of(rows))
            for name, rows in (("Figures", figures), ("A new LLM", of_new_llms))
            if rows
        }
        path = write_evaluation(report, title, summary, (), (), tables)
        result["report"] = str(path)
    return result


def default_router() -> ChoiceRouter:
    """The built-in router with its default settings."""
    from router.personal import PersonalRouter

    return PersonalRouter()


@dataclass(frozen=True, slots=True)
class _Choices:
    """Choices of all files, with users, queries and tasks numbered over all of them.

    ``of_file`` int64 [n], ``times`` float64 [n] or None, ``queries`` the texts and ``given_tasks`` the tasks
    of the distinct queries, ``embeddings`` float32 [q, d] or None where texts cannot be encoded.
    """

    choices: Choices
    of_file: Ints
    times: NDArray[np.float64] | None
    user_keys: list[Any]
    queries: list[str]
    given_tasks: list[str | None]
    embeddings: Floats | None
    tasks: Ints
    n_thumbs_down: int

    @classmethod
    def of(cls, files: Sequence[Path], tables: Sequence[Events], scorer: Scorer) -> _Choices:
        """Join the tables of files."""
        users: dict[Any, int] = {}
        asked: dict[tuple[str, str | None], int] = {}
        columns: dict[str, list[Any]] = {
            name: [] for name in ("users", "queries", "llms", "offered", "times")
        }
        for table in tables:
            keys = _keys_as_in(scorer, table.user_keys.to_pylist())
            user_ids = np.array([users.setdefault(key, len(users)) for key in keys])
            tasks = [None] * len(table.query_keys) if table.query_tasks is None else table.query_tasks
            pairs = zip(table.query_keys, tasks, strict=True)
            query_ids = np.array([asked.setdefault(pair, len(asked)) for pair in pairs])
            kept = table.thumbs >= 0
            everything = np.ones((len(table), len(scorer.llms)), dtype=bool)
            columns["users"].append(user_ids[table.users[kept]])
            columns["queries"].append(query_ids[table.queries[kept]])
            columns["llms"].append(table.llms[kept])
            columns["offered"].append((everything if table.offered is None else table.offered)[kept])
            columns["times"].append(None if table.timestamps is None else table.timestamps[kept])
        if not sum(map(len, columns["users"])):
            raise DataError(f"{files[0]}: no event that tells a choice")
        parts = (np.concatenate(columns[name]) for name in ("users", "queries", "llms", "offered"))
        texts, given = [text for text, _ in asked], [task for _, task in asked]
        embeddings = None
        if scorer.encoder.name != EXTERNAL:
            embeddings = open_encoder(scorer.encoder).encode(texts)
        return cls(
            choices=Choices(*parts),
            of_file=np.repeat(np.arange(len(tables)), [part.size for part in columns["users"]]),
            times=None if any(t is None for t in columns["times"]) else np.concatenate(columns["times"]),
            user_keys=list(users),
            queries=texts,
            given_tasks=given,
            embeddings=embeddings,
            tasks=_task_numbers(scorer, texts, embeddings, given),
            n_thumbs_down=sum(int((table.thumbs < 0).sum()) for table in tables),
        )

    def embedding(self, query: int) -> Floats | None:
        """Embedding of a query."""
        return None if self.embeddings is None else self.embeddings[query]

    def queries_known_by(self, scorer: Scorer) -> str:
        """What the bundle is told of queries, beside the key by which it knows some of its training."""
        if self.embeddings is not None:
            return "text"
        return "task" if set(self.given_tasks) & set(scorer.tasks) else "nothing"

    def last_of_each_user(self, share: float, path: Path) -> NDArray[np.bool_]:
        """Mark each user's last events by time: at least one of a user with two, bool [n]."""
        if self.times is None:
            raise DataError(f"{path}: no column 'timestamp', which '--held-out-share' needs")
        n_missing = int(np.isnan(self.times).sum())
        if n_missing:
            raise DataError(
                f"{path}: 'timestamp' must not be missing with '--held-out-share' ({n_missing} events' are)"
            )
        order = np.lexsort((self.times, self.choices.users))
        users = self.choices.users[order]
        first, n = np.searchsorted(users, users), np.bincount(users)[users]
        place = np.arange(users.size) - first
        late = np.empty(users.size, dtype=bool)
        late[order] = (place >= n - np.ceil(share * n)) & (place > 0)
        return late


def _task_numbers(
    scorer: Scorer, queries: Sequence[str], embeddings: Floats | None, given: Sequence[str | None]
) -> Ints:
    """Number of the task that the router takes each query for, int64 [q]."""
    found = []
    for query, task in enumerate(given):
        embedding = None if embeddings is None else embeddings[query]
        scores = scorer.scores(scorer.population, embedding, task, query=queries[query])
        found.append(scores.task or "")
    return np.unique(np.array(found), return_inverse=True)[1].astype(np.int64)


def _preferences(scorer: Scorer, table: _Choices, choices: Choices) -> NDArray[np.float64]:
    """Logits of each choice, float64 [n, m]; -inf for LLMs that cannot be foreseen."""
    believed: dict[int, User] = {}
    logits = np.empty((len(choices), len(scorer.llms)))
    for row, (user, query) in enumerate(zip(choices.users.tolist(), choices.queries.tolist(), strict=True)):
        if user not in believed:
            believed[user] = _user(scorer, table.user_keys[user])
        scores = scorer.scores(
            believed[user], table.embedding(query), table.given_tasks[query], query=table.queries[query]
        )
        logits[row] = scores.preference
    return np.where(np.isnan(logits), -np.inf, logits)


def _keys_as_in(scorer: Scorer, keys: Sequence[Any]) -> list[Any]:
    """Keys of users in the bundle's type: files may hold integers as text, or the other way round."""
    if scorer.bundle.keys(USER, [0]).dtype == object:
        return [str(key) for key in keys]
    return [int(key) if isinstance(key, str) and _INTEGER.fullmatch(key) else key for key in keys]


def _count_unknown(scorer: Scorer, table: _Choices, asked: Choices) -> int:
    """Number of the users that the bundle does not know; warns where they are most."""
    users = np.unique(asked.users).tolist()
    unknown = [key for key in (table.user_keys[user] for user in users) if not _is_known(scorer, key)]
    if 2 * len(unknown) > len(users):
        structlog.get_logger().warning(
            "the bundle does not know most of the users: they are judged as users of whom nothing is known",
            users=len(users),
            unknown=len(unknown),
            first=unknown[0],
        )
    return len(unknown)


def _is_known(scorer: Scorer, key: Any) -> bool:
    try:
        scorer.bundle.rows(USER, [key])
    except UnknownNameError:
        return False
    return True


def _user(scorer: Scorer, key: Any) -> User:
    try:
        return scorer.user(key)
    except UnknownNameError:
        return scorer.population


def _by_group(
    table: _Choices, asked: Choices, logits: NDArray[np.float64], past: Choices
) -> dict[str, dict[str, float | None]]:
    """Accuracy of users by the number of their choices in the history; of all, where there is none."""
    hits = (_offered(logits, asked).argmax(axis=1) == asked.llms).astype(np.float64)
    users, place = np.unique(asked.users, return_inverse=True)
    accuracy = np.bincount(place, hits) / np.bincount(place)
    n_past = np.bincount(past.users, minlength=len(table.user_keys))[users]
    groups = np.full(users.size, "0 none", dtype=object)
    if not len(past):
        groups[:] = "all"
    elif n_past.any():
        groups[n_past > 0] = activity_thirds(n_past[n_past > 0])
    return {
        name: {
            "users": figure.n_users,
            "accuracy": figure.mean,
            "low": None if np.isnan(figure.low) else figure.low,
            "high": None if np.isnan(figure.high) else figure.high,
        }
        for name, figure in by_group(accuracy, groups.tolist()).items()
    }


def _offered(logits: NDArray[np.float64], choices: Choices) -> NDArray[np.float64]:
    return logits if choices.offered is None else np.where(choices.offered, logits, -np.inf)


def _calibration_json(found: Calibration) -> dict[str, Any]:
    full = np.flatnonzero(found.counts)
    return {
        "expected_error": found.expected_error,
        "temperature": found.temperature,
        "log_likelihood_at_temperature": found.log_likelihood_at_temperature,
        "bins": [
            {
                "confidence": float(found.confidence[i]),
                "accuracy": float(found.accuracy[i]),
                "events": int(found.counts[i]),
            }
            for i in full
        ],
    }


def _means(results: Sequence[Any]) -> dict[str, float]:
    return {
        f"{part}_{metric}": float(np.mean([np.nanmean(getattr(getattr(r, part), metric)) for r in results]))
        for part in ("seen", "new")
        for metric in ("gain", "accuracy")
    }


def _means_of_new_llm(results: Sequence[NewLlmQuality]) -> dict[str, float]:
    """Precision is left out where the new LLM is never chosen."""
    means = {
        f"new_{metric}": float(np.mean([np.nanmean(getattr(r.quality, metric)) for r in results]))
        for metric in ("gain", "accuracy")
    }
    shares = {name: float(np.mean([getattr(r, name) for r in results])) for name in ("recall", "precision")}
    return means | {name: share for name, share in shares.items() if not np.isnan(share)}


def _write(path: Path, title: str, result: dict[str, Any], found: Calibration) -> Path:
    full = np.flatnonzero(found.counts)
    curve = Reliability("router", found.confidence[full], found.accuracy[full], found.counts[full])
    compared = {"router": {name: result[name] for name in ("log_likelihood", "accuracy")}}
    compared |= result.get("baselines", {})
    tables = {
        "Beside simple baselines": (("", "log-likelihood", "accuracy"), rows_of(compared)),
        "Accuracy by choices in the history": (
            ("choices", "users", "accuracy", "low", "high"),
            rows_of(result["accuracy_by_group"]),
        ),
    }
    shown = (
        Fact("events", f"{result['events']:,}", f"{result['users']:,} users"),
        Fact("accuracy", f"{result['accuracy']:.3f}", "share in which the first choice was right"),
        Fact("log-likelihood", f"{result['log_likelihood']:.3f}", "nats per choice"),
        Fact("calibration error", f"{found.expected_error:.3f}", f"best temperature {found.temperature:.2f}"),
    )
    trained = (
        "was trained on, which flatters it" if result["trained_on_these_events"] else "was not trained on"
    )
    summary = f"Choices that the router {trained}, and how well it foresaw them."
    return write_evaluation(path, title, summary, shown, [curve], tables)


def _check(option: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for value in given:
        if value not in allowed:
            raise ConfigurationError(f"'{option}' must be among {', '.join(allowed)} (got {value!r})")
