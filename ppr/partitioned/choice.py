"""Whether every worker maps a whole graph, or it is cut into parts: what sizes and memory say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ppr.errors import ParameterError
from ppr.graph import Graph
from ppr.partitioned.plan import LEAST_MEMORY_BYTES, graph_bytes

Wanted = Literal["auto", "always", "never"]
_SHARE_OF_MACHINE = 0.6  # of its memory that the workers of a machine take for one mapped graph
_SHARE_OF_SLOT = 0.5  # of a slot's memory; the rest is for interpreters, Java and the page cache
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


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


def check_worker_memory(n_bytes: int) -> None:
    """Refuse a limit in which walks over parts could not hold their messages, whichever way is chosen.

    Raises
    ------
    ParameterError
        It is less than :data:`~ppr.partitioned.plan.LEAST_MEMORY_BYTES`.
    """
    if n_bytes < LEAST_MEMORY_BYTES:
        raise ParameterError(
            f"'worker_memory' must be at least {LEAST_MEMORY_BYTES} bytes, for messages (got {n_bytes})"
        )


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
        ``worker_memory`` is too small for any messages.
    """
    if worker_memory is not None:
        check_worker_memory(worker_memory)
    allowed = worker_memory or int(machine_bytes * _SHARE_OF_SLOT / slots_per_machine)
    if partitioned != "auto":
        return Choice(partitioned == "always", f"asked for: 'partitioned' is '{partitioned}'", slots, allowed)
    size = graph_bytes(graph)
    if worker_memory is None:
        limit = int(machine_bytes * _SHARE_OF_MACHINE)
        of_what = f"{_SHARE_OF_MACHINE:.0%} of the {_rounded(machine_bytes)} of a worker's machine"
    else:
        limit, of_what = worker_memory, f"the {_shown(worker_memory, size)} that a worker may hold"
    relation = "more than" if size > limit else "within"
    reason = f"the graph's {_shown(size, limit)} are {relation} {of_what}"
    return Choice(size > limit, reason, slots, allowed)


def _shown(n_bytes: int, compared: int) -> str:
    """Rounded, but exact where two that differ would read the same."""
    rounded = _rounded(n_bytes)
    return f"{n_bytes:,} bytes" if n_bytes != compared and rounded == _rounded(compared) else rounded


def _rounded(n_bytes: int) -> str:
    for unit, name in _UNITS:
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes} bytes"
