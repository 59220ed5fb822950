"""Chats: the router chooses an LLM, an upstream answers, and the next candidate stands in where it does not.

An answer that has begun is never replaced by another one: until its first chunk a stream can fall back, after
it a failure ends the stream with an error. What one LLM is asked, answers and costs is an
:class:`~router.service.attempts.Attempt`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import anyio
import orjson

from router.errors import NoCandidateError
from router.policy import Catalogue
from router.service.attempts import Attempt, Books, Failure, Plan, caller_of
from router.service.breaker import Breaker
from router.service.budgets import Budgets, Purse
from router.service.chat_request import AUTOMATIC, ChatRequest
from router.service.chat_stream import ChatStream
from router.service.desk import Ask, Desk, Routed
from router.service.erasures import Erasures
from router.service.live import LiveRelease
from router.service.metrics import Metrics
from router.service.problems import ProblemError
from router.service.sessions import Sessions
from router.service.settings import ServiceSettings
from router.service.store import ApiKey, Store
from router.service.upstreams import (
    AnswerStream,
    ContextError,
    RefusedError,
    Target,
    UpstreamError,
    Upstreams,
)

_T = TypeVar("_T")


class Chat:
    """All that the chat endpoints do.

    Parameters
    ----------
    settings
        Of the service.
    desk, live, store, budgets, sessions, erasures, metrics
        Of the service.
    upstreams
        Whom to ask.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        desk: Desk,
        live: LiveRelease,
        store: Store,
        budgets: Budgets,
        sessions: Sessions,
        erasures: Erasures,
        metrics: Metrics,
        upstreams: Upstreams,
    ) -> None:
        self._settings = settings
        self._desk = desk
        self._live = live
        self._metrics = metrics
        self._upstreams = upstreams
        self._sessions = sessions
        self._erasures = erasures
        self._breaker = Breaker(settings.breaker)
        self._purse = Purse(budgets, store)
        self._books = Books(store, self._sessions, metrics, self._breaker)

    def models(self) -> list[dict[str, Any]]:
        """Models as OpenAI lists them; the router's own names first, where there is anything to choose from.

        Raises
        ------
        NotReadyError
            There is no release.
        """
        owners = {llm: target.upstream for llm, target in self._upstreams.targets.items()}
        if self._reachable(self._live.serving.catalogue):
            owners = dict.fromkeys(AUTOMATIC, "fairpath") | owners
        return [
            {"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in owners.items()
        ]

    def model(self, name: str) -> dict[str, Any]:
        """One model of :meth:`models`; ProblemError 404 where there is none of this name."""
        for model in self.models():
            if model["id"] == name:
                return model
        raise _no_model(f"no upstream has a model {name!r}")

    async def complete(
        self, request: ChatRequest, key: ApiKey | None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Whole answer to a chat.

        Returns
        -------
        body : dict
            The answer in OpenAI's form.
        headers : dict
            What its headers tell of the decision.

        Raises
        ------
        NoCandidateError, UnknownNameError
            No LLM fulfils the demands, or they name one that there is not.
        ErasedUserError
            The user was erased.
        ProblemError
            404: no upstream has the model; 402: no LLM is within the budgets; 502, 504: none answered; 503:
            all have failed just before; 400 and the like: an upstream says that the request itself is wrong.
        """

        async def ask(target: Target) -> dict[str, Any]:
            return await self._upstreams.complete(target, request.forwarded)

        attempt, body = await self._ask_in_turn(await self._plan(request, key), ask)
        await attempt.close(body.get("usage"), len(orjson.dumps(body["choices"])), "complete")
        return attempt.labelled(body), attempt.headers

    async def stream(self, request: ChatRequest, key: ApiKey | None) -> ChatStream:
        """Answer to a chat in chunks, returned once the first is there; errors as in :meth:`complete`."""
        options = (request.body.stream_options or {}) | {"include_usage": True}
        forwarded = request.forwarded | {"stream_options": options}

        async def ask(target: Target) -> tuple[AnswerStream, dict[str, Any] | None]:
            stream = await self._upstreams.stream(target, forwarded)
            try:
                return stream, await stream.next()
            except BaseException:
                await stream.aclose()
                raise

        attempt, (stream, first) = await self._ask_in_turn(await self._plan(request, key), ask)
        return ChatStream(attempt, stream, first, with_usage=request.wants_usage)

    # Whom to ask

    async def _plan(self, request: ChatRequest, key: ApiKey | None) -> Plan:
        self._erasures.check(request.body.user)
        catalogue = self._live.serving.catalogue
        if not request.automatic:
            if request.body.model not in self._upstreams.targets:
                raise _no_model(f"no upstream has a model {request.body.model!r}")
            return Plan(request, (request.body.model,), catalogue, key)
        session_id = request.session_id(None if key is None else key.key_id)
        ask = await self._ask_of(request, catalogue, session_id)
        resting = self._breaker.resting(ask.reachable or (), caller_of(request, key))
        routed = await self._route(ask, resting, key)
        llms = (routed.decision.llm, *routed.decision.fallback_llms)
        return Plan(request, llms, routed.decision.catalogue, key, routed, session_id)

    async def _route(self, ask: Ask, resting: frozenset[str], key: ApiKey | None) -> Routed:
        """Decision among the LLMs that do not rest or, where none of them will do, among all.

        One that rests then says so itself, when it is asked.
        """
        if resting and ask.reachable is not None and (awake := ask.reachable - resting):
            try:
                return await self._desk.route(replace(ask, reachable=awake), key)
            except NoCandidateError:
                pass
        return await self._desk.route(ask, key)

    async def _ask_of(self, request: ChatRequest, catalogue: Catalogue, session_id: str | None) -> Ask:
        """The chat as a question to the router."""
        demands, text = request.demands, request.text
        # Without a name of its own, only a conversation that goes on can be told from a new one.
        known = session_id is not None and (request.session is not None or request.continued)
        return Ask(
            user=request.body.user,
            text=None if text is None else text[: self._settings.limits.max_text_chars],
            task=demands.task,
            allowed=None if demands.candidates is None else frozenset(demands.candidates),
            excluded=frozenset(demands.exclude),
            reachable=self._choosable(request, catalogue),
            capabilities=request.capabilities,
            prompt_tokens=request.prompt_tokens,
            answer_tokens=self._answer_tokens(request),
            n_answers=request.n_answers,
            budget_usd=demands.max_cost_usd,
            max_latency_ms=demands.max_latency_ms,
            session_llm=await self._sessions.llm(session_id) if known and session_id else None,
            endpoint="chat",
            session_id=session_id,
        )

    def _answer_tokens(self, request: ChatRequest) -> int:
        return request.max_answer_tokens or self._settings.policy.answer_tokens

    def _reachable(self, catalogue: Catalogue) -> frozenset[str]:
        return frozenset(catalogue.names) & self._upstreams.targets.keys()

    def _choosable(self, request: ChatRequest, catalogue: Catalogue) -> frozenset[str]:
        """LLMs of the catalogue that an upstream has, or a 404."""
        reachable = self._reachable(catalogue)
        if not reachable:
            raise _no_model(
                f"{request.body.model!r} has nothing to choose from: no upstream has a known LLM; name "
                "upstreams in the settings ([[serve.upstreams]]), or try 'fairpath serve' with --stand-in"
            )
        return reachable

    # Asking

    async def _ask_in_turn(self, plan: Plan, ask: Callable[[Target], Awaitable[_T]]) -> tuple[Attempt, _T]:
        """Answer of the first LLM that gives one; after one whose context was too small, of larger ones."""
        failures: list[Failure] = []
        waiting = list(plan.llms)
        while waiting:
            llm = waiting.pop(0)
            outcome = await self._try(plan, llm, tuple(failures), ask)
            if not isinstance(outcome, Failure):
                return outcome
            failures.append(outcome)
            if outcome.refusal is not None:
                asked = {failure.llm for failure in failures}
                waiting = plan.roomier(llm, asked)[: self._settings.policy.n_fallbacks]
            self._metrics.fallback(llm, waiting[0] if waiting else None, outcome.reason)
        raise self._no_answer(plan, failures)

    async def _try(
        self, plan: Plan, llm: str, failures: tuple[Failure, ...], ask: Callable[[Target], Awaitable[_T]]
    ) -> tuple[Attempt, _T] | Failure:
        """Answer of one LLM, or why there is none."""
        usd = plan.reserved_usd(llm, self._answer_tokens(plan.request))
        hold = await self._purse.reserve(plan.request.body.user, plan.key, usd)
        if hold is None:
            why = "has no known price" if usd is None else f"costs about {usd:.3g} USD, more than is left"
            return Failure(llm, "budget", f"{llm!r}: {why}")
        if not self._breaker.admit(llm, plan.caller):
            await hold.release()
            rest_s = self._breaker.rest_s(llm, plan.caller)
            return Failure(llm, "resting", f"{llm!r}: failed too often, is asked again in {rest_s:.0f} s")
        target = self._upstreams.targets[llm]
        attempt = Attempt(self._books, plan, target, hold, failures)
        try:
            with self._metrics.stage("upstream"):
                return attempt, await ask(target)
        except UpstreamError as error:
            attempt.failed(error)
            await (attempt.pay_prompt() if error.charged else hold.release())
            return Failure(llm, error.reason, str(error))
        except RefusedError as error:
            self._breaker.succeeded(llm, plan.caller)
            await hold.release()
            if isinstance(error, ContextError):
                return Failure(llm, "context", f"{llm!r}: {error}", error)
            raise _refused(error) from None
        except anyio.get_cancelled_exc_class():  # the upstream has the prompt, and charges for it
            await attempt.close(None, 0, "abandoned")
            raise
        except BaseException:
            await hold.release()
            raise

    def _no_answer(self, plan: Plan, failures: list[Failure]) -> ProblemError:
        """What to tell where every LLM failed."""
        told = "; ".join(failure.message for failure in failures)
        reasons = {failure.reason for failure in failures}
        refusal = next((failure.refusal for failure in failures if failure.refusal is not None), None)
        if refusal is not None and reasons <= {"budget", "context", "resting"}:
            return _refused(refusal)
        if reasons == {"budget"}:
            return ProblemError(402, told, fields={"type": "insufficient_quota", "code": "budget_spent"})
        fields = {"type": "upstream_error"}
        if reasons <= {"budget", "resting"}:
            resting = [failure.llm for failure in failures if failure.reason == "resting"]
            rest_s = min(self._breaker.rest_s(llm, plan.caller) for llm in resting)
            wait = {"Retry-After": str(max(1, math.ceil(rest_s)))}
            return ProblemError(503, f"no LLM answered: {told}", headers=wait, fields=fields)
        status = 504 if reasons <= {"budget", "timeout"} else 502
        return ProblemError(status, f"no LLM answered: {told}", fields=fields)


def _no_model(message: str) -> ProblemError:
    fields = {"type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    return ProblemError(404, message, fields=fields)


def _refused(error: RefusedError) -> ProblemError:
    fields = {name: error.error[name] for name in ("type", "param", "code")}
    return ProblemError(error.status, str(error), fields=fields)
