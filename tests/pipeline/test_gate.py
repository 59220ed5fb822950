"""The gate: a table of cases, and the error rates that its rule promises, by simulation."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from jobs.pipeline.evaluation_figures import interval
from jobs.pipeline.gate import Decision, Facts, decide
from jobs.settings import GateSettings, Settings
from jobs.settings_layers import load_settings
from tests.conftest import ROOT

RULE = GateSettings()


def _figure(mean: float, reach: float = 0.02) -> dict[str, float]:
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def _metric(candidate: float, current: float | None, popularity: float, reach: float) -> dict[str, Any]:
    told: dict[str, Any] = {"users": 200, "candidate": _figure(candidate), "popularity": _figure(popularity)}
    if current is not None:
        told["current"] = _figure(current)
    told["difference"] = None if current is None else _figure(candidate - current, reach)
    told["over_popularity"] = _figure(candidate - popularity, reach)
    return told


def _evaluation(*, first: bool = False, reach: float = 0.005, **candidates: float) -> dict[str, Any]:
    """A candidate as good as the current release but for what is given; ``reach`` of its differences."""
    usual = {"log_likelihood": -0.8, "accuracy": 0.6, "ndcg": 0.2, "recall": 0.3}
    popular = {"log_likelihood": -1.1, "accuracy": 0.4, "ndcg": 0.1, "recall": 0.15}
    metrics = {
        name: _metric(candidates.get(name, value), None if first else value, popular[name], reach)
        for name, value in usual.items()
    }
    return {
        "k": 20,
        "current": None if first else "20260101T000000Z-abc",
        "current_unusable": None,
        "ranks_items": {"candidate": True, "current": None if first else True},
        "choices": {
            "users": 200,
            "rows": 500,
            "not_finite": {"candidate": 0},
            "metrics": {name: metrics[name] for name in ("log_likelihood", "accuracy")},
        },
        "items": {
            "users": 200,
            "rows": 500,
            "metrics": {name: metrics[name] for name in ("ndcg", "recall")},
        },
    }


def _failed(decision: Decision) -> list[str]:
    return [reason.rule for reason in decision.reasons if not reason.passed]


def _drift(**ratios: float) -> dict[str, Any]:
    return {
        "counts": {
            name.replace("_", "."): {"now": int(1000 * ratio), "before": 1000, "ratio": ratio, "level": "-"}
            for name, ratio in ratios.items()
        }
    }


def test_a_better_candidate_is_published() -> None:
    decision = decide(_evaluation(accuracy=0.65), RULE, Facts(drift=_drift(choices_rows=1.1)))
    assert decision.publish
    assert _failed(decision) == []
    assert {reason.rule for reason in decision.reasons} == {
        *("finite", "collapse", "popularity", "data", "comparison")
    }
    assert decision.summary == "all rules are kept"


@pytest.mark.parametrize("metric", ["log_likelihood", "accuracy", "ndcg", "recall"])
def test_a_clear_loss_of_any_metric_is_refused(metric: str) -> None:
    usual = {"log_likelihood": -0.8, "accuracy": 0.6, "ndcg": 0.2, "recall": 0.3}
    decision = decide(_evaluation(**{metric: usual[metric] - 0.05}), RULE, Facts())
    assert not decision.publish
    assert _failed(decision) == ["comparison"]
    assert "worse by more than the tolerance" in decision.summary
    (reason,) = [reason for reason in decision.reasons if not reason.passed]
    assert reason.numbers["metric"] == metric
    assert reason.numbers["mean"] == pytest.approx(-0.05)


def test_a_loss_within_the_tolerance_passes_however_sure() -> None:
    decision = decide(_evaluation(accuracy=0.595, reach=0.001), RULE, Facts())
    assert decision.publish
    assert any("worse by less than the tolerance 0.01" in reason.text for reason in decision.reasons)


def test_a_loss_that_may_be_chance_passes() -> None:
    decision = decide(_evaluation(accuracy=0.55, reach=0.06), RULE, Facts())
    assert decision.publish
    assert any("worse, but that may be chance" in reason.text for reason in decision.reasons)
    assert not decide(_evaluation(accuracy=0.55, reach=0.04), RULE, Facts()).publish


def test_the_tolerance_is_a_setting() -> None:
    found = _evaluation(accuracy=0.55)
    assert not decide(found, RULE, Facts()).publish
    assert decide(found, GateSettings(accuracy_tolerance=0.06), Facts()).publish


def test_below_popularity_is_refused_even_as_the_first() -> None:
    decision = decide(_evaluation(first=True, ndcg=0.05), RULE, Facts())
    assert not decision.publish
    assert _failed(decision) == ["popularity"]
    assert decide(_evaluation(first=True, ndcg=0.05), GateSettings(popularity_floor=False), Facts()).publish
    by_chance = _evaluation(first=True, ndcg=0.09, reach=0.02)
    assert decide(by_chance, RULE, Facts()).publish


def test_a_floor_holds_without_leave_for_chance() -> None:
    found = _evaluation(first=True, reach=0.5)
    assert decide(found, GateSettings(accuracy_floor=0.6, log_likelihood_floor=-0.8), Facts()).publish
    decision = decide(found, GateSettings(accuracy_floor=0.61), Facts())
    assert _failed(decision) == ["floor"]
    assert "below its floor 0.61" in decision.summary


@pytest.mark.parametrize(
    ("users", "first", "too_few", "publish"),
    [
        (20, False, "refuse", True),
        (19, False, "refuse", False),
        (19, False, "publish", True),
        (19, True, "refuse", True),
    ],
)
@pytest.mark.parametrize("part", ["choices", "items"])
def test_too_few_users_decide_nothing(
    part: str, users: int, first: bool, too_few: Any, publish: bool
) -> None:
    found = _evaluation(first=first)
    found[part]["users"] = users
    decision = decide(found, GateSettings(too_few=too_few), Facts())
    assert decision.publish is publish
    assert _failed(decision) == ([] if publish else ["data"])
    assert f"{users} users with held-out {part}" in " ".join(reason.text for reason in decision.reasons)


def test_nothing_held_out_is_too_few() -> None:
    found = _evaluation() | {"choices": None, "items": None}
    assert _failed(decide(found, RULE, Facts())) == ["data", "data"]
    found["ranks_items"] = {"candidate": False, "current": False}  # then items need not be judged
    assert _failed(decide(found, RULE, Facts())) == ["data"]
    assert decide(found, GateSettings(min_users=0), Facts()).publish


def test_items_that_are_no_longer_ranked() -> None:
    found = _evaluation() | {"items": None, "ranks_items": {"candidate": False, "current": True}}
    assert _failed(decide(found, RULE, Facts())) == ["ability"]


def test_scores_that_are_no_numbers() -> None:
    found = _evaluation()
    found["choices"]["not_finite"]["candidate"] = 3
    decision = decide(found, RULE, Facts())
    assert _failed(decision) == ["finite"]
    assert "for 3 held-out choices" in decision.summary
    found = _evaluation()
    nothing = {"mean": None, "low": None, "high": None}
    found["items"]["metrics"]["ndcg"] |= dict.fromkeys(
        ("candidate", "difference", "over_popularity"), nothing
    )
    assert "finite" in _failed(decide(found, GateSettings(ndcg_floor=0.1), Facts()))


def test_data_that_collapsed_look_broken() -> None:
    decision = decide(_evaluation(accuracy=0.9), RULE, Facts(drift=_drift(interactions_users=0.3)))
    assert _failed(decision) == ["collapse"]
    assert "users with interactions fell from 1,000 to 300" in decision.summary
    assert decide(_evaluation(), RULE, Facts(drift=_drift(interactions_users=0.5))).publish
    assert decide(_evaluation(), GateSettings(collapse=0.0), Facts(drift=_drift(choices_rows=0.1))).publish
    grown = {"counts": {"choices.rows": {"now": 9, "before": 0, "ratio": None, "level": "strong"}}}
    assert decide(_evaluation(), RULE, Facts(drift=grown)).publish


def test_what_was_rolled_back_from_is_not_published_again() -> None:
    assert _failed(decide(_evaluation(accuracy=0.9), RULE, Facts(rolled_back=True))) == ["rolled_back"]
    assert not decide(_evaluation(accuracy=0.9), RULE, Facts(rolled_back=True, erasures=1)).publish


def test_the_current_release_again_is_nothing_new() -> None:
    decision = decide({}, RULE, Facts(candidate_is_current=True))
    assert not decision.publish
    assert _failed(decision) == ["nothing new"]
    stuck = decide({}, RULE, Facts(candidate_is_current=True, erasures=2))
    assert "2 erased users are still held" in stuck.summary


def test_a_current_release_that_cannot_be_opened_is_not_in_the_way() -> None:
    found = _evaluation(first=True) | {"current": "20260101T000000Z-abc", "current_unusable": "damaged"}
    decision = decide(found, RULE, Facts())
    assert decide(found, RULE, Facts()).publish
    assert any("compared with nothing" in reason.text for reason in decision.reasons)


def test_erased_users_are_gone_though_the_candidate_is_worse() -> None:
    worse = _evaluation(accuracy=0.5)
    decision = decide(worse, RULE, Facts(erasures=3))
    assert decision.publish
    assert _failed(decision) == ["comparison"]
    assert "3 erased users leave" in decision.reasons[-1].text
    assert decision.summary.startswith("published all the same, for erased users")
    few = _evaluation()
    few["choices"]["users"] = 1
    assert decide(few, RULE, Facts(erasures=1)).publish


@pytest.mark.parametrize("broken", ["floor", "popularity", "finite", "collapse"])
def test_erased_users_do_not_publish_what_is_broken(broken: str) -> None:
    found, rule, facts = _evaluation(accuracy=0.5), RULE, Facts(erasures=3)
    if broken == "floor":
        rule = GateSettings(accuracy_floor=0.55)
    elif broken == "popularity":
        found = _evaluation(accuracy=0.3)
    elif broken == "finite":
        found["choices"]["not_finite"]["candidate"] = 1
    else:
        facts = Facts(erasures=3, drift=_drift(choices_rows=0.1))
    decision = decide(found, rule, facts)
    assert not decision.publish
    assert broken in _failed(decision)
    assert "3 erased users are still held by the current release" in decision.summary


def test_a_decision_is_pure_and_json() -> None:
    found = _evaluation(accuracy=0.5)
    before = deepcopy(found)
    told = decide(found, RULE, Facts(erasures=1)).to_json()
    assert found == before
    assert told == json.loads(json.dumps(told, allow_nan=False))
    assert set(told) == {"publish", "summary", "reasons"}
    assert all(set(reason) == {"rule", "passed", "text", "numbers"} for reason in told["reasons"])


def test_the_rule_in_conf_is_the_default() -> None:
    assert load_settings(files=[ROOT / "conf" / "gate.toml"]).settings.gate == Settings().gate


# Error rates


METRICS = ("log_likelihood", "accuracy", "ndcg", "recall")


def _refused(n_users: int, loss: float, *, trials: int, of: tuple[str, ...] = METRICS) -> float:
    """How often a candidate is refused that loses so much of some metrics, three rows of each user.

    Candidate and current release differ in a tenth of the rows or more, as two nights' routers do.
    """
    rng = np.random.default_rng(n_users + int(1000 * loss))
    refused = 0
    for trial in range(trials):
        found = _evaluation()
        for part in ("choices", "items"):
            for metric in (found[part]["metrics"][name] for name in of if name in found[part]["metrics"]):
                drawn = rng.random((n_users, 3))
                differences = (drawn > 0.95).astype(float) - (drawn < 0.05 + loss)
                metric["difference"] = interval(differences.mean(axis=1), seed=trial)
        refused += not decide(found, RULE, Facts()).publish
    return refused / trials


@pytest.mark.parametrize("n_users", [20, 30, 150])
def test_an_equal_candidate_is_seldom_refused_however_small_the_sample(n_users: int) -> None:
    # Four metrics that go apart, 2.5 % each, and a little more for the bootstrap of few users.
    trials = 150
    assert _refused(n_users, 0.0, trials=trials) <= 0.12 + 2 * math.sqrt(0.12 * 0.88 / trials)


@pytest.mark.parametrize("n_users", [20, 30, 150])
def test_a_clearly_worse_candidate_hardly_passes(n_users: int) -> None:
    # Worse by tolerance + 4 standard errors in a single metric; the more it loses, the more the two differ.
    loss = 0.0
    for _ in range(20):
        loss = RULE.accuracy_tolerance + 4 * math.sqrt((0.1 + loss - loss**2) / 3 / n_users)
    trials = 100
    assert _refused(n_users, loss, trials=trials, of=("accuracy",)) >= 0.97 - 3 * math.sqrt(0.03 / trials)


def test_a_small_loss_is_found_with_enough_users() -> None:
    few, many = (_refused(n, 0.03, trials=40) for n in (20, 1000))
    assert few < 0.6
    assert many == 1.0
