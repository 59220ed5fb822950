"""The example market: what was planted must be found again, within the margins of its own draws."""

from __future__ import annotations

import calendar
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import demo_words as words
from jobs.demo_data import (
    EVENT_WEIGHTS,
    FIRST_DAY,
    N_DAYS,
    Market,
    MarketSizes,
    choice_probabilities,
    expected_shares,
    make_market,
    read_market,
    write_market,
)
from jobs.splits import split_by_time
from ppr.errors import MissingDataError, OutputExistsError, ParameterError, StoreError

SMALL = MarketSizes(n_users=200, n_items=150, n_interactions=4000, n_choices=1500)
SIGMAS = 5.0  # two-sided normal tail 6e-7 per figure; seeds are fixed


@pytest.fixture(scope="module")
def market() -> Market:
    return make_market()


def positions(keys: pa.ChunkedArray, names: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    found = keys.combine_chunks().dictionary_encode()
    order = np.argsort(names)
    distinct = found.dictionary.to_numpy(zero_copy_only=False).astype(str)
    return order[np.searchsorted(names[order], distinct)][found.indices.to_numpy()]


def events(market: Market) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    table = market.interactions
    return positions(table["user"], market.truth["users"]), positions(table["item"], market.truth["items"])


def assert_expected(observed: Any, expected: Any, variance: Any) -> None:
    """Counts lie within so many standard deviations of what is expected, where they are not too rare."""
    observed, expected, variance = map(np.asarray, (observed, expected, variance))
    common = variance >= 5
    assert common.any()
    assert np.abs((observed - expected)[common] / np.sqrt(variance[common])).max() <= SIGMAS


def test_sizes_and_ranges(market: Market) -> None:
    sizes = MarketSizes()
    rows = {name: table.num_rows for name, table in market.tables().items()}
    assert rows == {
        "interactions": sizes.n_interactions,
        "items": sizes.n_items,
        "users": sizes.n_users,
        "llms": 6,
        "llm_choices": sizes.n_choices,
    }
    joined = market.users["joined"].to_numpy()
    for table in (market.interactions, market.llm_choices):
        times = table["timestamp"].to_numpy()
        assert np.all(np.diff(times) >= np.timedelta64(0))
        assert np.all(times >= joined[positions(table["user"], market.truth["users"])])
        assert times.max() < FIRST_DAY + np.timedelta64(N_DAYS, "D")
        assert not any(column.null_count for column in table.columns)


def test_keys_are_unique_and_readable(market: Market) -> None:
    users, items = (market.tables()[name].column(0).to_pylist() for name in ("users", "items"))
    assert len(set(users)) == len(users)
    assert len(set(items)) == len(items)
    assert users[42] == "user-0042"
    assert "camping-stove-17" in items
    assert set(market.items["category"].to_pylist()) == set(words.CATEGORIES)


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_arguments_give_equal_content(seed: int) -> None:
    first, second = make_market(seed, SMALL), make_market(seed, SMALL)
    assert first.tables() == second.tables()
    for name, values in first.truth.items():
        np.testing.assert_array_equal(values, second.truth[name])


def test_another_seed_gives_another_market() -> None:
    assert make_market(0, SMALL).interactions != make_market(1, SMALL).interactions


def test_streams_are_independent() -> None:
    base = make_market(0, SMALL)
    more_choices = make_market(0, dataclasses.replace(SMALL, n_choices=1600))
    more_events = make_market(0, dataclasses.replace(SMALL, n_interactions=4100))
    assert more_choices.interactions == base.interactions
    assert more_events.llm_choices == base.llm_choices


def test_category_shares_follow_the_taste(market: Market) -> None:
    user, item = events(market)
    taste = market.truth["taste"]
    np.testing.assert_allclose(taste.sum(axis=1), 1.0)
    observed = np.zeros_like(taste)
    np.add.at(observed, (user, market.truth["item_category"][item]), 1)
    n = observed.sum(axis=1, keepdims=True)
    assert_expected(observed, n * taste, n * taste * (1 - taste))
    # The scatter is a multinomial's, neither more nor less: one cell per user, so cells are independent.
    rows, best = np.arange(len(taste)), taste.argmax(axis=1)
    p, n = taste[rows, best], n[:, 0]
    squared = (observed[rows, best] - n * p) ** 2 / (n * p * (1 - p))
    assert abs(squared.mean() - 1) <= SIGMAS * squared.std() / np.sqrt(len(squared))


def test_items_follow_the_popularity_of_their_category(market: Market) -> None:
    _, item = events(market)
    category, popularity = market.truth["item_category"], market.truth["popularity"]
    np.testing.assert_allclose(np.bincount(category, weights=popularity), 1.0)
    observed = np.bincount(item, minlength=len(popularity))
    n = np.bincount(category, weights=observed)[category]
    assert_expected(observed, n * popularity, n * popularity * (1 - popularity))


def test_weights_are_deeper_where_the_taste_is_strong(market: Market) -> None:
    user, item = events(market)
    weight = market.interactions["weight"].to_numpy()
    assert set(np.unique(weight)) == set(EVENT_WEIGHTS)
    taste = market.truth["taste"][user, market.truth["item_category"][item]]
    passed = 0.2 + 0.5 * taste
    for stage, least in enumerate(EVENT_WEIGHTS[1:], start=1):
        p = passed**stage
        for part in (taste < 0.3, taste >= 0.3):
            assert_expected(np.sum(weight[part] >= least), p[part].sum(), (p * (1 - p))[part].sum())


def test_choices_follow_the_planted_utility(market: Market) -> None:
    choices, truth = market.llm_choices, market.truth
    user, llm = positions(choices["user"], truth["users"]), positions(choices["llm"], truth["llms"])
    task = positions(choices["task"], truth["tasks"])
    p = choice_probabilities(truth["llm_utility"])[user, task]
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    for group in (task, truth["persona"][user]):
        for value in np.unique(group):
            part = group == value
            observed = np.bincount(llm[part], minlength=p.shape[1])
            assert_expected(observed, p[part].sum(axis=0), (p * (1 - p))[part].sum(axis=0))


def test_personas_prefer_different_models(market: Market) -> None:
    best = market.truth["llm_utility"].mean(axis=1).argmax(axis=1)
    favourites = {
        persona: np.bincount(best[market.truth["persona"] == i], minlength=6).argmax()
        for i, persona in enumerate(words.PERSONAS)
    }
    assert len(set(favourites.values())) >= 3


def test_thumbs_follow_the_satisfaction(market: Market) -> None:
    choices, truth = market.llm_choices, market.truth
    utility = truth["llm_utility"][
        positions(choices["user"], truth["users"]), positions(choices["task"], truth["tasks"])
    ]
    chosen = utility[np.arange(len(utility)), positions(choices["llm"], truth["llms"])]
    up = 0.4 / (1 + np.exp(utility.mean(axis=1) - chosen))
    thumbs = choices["thumbs"].to_numpy()
    assert_expected(np.sum(thumbs == 1), up.sum(), (up * (1 - up)).sum())
    assert_expected(np.sum(thumbs != 0), 0.4 * len(thumbs), 0.24 * len(thumbs))


def test_cost_and_latency_follow_the_model(market: Market) -> None:
    llm = positions(market.llm_choices["llm"], market.truth["llms"])
    cost, latency = (market.llm_choices[name].to_numpy() for name in ("cost_usd", "latency_ms"))
    assert cost.min() > 0
    assert latency.min() > 100
    median_cost = [np.median(cost[llm == i]) for i in range(6)]
    median_latency = [np.median(latency[llm == i]) for i in range(6)]
    price = market.llms["output_usd_per_mtok"].to_numpy()
    speed = market.llms["tokens_per_s"].to_numpy()
    np.testing.assert_array_equal(np.argsort(median_cost), np.argsort(price))
    np.testing.assert_array_equal(np.argsort(median_latency), np.argsort(-speed))


def test_activity_and_popularity_have_long_tails(market: Market) -> None:
    for keys in events(market):
        counts = np.sort(np.bincount(keys))[::-1]
        tenth = len(counts) // 10
        assert counts[:tenth].sum() > 0.3 * counts.sum()  # uniform keys would give about 0.12
        assert counts[0] > 10 * np.median(counts)


def test_popularity_is_beatable_but_not_trivial(market: Market) -> None:
    train, test = split_by_time(market.interactions)
    shape = (len(market.truth["users"]), len(market.truth["items"]))
    seen, wanted = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for table, matrix in ((train, seen), (test, wanted)):
        part = dataclasses.replace(market, interactions=table)
        matrix[events(part)] = True
    wanted &= ~seen

    def recall(scores: npt.NDArray[np.float64]) -> float:
        top = np.argsort(-np.where(seen, -1.0, scores), axis=1, kind="stable")[:, :20]
        n_wanted = wanted.sum(axis=1)
        hits = np.take_along_axis(wanted, top, axis=1).sum(axis=1)
        return float((hits[n_wanted > 0] / n_wanted[n_wanted > 0]).mean())

    popular = recall(np.broadcast_to(seen.sum(axis=0).astype(float), shape))
    planted = recall(expected_shares(market.truth))
    chance = 20 / shape[1]
    assert 4 * chance < popular < planted / 1.5


def test_written_market_is_read_back(tmp_path: Path) -> None:
    write_market(tmp_path / "market", 3, SMALL)
    there, expected = read_market(tmp_path / "market"), make_market(3, SMALL)
    assert there.tables() == expected.tables()
    assert there.truth.keys() == expected.truth.keys()
    for name, values in expected.truth.items():
        np.testing.assert_array_equal(there.truth[name], values)


def test_files_are_equal_byte_for_byte_and_written_once(tmp_path: Path) -> None:
    first, second = (write_market(tmp_path / name, 3, SMALL) for name in ("a", "b"))
    files = [path for path in first.rglob("*") if path.is_file()]
    for path in files:
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in files}
    write_market(first, 3, SMALL)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("kind", "table"), [("interactions", "interactions"), ("choices", "llm_choices")])
def test_deliveries_are_the_rows_of_each_month(tmp_path: Path, kind: str, table: str) -> None:
    market = write_market(tmp_path / "market", 3, SMALL)
    rows = pq.read_table(market / f"{table}.parquet").to_pylist()
    months: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        last = calendar.monthrange(row["timestamp"].year, row["timestamp"].month)[1]
        months.setdefault(f"{row['timestamp']:%Y-%m}-{last}", []).append(row)
    files = sorted((market / "deliveries" / kind).iterdir())
    assert {path.stem: pq.read_table(path).to_pylist() for path in files} == months


def test_another_market_is_not_overwritten(tmp_path: Path) -> None:
    write_market(tmp_path / "market", 3, SMALL)
    with pytest.raises(OutputExistsError, match="'seed' there is 3, asked for 4"):
        write_market(tmp_path / "market", 4, SMALL)
    (tmp_path / "other").mkdir()
    with pytest.raises(OutputExistsError, match="not a store"):
        write_market(tmp_path / "other", 3, SMALL)


def test_a_damaged_market_is_refused(tmp_path: Path) -> None:
    folder = write_market(tmp_path / "market", 3, SMALL)
    path = folder / "items.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(StoreError, match=r"items\.parquet"):
        read_market(folder)
    path.unlink()
    with pytest.raises(StoreError, match=r"items\.parquet"):
        read_market(folder)
    with pytest.raises(MissingDataError):
        read_market(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_users": 0}, "'n_users' must be at least 1"),
        ({"n_items": 11}, "'n_items' must be at least 12"),
        ({"n_users": 10, "n_interactions": 29}, "'n_interactions' must be at least 30"),
        ({"n_choices": 5}, "'n_choices' must be at least 2000"),
    ],
)
def test_sizes_that_break_their_rule(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        MarketSizes(**sizes)


def test_smallest_market() -> None:
    market = make_market(0, MarketSizes(n_users=1, n_items=12, n_interactions=3, n_choices=1))
    assert market.interactions.num_rows == 3


def test_negative_seed() -> None:
    with pytest.raises(ParameterError, match="'seed'"):
        make_market(-1, SMALL)
