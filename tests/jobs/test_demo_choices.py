"""The demo's choices of LLMs: splits, and measures against brute force."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import demo_choices
from jobs.demo_choices import (
    COUNTS,
    POPULAR,
    POPULAR_BY_TASK,
    ChoiceParts,
    Picks,
    baseline_picks,
    choice_parts,
    first_choices,
    fit_baselines,
    foreseen,
    gap_closed,
    mean_and_error,
    moment_of,
    picks_of,
    split_events,
    user_quality,
)
from jobs.demo_data import MarketSizes, make_market
from jobs.splits import split_by_time
from ppr.errors import DataError
from router.dataset.events import Events, read_events
from router.persona.data import Choices

SIZES = MarketSizes(n_users=60, n_items=40, n_interactions=600, n_choices=500)
MARKET = make_market(3, SIZES)
LLMS = tuple(MARKET.truth["llms"].tolist())


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Events:
    path = tmp_path_factory.mktemp("events") / "events.parquet"
    pq.write_table(MARKET.llm_choices, path)
    return read_events(path, LLMS)


def without(events: Events, *columns: str) -> Events:
    return Events(**{name: getattr(events, name) for name in Events.__slots__} | dict.fromkeys(columns))


@pytest.fixture(scope="module")
def parts(events: Events) -> ChoiceParts:
    return choice_parts(events, LLMS, split_events(events, None, 0), 0, MARKET.truth)


def test_events_are_split_at_the_moment_of_the_interactions(events: Events) -> None:
    _, test = split_by_time(MARKET.interactions)
    moment = moment_of(test)
    assert moment is not None
    first = min(test["timestamp"].to_pylist())
    earlier, later = split_events(events, moment, 0)
    times = MARKET.llm_choices["timestamp"].to_pylist()
    assert sorted(np.concatenate([earlier, later]).tolist()) == list(range(len(events)))
    assert all(times[row] < first for row in earlier)
    assert all(times[row] >= first for row in later)
    for rows in (earlier, later):
        ordered = [times[row] for row in rows]
        assert ordered == sorted(ordered)


def test_moment_of_numbers_and_times() -> None:
    when = datetime.datetime(2025, 3, 1, 12, tzinfo=datetime.UTC)
    assert moment_of(pa.table({"timestamp": [when, when + datetime.timedelta(1)]})) == when.timestamp()
    naive = when.replace(tzinfo=None)
    assert moment_of(pa.table({"timestamp": [naive]})) == when.timestamp()
    assert moment_of(pa.table({"timestamp": [7, 3]})) == 3.0
    assert moment_of(pa.table({"user": ["a"]})) is None


def test_without_a_moment_the_last_fifth_is_later(events: Events) -> None:
    earlier, later = split_events(events, None, 0)
    assert len(later) == pytest.approx(0.2 * len(events), abs=2)
    assert events.timestamps is not None
    assert events.timestamps[earlier].max() < events.timestamps[later].min()


def test_without_times_a_fifth_of_each_users_events_is_later(events: Events) -> None:
    _, later = split_events(without(events, "timestamps"), 5.0, 0)
    expected = np.floor(0.2 * np.bincount(events.users))
    np.testing.assert_array_equal(np.bincount(events.users[later], minlength=60), expected)


@pytest.mark.parametrize("moment", [0.0, 1e12])
def test_a_moment_outside_the_events_is_an_error(events: Events, moment: float) -> None:
    with pytest.raises(DataError, match="both must be positive"):
        split_events(events, moment, 0)


def test_parts_hold_the_rows_of_the_market(parts: ChoiceParts, events: Events) -> None:
    rows = MARKET.llm_choices.to_pylist()
    of_part = {"earlier": parts.earlier, "later": parts.later}
    earlier, later = split_events(events, None, 0)
    expected = {
        "earlier": [rows[i] for i in earlier if rows[i]["thumbs"] >= 0],
        "later": [rows[i] for i in later],
    }
    for name, choices in of_part.items():
        found = [
            (
                parts.user_keys[int(u)].as_py(),
                parts.queries[q],
                parts.llms[m],
                parts.tasks[parts.query_tasks[q]],
            )
            for u, q, m in zip(choices.users, choices.queries, choices.llms, strict=True)
        ]
        assert found == [(row["user"], row["query"], row["llm"], row["task"]) for row in expected[name]]
    assert parts.newcomers.sum() == 6
    assert not parts.newcomers[parts.trained.users].any()
    assert len(parts.trained) == np.count_nonzero(~parts.newcomers[parts.earlier.users])


def test_planted_utility_is_in_the_order_of_the_names(parts: ChoiceParts) -> None:
    truth = MARKET.truth
    assert parts.utility is not None
    for user, key in enumerate(parts.user_keys.to_pylist()):
        for task, name in enumerate(parts.tasks):
            row = truth["llm_utility"][list(truth["users"]).index(key), list(truth["tasks"]).index(name)]
            np.testing.assert_array_equal(parts.utility[user, task], row)


def test_gap_closed_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    utility, picks = rng.normal(size=(7, 3, 4)), rng.integers(4, size=(7, 3))
    expected = []
    for user in range(7):
        gained = possible = 0.0
        for task in range(3):
            values = utility[user, task].tolist()
            gained += values[picks[user, task]] - sum(values) / 4
            possible += max(values) - sum(values) / 4
        expected.append(gained / possible)
    np.testing.assert_allclose(gap_closed(utility, picks), expected, rtol=1e-12)
    np.testing.assert_allclose(gap_closed(utility, utility.argmax(axis=2)), 1.0)


def test_foreseen_is_the_share_of_each_users_later_choices(parts: ChoiceParts) -> None:
    rng = np.random.default_rng(1)
    picks = Picks(np.zeros((60, 6), dtype=np.int64), rng.integers(6, size=len(parts.later)))
    found = foreseen(parts, picks)
    for user in range(60):
        mine = np.flatnonzero(parts.later.users == user)
        hits = [picks.later[i] == parts.later.llms[i] for i in mine]
        assert found[user] == (sum(hits) / len(hits)) if hits else np.isnan(found[user])


def test_user_quality_needs_no_planted_truth(events: Events, parts: ChoiceParts) -> None:
    own = choice_parts(events, LLMS, split_events(events, None, 0), 0, None)
    picks = Picks(np.zeros((60, 6), dtype=np.int64), np.zeros(len(own.later), dtype=np.int64))
    np.testing.assert_array_equal(user_quality(own, picks), foreseen(own, picks))
    assert parts.utility is not None
    np.testing.assert_array_equal(user_quality(parts, picks), gap_closed(parts.utility, picks.by_task))


def test_mean_and_error_leave_nan_out() -> None:
    mean, error = mean_and_error(np.array([1.0, np.nan, 2.0, 6.0]))
    assert mean == 3.0
    assert error == pytest.approx(np.std([1, 2, 6], ddof=1) / np.sqrt(3))


def test_first_choices_keep_each_users_order() -> None:
    choices = Choices(np.array([1, 0, 1, 1, 0]), np.arange(5), np.array([5, 4, 3, 2, 1]))
    assert first_choices(choices, 2).queries.tolist() == [0, 1, 2, 4]
    assert len(first_choices(choices, 0)) == 0
    assert first_choices(choices, 9).queries.tolist() == [0, 1, 2, 3, 4]


def test_popularity_against_brute_force(parts: ChoiceParts) -> None:
    picks = baseline_picks(fit_baselines(parts, 0), parts, parts.earlier)
    chosen = parts.trained.llms
    most = int(np.bincount(chosen, minlength=6).argmax())
    assert set(picks[POPULAR].later.tolist()) == set(picks[POPULAR].by_task.ravel().tolist()) == {most}
    for task in range(len(parts.tasks)):
        assert len(set(picks[POPULAR_BY_TASK].by_task[:, task].tolist())) == 1


def test_counts_follow_a_user_of_one_mind(parts: ChoiceParts) -> None:
    user = int(np.bincount(parts.trained.users).argmax())
    known = parts.earlier
    same = Choices(known.users, known.queries, np.where(known.users == user, 2, known.llms))
    picks = baseline_picks(fit_baselines(parts, 0), parts, same)[COUNTS]
    assert picks.by_task[user].tolist() == [2] * 6


def test_the_baselines_shrinkage_is_chosen_on_held_out_choices(
    parts: ChoiceParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = fit_baselines(parts, 0)[COUNTS].user_shrinkage  # type: ignore[union-attr]
    assert chosen in demo_choices._SHRINKAGES
    # Absurd weights lose against it.
    monkeypatch.setattr(demo_choices, "_SHRINKAGES", (1e6, chosen, 1e-6))
    assert fit_baselines(parts, 0)[COUNTS].user_shrinkage == chosen  # type: ignore[union-attr]


def test_picks_of_scores_by_task(parts: ChoiceParts) -> None:
    assert parts.utility is not None
    picks = picks_of(parts.utility, parts)
    for i, (user, query) in enumerate(zip(parts.later.users, parts.later.queries, strict=True)):
        assert picks.later[i] == parts.utility[user, parts.query_tasks[query]].argmax()


def test_events_without_tasks_have_one(events: Events, tmp_path: Path) -> None:
    own = choice_parts(without(events, "query_tasks"), LLMS, split_events(events, None, 0), 0, None)
    assert not own.has_tasks
    assert set(own.query_tasks.tolist()) == {0}
