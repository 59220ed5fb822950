"""What a service asks: scores of the LLMs for a user and a query.

Reads a bundle (:mod:`router.bundle`) and needs no PyTorch. A user's vector is stored, or inferred at once
from what is known of the user; scoring a query is then a few small products: 50 LLMs take microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.answers import AnswerModel
from router.attributes import AttributeCoding
from router.bundle import ITEM, LLM, QUERY, USER, Bundle
from router.encoders import EncoderIdentity
from router.errors import BundleError, DataError
from router.newcomers import Heard, NewcomerPrior
from router.persona.data import Choices, Floats, Ints
from router.policy import Catalogue
from router.posterior import Beliefs, Tastes, infer

TaskSource = Literal["query", "given", "nearest", "population"]
ANSWER_ARRAYS = ("centre", "landmarks", "by_task", "by_landmark")


@dataclass(frozen=True, slots=True)
class User:
    """What is believed of a user.

    Attributes
    ----------
    vector
        Mean, float32 [d].
    spread
        Lower triangular factor of the covariance, float32 [d, d].
    """

    vector: Floats
    spread: Floats


@dataclass(frozen=True, slots=True)
class Event:
    """A choice that a user made.

    Attributes
    ----------
    llm
        Name of the LLM chosen.
    query_embedding
        Of the bundle's encoder, float32 [e], or None where only the task is known.
    task
        Name of the task, or None.
    offered
        Names of the LLMs to choose from; None for all.
    query
        Key of the query, its text or id as in the events of the training, or None.
    """

    llm: str
    query_embedding: Floats | None = None
    task: str | None = None
    offered: Sequence[str] | None = None
    query: str | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of the LLMs for a user and a query, in the order of the bundle's catalogue.

    Attributes
    ----------
    task
        Task that the query was taken for; None for the mean over all.
    task_source
        ``query``: known from training, with factors of its own; ``given`` by its name, ``nearest`` to the
        query, or ``population``: there was neither.
    preference
        Expected logit that the user chooses the LLM, float32 [m]; NaN for LLMs of which nothing is known.
    base_preference
        The same for a user of whom nothing is known.
    sd
        Standard deviation of the preference, float32 [m].
    quality, cost_usd, latency_ms
        What answers of the LLM to the task's queries are like on average, float32 [m]; NaN: not measured.
    """

    task: str | None
    task_source: TaskSource
    preference: Floats
    base_preference: Floats
    sd: Floats
    quality: Floats
    cost_usd: Floats
    latency_ms: Floats


class Scorer:
    """Scores LLMs for users.

    Make one with :meth:`open`. Safe to share between threads.

    Parameters
    ----------
    bundle
        The trained router.

    Raises
    ------
    BundleError
        The bundle lacks an array, or arrays do not fit together.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        try:
            self._set_arrays(bundle.weights, bundle.parameters)
            self.population = self._users_of(infer(self._tastes, self._base[:1], _no_choices(), 1))[0]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise BundleError(f"{bundle.path}: not a bundle that can score ({error!r})") from None
        # What a query's factors and bias are multiplied by; a user's spread and vector are written over it.
        d = self.population.vector.size
        self._columns = np.zeros((d + 1, d + 2), dtype=np.float32)
        self._columns[d, d:] = 1.0
        self._columns[:d, -1] = self.population.vector

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Scorer:
        """Open a bundle; see :meth:`router.bundle.Bundle.open` for ``verify`` and the errors."""
        return cls(Bundle.open(path, verify=verify))

    def _set_arrays(self, weights: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any]) -> None:
        self._base = weights["task.base"]
        self._answers = None
        if "answers.landmarks" in weights:
            self._answers = AnswerModel(*(weights[f"answers.{name}"] for name in ANSWER_ARRAYS))
            self._by_landmark = self._answers.by_landmark.reshape(len(self._answers.landmarks), -1)
            self._kernels, self._by_feature = weights["task.kernels"], weights["task.by_feature"]
        self._unknown = ~weights["llm.known"]
        self._any_unknown = bool(self._unknown.any())
        self._query_pairs = self.bundle.embeddings[QUERY].reshape(-1, *self._base.shape[1:])
        self._query_tasks: Ints = self.bundle.arrays["query_tasks"]
        self._tastes = Tastes(*(weights[f"taste.{name}"] for name in ("log_shares", "centres", "log_sds")))
        d = self._tastes.centres.shape[1]
        self._lower = np.ravel_multi_index(np.tril_indices(d), (d, d))
        self._expected = np.where(
            weights["expected.known"], weights["expected.values"], np.float32(np.nan)
        ).astype(np.float32)
        centroids: Floats = weights["task.centroids"]
        norms = np.linalg.norm(centroids, axis=1, keepdims=True)
        self._directions: Floats = centroids / np.maximum(norms, 1e-12)
        self._newcomers = NewcomerPrior.from_arrays(
            self._tastes.log_shares,
            int(parameters["n_neighbors"]),
            weights,
            self.bundle.embeddings,
            self.bundle.arrays,
        )
        coding = parameters["attributes"]
        self._coding = None if coding is None else AttributeCoding.from_json(coding)
        self.tasks = tuple(parameters["tasks"])
        self._task_rows = {name: row for row, name in enumerate(self.tasks)}

    @property
    def llms(self) -> Catalogue:
        """The LLMs, in the order of all scores."""
        return self.bundle.llms

    @property
    def takes_surroundings(self) -> bool:
        """Whether items, and users and items near by, say something of a user who is not in the bundle."""
        return self._newcomers is not None

    @property
    def takes_attributes(self) -> bool:
        """Whether profile attributes say something of a user who is not in the bundle."""
        return self._newcomers is not None and self._coding is not None

    @property
    def encoder(self) -> EncoderIdentity:
        """Encoder that query embeddings have to come from."""
        return self.bundle.encoder

    @property
    def tastes(self) -> Tastes:
        """The prior of users' vectors."""
        return self._tastes

    def feature_weights(self, users: Sequence[User]) -> tuple[tuple[str, ...], Floats]:
        """What features of answers are worth to users, over all tasks: names, and logits per SD [u, f].

        There are none in the choice-only track.
        """
        if self._answers is None:
            return (), np.zeros((len(users), 0), dtype=np.float32)
        mean = self._by_feature.mean(axis=0)
        weights: Floats = np.stack([user.vector for user in users]) @ mean[:, :-1].T + mean[:, -1]
        return tuple(self.bundle.parameters["answer_features"]), weights

    def attributes_of(self, key: Any) -> dict[str, Any]:
        """Profile attributes of a known user, as far as the bundle has them."""
        if self._coding is None or self._newcomers is None:
            return {}
        return self._coding.decode(self._newcomers.features_of(self.bundle.row(USER, key)))

    # Users

    def user(self, key: Any) -> User:
        """What is believed of a known user.

        Raises
        ------
        UnknownNameError
            The user is not in the bundle.
        """
        row = self.bundle.row(USER, key)
        if row < 0:
            row = int(self.bundle.rows(USER, [key])[0])  # which says what is wrong
        return self.user_at(row)

    def user_at(self, row: int) -> User:
        """What is believed of the user in a row of the bundle."""
        d = self._tastes.centres.shape[1]
        spread = np.zeros(d * d, dtype=np.float32)
        spread[self._lower] = self.bundle.embeddings["user.spread"][row]
        return User(self.bundle.embeddings[USER][row].copy(), spread.reshape(d, d))

    def user_from_events(
        self,
        events: Sequence[Event],
        *,
        attributes: Mapping[str, Any] | None = None,
        items: Mapping[Any, float] | None = None,
        near: Mapping[Any, float] | None = None,
        near_items: Mapping[Any, float] | None = None,
    ) -> User:
        """What is believed of a user who is not in the bundle; nothing is trained.

        Parameters
        ----------
        events
            Choices of the user, in any order; perhaps none.
        attributes
            Profile attributes by name, as far as they are known.
        items
            Positive weights of the user's items, by key.
        near, near_items
            Personalised PageRank of the users and items near to the user, by key.

        Raises
        ------
        UnknownNameError
            An LLM, attribute, user or item is unknown.
        DataError
            An embedding has another length, an LLM was chosen that was not on offer, or a value breaks its
            rule.
        """
        return self.user_from_heard(events, self.heard(attributes, items, near, near_items))

    def heard(
        self,
        attributes: Mapping[str, Any] | None = None,
        items: Mapping[Any, float] | None = None,
        near: Mapping[Any, float] | None = None,
        near_items: Mapping[Any, float] | None = None,
    ) -> Heard:
        """What :meth:`user_from_events` takes beside the events, looked up once for many calls."""
        if self._newcomers is None:
            return Heard()
        return Heard(
            features=None if self._coding is None or not attributes else self._coding.encode(attributes),
            items=self._rows_and_weights(ITEM, items),
            near=self._rows_and_weights(USER, near),
            near_items=self._rows_and_weights(ITEM, near_items),
        )

    def user_from_heard(self, events: Sequence[Event], heard: Heard) -> User:
        """:meth:`user_from_events`, with the rest from :meth:`heard`."""
        if not events and heard.is_empty:
            return self.population
        pairs, choices = self._choices(events)
        log_prior = None
        if self._newcomers is not None:
            log_prior = self._newcomers.log_prior(heard)[None]
        return self._users_of(infer(self._tastes, pairs, choices, 1, log_prior))[0]

    def updated_user(self, user: User, events: Sequence[Event]) -> User:
        """What is believed of a user after further choices; nothing is trained.

        The Gaussian that was believed before is the prior. With z = mean + L y it is standard normal in y, so
        that the inference of all other users serves.

        Raises
        ------
        UnknownNameError, DataError
            As for :meth:`user_from_events`.
        """
        if not events:
            return user
        pairs, choices = self._choices(events)
        v = pairs[..., :-1]
        shifted = np.concatenate((v @ user.spread, (pairs[..., -1] + v @ user.vector)[..., None]), axis=-1)
        d = user.vector.size
        standard = Tastes(np.zeros(1, np.float32), np.zeros((1, d), np.float32), np.zeros((1, d), np.float32))
        found = self._users_of(infer(standard, shifted, choices, 1))[0]
        return User(user.vector + user.spread @ found.vector, user.spread @ found.spread)

    def _choices(self, events: Sequence[Event]) -> tuple[Floats, Choices]:
        """Factors and bias of the events' queries, [e, m, d + 1], and what was chosen."""
        pairs = np.stack(
            [self._pairs(e.query_embedding, e.task, e.query)[0] for e in events] or [self._base[-1]]
        )
        offered = np.ones((len(events), len(self.llms)), dtype=bool)
        for row, event in zip(offered, events, strict=True):
            if event.offered is not None:
                row[:] = False
                row[self.bundle.rows(LLM, event.offered)] = True
            row &= ~self._unknown
        chosen = self.bundle.rows(LLM, [event.llm for event in events])
        return pairs, Choices(np.zeros_like(chosen), np.arange(len(events)), chosen, offered)

    def _rows_and_weights(
        self, kind: str, weights: Mapping[Any, float] | None
    ) -> tuple[NDArray[np.int64], Floats] | None:
        if not weights:
            return None
        values = np.array(list(weights.values()), dtype=np.float32)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise DataError(f"weights of {kind}s must be positive and finite (got {values.min()})")
        return self.bundle.rows(kind, list(weights)), values

    def _users_of(self, beliefs: Beliefs) -> list[User]:
        return [
            User(mean, np.linalg.cholesky(covariance).astype(np.float32))
            for mean, covariance in zip(beliefs.mean, beliefs.covariance, strict=True)
        ]

    # LLMs

    def scores(
        self,
        user: User,
        query_embedding: Floats | None,
        task: str | None = None,
        candidates: Sequence[str] | None = None,
        *,
        query: str | None = None,
    ) -> Scores:
        """Score the LLMs.

        Parameters
        ----------
        user
            From :meth:`user`, :meth:`user_from_events` or :attr:`population`.
        query_embedding
            Of the bundle's encoder, float32 [e], or None where only the task is known.
        task
            Name of the query's task. An unknown one, or None, is replaced by the task whose queries are
            nearest to this one; without an embedding, by the mean over all.
        candidates
            Names of the LLMs to score, the others get NaN; None for all.
        query
            Key of the query, its text or id as in the events of the training, or None. Where it was asked
            often enough in training (:data:`router.served.MIN_CHOICES`), what was learned of the query itself
            is used and no embedding is needed; unless ``task`` names another task of the bundle than it had,
            because then it is another query.

        Raises
        ------
        UnknownNameError
            A candidate is unknown.
        DataError
            The embedding has another length.
        """
        pairs, row, source = self._pairs(query_embedding, task, query)
        d = user.vector.size
        columns = self._columns.copy()
        columns[:d, :d] = user.spread
        columns[:d, d] = user.vector
        found = pairs @ columns  # one product: a call takes longer than its numbers
        deviations, logits = found[:, :d], found[:, d:]
        if candidates is not None or self._any_unknown:
            logits[self._left_out(candidates)] = np.nan
        quality, cost_usd, latency_ms = self._expected[:, row]
        return Scores(
            task=None if source == "population" else self.tasks[row],
            task_source=source,
            preference=logits[:, 0],
            base_preference=logits[:, 1],
            sd=np.sqrt(np.einsum("md,md->m", deviations, deviations)),
            quality=quality,
            cost_usd=cost_usd,
            latency_ms=latency_ms,
        )

    def _left_out(self, candidates: Sequence[str] | None) -> NDArray[np.bool_]:
        if candidates is None:
            return self._unknown
        left_out = np.ones(len(self.llms), dtype=bool)
        left_out[self.bundle.rows(LLM, candidates)] = False
        left_out |= self._unknown
        return left_out

    def _pairs(
        self, embedding: Floats | None, task: str | None, query: str | None
    ) -> tuple[Floats, int, TaskSource]:
        """Factors and bias of a query with each LLM, [m, d + 1]; row and source of its task."""
        if embedding is not None and embedding.shape != self._directions.shape[1:]:
            raise DataError(
                f"'query_embedding' must have shape {self._directions.shape[1:]}, as encoder {self.encoder} "
                f"has it (got {embedding.shape})"
            )
        if embedding is not None and not np.isfinite(embedding @ embedding):  # a sum is quicker than a mask
            raise DataError("'query_embedding' must be finite")
        source: TaskSource = "given"
        row = self._task_rows.get(task, -1) if task is not None else -1
        known = self.bundle.row(QUERY, query) if query is not None else -1
        if known >= 0 and row in (-1, task_row := int(self._query_tasks[known])):
            return self._query_pairs[known], task_row, "query"
        if row < 0:
            source = "population" if embedding is None else "nearest"
            row = len(self.tasks) if embedding is None else int((self._directions @ embedding).argmax())
        base = self._base[row]
        if self._answers is None or embedding is None:
            return base, row, source
        apart = self._answers.kernels(embedding[None])[0] - self._kernels[row]
        features = (apart @ self._by_landmark).reshape(len(base), -1)
        return base + features @ self._by_feature[row], row, source


def _no_choices() -> Choices:
    nobody = np.zeros(0, dtype=np.int64)
    return Choices(nobody, nobody, nobody)


def packed(covariances: ArrayLike) -> Floats:
    """Lower triangles of the covariances' Cholesky factors, row by row, float32 [u, d (d + 1) / 2]."""
    factors = np.linalg.cholesky(np.asarray(covariances, dtype=np.float64))
    rows, columns = np.tril_indices(factors.shape[1])
    result: Floats = factors[:, rows, columns].astype(np.float32)
    return result
