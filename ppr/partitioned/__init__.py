"""Walks on graphs that no worker holds as a whole: parts, rounds, and the messages between them.

On threads of this process, :func:`compute_fingerprints_partitioned`; on Spark,
:func:`ppr.spark.partitioned.compute_fingerprints_partitioned_spark`. Both drive
:func:`ppr.partitioned.rounds.run_rounds`, which takes any way to run a task for every part. Sizes follow from
the memory (:func:`plan_sizes`) or are given (:class:`Sizes`); ``progress`` gets a
:class:`ppr.partitioned.rounds.Progress` after each round, with the messages and bytes of that round.
"""

from ppr.partitioned.choice import Choice, choose
from ppr.partitioned.local import compile_kernels, compute_fingerprints_partitioned
from ppr.partitioned.plan import Sizes, graph_bytes, plan_sizes
from ppr.partitioned.rounds import Progress

__all__ = [
    "Choice",
    "Progress",
    "Sizes",
    "choose",
    "compile_kernels",
    "compute_fingerprints_partitioned",
    "graph_bytes",
    "plan_sizes",
]
