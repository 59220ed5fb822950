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

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "bench"
_PACKAGES = ("numba", "numpy", "scipy", "pyspark", "torch")


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
    """

    name: str
    value: float
    unit: str
    goal: str | None = None
    ok: bool | None = None


def note(name: str, value: float, unit: str = "") -> Figure:
    """Figure without a goal."""
    return Figure(name, float(value), unit)


def at_least(name: str, value: float, bound: float, unit: str = "") -> Figure:
    """Figure that should reach ``bound``."""
    return Figure(name, float(value), unit, f"≥ {bound:g}", bool(value >= bound))


def at_most(name: str, value: float, bound: float, unit: str = "") -> Figure:
    """Figure that should not exceed ``bound``."""
    return Figure(name, float(value), unit, f"≤ {bound:g}", bool(value <= bound))


def check(holds: bool, what: str) -> None:
    """Stop a benchmark whose answers are wrong: its times would mean nothing."""
    if not holds:
        raise SystemExit(f"wrong answer, nothing was measured: {what}")


def run_alone(target: str, measure: Callable[[], Sequence[Figure]]) -> None:
    """Measure, keep the figures as ``build/bench/<target>.json`` with the machine beside them, show them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    figures = measure()
    records = [asdict(figure) for figure in figures]
    (RESULTS / f"{target}.json").write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / f"{target}.machine.txt").write_text(machine() + "\n")
    show(target, figures)
    sys.exit(any(figure.ok is False for figure in figures))


def read_figures(target: str) -> list[Figure]:
    """Figures of the last run of a benchmark; none where it has not run."""
    path = RESULTS / f"{target}.json"
    return [Figure(**record) for record in json.loads(path.read_text())] if path.exists() else []


def show(title: str, figures: Sequence[Figure]) -> None:
    """Print figures as a table."""
    table = Table(title=title, title_justify="left")
    for column, justify in (("name", "left"), ("value", "right"), ("unit", "left"), ("goal", "right")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("ok")
    for figure in figures:
        table.add_row(
            figure.name,
            shown(figure.value),
            figure.unit,
            figure.goal or "",
            mark(figure),
            style=_style(figure),
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def shown(value: float) -> str:
    """Render a number to four significant digits, whole where it is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def mark(figure: Figure) -> str:
    """Say whether the goal is reached, empty without one."""
    return {True: "yes", False: "NO", None: ""}[figure.ok]


def _style(figure: Figure) -> str:
    return {True: "", False: "bold red", None: "dim"}[figure.ok]


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
