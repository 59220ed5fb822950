"""What one LLM is asked for one chat, and the books about it: spending, feedback, session, metrics.

An attempt that began to answer is closed exactly once. It is then paid: by the tokens that the upstream
counted or, where it was cut short and told none, by an estimate of what was sent and received. Of one that
took the prompt and gave no answer, the prompt is paid; of one that was not reached or refused, nothing. What
it cost and how long it took becomes feedback on its decision, which says nothing of the user's preference.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote

import anyio
import numpy as np
import structlog
from anyio import to_thread

from router.errors import RouterError
from router.policy import Catalogue
from router.service.breaker import Breaker
from router.service.budgets import Hold, price_usd
from router.service.chat_request import ChatRequest
from router.service.desk import Routed
from router.service.metrics import Metrics
from router.service.sessions import Sessions
from router.service.store import ApiKey, Feedback, Store, new_id
from router.service.tokens import tokens_of
from router.service.upstreams import ContextError, Target, UpstreamError

End = Literal["complete", "failed", "abandoned"]
"""How an answer ended: as it should; by the upstream's fault; because the caller went away."""

_MAX_TOKENS = 10**9  # more is no count of tokens
_HEADER_SAFE = " !#$&'()*+-./:;<=>?@[]^_`{|}~"  # all of ASCII that neither lists nor quotes names

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Failure:
    """An LLM that did not answer.

    Attributes
    ----------
    llm
        Its name.
    reason
        That of an upstream's error, or ``budget``, ``resting`` or ``context``.
    message
        The same for people.
    refusal
        What the upstream said where the prompt is too long for the LLM, else None.
    """

    llm: str
    reason: str
    message: str
    refusal: ContextError | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to ask, and for whom.

    Attributes
    ----------
    request
        The chat.
    llms
        Names in the order in which they are asked.
    catalogue
        Holds the prices.
    key
        API key of the caller, or None.
    routed
        The decision; None where the caller named the model.
    session_id
        Conversation that the answer belongs to, or None.
    """

    request: ChatRequest
    llms: tuple[str, ...]
    catalogue: Catalogue
    key: ApiKey | None
    routed: Routed | None = None
    session_id: str | None = None

    @property
    def caller(self) -> tuple[str | None, str | None]:
        """For whom an LLM may rest: the user of a key."""
        return caller_of(self.request, self.key)

    def roomier(self, than: str, without: Collection[str]) -> list[str]:
        """Candidates whose context is larger than an LLM's, or not known, best first; without some."""
        if self.routed is None:
            return []
        contexts, names = self.catalogue.context_tokens, self.catalogue.names
        least = contexts[self.catalogue.position(than)]
        ranking = self.routed.decision.ranking
        larger = ranking[(contexts[ranking] > least) | np.isinf(contexts[ranking])]
        return [names[i] for i in larger.tolist() if names[i] not in without]

    def reserved_usd(self, llm: str, answer_tokens: int) -> float | None:
        """Cost to reserve for an LLM's answers; None if unknown.

        That of answers as long as the caller allows; without a limit as the decision expects or, where the
        caller named the model, of ``answer_tokens`` each.
        """
        longest, usd = self.request.max_answer_tokens, None
        if longest is not None or self.routed is None:
            answer_tokens = self.request.n_answers * (longest or answer_tokens)
            usd = price_usd(self.catalogue, llm, self.request.prompt_tokens, answer_tokens)
        return _decided_usd(self.routed, llm) if usd is None and self.routed is not None else usd


@dataclass(frozen=True, slots=True)
class Books:
    """Where attempts are written down."""

    store: Store
    sessions: Sessions
    metrics: Metrics
    breaker: Breaker


class Attempt:
    """One LLM that is asked.

    Parameters
    ----------
    books
        Where it is written down.
    plan
        What it is part of.
    target
        Whom it asks.
    hold
        What is reserved for it.
    failures
        Those asked before.
    """

    def __init__(
        self, books: Books, plan: Plan, target: Target, hold: Hold, failures: tuple[Failure, ...]
    ) -> None:
        self.llm = target.llm
        self._upstream = target.upstream
        self.plan = plan
        self._books = books
        self._hold = hold
        self._failures = failures
        self._started_s = time.monotonic()
        self._closed = False
        # The decision was for another LLM where that one failed: this answer is judged on its own.
        routed = plan.routed
        self._decision_id = None if routed is None else new_id() if failures else routed.decision_id

    @property
    def headers(self) -> dict[str, str]:
        """What an answer's headers tell: names are percent-encoded where a header cannot hold them."""
        headers = {"X-Fairpath-Model": quote(self.llm, safe=_HEADER_SAFE)}
        if self.plan.routed is not None and self._decision_id is not None:
            headers["X-Fairpath-Decision-Id"] = self._decision_id
            headers["X-Fairpath-Release"] = self.plan.routed.release
            failed = (quote(failure.llm, safe=_HEADER_SAFE) for failure in self._failures)
            headers["X-Fairpath-Fallbacks"] = ", ".join(failed)
        return headers

    def labelled(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """An answer, or its first chunk, with the LLM's name and what was decided."""
        routed = self.plan.routed
        if routed is None:
            return dict(answer)
        fairpath = {
            "decision_id": self._decision_id,
            "release": routed.release,
            "llm": self.llm,
            "why": routed.decision.reason(),
            "based_on": routed.belief.source,
            "kept_for_session": routed.decision.kept and not self._failures,
            "failed": [{"llm": failure.llm, "reason": failure.reason} for failure in self._failures],
        }
        return {**answer, "model": self.llm, "fairpath": fairpath}

    def named(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """A later chunk, with the LLM's name."""
        return dict(chunk) if self.plan.routed is None else {**chunk, "model": self.llm}

    def failed(self, error: UpstreamError) -> None:
        """Count and log that the upstream did not answer, or not to its end."""
        if error.counts:
            self._books.breaker.failed(self.llm, self.plan.caller)
        self._books.metrics.upstream_failed(self._upstream, self.llm, error.reason)
        log.warning(
            "an upstream failed",
            upstream=self._upstream,
            llm=self.llm,
            reason=error.reason,
            message=str(error),
            decision_id=self._decision_id,
        )

    async def pay_prompt(self) -> None:
        """Pay for a prompt that was taken and not answered."""
        usd = price_usd(self.plan.catalogue, self.llm, self.plan.request.prompt_tokens, 0)
        await self._hold.settle(usd or 0.0)
        if usd is not None:
            self._books.metrics.reported(usd)

    async def close(self, usage: object, answer_bytes: int, end: End) -> None:
        """Pay, and write down what happened; further calls do nothing.

        Parameters
        ----------
        usage
            Tokens as the upstream counted them, if it did.
        answer_bytes
            Length of what it answered.
        end
            How the answer ended.
        """
        if self._closed:
            return
        self._closed = True
        if end == "complete":
            self._books.breaker.succeeded(self.llm, self.plan.caller)
        latency_ms = 1e3 * (time.monotonic() - self._started_s)
        tokens = _counted(usage)
        estimated = self.plan.request.prompt_tokens, tokens_of(answer_bytes)
        usd = price_usd(self.plan.catalogue, self.llm, *(tokens or estimated))
        with anyio.CancelScope(shield=True):
            try:
                await self._hold.settle(usd or 0.0)
                if usd is not None:
                    self._books.metrics.reported(usd)
                if self.plan.routed is not None and self._decision_id is not None:
                    await self._write_down(self.plan.routed, self._decision_id, usd, latency_ms, end)
            except RouterError as error:  # the caller has the answer; the store's trouble is not hers
                log.warning("a chat could not be written down", reason=str(error))

    async def _write_down(
        self, routed: Routed, decision_id: str, usd: float | None, latency_ms: float, end: End
    ) -> None:
        store = self._books.store
        if self._failures:
            await to_thread.run_sync(self._add_decision, routed, decision_id)
        if end == "complete":
            told = Feedback(decision_id=decision_id, cost_usd=usd, latency_ms=latency_ms)
            key_id = None if self.plan.key is None else self.plan.key.key_id
            await store.writing(store.add_feedback, told, key_id=key_id)
        if end != "failed" and self.plan.session_id is not None:
            user = self.plan.request.body.user
            await self._books.sessions.keep(self.plan.session_id, user, self.llm, decision_id)

    def _add_decision(self, routed: Routed, decision_id: str) -> None:
        """Record the decision for the LLM that stood in: from those that were left, it was certain."""
        first = self._books.store.decision(routed.decision_id)
        if first is None:
            return
        failed = {failure.llm for failure in self._failures}
        self._books.store.add_decision(
            replace(
                first,
                decision_id=decision_id,
                created_at=time.time(),
                llm=self.llm,
                propensity=1.0,
                offered=tuple(llm for llm in first.offered if llm not in failed),
                cost_usd=_decided_usd(routed, self.llm),
            )
        )


def caller_of(request: ChatRequest, key: ApiKey | None) -> tuple[str | None, str | None]:
    """Who asks: the API key, and the user whom it names."""
    return None if key is None else key.key_id, request.body.user


def _decided_usd(routed: Routed, llm: str) -> float | None:
    """Cost that a decision expects of an LLM; None if unknown."""
    usd = float(routed.decision.cost_usd[routed.decision.catalogue.position(llm)])
    return None if np.isnan(usd) else usd


def _counted(usage: object) -> tuple[int, int] | None:
    """Tokens of prompt and answer; None where they are missing or no counts."""
    if not isinstance(usage, Mapping):
        return None
    prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (isinstance(prompt, int) and isinstance(answer, int)):
        return None
    return (prompt, answer) if 0 <= prompt < _MAX_TOKENS and 0 <= answer < _MAX_TOKENS else None
