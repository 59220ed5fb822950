"""The program ``fairpath``: one subcommand per job.

A command resolves its settings, runs one job, and prints the job's result as JSON on standard output;
``demo`` alone prints for people, unless asked for JSON. Logs and progress go to standard error. Jobs are
imported when they run, so that ``--help`` is quick and a command needs only the packages that it uses.
:mod:`jobs.errors` lists the exit codes.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer

from jobs import options as opt
from jobs.change_graph_cli import change_graph
from jobs.command import engine_for, engine_options, print_result, settings_for, table_options
from jobs.errors import ConfigurationError, exit_code
from jobs.fairqueue.cli import app as fairqueue
from jobs.fairqueue.server.cli import spark_server
from jobs.logs import log_failure, log_interrupt, tidy_termination
from jobs.pipeline_cli import pipeline
from jobs.publish_cli import publish
from jobs.refresh_cli import refresh
from jobs.releases_cli import releases
from jobs.router_cli import evaluate_router, train_router
from jobs.serve_cli import openapi, serve
from jobs.serve_store_cli import feedback, keys
from jobs.settings_layers import redact
from jobs.users_cli import users

_DEMO_SECTIONS = ("demo", "graph", "spark", "log")

app = typer.Typer(
    help="Who and what is near to whom: personalised PageRank fingerprints of every node of a graph.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(fairqueue, name="fairqueue")
app.add_typer(keys, name="keys")
app.add_typer(feedback, name="feedback")
app.add_typer(users, name="users")
app.add_typer(releases, name="releases")


@app.command("build-graph")
def build_graph(
    inputs: opt.InputPaths,
    out: opt.OutPath,
    nodes: opt.Nodes = None,
    previous: opt.PreviousGraph = None,
    src: opt.Src = None,
    dst: opt.Dst = None,
    weight: opt.Weight = None,
    delimiter: opt.Delimiter = None,
    header: opt.Header = None,
    src_kind: opt.SrcKind = None,
    dst_kind: opt.DstKind = None,
    directed: opt.Directed = None,
    engine: opt.BuildEngine = None,
    master: opt.Master = None,
    remote: opt.Remote = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Build a graph store from edges or interactions."""
    given = {
        "graph.engine": engine_for(engine, master, remote, None),
        **table_options(src, dst, weight, delimiter, header, src_kind, dst_kind, directed),
        "spark.master": master,
        "spark.remote": remote,
        "log.level": log_level,
        "log.format": log_format,
    }
    arguments = {"inputs": inputs, "out": out, "nodes": nodes, "previous": previous}
    settings = settings_for(given, config, assign, dry_run, **arguments)
    from jobs.build_graph import run

    print_result(run(inputs, out, settings.graph, nodes=nodes, previous=previous, spark=settings.spark))


@app.command()
def fingerprints(
    graph: opt.GraphUrl,
    out: opt.OutPath,
    sources: opt.Sources = None,
    source_kind: opt.SourceKind = None,
    engine: opt.Engine = None,
    master: opt.Master = None,
    remote: opt.Remote = None,
    scheduler: opt.Scheduler = None,
    threads: opt.Threads = None,
    partitioned: opt.Partitioned = None,
    worker_memory: opt.WorkerMemory = None,
    n_walks: opt.NWalks = None,
    restart_prob: opt.RestartProb = None,
    top_k: opt.TopK = None,
    max_steps: opt.MaxSteps = None,
    seed: opt.Seed = None,
    target_kinds: opt.TargetKinds = None,
    exclude_neighbors: opt.ExcludeNeighbors = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Compute the fingerprints of all nodes; resumes where a stopped run left off."""
    given = {
        **engine_options(engine, master, remote, scheduler, threads, partitioned, worker_memory),
        "fingerprints.n_walks": n_walks,
        "fingerprints.restart_prob": restart_prob,
        "fingerprints.top_k": top_k,
        "fingerprints.max_steps": max_steps,
        "fingerprints.seed": seed,
        "fingerprints.target_kinds": target_kinds,
        "fingerprints.exclude_neighbors": exclude_neighbors,
        "log.level": log_level,
        "log.format": log_format,
    }
    arguments = {"graph": graph, "out": out, "sources": sources, "source_kind": source_kind}
    settings = settings_for(given, config, assign, dry_run, **arguments)
    from jobs.fingerprints import run

    try:
        result = run(graph, out, settings, sources_file=sources, source_kind=source_kind)
    except KeyboardInterrupt:
        log_interrupt()
        raise typer.Exit(130) from None
    print_result(result)


@app.command()
def query(
    graph: opt.GraphPath,
    key: opt.QueryKey = None,
    fingerprints: opt.FingerprintsOption = None,
    kind: opt.Kind = None,
    edge: opt.Edge = None,
    edges: opt.EdgesFile = None,
    edge_kind: opt.EdgeKind = None,
    k: opt.K = None,
    steps: opt.Steps = None,
    exact: opt.Exact = False,
    restart_prob: opt.RestartProb = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Which nodes are nearest to a node, or to a new node given by its edges."""
    if (key is None) == (not edge and edges is None):
        raise ConfigurationError("give either KEY, or the edges of a new node by --edge and --edges")
    if exact == (fingerprints is not None):
        raise ConfigurationError("give either --fingerprints or --exact")
    if restart_prob is not None and not exact:
        raise ConfigurationError("'--restart-prob' goes with --exact; fingerprints have their own")
    given = {
        "query.k": k,
        "query.steps": steps,
        "fingerprints.restart_prob": restart_prob,
        "log.level": log_level,
        "log.format": log_format,
    }
    question: dict[str, Any] = {
        "key": key,
        "kind": kind,
        "edges": edge or [],
        "edges_file": edges,
        "edge_kind": edge_kind,
    }
    arguments = {"graph": graph, "fingerprints": fingerprints, "exact": exact}
    settings = settings_for(given, config, assign, dry_run, **arguments, **question)
    from jobs.query import Question, run

    print_result(run(graph, fingerprints, Question(**question), settings))


@app.command()
def recommend(
    graph: opt.GraphPath,
    fingerprints: opt.FingerprintsPath,
    user: opt.Users = None,
    users: opt.UsersFile = None,
    out: opt.ParquetOut = None,
    k: opt.K = None,
    kinds: opt.Kinds = None,
    user_kind: opt.UserKind = None,
    popularity_discount: opt.PopularityDiscount = None,
    exclude_seen: opt.ExcludeSeen = None,
    steps: opt.Steps = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Recommend items to users, all of them by default."""
    if user and users is not None:
        raise ConfigurationError("give either --user or --users")
    given = {
        "recommend.k": k,
        "recommend.kinds": kinds,
        "recommend.user_kind": user_kind,
        "recommend.popularity_discount": popularity_discount,
        "recommend.exclude_seen": exclude_seen,
        "recommend.steps": steps,
        "log.level": log_level,
        "log.format": log_format,
    }
    arguments = {"graph": graph, "fingerprints": fingerprints, "user": user, "users": users, "out": out}
    settings = settings_for(given, config, assign, dry_run, **arguments)
    from jobs.recommend import run

    print_result(run(graph, fingerprints, settings.recommend, keys=user, keys_file=users, out=out))


@app.command()
def evaluate(
    graph: opt.GraphPath,
    fingerprints: opt.FingerprintsPath,
    test: opt.Test = None,
    exact_sample: opt.ExactSample = None,
    k: opt.K = None,
    kinds: opt.Kinds = None,
    user_kind: opt.UserKind = None,
    popularity_discount: opt.PopularityDiscount = None,
    steps: opt.Steps = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Measure recommendations on held-out interactions, and rows against the exact solver."""
    given = {
        "evaluate.exact_sample": exact_sample,
        "recommend.k": k,
        "recommend.kinds": kinds,
        "recommend.user_kind": user_kind,
        "recommend.popularity_discount": popularity_discount,
        "recommend.steps": steps,
        "log.level": log_level,
        "log.format": log_format,
    }
    settings = settings_for(given, config, assign, dry_run, graph=graph, fingerprints=fingerprints, test=test)
    if test is None and settings.evaluate.exact_sample == 0:
        raise ConfigurationError("nothing to measure: give --test, --exact-sample, or both")
    from jobs.evaluate import run

    print_result(run(graph, fingerprints, settings, test=test))


@app.command()
def demo(
    out: opt.DemoOut = Path("demo"),
    interactions: opt.Interactions = None,
    events: opt.EventsOption = None,
    llms: opt.LlmsOption = None,
    src: opt.Src = None,
    dst: opt.Dst = None,
    weight: opt.Weight = None,
    engine: opt.DemoEngine = None,
    master: opt.Master = None,
    users: opt.DemoUsers = None,
    items: opt.DemoItems = None,
    n_interactions: opt.DemoInteractions = None,
    seed: opt.Seed = None,
    as_json: opt.AsJson = False,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Run everything on example data: graph, Spark job, recommendations, report.html."""
    for text in assign or ():
        name = text.partition("=")[0]
        if name.partition(".")[0] not in _DEMO_SECTIONS:
            raise ConfigurationError(
                f"--set {name}: a demo has its own fixed parameters; "
                f"it takes settings of {', '.join(_DEMO_SECTIONS)}"
            )
    given = {
        "graph.src": src,
        "graph.dst": dst,
        "graph.weight": weight,
        "demo.engine": engine,
        "demo.users": users,
        "demo.items": items,
        "demo.interactions": n_interactions,
        "demo.seed": seed,
        "spark.master": master,
        "log.level": log_level,
        "log.format": log_format,
    }
    if (events is None) != (llms is None) or (events is not None and interactions is None):
        raise ConfigurationError("give --events and --llms together, beside --interactions")
    arguments = {"out": out, "interactions": interactions, "events": events, "llms": llms}
    settings = settings_for(given, config, assign, dry_run, _DEMO_SECTIONS, **arguments)
    from jobs.demo import run_demo
    from jobs.demo_data import MarketSizes

    chosen = settings.demo
    result = run_demo(
        out=out,
        interactions=interactions,
        events=events,
        llms=llms,
        columns={
            name: getattr(settings.graph, name) for name in ("src", "dst", "weight", "delimiter", "header")
        },
        engine=chosen.engine,
        spark={name: getattr(settings.spark, name) for name in ("master", "remote", "conf")},
        seed=chosen.seed,
        sizes=MarketSizes(n_users=chosen.users, n_items=chosen.items, n_interactions=chosen.interactions),
        echo=partial(typer.echo, err=as_json),
    )
    if as_json:
        print_result(result)


app.command("change-graph")(change_graph)
app.command()(refresh)
app.command("train-router")(train_router)
app.command("evaluate-router")(evaluate_router)
app.command()(pipeline)
app.command()(publish)
app.command()(serve)
app.command()(openapi)
app.command("spark-server")(spark_server)


@app.command()
def validate(
    store: opt.StorePath,
    graph: opt.ForGraph = None,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Check every file and every invariant of a store."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from jobs.stores import validate as run

    print_result(run(store, graph))


@app.command()
def export(
    graph: opt.GraphPath,
    fingerprints: opt.FingerprintsPath,
    out: opt.ExportOut,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Write fingerprints as Parquet with the original keys beside the dense ids."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from jobs.stores import export as run

    print_result(run(graph, fingerprints, out))


@app.command()
def merge(
    stores: opt.StorePaths,
    out: opt.OutPath,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Merge fingerprint stores of the same graph and parameters."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from jobs.stores import merge as run

    print_result(run(stores, out))


@app.callback(invoke_without_command=True)
def _program(show_version: opt.Version = False) -> None:
    if show_version:
        typer.echo(version("fairpath"))
        raise typer.Exit()


def main(args: Sequence[str] | None = None) -> None:
    """Run the program, by default with the process's arguments; ends it with the exit code of the result."""
    try:
        with tidy_termination():
            app(args, prog_name="fairpath")
    except Exception as error:
        code = exit_code(error)
        if code == 1:
            sys.stderr.write(redact(traceback.format_exc()))
        log_failure(error, code)
        sys.exit(code)


if __name__ == "__main__":
    main()
