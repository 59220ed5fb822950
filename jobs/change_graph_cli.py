"""The subcommand ``change-graph``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from jobs import options as opt
from jobs.command import print_result, settings_for, table_options
from jobs.errors import ConfigurationError

Added = Annotated[list[Path] | None, Option("--added", help="Edges that are new, or weigh more; repeatable.")]
Removed = Annotated[list[Path] | None, Option("--removed", help="Edges that are gone; repeatable.")]
RemovedNodes = Annotated[
    list[Path] | None, Option("--removed-nodes", help="Nodes (key[, kind]) that are gone; repeatable.")
]


def change_graph(
    graph: opt.GraphPath,
    out: opt.OutPath,
    added: Added = None,
    removed: Removed = None,
    removed_nodes: RemovedNodes = None,
    src: opt.Src = None,
    dst: opt.Dst = None,
    weight: opt.Weight = None,
    delimiter: opt.Delimiter = None,
    header: opt.Header = None,
    src_kind: opt.SrcKind = None,
    dst_kind: opt.DstKind = None,
    directed: opt.Directed = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Make a graph store of a graph and changes to it, without the tables it was built from."""
    given = {
        **table_options(src, dst, weight, delimiter, header, src_kind, dst_kind, directed),
        "log.level": log_level,
        "log.format": log_format,
    }
    files = {"added": added or [], "removed": removed or [], "removed_nodes": removed_nodes or []}
    if not any(files.values()):
        raise ConfigurationError("a change must be given: --added, --removed or --removed-nodes")
    settings = settings_for(given, config, assign, dry_run, graph=graph, out=out, **files)
    from jobs.change_graph import Changes, run

    print_result(run(graph, out, Changes(**files), settings.graph))
