"""The fair queue on a simulated cluster of 32 slots: every number of the evaluation, against its goal."""

from __future__ import annotations

from dataclasses import asdict

from harness import ROOT, Figure, run_alone

from jobs.fairqueue.simulation.study import beside_published, run_study

TRACE = ROOT.parent / "shared" / "data" / "google-2011" / "window_hetero.csv"


def measure() -> list[Figure]:
    """All numbers; those of the trace only where its file is there."""
    study = run_study(TRACE if TRACE.exists() else None)
    return [Figure(**asdict(number)) for number in (*study.numbers, *beside_published(study))]


if __name__ == "__main__":
    run_alone("fairqueue_simulation", measure)
