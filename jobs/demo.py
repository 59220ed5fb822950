"""Job: everything once, on example data or a person's own: graph, fingerprints, router, report.

What is known at one moment is the training part, what comes after it the test part (without times, a random
fifth of each user's rows). Two fingerprint stores are computed from the training graph: complete rows of all
nodes, which compose to any query, and rows of three-hop walks from the users, which rank items directly.
Their parameters are fixed, not chosen on the test part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.demo_data import MarketSizes, read_market, write_market
from jobs.demo_files import keep_tables, other_data
from jobs.demo_quality import Quality, TestPart, Truth, echo_quality, planted_quality, ranking_quality
from jobs.demo_report import Shown, build_report, show_users
from jobs.evaluate import most_popular
from jobs.interactions import read_interactions
from jobs.progress import show_progress
from jobs.report import check_page, write_report
from jobs.splits import split_at_random, split_by_time
from ppr.build import build_graph
from ppr.errors import ParameterError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.inputs import EdgeInput
from ppr.params import FingerprintParams
from ppr.recommend import recommend

if TYPE_CHECKING:
    from jobs.demo_router_report import ShownRouter

K = 20
POPULARITY_DISCOUNT = 0.1
BLOCK_MOVES = 2_000_000  # small blocks, so that even a small graph has several
COMPLETE = FingerprintParams(restart_prob=0.3)
SHORT = FingerprintParams(max_steps=3, target_kinds=("item",), exclude_neighbors=True)

TRAIN = "train.parquet"
TEST = "test.parquet"
RELEASES = "releases"

POPULARITY = "popularity"
COMPOSED = "Fairpath, composed rows"
THREE_HOPS = "Fairpath, three-hop walks"
PLANTED = "planted truth"

Echo = Callable[[str], None]
Compute = Callable[[Path, FingerprintParams, "npt.NDArray[np.int32] | None"], FingerprintStore]
Ranking = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Data:
    """Training and test parts, and what is known about them."""

    origin: str
    split: str
    train: pa.Table
    test: pa.Table
    truth: Truth | None
    groups: Mapping[str, str]  # item to category
    choices: tuple[Path, Path] | None  # of LLMs: events, and the LLMs


def run_demo(
    *,
    out: Path,
    interactions: Path | None = None,
    columns: Mapping[str, Any] | None = None,
    events: Path | None = None,
    llms: Path | None = None,
    engine: str = "spark",
    spark: Mapping[str, Any] | None = None,
    seed: int = 0,
    sizes: MarketSizes | None = None,
    echo: Echo = print,
) -> dict[str, Any]:
    """Run everything once; what an earlier run with the same arguments finished is kept.

    Parameters
    ----------
    out
        Folder for data, stores and ``report.html``.
    interactions
        A person's own file, in any format that ``build-graph`` takes; None generates the example market.
    columns
        How to read that file, as for :func:`jobs.interactions.read_interactions`.
    events, llms
        Beside that file, a person's own choices of LLMs and the LLMs, as ``train-router`` reads them; None
        leaves the router out.
    engine
        ``spark`` or ``local``.
    spark
        Session to use: ``master``, ``remote``, ``conf`` of :func:`jobs.spark_session.spark_session`.
    seed
        Seed of the market, the split and the draws.
    sizes
        Sizes of the market.
    echo
        Receives the lines meant for a person.

    Returns
    -------
    dict
        Counts, checksums, quality by method, and the path of the report; JSON-able.

    Raises
    ------
    ParameterError
        ``engine`` is unknown, a size or the seed breaks its rule, or one of ``interactions``, ``events`` and
        ``llms`` is missing that another needs.
    OutputExistsError
        ``out`` holds the demo of other data or sizes, or a ``report.html`` of somebody else.
    DataError
        The interactions or events break a rule, or cannot be split.
    ResourceError
        Spark does not start, or the disk is full.
    """
    if engine not in ("spark", "local"):
        raise ParameterError(f"'engine' must be spark or local (got {engine!r})")
    if (events is None) != (llms is None) or (events is not None and interactions is None):
        raise ParameterError("'events' and 'llms' must be given together, and with 'interactions'")
    check_page(out / "report.html")
    own = None if events is None or llms is None else (events, llms)
    data = _load(out, interactions, columns, own, seed, sizes or MarketSizes())
    echo(f"data          {data.origin}")
    graph = _build(out, data)
    kinds = ", ".join(f"{len(graph.nodes_of_kind(kind)):,} {kind}s" for kind in graph.kinds)
    echo(f"graph         {kinds}, {graph.n_edges:,} edges")
    test = TestPart.from_table(graph, data.test)
    (complete, short), how = _fingerprints(graph, out, engine, spark or {}, seed, echo)
    router = _route(out, data, graph, complete, seed, echo)
    best = recommend(graph, short, test.users, K, popularity_discount=POPULARITY_DISCOUNT)
    quality = _quality(graph, complete, best, data, test)
    echo_quality(f"Recommendations on {data.split}, {len(test.users):,} users", quality, echo)
    shown = show_users(graph, complete, test, best, data.groups, seed)
    _echo_users(shown, echo)
    report = build_report(
        graph,
        (complete, short),
        quality,
        shown,
        {"data": data.origin, "split": data.split, "engine": engine, "how": how},
    )
    found: dict[str, Any] = {}
    if router is not None:
        router.tell(echo)
        report = replace(report, router=router.report(), training=router.training())
        found["router"] = router.to_json()
    path = write_report(out / "report.html", report)
    echo(f"\nreport        {path}")
    if router is not None:
        found["release"] = _publish(out, graph, complete, echo)
    return {
        "graph": {"nodes": graph.n_nodes, "edges": graph.n_edges, "checksum": graph.checksum},
        "fingerprints": {store.path.name: store.checksum for store in (complete, short)},
        "users": len(test.users),
        "quality": quality,
        "recommendations": {card.user: [item.key for item in card.recommended] for card in shown.cards},
        **found,
        "report": str(path),
    }


def _load(
    out: Path,
    interactions: Path | None,
    columns: Mapping[str, Any] | None,
    choices: tuple[Path, Path] | None,
    seed: int,
    sizes: MarketSizes,
) -> Data:
    """Generate or read the interactions, and split them."""
    if interactions is None:
        if (out / TRAIN).exists() and not (out / "market").exists():
            raise other_data(out / TRAIN)
        market = read_market(write_market(out / "market", seed, sizes))
        table, truth = market.interactions, market.truth
        origin = f"a generated market with {table.num_rows:,} interactions of invented users (seed {seed})"
        groups = dict(zip(*(market.items[name].to_pylist() for name in ("item", "category")), strict=True))
        choices = (out / "market" / "llm_choices.parquet", out / "market" / "llms.parquet")
    else:
        table, truth, groups = read_interactions(interactions, columns), None, {}
        origin = f"{table.num_rows:,} interactions from {interactions.name}"
    if "timestamp" in table.column_names:
        split = "the last fifth of the time"
        train, test = split_by_time(table)
    else:
        split = "a random fifth of each user's interactions"
        train, test = split_at_random(table, seed=seed)
    return Data(origin, split, train, test, truth, groups, choices)


def _build(out: Path, data: Data) -> Graph:
    """Graph of the training part, which is kept beside it."""
    keep_tables(out, {TRAIN: data.train, TEST: data.test}, made="graph")
    with show_progress(lines=False) as update:
        return build_graph(EdgeInput(out / TRAIN), out / "graph", progress=update)


def _publish(out: Path, graph: Graph, complete: FingerprintStore, echo: Echo) -> str:
    """Publish what a service needs; what was published before is kept."""
    from jobs.demo_router import ROUTER
    from router.publishing import publish

    root = out / RELEASES
    release = publish(root, model=out / ROUTER, graph=graph.path, fingerprints=complete.path)
    echo(f"release       {release.version}; to serve it: fairpath serve {root}")
    return release.version


def _fingerprints(
    graph: Graph, out: Path, engine: str, spark: Mapping[str, Any], seed: int, echo: Echo
) -> tuple[tuple[FingerprintStore, FingerprintStore], str]:
    """Complete rows of all nodes and three-hop rows of the users, and how the complete ones came about."""
    wanted = (("fingerprints", COMPLETE, None), ("three-hop", SHORT, graph.nodes_of_kind("user")))
    if all((out / name).exists() for name, _, _ in wanted):
        engine = "local"  # only checks that they are the same: no reason to start Spark
    stores, notes = [], []
    with _engine(engine, graph, spark) as compute:
        for name, params, sources in wanted:
            kept, started = (out / name).exists(), time.monotonic()
            store = compute(out / name, replace(params, seed=seed), sources)
            seconds = time.monotonic() - started
            notes.append("kept from an earlier run" if kept else f"{seconds:.1f} s with the {engine} engine")
            echo(f"{name:<14}{store.n_sources:,} rows, {int(store.moves.sum()):,} moves, {notes[-1]}")
            stores.append(store)
    return (stores[0], stores[1]), notes[0]


@contextmanager
def _engine(name: str, graph: Graph, spark: Mapping[str, Any]) -> Iterator[Compute]:
    """Give a function that computes a store on the engine asked for."""
    with show_progress(lines=False) as update:

        def progress(done: int, total: int) -> None:
            update("fingerprints, blocks", done, total)

        if name == "local":
            from ppr.local import compute_fingerprints

            yield lambda out, params, sources: compute_fingerprints(
                graph, out, params, sources=sources, progress=progress
            )
            return
        from jobs.spark_session import session_for_a_job

        with session_for_a_job(app_name="fairpath-demo", **spark) as session:
            from ppr.spark import compute_fingerprints_spark

            yield lambda out, params, sources: compute_fingerprints_spark(
                session,
                str(graph.path),
                out,
                params,
                sources=sources,
                progress=progress,
                block_moves=BLOCK_MOVES,
            )


def _route(
    out: Path, data: Data, graph: Graph, complete: FingerprintStore, seed: int, echo: Echo
) -> ShownRouter | None:
    """Router part; None, with a line that says why, where it cannot run."""
    if data.choices is None:
        echo("router        left out: it needs --events and --llms, choices of language models")
        return None
    if missing := [name for name in ("torch", "safetensors") if find_spec(name) is None]:
        echo(
            f"router        left out: {' and '.join(missing)} not installed (pip install 'fairpath[router]')"
        )
        return None
    from jobs.demo_choices import moment_of
    from jobs.demo_router import run_router
    from jobs.demo_router_report import ShownRouter

    events, llms = data.choices
    run = run_router(
        out,
        events=events,
        llms=llms,
        graph=graph,
        fingerprints=complete,
        moment=moment_of(data.test),
        truth=data.truth,
        seed=seed,
        echo=echo,
    )
    return ShownRouter(run, seed)


def _quality(graph: Graph, complete: FingerprintStore, best: Ranking, data: Data, test: TestPart) -> Quality:
    """Metrics by method; with the planted truth, its own and each method's share of it."""
    rankings = {
        POPULARITY: most_popular(graph, test.users, K),
        COMPOSED: recommend(graph, complete, test.users, K, popularity_discount=POPULARITY_DISCOUNT)[0],
        THREE_HOPS: best[0],
    }
    quality = {label: ranking_quality(ranked, test, K) for label, ranked in rankings.items()}
    if data.truth is not None:
        ideal, shares = planted_quality(graph, data.truth, test, rankings, K)
        quality[PLANTED] = ranking_quality(ideal, test, K)
        for label, share in {**shares, PLANTED: 1.0}.items():
            quality[label]["planted share"] = share
    return quality


def _echo_users(shown: Shown, echo: Echo) -> None:
    echo("\nRecommendations (* chosen later)")
    for card in shown.cards:
        echo(f"  {card.user}")
        echo("    had   " + ", ".join(item.key for item in card.history))
        echo("    gets  " + ", ".join(item.key + "*" * item.held_out for item in card.recommended))
