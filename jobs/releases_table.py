"""The table of ``releases list --table``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_MIB = 1 << 20
_COUNTS = ("users", "items", "llms", "edges")
_STYLES = {"current": "bold green", "previous": "bold", "rolled back": "yellow", "damaged": "bold red"}
_WIDTH = 160  # where no terminal says how wide it is


def print_table(found: Mapping[str, Any]) -> None:
    """Print what :func:`router.releases.overview.overview` gives on standard output."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    table = Table(
        title=found["place"], title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False
    )
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for warning in found["warnings"]:
        console.print(warning, style="bold red", markup=False, highlight=False)
    for row in found["releases"]:
        state = "damaged" if "damaged" in row else row["state"]
        table.add_row(row["version"], state, Text("\n".join(_lines(row))), style=_STYLES.get(state))
    console.print(table)
    for refusal in found["refusals"]:
        console.print(f"refused {refusal['at']}: {_told(refusal['decision'])}", markup=False, highlight=False)


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    if "damaged" in row:
        yield row["damaged"]
        return
    counts = [f"{row[name]:,} {name}" for name in _COUNTS if row[name] is not None]
    yield ", ".join([*counts, f"{row['bytes'] / _MIB:,.1f} MiB"])
    figures = {name.rpartition(".")[2]: value for name, value in row["metrics"].items()}
    if figures := {name: value for name, value in figures.items() if isinstance(value, float)}:
        yield ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    if row["decision"] is not None:
        yield _told(row["decision"])


def _told(decision: Any) -> str:
    if isinstance(decision, Mapping):
        return str(decision.get("summary", "publish" if decision.get("publish") else "refuse"))
    return str(decision)
