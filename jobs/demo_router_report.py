"""What the demo shows of its router: two users with one question, who gets which model, a map of users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from textwrap import wrap
from typing import Any

import numpy as np

from jobs import demo_words as words
from jobs.demo_choices import ChoiceParts, FloatArray, Picks
from jobs.demo_quality import echo_quality
from jobs.demo_router import OURS, RouterRun
from jobs.report import (
    ModelShares,
    QualityRow,
    RoutedUser,
    RouterReport,
    TrainingCurve,
    UserMap,
)
from router.persona.data import Ints
from router.policy import Decision

READABLE = range(5, 11)  # earlier choices of a user who is shown
PAIR_RULE = (
    f"A later question drawn by the seed; of the users with {READABLE[0]} to {READABLE[-1]} earlier choices "
    "the two who differ most surely."
)
GAP_MEANING = "gap closed: what the picks gain over random ones, as a share of what the best would gain"
_LINE = 100  # characters of a sentence on the terminal
_MAP_USERS = 1000  # points that can be told apart


class ShownRouter:
    """What is shown of a router.

    Parameters
    ----------
    run
        The router.
    seed
        Of what is drawn to be shown.
    """

    def __init__(self, run: RouterRun, seed: int) -> None:
        self.run = run
        self._seed = seed
        parts, desk = run.parts, run.desk
        query = int(np.random.default_rng(seed).choice(parts.later.queries))
        decisions = {user: desk.decide(desk.users[user], query) for user in readable_users(parts)}
        chances = np.array([decision.chances for decision in decisions.values()])
        pair = [list(decisions)[row] for row in surest_pair(chances.reshape(-1, len(parts.llms)))]
        self.question = str(parts.queries[query])
        self.users = tuple(_routed(run, user, query, decisions[user]) for user in pair)

    def tell(self, echo: Callable[[str], None]) -> None:
        """Print quality, question and users for a person."""
        parts = self.run.parts
        title = f"Choice of model, {parts.n_users:,} users, {len(parts.later):,} later choices"
        echo_quality(title, self.run.quality, echo)
        if parts.utility is not None:
            echo(f"  {GAP_MEANING}")
        if not self.users:
            return
        echo("\nThe same question, different models")
        for line in wrap(self._rule(), _LINE):
            echo(f"  {line}")
        echo(f"  {self.question}")
        for user in self.users:
            echo(f"  {user.user} gets {user.model}")
            for label, sentence in user.reasons:
                echo(f"    {label:<14}{sentence}")

    def report(self) -> RouterReport:
        """Part of the page."""
        run = self.run
        planted = run.parts.utility is not None
        rows = (QualityRow(name, tuple(values.values())) for name, values in run.quality.items())
        return RouterReport(
            note=_note(run),
            quality_metrics=tuple(next(iter(run.quality.values()))),
            quality=tuple(rows),
            question=self.question,
            question_note=self._rule(),
            users=self.users,
            shares=tuple(_shares(run)),
            curves=run.curves,
            curves_label="share of the gap closed" if planted else "share of later choices foreseen",
            user_map=_map(run, self._seed),
        )

    def _rule(self) -> str:
        return PAIR_RULE if self.run.truth is None else f"{PAIR_RULE} All are invented."

    def training(self) -> TrainingCurve:
        """How the training went."""
        return TrainingCurve.of(self.run.desk.scorer.bundle.metrics)

    def to_json(self) -> dict[str, Any]:
        """The same figures, for machines."""
        run = self.run
        return {
            "bundle": str(run.path),
            "checksum": run.checksum,
            "choices": {"trained": len(run.parts.trained), "later": len(run.parts.later)},
            "quality": run.quality,
            "by_choices": [
                {"users": curve.title, "choices": list(curve.bins), "n_users": curve.n_users.tolist()}
                | {name: mean.tolist() for name, mean in curve.means.items()}
                for curve in run.curves
            ],
            "question": self.question,
            "users": {user.user: {"llm": user.model, **dict(user.reasons)} for user in self.users},
        }


def readable_users(parts: ChoiceParts) -> list[int]:
    """Users of the training whose earlier choices a person can survey."""
    return np.flatnonzero(np.isin(parts.counts(), READABLE) & ~parts.newcomers).tolist()


def surest_pair(chances: FloatArray) -> tuple[int, ...]:
    """Users of whom each prefers the own model to the other's, the less sure of the two as surely as can be.

    Parameters
    ----------
    chances
        Probabilities with which the users would choose each LLM, float64 [n, m].

    Returns
    -------
    tuple of int
        Two rows of ``chances``; none where all users prefer one model.
    """
    own = chances.argmax(axis=1)
    surest: dict[tuple[int, int], int] = {}
    for mine, other in permutations(np.unique(own).tolist(), 2):
        users = np.flatnonzero(own == mine)
        surest[mine, other] = int(users[(chances[users, mine] - chances[users, other]).argmax()])

    def margin(pair: tuple[int, int]) -> float:
        mine, other = pair
        user, second = surest[mine, other], surest[other, mine]
        return float(
            min(chances[user, mine] - chances[user, other], chances[second, other] - chances[second, mine])
        )

    pairs = [pair for pair in surest if pair[0] < pair[1]]
    if not pairs:
        return ()
    mine, other = max(pairs, key=margin)
    return surest[mine, other], surest[other, mine]


def _note(run: RouterRun) -> str:
    parts = run.parts
    note = (
        f"Trained on {len(parts.trained):,} choices; held out are {len(parts.later):,} later ones. "
        f"One user in ten is kept out of the training and known by what came before only. "
        "Later choices foreseen: share of them for which a method picks what the user chose."
    )
    if parts.utility is None:
        return note
    return note + (
        " Users and models are invented, and their choices drawn from a planted utility, which tells how "
        "good each pick is without noise. Gap closed: what the picks gain over random ones, as a share of "
        "what the best would gain, mean over users."
    )


def _routed(run: RouterRun, user: int, query: int, decision: Decision) -> RoutedUser:
    return RoutedUser(
        user=str(run.parts.user_keys[user].as_py()),
        model=decision.llm,
        reasons=tuple(_reasons(run, user, query, decision)),
    )


def _reasons(run: RouterRun, user: int, query: int, decision: Decision) -> Iterator[tuple[str, str]]:
    parts = run.parts
    yield "why", decision.reason()
    yield "own choices", own_choices(parts, user, decision.chosen, int(parts.query_tasks[query]))
    if np.isfinite(decision.cost_usd[decision.chosen]):
        yield "cost", cost(decision)
    if parts.utility is not None:
        utility = parts.utility[user, parts.query_tasks[query]]
        yield "planted truth", planted(parts, utility, decision.chosen, _persona(run, user))


def own_choices(parts: ChoiceParts, user: int, llm: int, task: int) -> str:
    """How often a user took a model before."""
    taken = parts.earlier.take(parts.earlier.users == user)
    hits = taken.llms == llm
    of_task = parts.query_tasks[taken.queries] == task
    name = parts.llms[llm]
    if not len(taken):
        return "none yet"
    if not hits.any():
        others = np.bincount(taken.llms, minlength=len(parts.llms))
        return f"never took {name}; {parts.llms[int(others.argmax())]} {others.max()} of {hits.size} times"
    text = f"took {name} {hits.sum()} of {hits.size} times"
    if parts.has_tasks and of_task.any():
        text += f", {hits[of_task].sum()} of {of_task.sum()} for {parts.tasks[task]}"
    return text


def cost(decision: Decision) -> str:
    """Expected cost of a thousand answers of the picked model, beside the cheapest and the dearest."""
    usd = 1000 * decision.cost_usd
    text = f"{usd[decision.chosen]:.2f} USD per thousand answers"
    known = np.flatnonzero(np.isfinite(usd))
    names = decision.catalogue.names
    low, high = known[usd[known].argmin()], known[usd[known].argmax()]
    return f"{text} (from {usd[low]:.2f} for {names[low]} to {usd[high]:.2f} for {names[high]})"


def planted(parts: ChoiceParts, utility: FloatArray, llm: int, persona: str) -> str:
    """Rank of a model by the planted utility, float64 [m], for a user of some persona."""
    rank = int((utility > utility[llm]).sum())
    best = parts.llms[int(utility.argmax())]
    place = "the best" if rank == 0 else f"number {rank + 1} of {len(utility)} after {best}"
    return f"{persona}: {parts.llms[llm]} is {place} for this user and task"


def _persona(run: RouterRun, user: int) -> str:
    return _personas(run)[user]


def _personas(run: RouterRun) -> list[str]:
    """Planted persona of each user."""
    assert run.truth is not None
    at = {
        str(key): int(persona) for key, persona in zip(run.truth["users"], run.truth["persona"], strict=True)
    }
    names = list(words.PERSONAS)
    return [names[at[key]] for key in run.parts.user_keys.to_pylist()]


def _shares(run: RouterRun) -> Iterator[ModelShares]:
    """Shares of the models by task, and by persona where it is planted."""
    parts, picks = run.parts, run.picks[OURS].by_task
    n_users, n_tasks = picks.shape
    yield shares_of("by task", np.tile(np.arange(n_tasks), (n_users, 1)), parts.tasks, picks, parts.llms)
    if run.truth is not None:
        names = tuple(words.PERSONAS)
        of_user = np.array([names.index(persona) for persona in _personas(run)])
        rows = np.tile(of_user[:, None], (1, n_tasks))
        yield shares_of("by planted persona", rows, names, picks, parts.llms)


def shares_of(
    title: str, rows: Ints, names: tuple[str, ...], picks: Ints, llms: tuple[str, ...]
) -> ModelShares:
    """Share of each LLM among the picks of each row; rows without picks are left out."""
    counts = np.bincount((rows * len(llms) + picks).ravel(), minlength=len(names) * len(llms))
    counts = counts.reshape(len(names), -1)
    there = np.flatnonzero(counts.sum(axis=1))
    shares = counts[there] / counts[there].sum(axis=1, keepdims=True)
    return ModelShares(title, tuple(names[i] for i in there), llms, shares)


def _map(run: RouterRun, seed: int) -> UserMap | None:
    """Users of the training with choices, in the plane of their vectors' two main directions."""
    parts = run.parts
    users = np.flatnonzero(~parts.newcomers & (parts.counts() > 0))
    users = np.sort(np.random.default_rng(seed).permutation(users)[:_MAP_USERS])
    bundle = run.desk.scorer.bundle
    rows = bundle.rows("user", [parts.user_keys[user].as_py() for user in users.tolist()])
    vectors = bundle.embeddings["user"][rows].astype(np.float64)
    if min(vectors.shape) < 2:
        return None
    points, explained = principal_components(vectors)
    picks: Picks = run.picks[OURS]
    favourite = [parts.llms[int(np.bincount(row).argmax())] for row in picks.by_task[users]]
    colourings = {"model that the user mostly gets": tuple(favourite)}
    if run.truth is not None:
        personas = _personas(run)
        colourings = {"planted persona": tuple(personas[user] for user in users), **colourings}
    return UserMap(points, explained, colourings)


def principal_components(vectors: FloatArray) -> tuple[FloatArray, tuple[float, float]]:
    """Coordinates in the two directions of largest variance, float64 [n, 2], and their shares of it.

    The largest coefficient of each direction is positive, so that the picture does not depend on the solver.
    """
    _, lengths, directions = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(largest)), largest])[:, None]
    shares = lengths**2 / max(float((lengths**2).sum()), 1e-300)
    points: FloatArray = (vectors - vectors.mean(axis=0)) @ directions[:2].T
    return points, (float(shares[0]), float(shares[1]))
