"""A small model of what a graph costs: memory, disk, exchanged bytes and time, from measured constants.

In memory, a move costs ``a + b * log2(bytes of the graph)``: the further the graph is beyond the caches and
what the TLB covers, the more a random access takes. In parts, the same holds for the bytes of a part, with an
``a`` that includes sorting, packing and reading messages; and a round costs something however little it does.
Slopes and intercepts come from the two smaller graphs of ``make bench-scale``; the largest is foretold, and
what was measured there says how far to trust the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datasets import RESTART_PROB
from harness import RESULTS, ROOT, Figure, at_most, shown

POINTS = RESULTS / "scale.points.json"
DOCUMENT = ROOT / "docs" / "scale.md"
WORKERS = 2
N_WALKS = 3000
MOVES = N_WALKS * (1 - RESTART_PROB) / RESTART_PROB  # of a source, where no walks meet
TRUSTED = 1.5  # factor within which the largest graph is foretold
_BEGIN, _END = "<!-- model: begin -->\n", "<!-- model: end -->\n"
# As ppr.partitioned.plan chooses:
_ROUND_MOVES = 1 << 22  # of a new batch, per part
_REST = 1 << 14  # walks of a batch that one task takes to their end


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured on one graph with one number of sources; seconds, bytes, and counts."""

    scale: int
    n_nodes: int
    n_edges: int
    graph_bytes: int
    store_bytes: int
    n_sources: int
    moves: int
    row_bytes: float
    in_memory_s: float
    in_memory_cpu_s: float
    seal_s: float
    partitioned_s: float
    partitioned_cpu_s: float
    jvm_cpu_s: float
    limit_bytes: int
    idle_bytes: int
    peak_bytes: int
    rounds: int
    messages: int
    exchanged_bytes: int
    disk_bytes: int
    round_s: float

    @property
    def in_memory_ns(self) -> float:
        """CPU time of a move in memory."""
        return 1e9 * self.in_memory_cpu_s / self.moves

    @property
    def partitioned_ns(self) -> float:
        """CPU time of a move in parts, of the workers."""
        return 1e9 * self.partitioned_cpu_s / self.moves


@dataclass(frozen=True, slots=True)
class Line:
    """``a + b * log2(bytes)``, within bounds."""

    a: float
    b: float
    least: float
    most: float

    @classmethod
    def through(cls, one: tuple[float, float], other: tuple[float, float], most: float = math.inf) -> Line:
        """Through two points (bytes, value), not below the lower one."""
        b = (other[1] - one[1]) / (math.log2(other[0]) - math.log2(one[0]))
        return cls(one[1] - b * math.log2(one[0]), b, min(one[1], other[1]), most)

    def at(self, n_bytes: float) -> float:
        """Value for a number of bytes."""
        return min(max(self.least, self.a + self.b * math.log2(n_bytes)), self.most)


@dataclass(frozen=True, slots=True)
class Constants:
    """What the model knows: nanoseconds of one core, bytes, seconds."""

    in_memory_ns: Line
    partitioned_ns: Line
    exchanged_bytes: Line  # per move, by bytes of the graph: in larger ones fewer walks meet
    moves: Line  # per source
    round_s: float
    row_bytes: float
    seal_s: float  # per row
    build_s: float  # per undirected edge
    node_bytes: float  # of the store, beside the edges
    disk_share: (
        float  # of the bytes that batches under way exchange in all, how much lies on the disk at once
    )

    @classmethod
    def of(cls, one: Point, other: Point, build_s: float) -> Constants:
        """Constants from two graphs."""

        def line(name: str, *, of_part: bool = False, most: float = math.inf) -> Line:
            pairs = [
                (point.limit_bytes / 2 if of_part else float(point.graph_bytes), value(point, name))
                for point in (one, other)
            ]
            return Line.through(*pairs, most)

        return cls(
            in_memory_ns=line("in_memory_ns"),
            partitioned_ns=line("partitioned_ns", of_part=True),
            exchanged_bytes=line("exchanged_bytes"),
            moves=line("moves", most=MOVES),
            round_s=other.round_s,
            row_bytes=other.row_bytes,
            seal_s=other.seal_s / other.n_sources,
            build_s=build_s,
            node_bytes=(other.store_bytes - 4 * other.n_edges) / other.n_nodes,
            disk_share=other.disk_bytes / other.exchanged_bytes,
        )


def value(point: Point, name: str) -> float:
    """A measured quantity, per move or per source."""
    if name == "exchanged_bytes":
        return point.exchanged_bytes / point.moves
    return point.moves / point.n_sources if name == "moves" else float(getattr(point, name))


@dataclass(frozen=True, slots=True)
class Job:
    """Fingerprints of some sources of a graph, and the cluster for them."""

    n_nodes: float
    n_edges: float  # stored: an undirected one counts twice
    n_sources: float
    workers: int
    worker_bytes: float  # of graph and messages

    @property
    def graph_bytes(self) -> float:
        """Bytes that walks touch, of an unweighted graph."""
        return 4 * self.n_edges + 9 * self.n_nodes

    @property
    def n_parts(self) -> int:
        """As :func:`ppr.partitioned.plan_sizes` cuts it."""
        return max(self.workers, math.ceil(self.graph_bytes / (self.worker_bytes / 2)))

    @property
    def batch_sources(self) -> float:
        """Sources that begin together."""
        return min(self.n_sources, math.ceil(_ROUND_MOVES * self.n_parts / MOVES))

    @property
    def steps(self) -> int:
        """Rounds that a batch takes: steps, the rest, ranking, merging."""
        walks = max(2.0, self.batch_sources * N_WALKS / _REST)
        return math.ceil(math.log(walks) / -math.log1p(-RESTART_PROB)) + 5

    @property
    def rounds(self) -> int:
        """Rounds of the whole job."""
        return math.ceil(self.n_sources / self.batch_sources) - 1 + self.steps


@dataclass(frozen=True, slots=True)
class Costs:
    """What the model foretells of a job."""

    moves: float
    in_memory_core_s: float
    partitioned_core_s: float
    partitioned_s: float
    exchanged_bytes: float
    disk_bytes: float
    graph_reads_bytes: float
    store_bytes: float
    fingerprint_bytes: float
    build_core_s: float
    seal_s: float


def foretell(job: Job, known: Constants) -> Costs:
    """Costs of a job."""
    moves = job.n_sources * known.moves.at(job.graph_bytes)
    partitioned = moves * known.partitioned_ns.at(job.graph_bytes / job.n_parts) * 1e-9
    exchanged = moves * known.exchanged_bytes.at(job.graph_bytes)
    under_way = min(1.0, job.steps * job.batch_sources / job.n_sources)
    seal = job.n_sources * known.seal_s
    return Costs(
        moves=moves,
        in_memory_core_s=moves * known.in_memory_ns.at(job.graph_bytes) * 1e-9,
        partitioned_core_s=partitioned,
        partitioned_s=partitioned / job.workers + job.rounds * known.round_s + seal,
        exchanged_bytes=exchanged,
        disk_bytes=exchanged * under_way * known.disk_share,
        graph_reads_bytes=job.rounds * job.graph_bytes,
        store_bytes=4 * job.n_edges + known.node_bytes * job.n_nodes,
        fingerprint_bytes=job.n_sources * known.row_bytes,
        build_core_s=job.n_edges / 2 * known.build_s,
        seal_s=seal,
    )


def job_of(point: Point) -> Job:
    """The job of a measured point."""
    return Job(point.n_nodes, point.n_edges, point.n_sources, WORKERS, point.limit_bytes)


def foretold(points: Sequence[Point], known: Constants) -> list[tuple[Point, str, float, float]]:
    """Foretold and measured quantities of each point, with their names."""
    rows = []
    for point in points:
        costs = foretell(job_of(point), known)
        pairs = {
            "in memory, ns per move of one core": (
                1e9 * costs.in_memory_core_s / costs.moves,
                point.in_memory_ns,
            ),
            "in parts, ns per move of one core": (
                1e9 * costs.partitioned_core_s / costs.moves,
                point.partitioned_ns,
            ),
            "in parts, seconds": (costs.partitioned_s, point.partitioned_s),
            "exchanged, bytes per move": (
                costs.exchanged_bytes / costs.moves,
                value(point, "exchanged_bytes"),
            ),
            "moves per source": (costs.moves / point.n_sources, value(point, "moves")),
            "rounds": (float(job_of(point).rounds), float(point.rounds)),
            "graph store, MiB": (costs.store_bytes / 2**20, point.store_bytes / 2**20),
        }
        rows += [(point, name, *pair) for name, pair in pairs.items()]
    return rows


def confirm(points: Sequence[Point]) -> Iterator[Figure]:
    """How far the largest graph is from what the two smaller ones foretell."""
    _, known = stored()
    for _, name, predicted, measured in foretold([points[-1]], known):
        off = max(predicted / measured, measured / predicted)
        yield at_most(
            f"model, 2^{points[-1].scale}: {name}, {shown(predicted)} foretold, {shown(measured)} measured",
            off,
            TRUSTED,
            "times",
        )


def stored() -> tuple[list[Point], Constants]:
    """Points of the last run, and the constants that its two smaller graphs give."""
    content = json.loads(POINTS.read_text())
    points = [Point(**point) for point in content["points"]]
    return points, Constants.of(points[0], points[1], content["build_s_per_edge"])


# 31 stored edges per node, as R-MAT graphs of this family have; every node a source.
JOBS = {
    "10^9 edges": Job(6.4e7, 2e9, 6.4e7, 64, 4e9),
    "10^11 edges": Job(6.4e9, 2e11, 6.4e9, 3200, 4e9),
}


def write_tables() -> None:
    """Put the tables between the marks of docs/scale.md."""
    points, known = stored()
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    tables = "\n\n".join([_confirmed(points, known), _extrapolated(known)])
    DOCUMENT.write_text(f"{before}{_BEGIN}\n{tables}\n\n{_END}{after}")


def _confirmed(points: Sequence[Point], known: Constants) -> str:
    rows = foretold([points[0], points[1], points[-1]], known)
    columns = ["2^18", "2^20", "2^23"]
    lines = [f"| foretold / measured | {' | '.join(columns)} |", "|---|---:|---:|---:|"]
    for name in dict.fromkeys(name for _, name, *_ in rows):
        cells = [f"{shown(p)} / {shown(m)}" for _, other, p, m in rows if other == name]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _extrapolated(known: Constants) -> str:
    costs = {name: (job, foretell(job, known)) for name, job in JOBS.items()}
    rows = {
        "nodes, all of them sources": lambda job, cost: f"{job.n_nodes:.2g}",
        "graph store": lambda job, cost: _size(cost.store_bytes),
        "of it, what walks touch": lambda job, cost: _size(job.graph_bytes),
        "building it, one core": lambda job, cost: _time(cost.build_core_s),
        "moves": lambda job, cost: f"{cost.moves:.2g}",
        "walks in memory": lambda job, cost: f"{_core_hours(cost.in_memory_core_s)}",
        "walks in parts": lambda job, cost: f"{_core_hours(cost.partitioned_core_s)}",
        "workers, of 4 GB of graph and messages each": lambda job, cost: f"{job.workers:,}",
        "parts": lambda job, cost: f"{job.n_parts:,}",
        "rounds": lambda job, cost: f"{job.rounds:,}",
        "time on those workers, building and sealing left out": lambda job, cost: _time(
            cost.partitioned_s - cost.seal_s
        ),
        "exchanged: written once, read once": lambda job, cost: _size(cost.exchanged_bytes),
        "... per worker and second": lambda job, cost: _size(
            2 * cost.exchanged_bytes / job.workers / (cost.partitioned_s - cost.seal_s)
        ),
        "exchange on the disk at once": lambda job, cost: _size(cost.disk_bytes),
        "graph read, once in each round": lambda job, cost: _size(cost.graph_reads_bytes),
        "fingerprints, 200 per node": lambda job, cost: _size(cost.fingerprint_bytes),
        "sealing them, one reader": lambda job, cost: _time(cost.seal_s),
    }
    lines = [f"| | {' | '.join(costs)} |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {' | '.join(cell(*one) for one in costs.values())} |" for name, cell in rows.items()
    ]
    return "\n".join(lines)


def _size(n_bytes: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes / 1e6:.3g} MB"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def _core_hours(seconds: float) -> str:
    return f"{shown(float(f'{seconds / 3600:.2g}'))} core hours"


if __name__ == "__main__":
    write_tables()
