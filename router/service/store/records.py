"""What the store keeps, as the rest of the service sees it. All times are seconds since 1970."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from router.encoders import EncoderIdentity
from router.erasure import Erasure
from router.persona.data import Floats

Scope = Literal["route", "read", "feedback", "admin"]
SCOPES: tuple[Scope, ...] = ("route", "read", "feedback", "admin")


def new_id() -> str:
    """A new id, 32 hex digits: 12 of the time in milliseconds, 20 random. Ids sort by their time."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def age_s(new: str, now: float) -> float:
    """Age of an id of :func:`new_id`; infinite for any other text."""
    try:
        return now - int(new[:12], 16) / 1e3
    except ValueError:
        return float("inf")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of the API; its secret is not kept.

    Attributes
    ----------
    key_id
        Public part of the token.
    name
        Who it was made for.
    scopes
        What it may be used for.
    budget_usd
        What may be spent with it in a period, or None.
    requests_per_minute
        Its rate limit, or None.
    created_at, expires_at, revoked_at
        The last two None where that did not happen or will not.
    """

    key_id: str
    name: str
    scopes: frozenset[Scope]
    budget_usd: float | None
    requests_per_minute: int | None
    created_at: float
    expires_at: float | None
    revoked_at: float | None


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A decision of the router.

    Attributes
    ----------
    decision_id
        From :func:`new_id`.
    created_at
        When.
    user
        None for nobody in particular.
    release
        Version of the release that decided.
    llm
        The LLM chosen.
    propensity
        Probability with which it was chosen, in (0, 1].
    source
        What the belief about the user rested on.
    task
        Task of the query, or None.
    query_hash
        Digest of the query, or None where there was no text.
    query_text
        The query itself, where the settings say that texts are kept.
    query_embedding
        float32 [e], or None.
    offered
        LLMs that could be chosen from.
    cost_usd
        Predicted cost, or None.
    key_id
        API key of the request, or None.
    session_id
        Session of the request, or None.
    endpoint
        ``route``, or ``chat``: then its cost is settled by the service, not by feedback.
    """

    decision_id: str
    created_at: float
    user: str | None
    release: str
    llm: str
    propensity: float
    source: str
    task: str | None = None
    query_hash: str | None = None
    query_text: str | None = None
    query_embedding: Floats | None = None
    offered: tuple[str, ...] = ()
    cost_usd: float | None = None
    key_id: str | None = None
    session_id: str | None = None
    endpoint: Literal["route", "chat"] = "route"


@dataclass(frozen=True, slots=True)
class Feedback:
    """What an application tells about a decision, or about a user.

    Attributes
    ----------
    decision_id
        Decision that it is about, or None.
    user
        Needed where there is no decision.
    llm
        The LLM used or preferred; None for the decision's.
    thumbs
        -1 or 1, or None.
    score
        In [0, 1], or None.
    cost_usd, latency_ms
        As measured, or None.
    items
        Items that the user turned to, with positive weights.
    occurred_at
        When it happened; None for now.
    """

    decision_id: str | None = None
    user: str | None = None
    llm: str | None = None
    thumbs: Literal[-1, 1] | None = None
    score: float | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    items: tuple[tuple[str, float], ...] = ()
    occurred_at: float | None = None

    @property
    def verdict(self) -> Literal[-1, 0, 1]:
        """1: the user chose the LLM; -1: the user did not want it; 0: nothing is said of that.

        A thumb counts more than a score, of which one half and more is approval; an LLM that is named
        without any judgement was chosen.
        """
        if self.thumbs is not None:
            return self.thumbs
        if self.score is not None:
            return 1 if self.score >= 0.5 else -1
        return 0 if self.llm is None else 1


@dataclass(frozen=True, slots=True)
class Accepted:
    """Receipt for feedback.

    Attributes
    ----------
    feedback_id
        Its name.
    replayed
        Whether the same was accepted before under its idempotency key.
    booked_usd
        What it added to the spending: its cost, where that is the first that is known of its decision.
    """

    feedback_id: str
    replayed: bool
    booked_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A choice of a user, with the fields of :class:`router.scorer.Event` and its time."""

    llm: str
    query_embedding: Floats | None
    task: str | None
    offered: tuple[str, ...] | None
    query_key: str | None
    at: float

    @property
    def has_no_query(self) -> bool:
        """Whether nothing is known of what was asked."""
        return self.query_embedding is None and self.task is None and self.query_key is None


@dataclass(frozen=True, slots=True)
class Session:
    """The LLM that a conversation is held with."""

    session_id: str
    user: str | None
    llm: str
    decision_id: str
    updated_at: float


@dataclass(frozen=True, slots=True)
class Erased:
    """What erasing a user did.

    Attributes
    ----------
    erasure
        The record of it.
    rows
        Rows deleted, by table.
    again
        Whether the user was erased already.
    swept
        Whether nothing is left: neither decisions, which are deleted some at a time, nor what SQLite's files
        still hold of deleted rows while somebody reads. A store goes on with it by itself while it is open.
    """

    erasure: Erasure
    rows: dict[str, int]
    again: bool
    swept: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a list of erasures did.

    Attributes
    ----------
    n_new
        Erasures and readmissions that the store did not have.
    rows
        Rows deleted, by table.
    swept
        As of :class:`Erased`.
    """

    n_new: int
    rows: dict[str, int]
    swept: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """Answer of a rate limit.

    Attributes
    ----------
    allowed
        Whether the request may go on.
    remaining
        Requests left in this minute, as far as is known here.
    retry_after_s
        Seconds until the next minute where it may not, else 0.
    """

    allowed: bool
    remaining: int
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes
    ----------
    folder
        Where.
    n_choices, n_queries, n_interactions, n_judgements
        Rows of the tables.
    left_out
        How many judgements no training can read, by the reason.
    encoder
        What the embeddings of the queries were made with, or None.
    feedback_until
        Time of the last feedback, rounded up to a microsecond; None without any. What a model that learned
        from this export is published with.
    erased_until
        Time of the last erasure that was heeded; None without any. Likewise.
    """

    folder: Path
    n_choices: int
    n_queries: int
    n_interactions: int
    n_judgements: int
    left_out: dict[str, int]
    encoder: EncoderIdentity | None
    feedback_until: float | None
    erased_until: float | None
