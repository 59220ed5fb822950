"""The subcommands of the router: ``train-router`` and ``evaluate-router``."""

from __future__ import annotations

from typing import Any

import typer

from jobs import options as opt
from jobs.command import print_result, settings_for
from jobs.errors import ConfigurationError
from jobs.logs import log_interrupt


def train_router(
    events: opt.EventsPath,
    llms: opt.LlmsPath,
    out: opt.OutPath,
    queries: opt.QueriesFile = None,
    answers: opt.AnswersFile = None,
    users: opt.ProfilesFile = None,
    graph: opt.GraphOption = None,
    fingerprints: opt.FingerprintsOption = None,
    report: opt.Report = None,
    encoder: opt.Encoder = None,
    device: opt.Device = None,
    factors: opt.Factors = None,
    tastes: opt.Tastes = None,
    steps: opt.TrainingSteps = None,
    items: opt.ItemTraining = None,
    held_out: opt.HeldOut = None,
    seed: opt.Seed = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Train a router of LLMs and items on what users chose; resumes where a stopped training left off."""
    if fingerprints is not None and graph is None:
        raise ConfigurationError("'--fingerprints' goes with --graph, the graph that they were made from")
    given = {
        "router.encoder": encoder,
        "router.device": device,
        "router.n_factors": factors,
        "router.n_tastes": tastes,
        "router.n_steps": steps,
        "router.items": items,
        "router.held_out": held_out,
        "router.seed": seed,
        "log.level": log_level,
        "log.format": log_format,
    }
    further = {
        "queries": queries,
        "answers": answers,
        "users": users,
        "graph": graph,
        "fingerprints": fingerprints,
    }
    arguments = {"events": events, "llms": llms, "out": out, "report": report, **further}
    settings = settings_for(given, config, assign, dry_run, **arguments)
    from jobs.train_router import run
    from router.dataset import RouterFiles

    try:
        result = run(RouterFiles(events=events, llms=llms, **further), out, settings.router, report=report)
    except KeyboardInterrupt:
        log_interrupt()
        raise typer.Exit(130) from None
    print_result(result)


def evaluate_router(
    bundle: opt.BundleOption = None,
    events: opt.EventsOption = None,
    history: opt.HistoryFile = None,
    held_out_share: opt.HeldOutShare = None,
    benchmark: opt.Benchmark = None,
    data: opt.BenchmarkData = None,
    strength: opt.Strength = None,
    seeds: opt.UserSeeds = None,
    tracks: opt.Tracks = None,
    protocols: opt.Protocols = None,
    report: opt.EvaluationReport = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Measure a bundle on events, or the router itself on a benchmark of simulated users."""
    if (bundle is None) == (benchmark is None) or (bundle is None) != (events is None):
        raise ConfigurationError("give either --bundle with --events, or --benchmark with --data")
    if (benchmark is None) != (data is None):
        raise ConfigurationError("'--data' goes with --benchmark")
    of_bundle: dict[str, Any] = {"history": history, "held_out_share": held_out_share}
    of_benchmark: dict[str, Any] = {
        "strength": strength,
        "seeds": seeds,
        "tracks": tracks,
        "protocols": protocols,
    }
    for name, value in (of_benchmark if benchmark is None else of_bundle).items():
        if value is not None:
            goes_with = "benchmark" if benchmark is None else "bundle"
            raise ConfigurationError(f"'--{name.replace('_', '-')}' goes with --{goes_with}")
    if history is not None and held_out_share is not None:
        raise ConfigurationError("give either --history or --held-out-share")
    given = {"log.level": log_level, "log.format": log_format}
    arguments = {"bundle": bundle, "events": events, "benchmark": benchmark, "data": data, "report": report}
    settings_for(given, config, assign, dry_run, ("log",), **arguments, **of_bundle, **of_benchmark)
    from jobs.report import check_page

    if report is not None:
        check_page(report)
    from jobs.evaluate_router import run_benchmark, run_bundle

    if bundle is not None and events is not None:
        print_result(run_bundle(bundle, events, report=report, **of_bundle))
    elif data is not None:
        chosen = {name: value for name, value in of_benchmark.items() if value is not None}
        print_result(run_benchmark(data, report=report, **chosen))
