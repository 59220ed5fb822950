"""Run benchmarks, each in a process of its own, show their figures and put them into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from harness import RESULTS, ROOT, Figure, mark, read_figures, shown

TARGETS = (
    "accuracy",
    "cost",
    "speed",
    "spark",
    "memory",
    "gowalla",
    "fairqueue",
    "policy",
    "router_choice",
    "personal_router",
    "router_items",
)
DOCUMENT = ROOT / "docs" / "benchmarks.md"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def main() -> int:
    """Run what the command line names, or everything; 1 when a goal is missed or a benchmark fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of {', '.join(TARGETS)}")
    names = parser.parse_args().names or TARGETS
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no benchmark {sorted(unknown)[0]!r}; there are {', '.join(TARGETS)}")
    failed = []
    for name in names:
        started = time.monotonic()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | _ONE_THREAD | {"PYTHONPATH": path}
        script = Path(__file__).with_name(f"{name}.py")
        if subprocess.run([sys.executable, script], env=environment, check=False).returncode:
            failed.append(name)
        print(f"{name}: {time.monotonic() - started:.0f} s\n", flush=True)
    write_document()
    if failed:
        print(f"not as it should be: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def write_document() -> None:
    """Put the last figures of all benchmarks between the marks of docs/benchmarks.md."""
    text = DOCUMENT.read_text()
    for target in TARGETS:
        if figures := read_figures(target):
            begin, end = f"<!-- {target}: begin -->\n", f"<!-- {target}: end -->\n"
            before, _, rest = text.partition(begin)
            _, _, after = rest.partition(end)
            machine = (RESULTS / f"{target}.machine.txt").read_text().strip()
            table = "\n".join(["| | measured | goal | reached |", "|---|---:|---:|---|", *map(_row, figures)])
            text = f"{before}{begin}\n{table}\n\n{machine}.\n\n{end}{after}"
    DOCUMENT.write_text(text)


def _row(figure: Figure) -> str:
    cells = (figure.name, f"{shown(figure.value)} {figure.unit}".strip(), figure.goal or "", mark(figure))
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
