"""Tables to arrays: what is read, what is left out and said, and what is refused with file and row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from jobs.demo_data import MarketSizes, write_market
from router.dataset import (
    Reading,
    RouterData,
    RouterFiles,
    columns,
    read_events,
    read_llms,
    read_router_data,
)
from router.encoders import ENCODER_METADATA, EncoderIdentity, HashingEncoder
from router.errors import BundleError, DataError, MissingDataError, ParameterError
from tests.choice_files import LLMS, N_EVENTS, N_USERS, events_table, fingerprints_of, user_graph, write_files

HASHING = Reading(encoder="hashing")


@pytest.fixture
def files(tmp_path: Path) -> RouterFiles:
    return write_files(tmp_path)


def read(files: RouterFiles, **how) -> RouterData:
    return read_router_data(files, replace(HASHING, **how))


def rewrite(path: Path, **changes) -> Path:
    """Replace columns; None drops one."""
    table = pq.read_table(path)
    for name, values in changes.items():
        if name in table.column_names:
            table = table.drop_columns(name)
        if values is not None:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    return path


def with_cell(path: Path, name: str, row: int, value: object) -> Path:
    values = pq.read_table(path)[name].to_pylist()
    values[row] = value
    return rewrite(path, **{name: values})


# What is read


def test_arrays_are_those_of_the_table(files):
    data, table = read(files), events_table()
    choices = data.data.choices
    users = data.user_keys.to_numpy(zero_copy_only=False)[choices.users]
    llms = [LLMS[i] for i in choices.llms]
    tasks = [data.tasks.names[i] for i in data.data.tasks[choices.queries]]
    found = zip(users, data.query_keys[choices.queries], llms, tasks, strict=True)
    wanted = (table[name].to_pylist() for name in ("user", "query", "llm", "task"))
    assert sorted(found) == sorted(zip(*wanted, strict=True))
    assert data.tasks.given
    assert data.catalogue.llms[2].input_usd_per_mtok is None
    np.testing.assert_array_equal(data.behaviour["tokens_per_s"], [90, 60, 30])
    assert data.data.features is data.data.user_features is data.data.links is None


def test_csv_is_read_like_parquet(files, tmp_path):
    table = events_table()
    offered = ["brief|kind|unused-price"] * table.num_rows
    pa.csv.write_csv(table.append_column("offered", pa.array(offered)), tmp_path / "events.csv")
    one = read_events(files.events, LLMS)
    other = read_events(tmp_path / "events.csv", LLMS)
    for name in ("users", "queries", "llms", "thumbs"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.user_keys.equals(other.user_keys)
    np.testing.assert_allclose(one.measured["cost_usd"], other.measured["cost_usd"])
    assert other.offered is not None
    assert other.offered.all()


def test_integer_keys_stay_integers(files, tmp_path):
    table = events_table()
    numbers = [int(key[1:]) for key in table["user"].to_pylist()]
    rewrite(files.events, user=numbers)
    pa.csv.write_csv(pq.read_table(files.events), tmp_path / "events.csv")
    for path in (files.events, tmp_path / "events.csv"):
        assert read_events(path, LLMS).user_keys.equals(pa.array(range(N_USERS)))


@pytest.mark.parametrize("with_dask", [True, False])
def test_streams_give_the_same(files, monkeypatch, with_dask):
    """A table in many pieces: with Dask's threads where it is installed, else one after the other."""
    if with_dask:
        pytest.importorskip("dask", reason="dask is not installed")
    else:
        monkeypatch.setattr(columns, "find_spec", lambda name: None)
    whole = read_events(files.events, LLMS)
    pq.write_table(pq.read_table(files.events), files.events, row_group_size=50)
    monkeypatch.setattr(columns, "PIECE_BYTES", 1)
    streamed = read_events(files.events, LLMS, stream_bytes=1)
    for name in ("users", "queries", "llms", "thumbs", "query_keys", "query_tasks"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(streamed, name))
    assert whole.user_keys.equals(streamed.user_keys)
    np.testing.assert_array_equal(whole.measured["cost_usd"], streamed.measured["cost_usd"])


def test_csv_in_pieces_is_the_same_and_knows_its_rows(files, tmp_path, monkeypatch):
    csv = tmp_path / "events.csv"
    table = pq.read_table(files.events)
    pa.csv.write_csv(table, csv)
    whole = read_events(csv, LLMS)
    monkeypatch.setattr(columns, "PIECE_BYTES", 4096)
    pieces = read_events(csv, LLMS, stream_bytes=1)
    for name in ("users", "queries", "llms", "thumbs", "query_keys", "query_tasks"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))
    assert whole.user_keys.equals(pieces.user_keys)
    np.testing.assert_array_equal(whole.measured["cost_usd"], pieces.measured["cost_usd"])
    lines = csv.read_text().splitlines()
    lines[-1] = lines[-1].replace(table["llm"][-1].as_py(), "nobody")
    csv.write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"events.csv: row {table.num_rows}: unknown LLM 'nobody'"):
        read_events(csv, LLMS)


def test_a_table_many_times_the_pieces_is_never_held(tmp_path, monkeypatch):
    """Neither form: 48 MiB of texts in pieces of 1 MiB."""
    n_rows, text = 48 << 10, "x" * 1000
    table = pa.table({"user": pa.array(range(n_rows)), "query": pa.array([text] * n_rows)})
    pa.csv.write_csv(table, tmp_path / "t.csv")
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1 << 10, use_dictionary=False)
    del table
    monkeypatch.setattr(columns, "PIECE_BYTES", 1 << 20)
    for name in ("t.csv", "t.parquet"):
        base, held = pa.total_allocated_bytes(), []

        def rows(batch, base=base, held=held):
            held.append(pa.total_allocated_bytes() - base)
            return len(batch)

        opened = columns.Columns.open(tmp_path / name, {"user": ("user",), "query": ("query",)}, ())
        for parallel in (False, True):
            assert sum(opened.map(rows, parallel=parallel)) == n_rows
        assert max(held) < 16 << 20


def test_files_of_a_folder_may_differ_in_columns_and_in_types_of_text(files, tmp_path):
    table, folder = events_table(), tmp_path / "parts"
    folder.mkdir()
    pq.write_table(table.slice(0, 100), folder / "a.parquet")
    rest = table.slice(100).rename_columns({"user": "user_id"}).drop_columns(["cost_usd"])
    rest = rest.set_column(0, "user_id", rest["user_id"].cast(pa.large_string()))
    offered = pa.array([list(LLMS[:3])] * len(rest))
    pq.write_table(
        rest.append_column("offered", offered).append_column("topic", offered), folder / "b.parquet"
    )
    events, whole = read_events(folder, LLMS), read_events(files.events, LLMS)
    np.testing.assert_array_equal(events.users, whole.users)
    assert events.extra_columns == ("topic",)
    assert np.isnan(events.measured["cost_usd"][100:]).all()
    np.testing.assert_array_equal(events.measured["cost_usd"][:100], whole.measured["cost_usd"][:100])
    batch = columns.Columns.open(
        folder, {"user": ("user", "user_id"), "query": ("query",)}, ("user",)
    ).whole()
    assert batch.texts("user").to_pylist() == table["user"].to_pylist()


def test_a_folder_whose_files_lack_a_needed_column(tmp_path):
    for name, there in (("a", ["user", "query", "llm"]), ("b", ["user", "query"])):
        pq.write_table(events_table().select(there), tmp_path / f"{name}.parquet")
    with pytest.raises(MissingDataError, match=r"b.parquet: a column of 'llm' is needed"):
        read_events(tmp_path, LLMS)


@pytest.mark.parametrize("name", ["hashing", "elsewhere"])
def test_embeddings_keep_their_encoder_which_encodes_the_other_queries(files, tmp_path, name):
    """A table without one query: a text for an encoder that is here, and an error else."""
    encoder = HashingEncoder(8)
    texts = np.unique(events_table()["query"].to_numpy(zero_copy_only=False))
    identity = EncoderIdentity(name, 1, 8)
    table = pa.table({"id": texts[1:], "embedding": list(encoder.encode(texts[1:].tolist()))})
    path = tmp_path / "queries.parquet"
    pq.write_table(table.replace_schema_metadata({ENCODER_METADATA: json.dumps(identity.to_json())}), path)
    if name == "elsewhere":
        with pytest.raises(DataError, match=f"query '{texts[0]}' of the events is not there"):
            read_router_data(replace(files, queries=path))
        return
    told = []
    data = read_router_data(replace(files, queries=path), Reading(tell=told.append))
    assert data.encoder == identity
    np.testing.assert_array_equal(data.data.query_embeddings, encoder.encode(data.query_keys.tolist()))
    assert any("1 queries of the events are not there, taken for texts" in line for line in told)


def test_a_folder_of_files_is_one_table(files, tmp_path):
    table, folder = events_table(), tmp_path / "parts"
    folder.mkdir()
    pq.write_table(table.slice(0, 100), folder / "a.parquet")
    pq.write_table(table.slice(100), folder / "b.parquet")
    np.testing.assert_array_equal(read_events(folder, LLMS).users, read_events(files.events, LLMS).users)


def test_thumbs_down_is_no_choice_but_counts_for_what_was_measured(files):
    thumbs = np.zeros(N_USERS * N_EVENTS, np.int8)
    thumbs[:50] = -1
    thumbs[50:60] = 1
    rewrite(files.events, thumbs=thumbs)
    data = read(files)
    assert len(data.data.choices) == N_USERS * N_EVENTS - 50
    events = read_events(files.events, LLMS)
    up = events.thumbs[events.thumbs != 0] > 0
    assert np.nanmin(data.expected.quality) < up.mean() < np.nanmax(data.expected.quality)


def test_expected_figures_are_shrunken_means(files):
    rewards = [float(llm == "kind") for llm in events_table()["llm"].to_pylist()]
    expected = read(with_reward(files, rewards)).expected
    np.testing.assert_allclose(expected.quality, [[0, 1, 0], [0, 1, 0]])
    np.testing.assert_allclose(expected.cost_usd, [[0.01, 0.02, 0.03]] * 2, rtol=1e-6)
    assert np.isnan(expected.latency_ms).all()


def with_reward(files: RouterFiles, rewards: list[float | None]) -> RouterFiles:
    rewrite(files.events, reward=rewards)
    return files


def test_missing_rewards_are_not_measured(files):
    rewards: list[float | None] = [None] * (N_USERS * N_EVENTS)
    rewards[0] = 0.7
    llm = LLMS.index(events_table()["llm"][0].as_py())
    quality = read(with_reward(files, rewards)).expected.quality
    np.testing.assert_allclose(quality[:, llm], 0.7, rtol=1e-6)
    assert np.isnan(np.delete(quality, llm, axis=1)).all()


def test_offered_llms(files):
    llms = events_table()["llm"].to_pylist()
    offered = [[llm, "unused-price"] for llm in llms]
    offered[3] = None
    rewrite(files.events, offered=pa.array(offered))
    found = read_events(files.events, LLMS).offered
    assert found is not None
    assert found[3].all()
    assert found[0].tolist() == [name in offered[0] for name in LLMS]


def test_an_llm_that_nobody_chose_was_not_on_offer(files):
    table = events_table()
    others = pa.array([LLMS[0] if llm == LLMS[2] else llm for llm in table["llm"].to_pylist()])
    rewrite(files.events, llm=others)
    data = read(files).data
    assert data.choices.offered is not None
    assert data.choices.offered.any(axis=0).tolist() == [True, True, False]
    assert data.known_llms().tolist() == [True, True, False]


def test_queries_without_task_are_grouped(files):
    rewrite(files.events, task=None)
    data = read(files)
    assert not data.tasks.given
    assert data.tasks.names == ("cluster 0",)  # 12 queries are too few for more
    many = [f"{word} number {i}" for i in range(60) for word in ("poem", "code")] * 4
    rewrite(files.events, query=many)
    data = read(files)
    groups = data.data.tasks
    assert len(data.tasks.names) > 1
    assert sorted(np.unique(groups)) == list(range(len(data.tasks.names)))
    np.testing.assert_array_equal(groups, read(files).data.tasks)


def test_table_of_queries(files, tmp_path):
    texts = sorted(set(events_table()["query"].to_pylist()))
    numbers = {text: i for i, text in enumerate(texts)}
    rewrite(files.events, query=[numbers[t] for t in events_table()["query"].to_pylist()], task=None)
    vectors = np.random.default_rng(0).normal(size=(len(texts), 5)).astype(np.float32)
    table = pa.table(
        {"id": list(range(len(texts))), "task": [t[:4] for t in texts], "embedding": vectors.tolist()}
    )
    pq.write_table(table, tmp_path / "queries.parquet")
    data = read(replace(files, queries=tmp_path / "queries.parquet"))
    assert (data.encoder.name, data.encoder.dimension) == ("external", 5)
    order = [int(key) for key in data.query_keys]
    np.testing.assert_allclose(data.data.query_embeddings, vectors[order])
    assert data.tasks.names == ("code", "poem")


def test_answers_become_standardised_features(files, tmp_path):
    texts = sorted(set(events_table()["query"].to_pylist()))
    rng = np.random.default_rng(0)
    rows = [(t, llm) for t in texts for llm in LLMS if (t, llm) != (texts[0], "kind")]
    table = pa.table(
        {
            "query": [t for t, _ in rows],
            "llm": [llm for _, llm in rows],
            "quality": rng.random(len(rows)),
            "length": rng.lognormal(size=len(rows)),
        }
    )
    pq.write_table(table, tmp_path / "answers.parquet")
    data = read(replace(files, answers=tmp_path / "answers.parquet"))
    assert data.answer_features == ("quality", "length")
    x = data.data.features
    assert x is not None
    assert np.isnan(x[data.query_keys.tolist().index(texts[0]), LLMS.index("kind")]).all()
    for task in (0, 1):
        np.testing.assert_allclose(np.nanmean(x[data.data.tasks == task, :, 0], axis=(0, 1)), 0, atol=1e-6)
    assert np.nanstd(x[..., 0]) == pytest.approx(1, abs=1e-3)
    assert np.nanmax(np.abs(x)) <= 3.0
    assert np.nanmean(data.expected.quality) == pytest.approx(table["quality"].to_numpy().mean(), abs=0.02)


def test_attributes_of_users(tmp_path):
    files = write_files(tmp_path, users=True)
    told: list[str] = []
    n = N_USERS + 1
    rewrite(
        tmp_path / "users.parquet",
        mail=[f"{i}@example.org" for i in range(n)],
        joined=pa.array(np.arange(n), pa.timestamp("s")),
        country=["NL"] * n,
    )
    data = read(files, tell=told.append)
    assert data.attributes is not None
    assert [a.name for a in data.attributes.attributes] == ["age", "plan"]
    assert [t.partition(": ")[2] for t in told] == [
        "column 'mail' is left out: 41 different words, as ids or names have",
        "column 'joined' is left out: a date or a time",
        "column 'country' is left out: all values are the same",
    ]
    x = data.data.user_features
    assert x is not None
    assert x.shape == (n, 4)
    assert x[:, 0].mean() == pytest.approx(0, abs=1e-6)
    assert x[:, 0].std() == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(x[4, 1:], [0, 1, 0])
    np.testing.assert_allclose(data.attributes.encode({"age": 30.0, "plan": "new"})[1:], 0)


def test_users_of_the_graph_are_kept_without_events(tmp_path):
    data = read(write_files(tmp_path, stores=True), top_k=3)
    keys = data.user_keys.to_pylist()
    row, links = keys.index("u99"), data.data.links
    assert links is not None
    assert (data.data.choices.users != row).all()
    graph = user_graph()
    node = int(graph.ids(["u99"], "user")[0])
    neighbours = graph.indices[graph.indptr[node] : graph.indptr[node + 1]]
    wanted = dict(zip(graph.keys(neighbours), graph.weights(node), strict=True))
    own = links.interactions[[row]]
    names = data.item_keys.to_pylist()
    found = {names[i]: w for i, w in zip(own.indices, own.data, strict=True)}
    assert found == pytest.approx(wanted, rel=1e-5)


def test_near_users_are_the_best_of_the_fingerprints(tmp_path):
    files = write_files(tmp_path, stores=True)
    data = read(files, top_k=3)
    graph = user_graph()
    from ppr.fingerprints import FingerprintStore

    store = FingerprintStore.open(files.fingerprints, graph=graph)
    keys, links = data.user_keys.to_pylist(), data.data.links
    for key in ("u00", "u99"):
        ids, scores, _ = store.row(int(graph.ids([key], "user")[0]))
        kinds = graph.kind_ids[ids]
        names = graph.keys(ids)
        best = [(n, s) for n, s, k in zip(names, scores, kinds) if k == 0 and n != key][:3]
        row = links.near[[keys.index(key)]]
        found = {keys[i]: s for i, s in zip(row.indices, row.data)}
        assert found == pytest.approx(dict(best), rel=1e-6)
        assert links.near_items[[keys.index(key)]].nnz == 3


def test_the_example_market_loads_as_it_is(tmp_path):
    market = write_market(tmp_path / "m", sizes=MarketSizes(n_users=40, n_items=24, n_interactions=200))
    data = read(
        RouterFiles(
            events=market / "llm_choices.parquet",
            llms=market / "llms.parquet",
            users=market / "users.parquet",
        )
    )
    assert (data.data.n_users, len(data.catalogue), len(data.tasks.names)) == (40, 6, 6)
    assert np.isfinite(data.expected.cost_usd).all()
    assert data.attributes is None


def test_the_order_of_rows_makes_no_difference(files):
    offered = [sorted({llm, LLMS[i % 3]}) for i, llm in enumerate(events_table()["llm"].to_pylist())]
    rewrite(files.events, offered=pa.array(offered), reward=np.random.default_rng(1).random(len(offered)))
    one = read(files)
    table = pq.read_table(files.events)
    pq.write_table(table.take(np.random.default_rng(0).permutation(table.num_rows)), files.events)
    other = read(files)
    for name in ("users", "queries", "llms", "offered"):
        np.testing.assert_array_equal(getattr(one.data.choices, name), getattr(other.data.choices, name))
    np.testing.assert_array_equal(one.expected.quality, other.expected.quality)


SECONDS = 1_736_122_901.0


@pytest.mark.parametrize(
    "text",
    [
        "2025-01-06 00:21:41",
        "2025-01-06T00:21:41Z",
        "2025-01-06 00:21:41+00:00",
        "2025-01-06T09:21:41+09:00",
        "2025-01-06 00:21:41.000000000",
        "1736122901",
    ],
)
def test_times_in_text(files, tmp_path, text):
    path = in_csv(files, tmp_path, "timestamp", [text, "", f" {text} "])
    np.testing.assert_array_equal(read_events(path, LLMS).timestamps, [SECONDS, np.nan, SECONDS])


@pytest.mark.parametrize(
    ("kind", "per_second"),
    [
        *((pa.timestamp(unit), n) for unit, n in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9))),
        (pa.timestamp("ns", "Asia/Tokyo"), 10**9),
    ],
)
def test_times_in_parquet(files, kind, per_second):
    ticks = np.full(N_USERS * N_EVENTS, int(SECONDS) * per_second + (per_second > 10**6))
    rewrite(files.events, timestamp=pa.array(ticks).cast(kind))
    times = read_events(files.events, LLMS).timestamps
    np.testing.assert_allclose(times, SECONDS, rtol=0, atol=1e-6)
    rewrite(files.events, timestamp=pa.array(["2025-01-06T00:21:41Z"] * ticks.size))
    assert (read_events(files.events, LLMS).timestamps == SECONDS).all()


def in_csv(files: RouterFiles, folder: Path, name: str, cells: list[str]) -> Path:
    """First events as CSV, with these cells in a column."""
    table = events_table().slice(0, len(cells))
    if name in table.column_names:
        table = table.drop_columns(name)
    pa.csv.write_csv(table.append_column(name, pa.array(cells)), folder / "events.csv")
    return folder / "events.csv"


def test_users_of_the_events_that_the_graph_does_not_know(tmp_path):
    files, told = write_files(tmp_path, stores=True), []
    with_cell(files.events, "user", 0, "stranger")
    read(files, tell=told.append)
    assert told == [f"{files.graph}: 1 of {N_USERS + 1} users of the events are not in the graph"]
    rewrite(files.events, user=[f"x{i}" for i in range(N_USERS * N_EVENTS)])
    with pytest.raises(DataError, match=r"graph: no user of the events is in the graph \(the first is 'x0'"):
        read(files)


# What is refused


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        (
            "timestamp",
            ["2025-01-06", "yesterday"],
            "row 2: 'timestamp' must be an ISO 8601 time, with a zone",
        ),
        ("timestamp", ["2025-01-06T00:00:00Z", "2025-01-06T00:00:00"], "row 2: 'timestamp' must be an ISO"),
        ("cost_usd", ["1", "", "1_000"], "row 3: 'cost_usd' must be a finite number .got '1_000'"),
        ("cost_usd", ["\u0661\u0662", "1"], "row 1: 'cost_usd' must be a finite number"),
        ("cost_usd", ["1", "-1"], "row 2: 'cost_usd' must be at least 0 .got '-1'"),
        ("reward", ["1", "-1", "-1e39"], "row 3: 'reward' must be within what float32 holds .got '-1e39'"),
    ],
)
def test_a_wrong_cell_of_text_is_named(files, tmp_path, column, cells, message):
    with pytest.raises(DataError, match=f"events.csv: {message}"):
        read_events(in_csv(files, tmp_path, column, cells), LLMS)


def test_too_large_integers_are_refused(files):
    users = np.arange(N_USERS * N_EVENTS, dtype=np.uint64)
    rewrite(files.events, user=users)
    assert len(read_events(files.events, LLMS).user_keys) == users.size
    users[4] = 2**63
    rewrite(files.events, user=users)
    with pytest.raises(DataError, match=r"row 5: 'user' must be below 2\*\*63 \(got '9223372036854775808'"):
        read_events(files.events, LLMS)


@pytest.mark.parametrize("text", ["", "[]", '{"format": "fairpath-gr', "{}"])
def test_a_damaged_manifest_of_a_store(tmp_path, text):
    files = write_files(tmp_path, stores=True)
    assert files.graph is not None
    (files.graph / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest.json: must be a JSON object with a 'checksum'"):
        files.checksums()


@pytest.mark.parametrize("name", ["text", "task", "embedding"])
def test_queries_given_twice_must_agree(files, tmp_path, name):
    texts = sorted(set(events_table()["query"].to_pylist()))
    columns: dict[str, list] = {
        "id": [*texts, texts[1]],
        "text": [*texts, texts[1]],
        "task": ["a"] * (len(texts) + 1),
        "embedding": [[float(i), 1.0] for i in (*range(len(texts)), 1)],
    }
    pq.write_table(pa.table(columns), tmp_path / "queries.parquet")
    assert read(replace(files, queries=tmp_path / "queries.parquet")).tasks.names == ("a",)
    columns[name][-1] = [9.0, 9.0] if name == "embedding" else "other"
    pq.write_table(pa.table(columns), tmp_path / "queries.parquet")
    message = f"row {len(texts) + 1}: query '{texts[1]}' was given before with another '{name}'"
    with pytest.raises(DataError, match=message):
        read(replace(files, queries=tmp_path / "queries.parquet"))


def test_negative_latency_of_an_answer(files, tmp_path):
    query = events_table()["query"][0].as_py()
    table = pa.table({"query": [query] * 2, "llm": ["kind"] * 2, "quality": [-1, 1], "latency_ms": [5, -5]})
    pq.write_table(table, tmp_path / "answers.parquet")
    with pytest.raises(DataError, match=r"answers.parquet: row 2: 'latency_ms' must be at least 0"):
        read(replace(files, answers=tmp_path / "answers.parquet"))


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("llm", 6, "gpt-0", "row 7: unknown LLM 'gpt-0'; there are brief, kind"),
        ("user", 2, None, "row 3: 'user' must not be null or empty"),
        ("query", 2, "", "row 3: 'query' must not be null or empty"),
        ("cost_usd", 9, float("nan"), "row 10: 'cost_usd' must be a finite number"),
        ("cost_usd", 9, float("inf"), "row 10: 'cost_usd' must be a finite number"),
        ("thumbs", 1, 4, "row 2: 'thumbs' must be -1, 0 or 1"),
    ],
)
def test_a_wrong_cell_is_named(files, tmp_path, column, row, value, message):
    with_cell(files.events, column, row, value)
    with pytest.raises(DataError, match=f"events.parquet: {message}"):
        read_events(files.events, LLMS)


def test_a_wrong_cell_of_a_later_piece_is_named(files, monkeypatch):
    with_cell(files.events, "llm", 333, "gpt-0")
    pq.write_table(pq.read_table(files.events), files.events, row_group_size=50)
    monkeypatch.setattr(columns, "PIECE_BYTES", 1)
    with pytest.raises(DataError, match="row 334: unknown LLM"):
        read_events(files.events, LLMS)


def test_nan_rewards_are_refused(files):
    rewrite(files.events, reward=[float("nan")] * (N_USERS * N_EVENTS))
    with pytest.raises(DataError, match="row 1: 'reward' must be a finite number"):
        read(files)


@pytest.mark.parametrize(
    ("offered", "message"),
    [
        (["kind", "gpt-0"], "row 1: 'offered' holds an unknown LLM 'gpt-0'"),
        (["unused-price"], "row 1: 'offered' must hold the LLM"),
        (["kind", None], r"row 1: 'offered' must hold names only \(got a null\)"),
        ([{"name": "kind"}], "column 'offered' must hold lists of names"),
    ],
)
def test_wrong_offers_are_refused(files, offered, message):
    rewrite(files.events, offered=pa.array([offered] * (N_USERS * N_EVENTS)))
    with pytest.raises(DataError, match=message):
        read_events(files.events, LLMS)


def test_missing_columns_and_files(files, tmp_path):
    rewrite(files.events, llm=None)
    with pytest.raises(
        MissingDataError, match="a column of 'llm' is needed, called llm or model or llm_name"
    ):
        read(files)
    with pytest.raises(MissingDataError, match="no such file"):
        read_events(tmp_path / "none.parquet", LLMS)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_events(tmp_path / "broken.parquet", LLMS)


def test_extra_columns_are_said(files):
    told: list[str] = []
    rewrite(files.events, mood=["good"] * (N_USERS * N_EVENTS))
    read(files, tell=told.append)
    assert told == [f"{files.events}: columns not used: mood"]


def test_wrong_llms(files):
    rewrite(files.llms, output_usd_per_mtok=[0.1, -2.0, None])
    with pytest.raises(DataError, match=r"llms.parquet: LLM 'kind': 'output_usd_per_mtok'"):
        read_llms(files.llms)
    rewrite(files.llms, name=["a", "a", "b"], output_usd_per_mtok=None)
    with pytest.raises(DataError, match=r"llms.parquet: .*'a'"):
        read_llms(files.llms)


def test_all_thumbs_down(files):
    rewrite(files.events, thumbs=np.full(N_USERS * N_EVENTS, -1, np.int8))
    with pytest.raises(DataError, match="no event is a choice"):
        read(files)


def test_unknown_queries_and_answers(files, tmp_path):
    pq.write_table(pa.table({"id": ["x"], "text": ["y"]}), tmp_path / "q.parquet")
    with pytest.raises(DataError, match=r"q.parquet: query 'code about topic 0' of the events is not there"):
        read(replace(files, queries=tmp_path / "q.parquet"))
    pq.write_table(pa.table({"query": ["x"], "llm": ["kind"], "quality": [1.0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: no answer is to a query of the events"):
        read(replace(files, answers=tmp_path / "a.parquet"))


def test_graph_and_fingerprints_that_do_not_belong_together(tmp_path):
    files = write_files(tmp_path, stores=True)
    other = user_graph()
    changed = type(other).from_arrays(
        other.indptr, other.indices, kind_ids=other.kind_ids, kinds=other.kinds, keys=other.nodes.keys
    )
    fingerprints_of(changed, tmp_path / "others")
    with pytest.raises(BundleError, match="computed from another graph"):
        read(replace(files, fingerprints=tmp_path / "others"))
    with pytest.raises(ParameterError, match="'fingerprints' must come with the 'graph'"):
        replace(files, graph=None)


def test_checksums_tell_inputs_apart(tmp_path):
    files = write_files(tmp_path, stores=True)
    before = files.checksums()
    assert before.keys() == {"events", "llms", "graph", "fingerprints"}
    with_cell(files.events, "cost_usd", 0, 9.0)
    after = files.checksums()
    assert {name for name in before if before[name] != after[name]} == {"events"}
    with pytest.raises(MissingDataError, match="no such store"):
        replace(files, graph=tmp_path / "none").checksums()
