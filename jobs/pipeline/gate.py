"""Whether a candidate is published: a written rule (``[gate]`` of the settings), applied to measurements.

**Worse than what is served.** Of each metric the mean over users of candidate - current is known with its
95 % interval. The candidate is worse if that mean is below -tolerance *and* the whole interval is below 0: a
loss that matters and that is no chance. With s the standard error of the mean difference,

* a candidate that is equal is refused by a metric with a probability of at most 2.5 %, however small the
  sample: noise does not block night after night. By any of four that have nothing in common it is refused in
  about one night of ten (simulated: 9 to 14 %), by the real ones, which go together, in fewer;
* one that is worse by d is refused with a probability of about Φ((d - max(tolerance, 2 s)) / s), so one that
  is worse by tolerance + 4 s with 97 % or more: what can be told to be clearly worse does not pass;
* a loss below the tolerance passes. Such losses could add up over many nights; ``floors`` end that.

The sample decides how small a loss can be told, so one of fewer than ``min_users`` users decides nothing:
then ``too_few`` says what to do, and a first release needs no comparison.

**Broken.** Not published whatever the comparison says, and as a first release neither: scores that are no
finite numbers, metrics below their floors or, beyond chance, below always the most popular, and data of which
more than half is gone since the last run. What an operator rolled back from is not published again.

**Erased users** whom the current release still holds have a right to be gone: then a candidate is published
though it is worse, or judged by too few, unless it is broken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.settings import GateSettings

Numbers = Mapping[str, float | int | str | None]
METRICS: dict[str, dict[str, str]] = {
    "choices": {"log_likelihood": "log-likelihood of choices", "accuracy": "accuracy of choices"},
    "items": {"ndcg": "NDCG of items", "recall": "recall of items"},
}
COLLAPSING = {
    "interactions.rows": "interactions",
    "interactions.users": "users with interactions",
    "interactions.items": "items",
    "choices.rows": "choices",
    "choices.users": "users with choices",
}
_SOFT = ("data", "comparison", "ability")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the gate is told beside the evaluation.

    Attributes
    ----------
    rolled_back
        Whether this very content is what an operator rolled back from.
    erasures
        Users erased whom the current release still holds.
    candidate_is_current
        Whether the candidate is what is served already; the evaluation may be empty then.
    drift
        :func:`jobs.pipeline.drift.drift` against the last run; None without one.
    """

    rolled_back: bool = False
    erasures: int = 0
    candidate_is_current: bool = False
    drift: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """One rule as it was applied.

    Attributes
    ----------
    rule
        ``nothing new``, ``rolled_back``, ``finite``, ``collapse``, ``popularity``, ``floor``, ``data``,
        ``comparison``, ``ability`` or ``erasure``.
    passed
        Whether it was kept.
    text
        What was found, in words.
    numbers
        What that rests on.
    """

    rule: str
    passed: bool
    text: str
    numbers: Numbers = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"rule": self.rule, "passed": self.passed, "text": self.text, "numbers": dict(self.numbers)}


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to publish, and why."""

    publish: bool
    reasons: tuple[Reason, ...]

    @property
    def summary(self) -> str:
        """The decision in a sentence."""
        against = "; ".join(reason.text for reason in self.reasons if not reason.passed)
        if self.publish:
            return f"published all the same, for erased users: {against}" if against else "all rules are kept"
        return against

    def to_json(self) -> dict[str, Any]:
        """``publish``, ``summary`` and ``reasons``, as JSON values."""
        reasons = [reason.to_json() for reason in self.reasons]
        return {"publish": self.publish, "summary": self.summary, "reasons": reasons}


def decide(evaluation: Mapping[str, Any], rule: GateSettings, facts: Facts) -> Decision:
    """Apply the rule; a pure function.

    Parameters
    ----------
    evaluation
        Of :func:`jobs.pipeline.evaluation.evaluate`; may be empty where ``facts.candidate_is_current``.
    rule
        ``[gate]`` of the settings.
    facts
        What else counts.
    """
    if facts.candidate_is_current:
        same = Reason("nothing new", False, "nothing new: the candidate is what is served already")
        return Decision(False, (same, *_stuck(facts.erasures, "it")))
    reasons = [*_broken(evaluation, rule, facts), *_compared(evaluation, rule)]
    failed = [reason.rule for reason in reasons if not reason.passed]
    soft_only = all(name in _SOFT for name in failed)
    if not facts.erasures:
        return Decision(not failed, tuple(reasons))
    if not soft_only:
        return Decision(False, (*reasons, *_stuck(facts.erasures, "the current release")))
    text = f"{_n(facts.erasures, 'erased user')} leave with the current release"
    if failed:
        text += ", which is therefore replaced by one that does not keep all rules"
    reasons.append(Reason("erasure", True, text, {"erasures": facts.erasures}))
    return Decision(True, tuple(reasons))


def _stuck(erasures: int, what: str) -> Iterator[Reason]:
    if erasures:
        text = f"{_n(erasures, 'erased user')} are still held by {what}: this needs somebody's attention"
        yield Reason("erasure", False, text, {"erasures": erasures})


def _broken(evaluation: Mapping[str, Any], rule: GateSettings, facts: Facts) -> Iterator[Reason]:
    """Rules that hold whatever a comparison says."""
    if facts.rolled_back:
        yield Reason("rolled_back", False, "an operator rolled back from what these data and settings gave")
    yield from _finite(evaluation)
    yield from _collapse(rule, facts.drift)
    for _, metric, name, found in _metrics(evaluation):
        over = found["over_popularity"]
        if rule.popularity_floor and over is not None and over["mean"] is not None:
            below = over["high"] is not None and over["high"] < 0
            judged = "below it beyond chance" if below else "below it, but that may be chance"
            text = (
                f"{name}: {_shown(found['candidate'])}, always the most popular "
                f"{_shown(found['popularity'])}: {judged if over['mean'] < 0 else 'not below it'}"
            )
            yield Reason("popularity", not below, text, {"metric": metric, **over})
        floor = getattr(rule, f"{metric}_floor")
        if floor is not None and found["candidate"] is not None:
            mean = found["candidate"]["mean"]
            kept = mean is not None and mean >= floor
            text = f"{name}: {_shown(found['candidate'])}, {'not ' if kept else ''}below its floor {floor:g}"
            yield Reason("floor", kept, text, {"metric": metric, "mean": mean, "floor": floor})


def _finite(evaluation: Mapping[str, Any]) -> Iterator[Reason]:
    choices = evaluation["choices"]
    rows = 0 if choices is None else choices["not_finite"]["candidate"]
    means = {
        metric: found["candidate"]["mean"]
        for _, metric, _, found in _metrics(evaluation)
        if found["candidate"] is not None
    }
    wrong = [metric for metric, mean in means.items() if mean is None or not math.isfinite(mean)]
    if rows or wrong:
        where = f"for {_n(rows, 'held-out choice')}" if rows else f"in {', '.join(wrong)}"
        yield Reason("finite", False, f"scores are no finite numbers {where}", {"rows": rows})
    elif means:
        yield Reason("finite", True, "all scores are finite numbers", {"rows": 0})


def _collapse(rule: GateSettings, drift: Mapping[str, Any] | None) -> Iterator[Reason]:
    if drift is None or not rule.collapse:
        return
    changes = {
        name: change
        for name in COLLAPSING
        if (change := drift["counts"].get(name)) is not None and change["ratio"] is not None
    }
    gone = {name: change for name, change in changes.items() if change["ratio"] < rule.collapse}
    for name, change in gone.items():
        text = (
            f"data look broken: {COLLAPSING[name]} fell from {change['before']:,} to {change['now']:,} since "
            f"the last run, below {rule.collapse:.0%}"
        )
        numbers = {"count": name, **{key: change[key] for key in ("now", "before", "ratio")}}
        yield Reason("collapse", False, text, numbers)
    if changes and not gone:
        least = min(change["ratio"] for change in changes.values())
        text = f"no count fell below {rule.collapse:.0%} of the last run's (the lowest is at {least:.0%})"
        yield Reason("collapse", True, text, {"lowest_ratio": least})


def _compared(evaluation: Mapping[str, Any], rule: GateSettings) -> Iterator[Reason]:
    """Rules about the release that is served."""
    if (why := evaluation["current_unusable"]) is not None:
        yield Reason("comparison", True, f"compared with nothing: the current release is unusable ({why})")
    if evaluation["ranks_items"]["current"] and not evaluation["ranks_items"]["candidate"]:
        yield Reason("ability", False, "the current release ranks items, the candidate does not")
    yield from _data(evaluation, rule)
    for _, metric, name, found in _metrics(evaluation):
        change = found["difference"]
        if change is None or change["mean"] is None:
            continue
        tolerance = getattr(rule, f"{metric}_tolerance")
        matters = change["mean"] < -tolerance
        by_chance = change["high"] is None or change["high"] >= 0
        if matters and not by_chance:
            judged = f"worse by more than the tolerance {tolerance:g}, and not by chance"
        elif matters:
            judged = "worse, but that may be chance"
        elif change["mean"] < 0:
            judged = f"worse by less than the tolerance {tolerance:g}"
        else:
            judged = "not worse"
        text = (
            f"{name}: {_shown(found['candidate'])} against {_shown(found['current'])}, "
            f"{change['mean']:+.4f}{_range(change)}: {judged}"
        )
        numbers = {"metric": metric, "users": found["users"], "tolerance": tolerance, **change}
        yield Reason("comparison", by_chance or not matters, text, numbers)


def _data(evaluation: Mapping[str, Any], rule: GateSettings) -> Iterator[Reason]:
    first = evaluation["current"] is None
    for part in METRICS:
        if part == "items" and not evaluation["ranks_items"]["candidate"]:
            continue
        users = 0 if evaluation[part] is None else evaluation[part]["users"]
        numbers = {"part": part, "users": users, "min_users": rule.min_users}
        text = f"{_n(users, 'user')} with held-out {part}"
        if users >= rule.min_users:
            yield Reason("data", True, f"{text}, {rule.min_users} are enough", numbers)
            continue
        text += f", {rule.min_users} are needed to tell a worse release ('min_users')"
        if first:
            text += ": nothing is published yet, so there is none to compare with"
        elif rule.too_few == "publish":
            text += ": published all the same ('too_few')"
        yield Reason("data", first or rule.too_few == "publish", text, numbers)


def _metrics(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Part, metric, its name and its figures, of all that was measured."""
    for part, names in METRICS.items():
        if evaluation[part] is not None:
            for metric, name in names.items():
                yield part, metric, name, evaluation[part]["metrics"][metric]


def _shown(found: Mapping[str, float | None] | None) -> str:
    return "-" if found is None or found["mean"] is None else f"{found['mean']:.4f}"


def _range(change: Mapping[str, float | None]) -> str:
    return "" if change["low"] is None else f" ({change['low']:+.4f} to {change['high']:+.4f})"


def _n(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
