"""A decision from end to end: text to vector, user to belief, both to scores, scores to a choice.

``POST /v1/route`` and the chat endpoints ask here. A decision touches the store only where feedback about its
user is not in memory, or where a budget applies; it is recorded by a buffer.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from router.errors import BudgetSpentError, NoCandidateError, ParameterError
from router.persona.data import Floats
from router.policy import Decision, EpsilonGreedy, Exploration, Greedy, Policy, Request, Thompson
from router.scorer import Scores
from router.service.beliefs import Beliefs
from router.service.budgets import Budgets, Left
from router.service.encoding import QueryEncoder
from router.service.erasures import Erasures
from router.service.live import LiveRelease
from router.service.metrics import Metrics
from router.service.serving import Belief, Serving
from router.service.settings import PolicySettings, ServiceSettings
from router.service.store import ApiKey, DecisionRecord, Store, new_id
from router.service.tokens import tokens_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a request asks of the router.

    Attributes
    ----------
    user
        Whose preferences decide; None for nobody in particular.
    text, embedding
        The query, as text, or as a vector of the release's encoder, float32 [e], which wins.
    task
        Name of its task, or None.
    allowed, excluded, reachable, capabilities, budget_usd, max_latency_ms
        As in :class:`router.policy.Request`; the budget bounds the expected cost.
    prompt_tokens, answer_tokens
        Length of the prompt and of the longest answer, 0 where unknown: the context then limits nothing, and
        costs are what answers cost on average. The longest answer has to fit into the context; the cost is
        that of an answer as long as the settings expect one, or of the longest where that is shorter.
    n_answers
        Answers written side by side.
    interactions, attributes
        Items and profile of a user whom the release does not know.
    session_llm
        LLM that the session is held with, which stays unless another is clearly better.
    endpoint, session_id
        For the record.
    """

    user: str | None
    text: str | None = None
    embedding: Floats | None = None
    task: str | None = None
    allowed: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    reachable: frozenset[str] | None = None
    capabilities: frozenset[str] = frozenset()
    prompt_tokens: int = 0
    answer_tokens: int = 0
    n_answers: int = 1
    budget_usd: float | None = None
    max_latency_ms: float | None = None
    interactions: Mapping[str, float] | None = None
    attributes: Mapping[str, Any] | None = None
    session_llm: str | None = None
    endpoint: Literal["route", "chat"] = "route"
    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class Routed:
    """A decision, with all that it rests on.

    Attributes
    ----------
    decision_id
        What feedback refers to.
    decision, scores, belief
        The choice, the scores it was made from, and the user as believed.
    serving
        Release that decided.
    left
        What user and key had left to spend.
    """

    decision_id: str
    decision: Decision
    scores: Scores
    belief: Belief
    serving: Serving = field(repr=False)
    left: Left

    @property
    def release(self) -> str:
        """Version of the release that decided."""
        return self.serving.version


class Desk:
    """Decides, and records what it decided.

    Parameters
    ----------
    settings
        Of the service.
    live
        The release that is served.
    store
        Where decisions are recorded.
    beliefs, budgets, erasures, metrics
        Of the service.
    encoder
        Of texts; without one, a text is looked up among the known queries only.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        live: LiveRelease,
        store: Store,
        beliefs: Beliefs,
        budgets: Budgets,
        erasures: Erasures,
        metrics: Metrics,
        encoder: QueryEncoder | None,
    ) -> None:
        self._settings = settings
        self._live = live
        self._store = store
        self._beliefs = beliefs
        self._budgets = budgets
        self._erasures = erasures
        self._metrics = metrics
        self._encoder = encoder
        self._exploration = _exploration(settings.policy)
        self._rng = np.random.default_rng()
        self._policy: tuple[Serving, Policy] | None = None

    async def route(self, ask: Ask, key: ApiKey | None, *, now: float | None = None) -> Routed:
        """Choose an LLM.

        Parameters
        ----------
        ask
            The question.
        key
            API key of the request, or None.
        now
            Unix seconds; the clock's by default.

        Raises
        ------
        NotReadyError
            There is no release.
        NoCandidateError
            No LLM fulfils the demands; BudgetSpentError where only budgets of user and key are in the way.
        UnknownNameError, ParameterError, DataError
            A name or a value of the question is not one of the release's.
        ErasedUserError
            The user was erased.
        FeedbackStoreError
            The store cannot be read.
        """
        self._erasures.check(ask.user)
        now = time.time() if now is None else now
        serving = self._live.serving
        embedding = ask.embedding
        if embedding is not None:
            _check_length(embedding, serving)
        elif ask.text is not None and self._encoder is not None:
            with self._metrics.stage("encode"):
                embedding = await self._encoder.encode(ask.text)
        with self._metrics.stage("belief"):
            belief = await self._beliefs.of(serving, ask.user, ask.interactions, ask.attributes)
        left = await self._budgets.left(ask.user, key, now)
        with self._metrics.stage("decide"):
            scores = serving.scorer.scores(belief.user, embedding, ask.task, query=ask.text)
            decision = self._decide(serving, ask, scores, left)
            routed = Routed(new_id(), decision, scores, belief, serving, left)
        self._store.add_decision(self._record(routed, ask, embedding, key, now))
        self._count(routed)
        return routed

    def _decide(self, serving: Serving, ask: Ask, scores: Scores, left: Left) -> Decision:
        demands = Request(
            prompt_tokens=ask.prompt_tokens,
            answer_tokens=ask.answer_tokens,
            capabilities=ask.capabilities,
            allowed=ask.allowed,
            excluded=ask.excluded,
            reachable=ask.reachable,
            budget_usd=ask.budget_usd,
            user_budget_usd=left.user_usd,
            key_budget_usd=left.key_usd,
            max_latency_ms=ask.max_latency_ms,
        )
        decide = partial(
            self._policy_of(serving).decide,
            scores.preference,
            cost_usd=self._expected_cost_usd(serving, ask, scores),
            score_sds=scores.sd,
            base_scores=scores.base_preference,
            latency_ms=scores.latency_ms,
            choice_logits=True,
            incumbent=ask.session_llm,
            incumbent_margin=self._settings.sessions.margin,
            rng=self._rng,
        )
        try:
            return decide(demands)
        except NoCandidateError as error:
            if left.user_usd is None and left.key_usd is None:
                raise
            decide(replace(demands, user_budget_usd=None, key_budget_usd=None))  # or the demands are at fault
            raise BudgetSpentError(str(error), error.left_out) from None

    def _expected_cost_usd(self, serving: Serving, ask: Ask, scores: Scores) -> NDArray[np.float64]:
        """Cost of the request with each LLM in USD, NaN where unknown, float64 [m].

        Prices times the expected tokens where the request says of how many; else what answers to the task
        have cost on average. Where one of the two is unknown, the other stands in, for typical lengths. A
        bound on the answer is no forecast of its length: it only shortens what is expected.
        """
        measured = ask.n_answers * scores.cost_usd.astype(np.float64)
        told = bool(ask.prompt_tokens or ask.answer_tokens)
        if not told and not np.isnan(measured).any():
            return measured
        prompt_tokens = ask.prompt_tokens or tokens_of(len((ask.text or "").encode(errors="replace")))
        answer_tokens = self._settings.policy.answer_tokens
        if ask.answer_tokens:
            answer_tokens = min(answer_tokens, ask.answer_tokens)
        by_price = serving.catalogue.cost_usd(prompt_tokens, ask.n_answers * answer_tokens)
        first, second = (by_price, measured) if told else (measured, by_price)
        return np.where(np.isnan(first), second, first)

    def _policy_of(self, serving: Serving) -> Policy:
        """Policy over a release's catalogue, made once per release."""
        if self._policy is None or self._policy[0] is not serving:
            chosen = self._settings.policy
            policy = Policy(
                catalogue=serving.catalogue,
                exploration=self._exploration,
                cost_weight=chosen.cost_weight,
                n_fallbacks=chosen.n_fallbacks,
            )
            self._policy = serving, policy
        return self._policy[1]

    def _record(
        self, routed: Routed, ask: Ask, embedding: Floats | None, key: ApiKey | None, now: float
    ) -> DecisionRecord:
        decision = routed.decision
        cost_usd = float(decision.cost_usd[decision.chosen])
        text = None if ask.text is None else ask.text.replace("\0", "")  # which no database keeps
        # Groups that the training made up mean nothing to the next one, which learns from these records.
        named = routed.serving.scorer.bundle.parameters.get("tasks_given", True)
        return DecisionRecord(
            decision_id=routed.decision_id,
            created_at=now,
            user=ask.user,
            release=routed.release,
            llm=decision.llm,
            propensity=decision.propensity,
            source=routed.belief.source,
            task=routed.scores.task if named else ask.task,
            query_hash=None
            if text is None
            else hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32],
            query_text=text if self._settings.keep_texts else None,
            query_embedding=embedding,
            offered=_offered(decision),
            cost_usd=None if math.isnan(cost_usd) else cost_usd,
            key_id=None if key is None else key.key_id,
            session_id=ask.session_id,
            endpoint=ask.endpoint,
        )

    def _count(self, routed: Routed) -> None:
        decision, belief = routed.decision, routed.belief
        self._metrics.choice(decision.llm, belief.source)
        if not belief.in_release:
            self._metrics.cold(belief.source)
        best_single = decision.catalogue.position(routed.serving.best_single)
        self._metrics.cost(float(decision.cost_usd[decision.chosen]), float(decision.cost_usd[best_single]))


def _check_length(embedding: Floats, serving: Serving) -> None:
    encoder = serving.scorer.encoder
    if embedding.shape != (encoder.dimension,):
        raise ParameterError(
            f"'embedding' must have {encoder.dimension} numbers, as encoder {encoder} writes them "
            f"(got {embedding.size})"
        )


def _offered(decision: Decision) -> tuple[str, ...]:
    """Names of the candidates in the catalogue's order, so that equal offers are equal."""
    names = decision.catalogue.names
    if len(decision.ranking) == len(names):
        return names
    return tuple([names[i] for i in sorted(decision.ranking.tolist())])


def _exploration(settings: PolicySettings) -> Exploration:
    if settings.exploration == "epsilon-greedy":
        return EpsilonGreedy(settings.epsilon)
    return Thompson() if settings.exploration == "thompson" else Greedy()
