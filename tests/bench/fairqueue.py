"""The fair queue: on a simulated cluster, and on real Spark."""

from __future__ import annotations

import fairqueue_simulation
import fairqueue_spark
from harness import Figure, run_alone


def measure() -> list[Figure]:
    """Measure both."""
    return [*fairqueue_simulation.measure(), *fairqueue_spark.measure()]


if __name__ == "__main__":
    run_alone("fairqueue", measure)
