"""Parts, sizes, the choice of the engine, and the files between rounds."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppr.blocks import expected_moves
from ppr.errors import MessagesError, ParameterError, ResourceError
from ppr.graph import Graph
from ppr.params import FingerprintParams
from ppr.partitioned import Choice, Sizes, choose, compile_kernels, graph_bytes, plan_sizes
from ppr.partitioned.exchange import ExchangeWriter, Segment, ascending, merged, segments_of
from ppr.partitioned.plan import PartArrays, Parts, plan_parts
from ppr.partitioned.rounds import run_rounds
from ppr.partitioned.stepping import by_part
from ppr.partitioned.task import Batch, Receipt, RoundTask
from tests.oracles.random_graphs import random_graph


def holders(parts: Parts, graph: Graph, node: int) -> list[int]:
    """Parts with a piece of a node's row, by looking at every edge; else where the row would begin."""
    row = range(int(graph.indptr[node]), int(graph.indptr[node + 1]))
    held = [
        part for part in range(len(parts)) if set(row) & set(range(*parts.cuts[part : part + 2].tolist()))
    ]
    (owner,) = [p for p in range(len(parts)) if parts.first_nodes[p] <= node < parts.first_nodes[p + 1]]
    return held if row else [owner]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("cut_share", [0.0, 0.25])
@pytest.mark.parametrize("n_parts", [1, 2, 5, 13, 200])
def test_parts_hold_every_edge_once(n_parts: int, cut_share: float, weighted: bool) -> None:
    graph = random_graph(3, n_nodes=40, weighted=weighted)
    parts = plan_parts(graph, n_parts, cut_share=cut_share)
    assert parts.cuts.tolist() == sorted(parts.cuts.tolist())
    assert (parts.cuts[0], parts.cuts[-1], parts.first_nodes[0], parts.first_nodes[-1]) == (
        0, graph.n_edges, 0, graph.n_nodes,
    )  # fmt: skip
    assert 1 <= len(parts) <= n_parts
    nodes = np.arange(graph.n_nodes, dtype=np.int32)
    messages = (np.zeros(nodes.size, np.uint32), nodes, np.ones(nodes.size, np.int64))
    sent: dict[int, list[int]] = {node: [] for node in nodes.tolist()}
    for part, records in by_part(parts, messages):
        for node in records[1].tolist():
            sent[node].append(part)
    for node in nodes.tolist():
        assert sent[node] == holders(parts, graph, node), node
    for part in range(len(parts)):
        arrays = PartArrays.load(graph, parts, part)
        indptr, indices, cumulative, least, base, before, whole = arrays.kernel
        assert indices.tolist() == graph.indices[base : parts.cuts[part + 1]].tolist()
        assert indptr.tolist() == graph.indptr[least : arrays.end + 1].tolist()
        assert arrays.first_own == parts.first_nodes[part]
        cut = graph.indptr[arrays.first_own] > base > graph.indptr[arrays.first_own - 1] if part else False
        if graph.cumulative is not None:
            assert cumulative.tolist() == graph.cumulative[base : parts.cuts[part + 1]].tolist()
            assert before == (graph.cumulative[base - 1] if cut else 0)
            end = int(parts.cuts[part + 1])
            row = int(np.searchsorted(graph.indptr, end, side="right")) - 1
            inside = end < graph.n_edges and graph.indptr[row] < end
            assert whole == (graph.cumulative[graph.indptr[row + 1] - 1] if inside else 0)
    assert Parts.from_json(parts.to_json()).to_json() == parts.to_json()


def hub_graph(n_leaves: int) -> Graph:
    """Node 0 leads to all others, and all others to it; without the checks that would take all the time."""
    n_nodes = n_leaves + 1
    return Graph(
        indptr=np.concatenate([[0], np.arange(n_leaves, 2 * n_leaves + 1)]).astype(np.int64),
        indices=np.concatenate([np.arange(1, n_nodes), np.zeros(n_leaves)]).astype(np.int32),
        cumulative=None,
        strength=np.empty(n_nodes),
        kind_ids=np.zeros(n_nodes, np.uint8),
        kinds=("node",),
        directed=True,
        checksum="",
    )


def test_parts_are_about_equal_and_small_rows_stay_whole() -> None:
    graph = random_graph(3, n_nodes=400, degree=8)
    parts = plan_parts(graph, 6)
    sizes = [4 * int(edges) for edges in np.diff(parts.cuts)] + 9 * np.diff(parts.first_nodes)
    assert max(sizes) < 1.3 * graph_bytes(graph) / 6
    inner = parts.cuts[1:-1]
    hub = slice(*graph.indptr[:2].tolist())
    assert all(cut in graph.indptr or hub.start < cut < hub.stop for cut in inner.tolist())
    graph = hub_graph(10_000)
    parts = plan_parts(graph, 8)
    assert (len(parts), parts.until[0]) == (8, 1)
    assert max(np.diff(parts.cuts)) * 4 < 1.1 * graph_bytes(graph) / 8
    with pytest.raises(ParameterError, match=r"'n_parts' must be positive \(got 0\)"):
        plan_parts(graph, 0)


def test_memory_of_a_task_is_bounded_by_its_part(tmp_path: Path) -> None:
    """A hub with 10 million edges: nothing as long as its row is made."""
    graph, n_parts, chunk = hub_graph(10_000_000), 16, 1 << 16
    parts = plan_parts(graph, n_parts)
    assert parts.until[0] == 3
    part_bytes = graph_bytes(graph) / n_parts
    for part in range(len(parts)):
        kernel = PartArrays.load(graph, parts, part).kernel
        assert sum(array.nbytes for array in kernel[:3]) < 1.1 * part_bytes
    np.save(tmp_path / "sources.npy", np.arange(0, 1000, dtype=np.int32))
    params = FingerprintParams(n_walks=500, top_k=10)
    batch, peaks, sent = Batch(0, (0, 1000), 0), [], []
    for number in range(3):
        (tmp_path / f"round-{number:06d}").mkdir()
        task = RoundTask(str(tmp_path), number, params, parts, chunk, (batch,), {}, 0, 12)
        tracemalloc.start()
        receipts = [task.run(graph, part) for part in range(len(parts))]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sent.append(sum(receipt.sent[0] for receipt in receipts))
    # From the leaves all mass comes to the hub, which splits that of each source into its packets.
    assert sent[1] > 300_000 > sent[0]
    assert max(peaks) < min(part_bytes, 200 * chunk + (8 << 20))


@pytest.mark.parametrize(
    "params",
    [FingerprintParams(n_walks=20, restart_prob=0.02, top_k=10), FingerprintParams(n_walks=1000, top_k=None)],
)
def test_memory_of_a_whole_run_is_bounded(tmp_path: Path, params: FingerprintParams) -> None:
    """Also where mass of many rounds is read at once, ranked and merged."""
    compile_kernels(tmp_path / "warm")  # what numba holds does not count
    graph = random_graph(2, n_nodes=1500, degree=6)
    allowed = 6_600_000
    sizes = plan_sizes(graph, params, memory_bytes=allowed, slots=1, n_parts=2)
    peaks: list[int] = []

    def execute(task: RoundTask) -> list[Receipt]:
        receipts = []
        for part in range(len(task.parts)):
            tracemalloc.start()
            receipts.append(task.run(graph, part))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return receipts

    sources = np.arange(400, dtype=np.int32)
    store = run_rounds(graph, tmp_path / "out", params, execute, sizes, sources=sources)
    assert store.moves.sum() > 4 * sizes.chunk_messages * sizes.n_parts
    assert max(peaks) < allowed


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_segments_fall_into_ascending_streams(bounds: list[tuple[int, int]]) -> None:
    segments = [Segment(min(pair), max(pair), 1) for pair in bounds]
    streams = ascending(segments)
    assert [segment for stream in streams for segment in stream] == segments
    for stream in streams:
        assert all(a.last <= b.first for a, b in itertools.pairwise(stream))
    for one, other in itertools.pairwise(streams):
        assert one[-1].last > other[0].first


def test_sizes_follow_from_memory() -> None:
    graph, params = hub_graph(1_000_000), FingerprintParams(n_walks=3000)
    assert plan_sizes(graph, params, memory_bytes=1 << 30, slots=2).n_parts == 2
    small = plan_sizes(graph, params, memory_bytes=8_000_000, slots=2)
    assert small.n_parts == np.ceil(graph_bytes(graph) / 4_000_000)
    assert small.chunk_messages == 4_000_000 // 200
    assert small.batch_sources == np.ceil(8 * 20_000 * small.n_parts / 17_000)
    assert plan_sizes(graph, params, memory_bytes=8_000_000, slots=2, n_parts=3, batch_sources=7) == Sizes(
        3, 7, 20_000
    )
    with pytest.raises(ResourceError, match=r"may hold 6553599 bytes of graph .* over parts need 6553600"):
        plan_sizes(graph, params, memory_bytes=6_553_599, slots=2)
    with pytest.raises(ParameterError, match=r"'batch_sources' must be positive \(got 0\)"):
        plan_sizes(graph, params, memory_bytes=1 << 30, slots=2, batch_sources=0)
    assert expected_moves(FingerprintParams(n_walks=100, restart_prob=0.5, max_steps=2)) == 75


@pytest.mark.parametrize(
    ("memory", "wanted", "partitioned", "reason"),
    [
        (None, "auto", False, "the graph's 17.0 MB are within 60% of the 50.0 MB of a worker's machine"),
        (10_000_000, "auto", True, "the graph's 17.0 MB are more than the 10.0 MB that a worker may hold"),
        (3_000_000_000, "auto", False, "the graph's 17.0 MB are within the 3.0 GB that a worker may hold"),
        (None, "always", True, "asked for: 'partitioned' is 'always'"),
        (6_553_600, "never", False, "asked for: 'partitioned' is 'never'"),
        (
            17_000_008,
            "auto",
            True,
            "the graph's 17,000,009 bytes are more than the 17,000,008 bytes that a worker may hold",
        ),
        (17_000_009, "auto", False, "the graph's 17.0 MB are within the 17.0 MB that a worker may hold"),
    ],
)
def test_choice(memory: int | None, wanted: str, partitioned: bool, reason: str) -> None:
    choice = choose(
        hub_graph(1_000_000),
        machine_bytes=50_000_000,
        slots_per_machine=2,
        slots=6,
        worker_memory=memory,
        partitioned=wanted,  # type: ignore[arg-type]
    )
    assert choice == Choice(partitioned, reason, 6, memory or 12_500_000)


def test_choice_tells_small_sizes_and_refuses_too_small_ones() -> None:
    about: dict[str, int] = {"machine_bytes": 50_000_000, "slots_per_machine": 2, "slots": 6}
    small = hub_graph(10)
    assert choose(small, **about, worker_memory=6_553_600).reason == (
        "the graph's 179 bytes are within the 6.6 MB that a worker may hold"
    )
    assert choose(hub_graph(500), **about).reason.startswith("the graph's 8.5 kB are within 60%")
    for partitioned in ("auto", "always", "never"):
        with pytest.raises(
            ParameterError, match=r"'worker_memory' must be at least 6553600 .*\(got 6553599\)"
        ):
            choose(small, **about, worker_memory=6_553_599, partitioned=partitioned)  # type: ignore[arg-type]


records_of = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 99), st.integers(-5, 1 << 62)), max_size=25
)


@given(
    streams=st.lists(st.lists(records_of, max_size=4), max_size=5), n_records=st.sampled_from([1, 7, 1000])
)
@settings(max_examples=60)
def test_merged_streams_are_sorted_and_whole(
    streams: list[list[list[tuple[int, int, int]]]], n_records: int
) -> None:
    """Against a stable sort; no position comes in two chunks."""
    segments, everything = [], []
    for stream in streams:
        rows = sorted((row for part in stream for row in part), key=lambda row: row[0])
        everything += rows
        sizes = np.cumsum([len(part) for part in stream])
        cuts = [rows[start:stop] for start, stop in zip([0, *sizes], sizes, strict=False)]
        columns = [np.array(part, np.int64).T for part in cuts if part]
        segments.append(
            [Segment.of((a.astype(np.uint32), b.astype(np.int32), c.copy())) for a, b, c in columns]
        )
    chunks = list(merged(segments, n_records))
    got = [tuple(row) for chunk in chunks for row in zip(*(column.tolist() for column in chunk), strict=True)]
    assert got == sorted(everything, key=lambda row: row[0])
    positions = [set(chunk[0].tolist()) for chunk in chunks]
    assert sum(map(len, positions)) == len({row[0] for row in everything})


def test_files_give_back_what_is_under_a_key(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written: dict[int, list[list[int]]] = {}
    path = tmp_path / "messages"
    with ExchangeWriter(path) as file:
        for key in (3, 1, 3, -7, 1):
            size = int(rng.integers(1, 2000))
            records = (
                np.sort(rng.integers(0, 1 << 32, size)).astype(np.uint32),
                rng.integers(-2, 1 << 31, size).astype(np.int32),
                rng.integers(-(1 << 62), 1 << 62, size),
            )
            file.append(key, records)
            written.setdefault(key, []).append([column.tolist() for column in records])
        file.append(5, (np.empty(0, np.uint32), np.empty(0, np.int32), np.empty(0, np.int64)))
        assert not path.exists()
        assert file.close() == path.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["messages"]
    for key in (3, 1, -7, 5):
        segments = segments_of(path, key)
        assert [[column.tolist() for column in one.read()] for one in segments] == written.get(key, [])
        assert [(one.first, one.last) for one in segments] == [
            (w[0][0], w[0][-1]) for w in written.get(key, [])
        ]
    content = path.read_bytes()
    for place in range(0, len(content), 997):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(MessagesError, match="messages: a file of messages is damaged"):
            [one.read() for key in (3, 1, -7) for one in segments_of(path, key)]


def test_what_is_not_closed_is_not_there(tmp_path: Path) -> None:
    with ExchangeWriter(tmp_path / "messages") as file:
        file.append(0, (np.zeros(1, np.uint32), np.zeros(1, np.int32), np.ones(1, np.int64)))
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())
