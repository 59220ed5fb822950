"""Whether every worker maps a whole graph, or it is cut into parts: what sizes and memory say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ppr.errors import ParameterError
from ppr.graph import Graph
from ppr.partitioned.plan import graph_bytes

Wanted = Literal["auto", "always", "never"]
_SHARE_OF_MACHINE = 0.6  # of its memory that the workers of a machine take for one mapped graph
_SHARE_OF_SLOT = 0.5  # of a slot's memory; the rest is for interpreters, Java and the page cache


@dataclass(frozen=True, slots=True)
class Choice:
    """Which way fingerprints are computed, and why.

    Attributes
    ----------
    partitioned
        Whether the graph is cut into parts; else every worker maps all of it.
    reason
        Why, in words.
    slots
        Tasks that run at once.
    memory_bytes
        What a worker may hold of graph and messages, where the graph is partitioned.
    """

    partitioned: bool
    reason: str
    slots: int
    memory_bytes: int


def choose(
    graph: Graph,
    *,
    machine_bytes: int,
    slots_per_machine: int,
    slots: int,
    worker_memory: int | None = None,
    partitioned: Wanted = "auto",
) -> Choice:
    """Choose between the whole graph and parts of it.

    Parameters
    ----------
    graph
        The graph; only its size matters.
    machine_bytes
        Memory of the smallest machine or container that workers run in; they share a graph that they map.
    slots_per_machine
        Tasks that run there at once.
    slots
        Tasks that run at once on all machines.
    worker_memory
        Bytes of graph and messages that a worker may hold; by default a share of the machine's.
    partitioned
        Whether to leave the choice to the sizes.

    Raises
    ------
    ParameterError
        ``worker_memory`` is not positive.
    """
    if worker_memory is not None and worker_memory < 1:
        raise ParameterError(f"'worker_memory' must be positive (got {worker_memory})")
    allowed = worker_memory or int(machine_bytes * _SHARE_OF_SLOT / slots_per_machine)
    if partitioned != "auto":
        return Choice(partitioned == "always", f"asked for: 'partitioned' is '{partitioned}'", slots, allowed)
    if worker_memory is not None:
        limit, of_what = worker_memory, f"the {_shown(worker_memory)} that a worker may hold"
    else:
        limit = int(machine_bytes * _SHARE_OF_MACHINE)
        of_what = f"{_SHARE_OF_MACHINE:.0%} of the {_shown(machine_bytes)} of a worker's machine"
    size = graph_bytes(graph)
    relation = "more than" if size > limit else "within"
    return Choice(size > limit, f"the graph's {_shown(size)} are {relation} {of_what}", slots, allowed)


def _shown(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
