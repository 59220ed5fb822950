"""One step of walks on a part: messages in, messages and stopped mass out, in buffers of bounded size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ppr.kernels import partitioned as kernels
from ppr.kernels.packets import STOP_BITS
from ppr.kernels.partitioned_messages import group, route
from ppr.params import FingerprintParams
from ppr.partitioned.exchange import Records, cut, new_records
from ppr.partitioned.plan import PartArrays, Parts

_FIRST_SLOTS = 1 << 14
_FIRST_EDGES = 1 << 15


class Stepper:
    """Takes steps with chunks of messages.

    Parameters
    ----------
    params
        Parameters of the rows.
    n_records
        Records that go out at once; more where a single source needs it.
    """

    def __init__(self, params: FingerprintParams, n_records: int) -> None:
        self._params = (
            round(params.restart_prob * (1 << STOP_BITS)),
            params.n_walks,
            params.seed,
            -1 if params.max_steps is None else params.max_steps,
            params.exclude_neighbors,
        )
        self._slots, self._edges = _FIRST_SLOTS, _FIRST_EDGES
        self._scratch = kernels.new_part_scratch(self._slots, self._edges)
        self._sent, self._stopped = new_records(n_records), new_records(n_records)

    def take(
        self,
        arrays: PartArrays,
        walkers: tuple[NDArray[np.int32], NDArray[np.int32]],
        first_position: int,
        records: Records,
    ) -> Iterator[tuple[Records, Records]]:
        """Take a step with all sources of a chunk.

        Parameters
        ----------
        arrays
            The part.
        walkers
            (sources int32, steps int32) of the positions from ``first_position`` on.
        records
            Messages for the part, all of each source, ascending by position.

        Yields
        ------
        tuple[Records, Records]
            Messages and stopped mass of some sources, ascending by position; gone at the next turn.
        """
        start = 0
        while start < records[0].size:
            start, n_sent, n_stops, why = kernels.advance(
                arrays.kernel,
                arrays.first_own,
                walkers,
                first_position,
                records,
                start,
                self._params,
                self._scratch,
                self._sent,
                self._stopped,
            )
            yield cut(self._sent, 0, n_sent), cut(self._stopped, 0, n_stops)
            if why == kernels.SMALL:
                self._slots, self._edges = 4 * self._slots, 4 * self._edges
                self._scratch = kernels.new_part_scratch(self._slots, self._edges)
            elif why == kernels.FULL and n_sent == n_stops == 0:
                self._sent = new_records(4 * self._sent[0].size)
                self._stopped = new_records(4 * self._stopped[0].size)


def by_part(parts: Parts, messages: Records) -> Iterator[tuple[int, Records]]:
    """Messages for each part that there are any for; in all parts that hold a piece of the node's row."""
    size = messages[0].size
    if not size:
        return
    owners = np.empty(size, np.int32)
    counts = route(parts.first_nodes, parts.until, messages[1], size, owners)
    ends = np.cumsum(counts)
    grouped = new_records(int(ends[-1]))
    group(parts.first_nodes, parts.until, owners, messages, ends - counts, grouped)
    for part in np.flatnonzero(counts).tolist():
        yield part, cut(grouped, int(ends[part] - counts[part]), int(ends[part]))
