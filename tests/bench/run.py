"""Run benchmarks, each in a process of its own, show their figures and put them into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from harness import (
    GOAL_COLUMNS,
    QUIET,
    RESULTS,
    ROOT,
    Comparison,
    Figure,
    Measurement,
    goal_cells,
    mark,
    read_measurements,
    show,
    show_goals,
    with_interval,
)

TARGETS = (
    "accuracy",
    "cost",
    "peers",
    "speed",
    "spark",
    "dask_engine",
    "memory",
    "scale",
    "building",
    "gowalla",
    "fairqueue_simulation",
    "fairqueue_spark",
    "policy",
    "router_choice",
    "personal_router",
    "router_items",
    "router_joint",
    "router_ablations",
    "router_lightgcn",
    "router_scale",
    "serve_speed",
    "serve_start",
    "serve_soak",
    "pipeline",
    "refresh",
)
# Targets that make one page: run in this order, shown as one, the tables of goals first.
GROUPS = {
    "dask": ("dask_engine",),  # a script called dask would stand in for the package
    "fairqueue": ("fairqueue_simulation", "fairqueue_spark"),
    "router": (
        "router_choice",
        "personal_router",
        "router_items",
        "router_joint",
        "router_ablations",
        "router_lightgcn",
        "router_scale",
        "policy",
    ),
    "serve": ("serve_speed", "serve_start", "serve_soak"),
}
BASELINES = ("router_choice",)  # targets whose bounds are those of baselines
PICTURES = {"router": "router_pictures", "peers": "peers_pictures"}  # scripts that draw docs/figures
PYTHONS = {"peers": ROOT / ".venv-peers" / "bin" / "python"}  # of targets with an environment of their own
DOCUMENT = ROOT / "docs" / "benchmarks.md"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def main() -> int:
    """Run what the command line names, or everything; 1 when a goal is missed or a benchmark fails."""
    known = (*TARGETS, *GROUPS)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of {', '.join(known)}")
    names = parser.parse_args().names or TARGETS
    if unknown := set(names) - set(known):
        parser.error(f"no benchmark {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    failed = [target for name in names for target in (_run_group(name) if name in GROUPS else _run(name))]
    write_document()
    if failed:
        print(f"not as it should be: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def _run(target: str, **variables: str) -> list[str]:
    """Run one target; gives its name where it failed or missed a goal."""
    started = time.monotonic()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | _ONE_THREAD | {"PYTHONPATH": path} | variables
    script = Path(__file__).with_name(f"{target}.py")
    ended = subprocess.run([PYTHONS.get(target, sys.executable), script], env=environment, check=False)
    print(f"{target}: {time.monotonic() - started:.0f} s\n", file=sys.stderr, flush=True)
    drawn = _run(PICTURES[target]) if target in PICTURES else []
    return [target, *drawn] if ended.returncode else drawn


def _run_group(name: str) -> list[str]:
    """Run the targets of a group, then show all goals in one table, and the figures below it."""
    failed = [target for member in GROUPS[name] for target in _run(member, **{QUIET: "1"})]
    if name in PICTURES:
        failed += _run(PICTURES[name])
    records = [asdict(one) for member in GROUPS[name] for one in read_measurements(member)]
    (RESULTS / f"{name}.json").write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    show_goals(name, _goals(name))
    for member in GROUPS[name]:
        show(member, [one for one in read_measurements(member) if isinstance(one, Figure)])
    return failed


def _goals(name: str) -> list[Measurement]:
    """What a group has to reach; that baselines are as strong as they are known to be is no goal."""
    return [
        one if isinstance(one, Comparison) else replace(one, name=f"{member}: {one.name}")
        for member in GROUPS[name]
        for one in read_measurements(member)
        if isinstance(one, Comparison) or (one.goal and member not in BASELINES)
    ]


def write_document() -> None:
    """Put the last figures between the marks of docs/benchmarks.md: of targets, and of groups."""
    text = DOCUMENT.read_text()
    marked = [name for name in (*TARGETS, *GROUPS) if _begin(name) in text]
    for name in marked:
        if tables := _tables(name, marked):
            before, _, rest = text.partition(_begin(name))
            _, _, after = rest.partition(_end(name))
            inside = "\n\n".join([*tables, _machine(name)])
            text = f"{before}{_begin(name)}\n{inside}\n\n{_end(name)}{after}"
    DOCUMENT.write_text(text)


def _tables(name: str, marked: Sequence[str]) -> list[str]:
    """Tables of a target or group; with marks for both, goals stand at the group, figures at its members."""
    members = GROUPS.get(name, (name,))
    measured = [one for member in members for one in read_measurements(member)]
    goals = [one for one in measured if isinstance(one, Comparison)]
    figures = [one for one in measured if isinstance(one, Figure)]
    if name in GROUPS and set(members) & set(marked):
        goals, figures = _goals(name), []
    elif any(name in GROUPS[group] for group in marked if group in GROUPS):
        goals = []
    return [
        *([_markdown(GOAL_COLUMNS, map(goal_cells, goals))] if goals else []),
        *([_markdown(("", "measured", "goal", "reached"), map(_cells, figures))] if figures else []),
    ]


def _begin(name: str) -> str:
    return f"<!-- {name}: begin -->\n"


def _end(name: str) -> str:
    return f"<!-- {name}: end -->\n"


def _machine(name: str) -> str:
    """The machine that the figures are of."""
    members = GROUPS.get(name, (name,))
    files = [path for member in members if (path := RESULTS / f"{member}.machine.txt").exists()]
    return "\n".join(dict.fromkeys(path.read_text().strip() + "." for path in files))


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = "|---" + "|---:" * (len(columns) - 2) + "|---|"
    head = _line(columns).replace("|  |", "| |")  # where the first column has no name
    return "\n".join([head, rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(figure: Figure) -> tuple[str, ...]:
    return figure.name, f"{with_interval(figure)} {figure.unit}".strip(), figure.goal or "", mark(figure)


if __name__ == "__main__":
    sys.exit(main())
