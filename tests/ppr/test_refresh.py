from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ppr.errors import ParameterError, StoreError
from ppr.exact import exact_ppr
from ppr.fingerprints import FingerprintStore
from ppr.fingerprints.writer import ARRAYS
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.recommend import recommend
from ppr.refresh import change_bounds, plan_refresh, refresh_fingerprints, source_kinds
from ppr.refresh.bound import walked_restart_prob
from ppr.verd import Verd
from tests.oracles.changing_graphs import Dense, lineages
from tests.oracles.fingerprint_runs import file_hashes
from tests.oracles.refreshes import (
    FIRST,
    N_NODES,
    NEW,
    OLD,
    PARAMS,
    TOLERANCE,
    check_rows,
    next_graph,
    refresh,
    walk,
)

pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FingerprintStore:
    return walk(OLD)(None, tmp_path_factory.mktemp("old") / "out")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> FingerprintStore:
    return walk(NEW)(None, tmp_path_factory.mktemp("full") / "out")


def test_due_rows_are_those_of_a_full_run_and_others_are_kept(
    tmp_path: Path, store: FingerprintStore
) -> None:
    plan, refreshed = refresh(OLD, store, NEW, tmp_path / "out")
    assert 5 < plan.due.size < N_NODES / 2
    assert refreshed.sources.tolist() == NEW.live.tolist()
    check_rows(plan, refreshed, store)
    refreshed.validate(NEW)
    assert refreshed.manifest["parents"] == {"graph": NEW.checksum, "fingerprints": store.checksum}
    assert refreshed.manifest["parameters"] == {**PARAMS.to_json(), "sources": "all", "tolerance": TOLERANCE}
    assert refreshed.manifest["refresh"] == plan.facts
    assert plan.facts == {
        "rows_changed": plan.rows_changed,
        "over": plan.due.size,
        "recomputed": plan.due.size,
        "largest_bound": refreshed.bounds.max(),
        "mean_bound": pytest.approx(refreshed.bounds.mean()),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@settings(max_examples=25)
@given(
    lineages(length=3),
    st.sampled_from([None, 2]),
    st.sampled_from([(), ("item",)]),
    st.booleans(),
    st.sampled_from([0.1, 0.5, 1.5]),
)
def test_kept_rows_are_within_their_bounds_along_a_lineage(
    tmp_path_factory: pytest.TempPathFactory,
    graphs: list[Graph],
    max_steps: int | None,
    kinds: tuple[str, ...],
    exclude_neighbors: bool,
    tolerance: float,
) -> None:
    """The true row of today against the true one of the day on which the row was computed."""
    folder = tmp_path_factory.mktemp("lineage")
    params = FingerprintParams(
        n_walks=30, top_k=4, max_steps=max_steps, target_kinds=kinds, exclude_neighbors=exclude_neighbors
    )
    stop = walked_restart_prob(params)

    def truth(graph: Graph) -> NDArray[np.float64]:
        """What rows estimate, of all sources, [n, last n]."""
        exact = np.zeros((graph.n_nodes, graphs[-1].n_nodes))
        exact[graph.live, : graph.n_nodes] = exact_ppr(
            graph, graph.live, restart_prob=stop, max_steps=max_steps, tol=1e-14
        )
        if kinds:
            exact[:, graphs[-1].kind_ids == 1] = 0.0
        if exclude_neighbors:
            exact[:, : graph.n_nodes][graph.transition().toarray() > 0] = 0.0
            np.fill_diagonal(exact, 0.0)
        return exact

    store = walk(graphs[0], params)(None, folder / "0") if graphs[0].live.size else None
    estimated = np.zeros((graphs[-1].n_nodes, graphs[-1].n_nodes))
    estimated[: graphs[0].n_nodes] = truth(graphs[0])
    for day, (before, graph) in enumerate(pairwise(graphs), start=1):
        if store is None or not graph.live.size:
            return
        plan, refreshed = refresh(before, store, graph, folder / str(day), tolerance)
        refreshed.validate(graph)
        check_rows(plan, refreshed, store)
        store, now = refreshed, truth(graph)
        estimated[plan.due] = now[plan.due]
        estimated[:, graph.removed] = 0.0  # these entries are left out of kept rows
        moved = np.abs(now - estimated[: graph.n_nodes]).sum(axis=1)
        assert np.all(moved[store.sources] <= store.bounds + 1e-12)
        assert np.all(store.bounds <= tolerance)


def test_bounds_add_up_until_a_row_is_due(tmp_path: Path) -> None:
    dense, graph = FIRST, FIRST.graph()
    store = walk(graph)(None, tmp_path / "0")
    was_kept_then_due = 0
    for day in range(1, 5):
        dense = next_graph(day, dense, n_changes=1)
        later = dense.graph()
        plan, refreshed = refresh(graph, store, later, tmp_path / str(day))
        both = np.intersect1d(store.sources, refreshed.sources)
        before = store.bounds[store.rows(both)]
        after = refreshed.bounds[refreshed.rows(both)]
        due = np.isin(both, plan.due)
        assert np.all(after[~due] >= before[~due])
        was_kept_then_due += np.count_nonzero((before > 0.0) & due)
        graph, store = later, refreshed
    assert was_kept_then_due > 0


def test_a_refresh_changes_nothing_where_nothing_changed(tmp_path: Path, store: FingerprintStore) -> None:
    plan = plan_refresh(OLD, store, OLD, TOLERANCE)

    def compute(sources: NDArray[np.int32], folder: Path) -> FingerprintStore:
        raise AssertionError

    refreshed = refresh_fingerprints(plan, tmp_path / "out", compute)
    assert (plan.rows_changed, plan.due.size) == (0, 0)
    assert not refreshed.bounds.any()
    for name in ARRAYS:
        assert getattr(refreshed, name).tobytes() == getattr(store, name).tobytes()


@pytest.mark.parametrize("tolerance", [0.0, 1e-6])
def test_where_most_are_due_the_store_is_that_of_a_full_run(
    tmp_path: Path, store: FingerprintStore, full: FingerprintStore, tolerance: float
) -> None:
    plan, refreshed = refresh(OLD, store, NEW, tmp_path / "out", tolerance)
    assert plan.full
    assert plan.due.tolist() == NEW.live.tolist()
    assert plan.over > 0.5 * NEW.live.size
    assert file_hashes(refreshed.path) == file_hashes(full.path)
    # And such a store is taken for the result of every refresh.
    assert refresh(OLD, store, NEW, tmp_path / "out", TOLERANCE)[1].checksum == full.checksum


def test_the_bound_ends_where_most_are_over(store: FingerprintStore) -> None:
    """Also where the part of the tolerance that may be lost is too small for a number."""
    steps: list[int] = []
    full = plan_refresh(OLD, store, NEW, 5e-324, progress=steps.append)
    assert full.full
    assert 0.5 * full.sources.size < full.over <= full.sources.size
    assert steps[-1] < 10
    assert not plan_refresh(OLD, store, OLD, 5e-324).due.size


@pytest.mark.parametrize("slack", [0.0, -1.0, np.nan])
def test_a_sum_without_end_is_refused(slack: float) -> None:
    with pytest.raises(ParameterError, match="'slack' must be positive"):
        change_bounds(OLD, np.ones(N_NODES), PARAMS, slack=slack)


def test_tiny_tolerances_keep_what_reaches_no_change(tmp_path: Path) -> None:
    """Fewer than half are over, so that the sum goes to its end."""
    ring = np.arange(40) // 10 * 10 + (np.arange(40) + 1) % 10  # four rings
    before = Graph.from_arrays(np.arange(41), ring)
    ring[5] = 7
    after = Graph.from_arrays(np.arange(41), ring)
    plan = plan_refresh(before, walk(before)(None, tmp_path / "old"), after, 5e-324)
    assert plan.due.tolist() == list(range(10))
    assert not plan.bounds.any()


def test_just_over_half_is_all(store: FingerprintStore) -> None:
    bounds = np.sort(plan_refresh(OLD, store, NEW, 1.99).bounds)
    above, below = (plan_refresh(OLD, store, NEW, bounds[bounds.size // 2 + at]) for at in (-10, 10))
    assert above.full
    assert above.over < above.sources.size
    assert not below.full
    assert below.over == below.due.size


def test_rows_may_be_asked_for(tmp_path: Path, store: FingerprintStore) -> None:
    """A store of some sources keeps those that are left; others are computed where they are asked for."""
    gone = int(NEW.removed[0])
    some = np.unique([gone, 3, 4, 60, 90, 91])
    few = compute_fingerprints(OLD, tmp_path / "few", PARAMS, sources=some)
    plan, refreshed = refresh(OLD, few, NEW, tmp_path / "refreshed", 1.9)
    assert refreshed.sources.tolist() == np.setdiff1d(some, [gone]).tolist()
    check_rows(plan, refreshed, few)
    wanted = np.array([N_NODES, 4, 3, 20, 60, 90], np.int32)
    plan = plan_refresh(OLD, few, NEW, 1.9, sources=wanted)
    assert set(plan.due.tolist()) >= {20, N_NODES}
    refreshed = refresh_fingerprints(plan, tmp_path / "asked", walk(NEW))
    assert refreshed.sources.tolist() == sorted(wanted.tolist())
    check_rows(plan, refreshed, few)
    refreshed.validate(NEW)


KIND_IDS = np.array([0, 0, 0, 1, 1, 0, 0], np.uint8)  # users 0 to 2, items 3 and 4, users 5 and 6


def ring_of(
    nodes: list[int], kind_ids: NDArray[np.uint8], kinds: tuple[str, ...] = ("user", "item")
) -> Graph:
    """Graph of so many nodes as there are kinds, removed where they are not on the ring."""
    weights = np.zeros((kind_ids.size, kind_ids.size))
    weights[nodes, np.roll(nodes, 1)] = 1.0
    rows, columns = weights.nonzero()
    indptr = np.r_[0, np.cumsum(np.bincount(rows, minlength=kind_ids.size))]
    removed = np.setdiff1d(np.arange(kind_ids.size), nodes).astype(np.int32)
    return Graph.from_arrays(indptr, columns, kind_ids=kind_ids, kinds=kinds, removed=removed)


@pytest.mark.parametrize(
    ("sources", "kinds", "expected"),
    [
        ([0, 1, 2], ("user",), [0, 2, 5, 6]),
        ([3, 4], ("item",), [3, 4]),
        ([0, 1, 2, 3, 4], ("user", "item"), [0, 2, 3, 4, 5, 6, 7]),
        ([0, 1], None, [0]),
        ([0, 2], None, [0, 2]),  # all users of the new graph that the old one has
        ([0, 1, 2, 3], None, [0, 2, 3]),
        ([0, 2, 3, 4], None, [0, 2, 3, 4]),
    ],
)
def test_sources_go_on_where_they_are_all_of_some_kinds(
    tmp_path: Path, sources: list[int], kinds: tuple[str, ...] | None, expected: list[int]
) -> None:
    """User 1 goes, users 5 and 6 come, and a node of a new kind."""
    old = ring_of([0, 1, 2, 3, 4], KIND_IDS[:5])
    new = ring_of([0, 2, 3, 4, 5, 6, 7], np.r_[KIND_IDS, np.uint8(2)], ("user", "item", "tag"))
    store = compute_fingerprints(old, tmp_path / "old", PARAMS, sources=np.array(sources, np.int32))
    assert source_kinds(store, old) == kinds
    _, refreshed = refresh(old, store, new, tmp_path / "new", 1.9)
    assert refreshed.sources.tolist() == expected
    refreshed.validate(new)
    with pytest.raises(StoreError, match="computed from another graph"):
        source_kinds(store, new)


def test_a_list_has_all_once_the_others_are_removed(tmp_path: Path) -> None:
    """The day on which they go changes nothing; from then on, all there are is all."""
    old, less = ring_of([0, 1, 2], KIND_IDS[:3]), ring_of([0, 2, 3, 4], KIND_IDS[:5])
    fewer, more = ring_of([0, 2], KIND_IDS[:5]), ring_of([0, 2, 5], KIND_IDS[:6])
    store = compute_fingerprints(old, tmp_path / "0", PARAMS, sources=np.array([0, 2], np.int32))
    for day, (before, after, expected) in enumerate([(old, less, [0, 2]), (less, fewer, [0, 2])], start=1):
        store = refresh(before, store, after, tmp_path / str(day), 1.9)[1]
        assert store.sources.tolist() == expected
    assert refresh(fewer, store, more, tmp_path / "3", 1.9)[1].sources.tolist() == [0, 2, 5]


def test_none_of_the_sources_is_left(tmp_path: Path) -> None:
    old, new = ring_of([0, 1, 2], KIND_IDS[:3]), ring_of([1, 2], KIND_IDS[:3])
    store = compute_fingerprints(old, tmp_path / "old", PARAMS, sources=np.array([0], np.int32))
    with pytest.raises(StoreError, match=r"the new graph: has none of the sources of .*/old"):
        plan_refresh(old, store, new, TOLERANCE)


def test_who_got_other_neighbours_is_due_where_rows_leave_them_out(tmp_path: Path) -> None:
    weights = np.zeros((30, 30))
    weights[np.arange(30), (np.arange(30) + 1) % 30] = 1e6
    before = Dense(weights.copy(), np.zeros(30, np.uint8)).graph()
    weights[[3, 9], [8, 10]] = 1.0, 5e5  # a rare NEW neighbour of 3, and another weight of an OLD one of 9
    after = Dense(weights, np.zeros(30, np.uint8)).graph()
    for exclude_neighbors, due in ((False, []), (True, [3])):
        params = FingerprintParams(n_walks=50, exclude_neighbors=exclude_neighbors)
        store = walk(before, params)(None, tmp_path / f"old-{exclude_neighbors}")
        plan, refreshed = refresh(before, store, after, tmp_path / f"new-{exclude_neighbors}", 0.01)
        assert plan.due.tolist() == due
        assert 8 not in refreshed.row(3)[0].tolist() or not exclude_neighbors


def test_refreshed_rows_serve_as_others_do(tmp_path: Path, store: FingerprintStore) -> None:
    _, refreshed = refresh(OLD, store, NEW, tmp_path / "out")
    users = NEW.nodes_of_kind("user")
    ids, scores = recommend(NEW, refreshed, users[:5], 4)
    assert np.isfinite(scores).all()
    assert not np.isin(ids, NEW.removed).any()
    exact = exact_ppr(NEW, users[:5], restart_prob=PARAMS.restart_prob)
    verd = Verd(NEW, refreshed, steps=3)
    for user, truth in zip(users[:5].tolist(), exact, strict=True):
        nodes, values = verd.answer(user)
        answer = np.zeros(NEW.n_nodes)
        answer[nodes] = values
        # What a row may be off by fades with each step; rows of 15 entries leave out the rest.
        assert np.abs(answer - truth / truth.sum()).sum() < TOLERANCE * 0.85**3 + 0.5
