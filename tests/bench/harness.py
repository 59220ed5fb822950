"""What the benchmarks share: figures with their goals, where they are kept, and how they are shown."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "bench"
QUIET = "BENCH_QUIET"  # environment of a benchmark that keeps its figures and prints none
_PACKAGES = (
    *("numba", "numpy", "scipy", "pyspark", "torch"),
    *("torch-ppr", "scikit-network", "igraph", "networkit"),  # peers, in an environment of their own
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes
    ----------
    name
        What was measured, on what.
    value
        The number.
    unit
        Its unit; empty for shares and quality measures.
    goal
        What it should be, such as ``≥ 0.985``, or None where it only explains another figure.
    ok
        Whether it is, or None.
    interval
        Its 95 % interval, or None.
    """

    name: str
    value: float
    unit: str
    goal: str | None = None
    ok: bool | None = None
    interval: tuple[float, float] | None = None


def note(name: str, value: float, unit: str = "", interval: tuple[float, float] | None = None) -> Figure:
    """Figure without a goal."""
    return Figure(name, float(value), unit, interval=interval)


def at_least(name: str, value: float, bound: float, unit: str = "") -> Figure:
    """Figure that should reach ``bound``."""
    return Figure(name, float(value), unit, f"≥ {bound:g}", bool(value >= bound))


def at_most(name: str, value: float, bound: float, unit: str = "") -> Figure:
    """Figure that should not exceed ``bound``."""
    return Figure(name, float(value), unit, f"≤ {bound:g}", bool(value <= bound))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of a table of goals: ours beside the best baseline, measured in the same run on the same users.

    Attributes
    ----------
    name
        Protocol, track and queries.
    goal
        What ours should be, such as ``≥ 0.85``, or None.
    known
        What the best baseline is known to reach from elsewhere, or None.
    baseline, baseline_value
        The best baseline measured here; empty and None where there is none.
    ours, ours_interval
        What ours reaches, and its 95 % interval, or None.
    interval
        Mean of the paired difference, ours less the baseline, and its 95 % interval; or None.
    ok
        Whether the goal is reached and the interval lies above 0, or None without a goal.
    """

    name: str
    goal: str | None
    known: float | None
    baseline: str
    baseline_value: float | None
    ours: float
    interval: tuple[float, float, float] | None
    ok: bool | None
    ours_interval: tuple[float, float] | None = None


Measurement = Figure | Comparison


def check(holds: bool, what: str) -> None:
    """Stop a benchmark whose answers are wrong: its times would mean nothing."""
    if not holds:
        raise SystemExit(f"wrong answer, nothing was measured: {what}")


def run_alone(target: str, measure: Callable[[], Sequence[Measurement]]) -> None:
    """Measure, keep the figures as ``build/bench/<target>.json`` with the machine beside them, show them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{target}.json"
    path.unlink(missing_ok=True)  # figures of an older run must not stand in for a failed one
    measured = measure()
    path.write_text(json.dumps([asdict(one) for one in measured], indent=1, ensure_ascii=False) + "\n")
    (RESULTS / f"{target}.machine.txt").write_text(machine() + "\n")
    if QUIET not in os.environ:
        show(target, measured)
    sys.exit(any(one.ok is False for one in measured))


def read_measurements(target: str) -> list[Measurement]:
    """Figures of the last run of a benchmark; none where it has not run."""
    path = RESULTS / f"{target}.json"
    return [_measurement(record) for record in json.loads(path.read_text())] if path.exists() else []


def _measurement(record: dict[str, Any]) -> Measurement:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    return Comparison(**fields) if "ours" in fields else Figure(**fields)


def show(title: str, measured: Sequence[Measurement]) -> None:
    """Print the table of goals, where there is one, then the figures."""
    show_goals(title, [one for one in measured if isinstance(one, Comparison)])
    if figures := [one for one in measured if isinstance(one, Figure)]:
        columns = ("name", "value", "unit", "goal", "ok")
        cells = [
            ((one.name, with_interval(one), one.unit, one.goal or "", mark(one)), one.ok) for one in figures
        ]
        _print(title, columns, cells)


def show_goals(title: str, measured: Sequence[Measurement]) -> None:
    """Print goals and what is reached as one table."""
    if measured:
        _print(f"{title}: goals", GOAL_COLUMNS, [(goal_cells(one), one.ok) for one in measured])


GOAL_COLUMNS = ("protocol", "goal", "best baseline: known / here", "ours", "difference [95 %]", "reached")


def goal_cells(one: Measurement) -> tuple[str, ...]:
    """Cells of a row of the table of goals, as ``GOAL_COLUMNS`` names them."""
    if isinstance(one, Figure):
        return one.name, one.goal or "", "", f"{with_interval(one)} {one.unit}".strip(), "", mark(one)
    known = "-" if one.known is None else f"{one.known:.3f}"
    here = "-" if one.baseline_value is None else f"{one.baseline_value:.3f} {one.baseline}"
    interval = "" if one.interval is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*one.interval)
    return one.name, one.goal or "", f"{known} / {here}", f"{one.ours:.4f}", interval, mark(one)


def _print(title: str, columns: Sequence[str], rows: Sequence[tuple[Sequence[str], bool | None]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    styles = {True: "", False: "bold red", None: "dim"}
    for cells, ok in rows:
        table.add_row(*cells, style=styles[ok])
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def with_interval(figure: Figure) -> str:
    """Render a figure's number, and its interval where there is one."""
    interval = "" if figure.interval is None else " [{}, {}]".format(*map(shown, figure.interval))
    return shown(figure.value) + interval


def shown(value: float) -> str:
    """Render a number to four significant digits, whole where it is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def mark(one: Measurement) -> str:
    """Say whether the goal is reached, empty without one."""
    return {True: "yes", False: "NO", None: ""}[one.ok]


def machine() -> str:
    """One line on the machine and the versions in use."""
    versions = ", ".join(_versions())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return (
        f"{_cpu()}, {cores} cores, {memory:.0f} GiB of memory, {platform.system()}; "
        f"Python {platform.python_version()}, {versions}"
    )


def _versions() -> Iterator[str]:
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):  # training machines have no Spark
            yield f"{package} {version(package)}"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def pin_to_one_core() -> None:
    """Keep this process on one core, so that nothing in it gains from threads."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
