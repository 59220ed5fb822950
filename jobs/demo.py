"""Job: everything once, on example data or a person's own: graph, fingerprints, router, release, report.

What is known at one moment is the training part, what comes after it the test part (without times, a random
fifth of each user's rows). The pipeline makes the graph, its fingerprints, the router and a release of the
training part (:mod:`jobs.demo_pipeline`); what follows judges them by the test part. Two fingerprint stores
are used: the pipeline's complete rows of all nodes, which compose to any query, and rows of three-hop walks
from the users, which rank items directly. Their parameters are fixed, not chosen on the test part.
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

from jobs.demo_choices import moment_of
from jobs.demo_data import MarketSizes, read_market, write_market
from jobs.demo_files import keep_tables, other_data
from jobs.demo_pipeline import NEXT_UNTIL, RELEASES, moment_until, run_pipeline, write_config
from jobs.demo_quality import Quality, TestPart, Truth, echo_quality, planted_quality, ranking_quality
from jobs.demo_report import Shown, build_report, show_users
from jobs.evaluate import most_popular
from jobs.interactions import read_interactions
from jobs.progress import show_progress
from jobs.report import check_page, write_report
from jobs.splits import split_at_random, split_by_time
from ppr.errors import ParameterError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.params import FingerprintParams
from ppr.recommend import recommend

if TYPE_CHECKING:
    from jobs.demo_choices import ChoiceParts
    from jobs.demo_router_report import ShownRouter

K = 20
POPULARITY_DISCOUNT = 0.1
BLOCK_MOVES = 2_000_000  # small blocks, so that even a small graph has several
SHORT = FingerprintParams(max_steps=3, target_kinds=("item",), exclude_neighbors=True)

TRAIN = "train.parquet"
TEST = "test.parquet"
CHOICES = "choices.parquet"
THREE_HOP = "three-hop"
KEPT = "kept from an earlier run"

POPULARITY = "popularity"
COMPOSED = "Fairpath, composed rows"
THREE_HOPS = "Fairpath, three-hop walks"
PLANTED = "planted truth"

Echo = Callable[[str], None]
Compute = Callable[[Path, FingerprintParams, "npt.NDArray[np.int32]"], FingerprintStore]
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
    keep_tables(out, {TRAIN: data.train, TEST: data.test}, made="graph")
    parts = _choices(out, data, seed, echo)
    with _session(engine, out, spark or {}):
        made = run_pipeline(
            out,
            interactions=out / TRAIN,
            choices=None if parts is None or data.choices is None else (out / CHOICES, data.choices[1]),
            until=moment_until(data.test),
            engine=engine,
            spark=spark or {},
            seed=seed,
        )
        graph = Graph.open(out / "graph")
        kinds = ", ".join(f"{len(graph.nodes_of_kind(kind)):,} {kind}s" for kind in graph.kinds)
        echo(f"graph         {kinds}, {graph.n_edges:,} edges")
        how = _how(made["steps"]["fingerprints"], engine)
        complete = FingerprintStore.open(out / "fingerprints", graph=graph)
        _tell_store("fingerprints", complete, how, echo)
        short = _three_hops(graph, out, engine, spark or {}, seed, echo)
    test = TestPart.from_table(graph, data.test)
    router = None if parts is None else _router(out, parts, data, graph, complete, made, seed, echo)
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
    echo(f"pipeline      {made['report']}")
    if data.truth is not None:
        config = write_config(out, engine, seed)
        echo(f"next month    fairpath pipeline --config {config} --until {NEXT_UNTIL}")
    if router is not None:
        found["release"] = made["release"]
        how = f"{made['release']}; to serve it: fairpath serve {out / RELEASES}"
        echo(f"release       {made['summary'] if made['release'] is None else how}")
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


def _choices(out: Path, data: Data, seed: int, echo: Echo) -> ChoiceParts | None:
    """Choices of LLMs before and after the moment; None, with a line that says why, without a router."""
    if data.choices is None:
        echo("router        left out: it needs --events and --llms, choices of language models")
        return None
    if missing := [name for name in ("torch", "safetensors") if find_spec(name) is None]:
        echo(
            f"router        left out: {' and '.join(missing)} not installed (pip install 'fairpath[router]')"
        )
        return None
    from jobs.demo_router import prepare_choices

    events, llms = data.choices
    moment = moment_of(data.test)
    return prepare_choices(out, events=events, llms=llms, moment=moment, truth=data.truth, seed=seed)


def _router(
    out: Path,
    parts: ChoiceParts,
    data: Data,
    graph: Graph,
    complete: FingerprintStore,
    made: Mapping[str, Any],
    seed: int,
    echo: Echo,
) -> ShownRouter:
    """The router that the pipeline trained, judged by what came later."""
    from jobs.demo_router import ROUTER, judge_router
    from jobs.demo_router_report import ShownRouter

    trained = made["steps"]["train"]
    took = KEPT if trained["state"] == "kept" else f"{trained['seconds']:.1f} s"
    echo(f"router        {len(parts.trained):,} choices of {len(parts.llms)} models, {took}")
    run = judge_router(out / ROUTER, parts, graph=graph, fingerprints=complete, truth=data.truth, seed=seed)
    return ShownRouter(run, seed)


@contextmanager
def _session(engine: str, out: Path, spark: Mapping[str, Any]) -> Iterator[None]:
    """One Spark session for all that has to be computed, where there is something and Spark is asked for."""
    if engine == "local" or all((out / name).exists() for name in ("fingerprints", THREE_HOP)):
        yield
        return
    from jobs.spark_session import session_for_a_job

    with session_for_a_job(app_name="fairpath-demo", **spark):
        yield


def _three_hops(
    graph: Graph, out: Path, engine: str, spark: Mapping[str, Any], seed: int, echo: Echo
) -> FingerprintStore:
    """Three-hop rows of the users."""
    kept, started = (out / THREE_HOP).exists(), time.monotonic()
    # Where they are there, it is only checked that they are the same: no reason to start Spark.
    with _engine("local" if kept else engine, graph, spark) as compute:
        store = compute(out / THREE_HOP, replace(SHORT, seed=seed), graph.nodes_of_kind("user"))
    how = {"state": "kept" if kept else "done", "seconds": time.monotonic() - started}
    _tell_store(THREE_HOP, store, _how(how, engine), echo)
    return store


def _how(told: Mapping[str, Any], engine: str) -> str:
    """How a store came about, from what is told of its step."""
    return KEPT if told["state"] == "kept" else f"{told['seconds']:.1f} s with the {engine} engine"


def _tell_store(name: str, store: FingerprintStore, how: str, echo: Echo) -> None:
    echo(f"{name:<14}{store.n_sources:,} rows, {int(store.moves.sum()):,} moves, {how}")


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
