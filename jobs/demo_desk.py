"""The demo's trained router at work: users and questions in, decisions out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from jobs.demo_choices import ChoiceParts, Picks
from router.encoders import open_encoder
from router.errors import UnknownNameError
from router.newcomers import Heard
from router.persona.data import Choices, Floats, Ints
from router.policy import Decision, Policy
from router.scorer import Event, Scorer, Scores, User
from router.surroundings import Surroundings


class Desk:
    """Answers questions with a trained router; users, queries and LLMs are positions in ``parts``.

    Parameters
    ----------
    bundle
        Folder of the router.
    parts
        The choices.
    surroundings
        What is known of newcomers beside their choices.
    seed
        Of the draw of the questions.
    """

    def __init__(self, bundle: Path, parts: ChoiceParts, surroundings: Surroundings, seed: int) -> None:
        self.parts = parts
        self.scorer = Scorer.open(bundle)
        self.policy = Policy(catalogue=self.scorer.llms)
        self._surroundings = surroundings
        self.questions = _questions(parts, seed)
        self._keys = parts.user_keys.to_pylist()

    @cached_property
    def users(self) -> dict[int, User]:
        """Users as the router knows them at the moment.

        Those in the training by their key, newcomers by their earlier choices and their surroundings.
        """
        arrived = self.newcomers(self.parts.earlier, np.flatnonzero(self.parts.newcomers))
        known = np.flatnonzero(~self.parts.newcomers).tolist()
        return {user: self._by_key(user) for user in known} | arrived

    def newcomers(self, choices: Choices, who: Ints) -> dict[int, User]:
        """Newcomers of whom these choices and their surroundings are known; nothing is trained."""
        of_whom = {user: np.flatnonzero(choices.users == user) for user in who.tolist()}
        return {
            user: self.scorer.user_from_heard(
                [self._event(choices, row) for row in rows.tolist()], self._heard[user]
            )
            for user, rows in of_whom.items()
        }

    def scores(self, user: User, query: int) -> Scores:
        """Scores of all LLMs."""
        return self.scorer.scores(
            user, self._embeddings[query], self._task(query), query=self.parts.queries[query]
        )

    def decide(self, user: User, query: int) -> Decision:
        """Choice of an LLM."""
        scores = self.scores(user, query)
        return self.policy.decide(
            scores.preference,
            base_scores=scores.base_preference,
            choice_logits=True,
            cost_usd=scores.cost_usd,
        )

    def picks(self, users: Mapping[int, User]) -> Picks:
        """Pick LLMs for the users' questions of each task, and for their later ones; 0 for other users."""
        by_task = np.zeros(self.questions.shape, dtype=np.int64)
        for user, known in users.items():
            by_task[user] = [self.decide(known, query).chosen for query in self.questions[user].tolist()]
        asked = zip(self.parts.later.users.tolist(), self.parts.later.queries.tolist(), strict=True)
        later = [self.decide(users[user], query).chosen if user in users else 0 for user, query in asked]
        return Picks(by_task, np.array(later, dtype=np.int64))

    @cached_property
    def _heard(self) -> dict[int, Heard]:
        """What surrounds the newcomers."""
        who = np.flatnonzero(self.parts.newcomers).tolist()
        return {user: self.scorer.heard(**self._surroundings.of(self._keys[user])) for user in who}

    @cached_property
    def _embeddings(self) -> Floats:
        """Of the queries, float32 [q, d]."""
        return open_encoder(self.scorer.encoder).encode(self.parts.queries.tolist())

    def _task(self, query: int) -> str | None:
        parts = self.parts
        return parts.tasks[parts.query_tasks[query]] if parts.has_tasks else None

    def _by_key(self, user: int) -> User:
        try:
            return self.scorer.user(self._keys[user])
        except UnknownNameError:  # neither in the graph nor among the earlier choices
            return self.scorer.population

    def _event(self, choices: Choices, row: int) -> Event:
        query, names = int(choices.queries[row]), self.parts.llms
        offered = None
        if choices.offered is not None:
            offered = [names[i] for i in np.flatnonzero(choices.offered[row])]
        return Event(
            llm=names[int(choices.llms[row])],
            query_embedding=self._embeddings[query],
            task=self._task(query),
            offered=offered,
            query=self.parts.queries[query],
        )


def _questions(parts: ChoiceParts, seed: int) -> Ints:
    """For each user a query of each task, drawn from all queries, int64 [u, t]."""
    rng = np.random.default_rng(seed)
    of_task = (np.flatnonzero(parts.query_tasks == task) for task in range(len(parts.tasks)))
    return np.stack([rng.choice(queries, size=parts.n_users) for queries in of_task], axis=1)
