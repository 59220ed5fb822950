"""The choice itself, and what can be said about it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.errors import NoCandidateError, ParameterError
from router.policy.catalogue import Catalogue, per_llm
from router.policy.constraints import Exclusion, Request, find_exclusions
from router.policy.exploration import Exploration, Greedy

_NAMED_IN_A_REASON = 3
_LARGEST_LOG = 700.0  # of what a float64 can hold
_NO_DEMANDS = Request()
_GREEDY = Greedy()


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Decision:
    """Which LLM answers a request, with everything that led to it.

    Attributes
    ----------
    catalogue
        The LLMs; arrays below have its order.
    ranking
        Positions of the candidates, best value first, int64 [n]. Each fulfils all constraints.
    chosen
        Position of the LLM that answers.
    fallbacks
        Positions of those to try when it fails, best value first. Each fulfils all constraints.
    propensities
        Probability with which each LLM is chosen in this situation, 0 for those left out, float64 [m].
    scores
        As given, float64 [m].
    base_scores
        Scores for a user of whom nothing is known, float64 [m], or None where not given.
    values
        What the candidates were ranked by: scores less what cost weighs, float64 [m].
    cost_usd
        Expected cost with each LLM, NaN where unknown, float64 [m].
    exclusions
        The constraints that applied.
    choice_logits
        Whether scores are logits of the user's choice.
    kept
        Whether the incumbent stayed because no other LLM is clearly better.
    """

    catalogue: Catalogue
    ranking: NDArray[np.int64]
    chosen: int
    fallbacks: NDArray[np.int64]
    propensities: NDArray[np.float64]
    scores: NDArray[np.float64]
    base_scores: NDArray[np.float64] | None
    values: NDArray[np.float64]
    cost_usd: NDArray[np.float64]
    exclusions: list[Exclusion]
    choice_logits: bool
    kept: bool = False

    def __repr__(self) -> str:
        return f"<Decision for {self.llm} of {len(self.ranking)} candidates>"

    @property
    def llm(self) -> str:
        """Name of the LLM that answers."""
        return self.catalogue.names[self.chosen]

    @property
    def fallback_llms(self) -> list[str]:
        """Names of those to try when it fails, in order."""
        return [self.catalogue.names[i] for i in self.fallbacks]

    @property
    def propensity(self) -> float:
        """Probability with which this LLM was chosen."""
        return float(self.propensities[self.chosen])

    @property
    def explored(self) -> bool:
        """Whether the LLM was drawn although it is not the best by value."""
        return bool(self.chosen != self.ranking[0]) and not self.kept

    @cached_property
    def chances(self) -> NDArray[np.float64]:
        """Probabilities with which the user would choose from the candidates, were scores logits of that.

        0 for LLMs left out, float64 [m].
        """
        logits = self._ranked_scores
        odds = np.exp(logits - logits.max())
        chances = np.zeros(len(self.scores))
        chances[self.ranking] = odds / odds.sum()
        return chances

    @cached_property
    def _ranked_scores(self) -> NDArray[np.float64]:
        """Scores of the candidates in the order of the ranking, float64 [n]."""
        return self.scores[self.ranking]

    def left_out(self) -> dict[str, list[str]]:
        """Reasons for which LLMs were left out, by name."""
        if len(self.ranking) == len(self.catalogue):
            return {}
        return _left_out(self.catalogue, self.exclusions)

    def reason(self) -> str:
        """Why this LLM, in a few sentences that hold facts of this decision only."""
        return " ".join([f"{self._lead()}{self._personal_share()}.", *self._blocked()])

    def to_json(self) -> dict[str, Any]:
        """What a log needs for off-policy evaluation and for showing the decision later."""
        names = self.catalogue.names
        return {
            "llm": self.llm,
            "fallbacks": self.fallback_llms,
            "propensity": self.propensity,
            "explored": self.explored,
            "reason": self.reason(),
            "candidates": [
                {
                    "llm": names[i],
                    "score": float(self.scores[i]),
                    "cost_usd": None if np.isnan(self.cost_usd[i]) else float(self.cost_usd[i]),
                    "propensity": float(self.propensities[i]),
                }
                for i in self.ranking
            ],
            "left_out": self.left_out(),
        }

    def _lead(self) -> str:
        name, n, best = self.llm, len(self.ranking), int(self.ranking[0])
        if self.explored:
            return (
                f"{name} ({self._said(self.chosen)}) was drawn to learn more about it, with probability "
                f"{self.propensity:.2g}; the best of {n} candidates is {self.catalogue.names[best]} "
                f"({self._said(best)})"
            )
        if n == 1:
            return f"{name} is the only candidate"
        if self.kept and self.chosen != best:
            return (
                f"{name} stays ({self._said(self.chosen)}); the best of {n} candidates, "
                f"{self.catalogue.names[best]} ({self._said(best)}), is not clearly better"
            )
        if self.values is not self.scores and self.scores[self.chosen] < self._ranked_scores.max():
            cost = f"{self.cost_usd[self.chosen]:.3g} USD"
            return f"{name} is the best of {n} candidates for its price ({self._said(self.chosen)}, {cost})"
        runner_up = int(self.ranking[1])
        what = "is the likeliest choice" if self.choice_logits else "has the best score"
        return (
            f"{name} {what} of {n} candidates ({self._number(best)}; "
            f"{self.catalogue.names[runner_up]} {self._number(runner_up)})"
        )

    def _said(self, i: int) -> str:
        """Score of an LLM, and what it is."""
        number = self._number(i)
        return number if self.choice_logits else f"score {number}"

    def _number(self, i: int) -> str:
        return f"{100 * self.chances.item(i):.0f} %" if self.choice_logits else f"{self.scores.item(i):.2f}"

    def _personal_share(self) -> str:
        """What knowledge of the user did to the score, and to the order."""
        if self.base_scores is None or len(self.ranking) == 1:
            return ""
        unpersonal = self.base_scores[self.ranking]
        moved = self._ranked_scores - unpersonal
        total = np.abs(moved).sum()
        if total == 0 or not math.isfinite(total):
            return ""
        base = self.base_scores.item(self.chosen)
        number = f"{base:.2f}"
        if self.choice_logits:
            ahead = np.minimum(unpersonal - base, _LARGEST_LOG)
            number = f"{100 / np.exp(ahead).sum().item():.0f} %"
        text = f"; for an unknown user {number}"
        if self.values is not self.scores:
            unpersonal = self.values[self.ranking] - moved
        leader = int(self.ranking[unpersonal.argmax()])
        if leader != self.chosen:
            text += f", behind {self.catalogue.names[leader]}"
        return text

    def _blocked(self) -> Iterator[str]:
        """The LLMs that only a constraint keeps from standing first."""
        if len(self.ranking) == len(self.catalogue):
            return
        values = np.where(np.isfinite(self.values), self.values, -np.inf)
        better = np.flatnonzero(values > self.values[self.ranking[0]])
        if not len(better):
            return
        first = better[np.argsort(-values[better], kind="stable")][:_NAMED_IN_A_REASON]
        clauses = [f"{self.catalogue.names[i]} {_why(self.exclusions, int(i))}" for i in first]
        more = f"; and {len(better) - len(first)} more" if len(better) > len(first) else ""
        yield f"Ranked higher but left out: {'; '.join(clauses)}{more}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How to choose from a catalogue; immutable, threads may share it.

    Parameters
    ----------
    catalogue
        The LLMs.
    exploration
        :class:`~router.policy.Greedy`, :class:`~router.policy.EpsilonGreedy` or
        :class:`~router.policy.Thompson`.
    cost_weight
        What one USD weighs, in units of the score, not negative. The score itself may hold the user's taste
        for cheap answers; this is the operator's.
    n_fallbacks
        Most fallbacks to name.

    Raises
    ------
    ParameterError
        A value breaks its rule.
    """

    catalogue: Catalogue
    exploration: Exploration = _GREEDY
    cost_weight: float = 0.0
    n_fallbacks: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.cost_weight < np.inf:
            raise ParameterError(f"'cost_weight' must be finite and not negative (got {self.cost_weight})")
        if self.n_fallbacks < 0:
            raise ParameterError(f"'n_fallbacks' must not be negative (got {self.n_fallbacks})")

    def decide(
        self,
        scores: ArrayLike,
        request: Request = _NO_DEMANDS,
        *,
        cost_usd: ArrayLike | None = None,
        score_sds: ArrayLike | None = None,
        base_scores: ArrayLike | None = None,
        latency_ms: ArrayLike | None = None,
        choice_logits: bool = False,
        incumbent: str | None = None,
        incumbent_margin: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> Decision:
        """Choose an LLM for one request.

        Parameters
        ----------
        scores
            Score of each LLM for this user and query, higher is better, [m]. NaN leaves an LLM out.
        request
            Its demands.
        cost_usd
            Expected cost of the request with each LLM, NaN where unknown, [m]; by default prices times the
            request's tokens.
        score_sds
            Standard deviations of the scores, [m]; Thompson sampling needs them.
        base_scores
            Scores for a user of whom nothing is known, [m]; only the reason uses them.
        latency_ms
            Expected latency of each LLM in milliseconds, NaN where unknown, [m]; only a limit asks for it.
        choice_logits
            Whether scores are logits of the user's choice, as :class:`router.scorer.Scorer` predicts them:
            the reason then speaks of probabilities.
        incumbent
            LLM that answered this conversation so far, or None. It stays, without a draw, as long as it
            fulfils the constraints and no value is larger than its own by more than ``incumbent_margin``.
        incumbent_margin
            See there.
        rng
            Source of the draw; needed unless the policy is greedy.

        Returns
        -------
        Decision
            Ties in value go to the cheaper LLM, then to the earlier one.

        Raises
        ------
        NoCandidateError
            No LLM fulfils the constraints; the message has each one's reasons.
        UnknownNameError
            The request names an LLM that is not in the catalogue; an incumbent may be unknown.
        ParameterError
            An array has another shape, or ``rng`` or ``score_sds`` is needed and missing.
        """
        n_llms = len(self.catalogue)
        scores = per_llm("scores", scores, n_llms)
        if cost_usd is None:
            cost_usd = self.catalogue.cost_usd(request.prompt_tokens, request.answer_tokens)
        cost_usd = per_llm("cost_usd", cost_usd, n_llms)
        if latency_ms is not None:
            latency_ms = per_llm("latency_ms", latency_ms, n_llms)
        exclusions = find_exclusions(
            self.catalogue, request, scores, cost_usd, latency_ms, needs_price=self.cost_weight > 0
        )
        values = scores - self.cost_weight * cost_usd if self.cost_weight else scores
        ranking = self._rank(values, cost_usd, exclusions)
        chosen = self._incumbent(incumbent, incumbent_margin, values, ranking)
        propensities = np.zeros(n_llms)
        if kept := chosen is not None:
            propensities[chosen] = 1.0
        else:
            sds = None if score_sds is None else per_llm("score_sds", score_sds, n_llms)[ranking]
            propensities[ranking] = ranked = self.exploration.propensities(values[ranking], sds)
            chosen = ranking.item(self._draw(ranked, rng))
        return Decision(
            catalogue=self.catalogue,
            ranking=ranking,
            chosen=chosen,
            fallbacks=ranking[ranking != chosen][: self.n_fallbacks],
            propensities=propensities,
            scores=scores,
            base_scores=None if base_scores is None else per_llm("base_scores", base_scores, n_llms),
            values=values,
            cost_usd=cost_usd,
            exclusions=exclusions,
            choice_logits=choice_logits,
            kept=kept,
        )

    def _incumbent(
        self, name: str | None, margin: float, values: NDArray[np.float64], ranking: NDArray[np.int64]
    ) -> int | None:
        """Position of the incumbent if it stays, else None."""
        if name is None or name not in self.catalogue.names:
            return None
        position = self.catalogue.position(name)
        stays = position in ranking and values[ranking[0]] - values[position] <= margin
        return position if stays else None

    def _rank(
        self, values: NDArray[np.float64], cost_usd: NDArray[np.float64], exclusions: list[Exclusion]
    ) -> NDArray[np.int64]:
        """Positions of the LLMs that no constraint leaves out, best first."""
        excluded = np.zeros(len(self.catalogue), dtype=np.bool_)
        for exclusion in exclusions:
            excluded |= exclusion.excluded
        candidates = (~excluded).nonzero()[0]
        if not len(candidates):
            reasons = _left_out(self.catalogue, exclusions)
            listed = "; ".join(f"{name} {', '.join(why)}" for name, why in reasons.items())
            raise NoCandidateError(f"no LLM fulfils the request's constraints: {listed}", reasons)
        order = np.lexsort((cost_usd[candidates], -values[candidates]))  # NaN sorts last
        return candidates[order]

    def _draw(self, propensities: NDArray[np.float64], rng: np.random.Generator | None) -> int:
        if isinstance(self.exploration, Greedy):
            return 0
        if rng is None:
            raise ParameterError(f"'rng' must be given: {self.exploration} draws at random")
        bounds = np.cumsum(propensities)
        # Divided by the last, so that the last is 1 whatever the rounding, and above every draw.
        return int(np.searchsorted(bounds / bounds[-1], rng.random(), side="right"))


def _why(exclusions: list[Exclusion], i: int) -> str:
    return ", ".join(exclusion.why(i) for exclusion in exclusions if exclusion.excluded[i])


def _left_out(catalogue: Catalogue, exclusions: list[Exclusion]) -> dict[str, list[str]]:
    reasons: dict[int, list[str]] = {}
    for exclusion in exclusions:
        for i in np.flatnonzero(exclusion.excluded).tolist():
            reasons.setdefault(i, []).append(exclusion.why(i))
    return {catalogue.names[i]: reasons[i] for i in sorted(reasons)}
