"""Packages that people use for personalised PageRank, beside ours: time per source for the same accuracy.

Runs in an environment of its own, .venv-peers. Each method answers with the fifty best nodes of the sources
of the accuracy protocol, at its cheapest setting with RAG@50 of at least .99, source left out, found by a
search over its knob; of ours also at the step limit that is cheapest. All are timed in one process on one
core, in turns, each at its best turn, by CPU time. Preparing a graph for a method is not counted; what its
calls repeat is. Methods that are too slow for a hundred sources get fewer, spread over the out-degrees.
GraphFrames runs in an environment of its own.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import ranked_ids
from competitors import ForwardPush, PowerIteration, top_of_columns
from contest import FINE_STEPS, GOAL, LUCK, SEEDS, WIDTH, Judge, best_turns, cpu_s
from datasets import RESTART_PROB, ego_twitter, gowalla_graph, rmat, wiki_vote
from harness import RESULTS, ROOT, Figure, at_least, check, note, pin_to_one_core, run_alone
from numpy.typing import NDArray
from peers_methods import Igraph, Networkit, PyG, ScikitNetwork, TorchPpr, use_one_thread

from ppr.blocks import compute_block
from ppr.graph import Graph
from ppr.params import FingerprintParams

CURVES = RESULTS / "peers_curves.json"
OURS, OURS_LIMITED = "Fairpath", "Fairpath, steps limited"
POWER_ITERATION, PUSH, BETTER_PUSH = "scipy power iteration", "numba push", "numba push, residuals added"
BY_HAND = (POWER_ITERATION, PUSH)  # the improved push stands beside them, as in the benchmark of cost
NO_PACKAGES = (OURS, OURS_LIMITED, *BY_HAND, BETTER_PUSH)
GRAPHFRAMES = "GraphFrames"
PACKAGE_GOAL, GRAPHFRAMES_GOAL = 10.0, 1000.0

N_SOURCES = 100
STEP_LIMITS = (8, 6, 5, 4, 3)
MORE_ITERATIONS = 4  # of GraphFrames than power iteration has steps
GRAPHFRAMES_COMMAND = (
    str(ROOT / ".venv-graphframes/bin/python"),
    str(Path(__file__).with_name("peers_graphframes.py")),
    "--memory=9g",
)

CURVE_RAG = 0.9995  # a curve need not go further
TRY_S = 6.0  # a try takes as many sources as fit
LONGEST_TRY_S = 30.0  # but if this does not do for the fewest sources, the search ends
SEARCH_S = 40.0
FEWEST = 4
FINAL_S = 45.0  # the chosen setting takes as many sources as fit
ENOUGH_S = 10.0  # a method that has run so long takes no further turn

Run = Callable[[NDArray[np.int32], float], NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Knob:
    """What trades accuracy for time: its first setting, how it grows, and how it is shown."""

    first: float
    shown: Callable[[float], str]
    doubles: bool = False  # else it grows by 1
    fixed: bool = False

    def next(self, setting: float) -> float:
        return 2 * setting if self.doubles else setting + 1

    def finer(self, setting: float) -> float:
        """The next setting that is not a search's but a choice's."""
        return setting * 2 ** (1 / FINE_STEPS) if self.doubles else setting + 1


@dataclass(frozen=True, slots=True)
class Method:
    """A method on a graph: what answers; more than one answer where it draws at random, for its mean RAG."""

    name: str
    knob: Knob
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Try:
    """A setting, what it reached, and what that cost."""

    setting: float
    n_sources: int
    rag: float
    ms: float


@dataclass(frozen=True, slots=True)
class Course:
    """A graph, and what is asked for on it; GraphFrames gets few sources where it would take too long."""

    name: str
    graph: Callable[[], Graph]
    by_hand_goal: float | None
    n_graphframes: int


COURSES = (
    Course("wiki-Vote", wiki_vote, 1.5, 64),
    Course("ego-twitter", ego_twitter, 4.0, 32),
    Course("Gowalla", gowalla_graph, None, 32),
    Course("R-MAT 2^20", partial(rmat, 20, 16_000_000), 50.0, 4),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A method on a graph: all it tried, and what it was timed at, or None where it misses the goal."""

    name: str
    setting: str
    tries: list[Try]
    chosen: Try | None

    @property
    def best(self) -> Try:
        return self.chosen or _most_accurate(self.tries)

    @property
    def shown(self) -> str:
        rest = "" if self.best.n_sources == N_SOURCES else f", {self.best.n_sources} sources"
        reached = "" if self.chosen else f", RAG@50 {self.best.rag:.3f} at most"
        return f"{self.name}, {self.setting}{rest}{reached}"


def steps(first: int) -> Knob:
    return Knob(first, lambda setting: f"{setting:.0f} steps")


def threshold(first: float) -> Knob:
    return Knob(first, lambda setting: f"ε={1 / setting:.1e}", doubles=True)


FIXED = Knob(0.0, lambda _: "no knob", fixed=True)


def methods(graph: Graph) -> Iterator[Method]:
    """All other methods on a graph, one after the other, since some take long to prepare."""
    yield Method(POWER_ITERATION, steps(2), (partial(_iterate, PowerIteration(graph, RESTART_PROB)),))
    for name, add_residuals in ((PUSH, False), (BETTER_PUSH, True)):
        push = ForwardPush(graph, RESTART_PROB, add_residuals=add_residuals)
        yield Method(name, threshold(1000.0), (partial(_push, push),))
    yield Method("PyG", threshold(1000.0), (PyG(graph).top,))
    yield Method("scikit-network", steps(1), (ScikitNetwork(graph).top,))
    yield Method("igraph", FIXED, (Igraph(graph).top,))
    yield Method("networkit", threshold(1000.0), (Networkit(graph).top,))
    yield Method("torch-ppr", steps(1), (TorchPpr(graph).top,))


def fingerprints(graph: Graph, max_steps: int | None) -> Method:
    """Ours, with and without a limit of steps."""
    limit = "" if max_steps is None else f", at most {max_steps} steps"
    knob = Knob(200.0, lambda setting: f"R={setting:,.0f}{limit}", doubles=True)
    name = OURS if max_steps is None else OURS_LIMITED
    return Method(name, knob, tuple(partial(_fingerprints, graph, max_steps, seed) for seed in SEEDS))


def _fingerprints(
    graph: Graph, max_steps: int | None, seed: int, sources: NDArray[np.int32], n_walks: float
) -> NDArray[np.int32]:
    params = FingerprintParams(
        restart_prob=RESTART_PROB, n_walks=round(n_walks), max_steps=max_steps, top_k=WIDTH, seed=seed
    )
    return ranked_ids(compute_block(graph, sources, params), WIDTH)


def _iterate(solver: PowerIteration, sources: NDArray[np.int32], n_steps: float) -> NDArray[np.int32]:
    return solver.top(sources, int(n_steps), WIDTH)


def _push(solver: ForwardPush, sources: NDArray[np.int32], inverse: float) -> NDArray[np.int32]:
    return solver.top(sources, 1.0 / inverse, WIDTH)


class Contest:
    """The methods on one graph."""

    def __init__(self, course: Course, all_cores: set[int]) -> None:
        self._course = course
        self._all_cores = all_cores
        self._graph = course.graph()
        self._judge = Judge(self._graph)
        # Every beginning of this order is spread over the out-degrees, so that a few sources stand for all.
        by_degree = np.argsort(self._graph.out_degree[self._judge.sources], kind="stable")
        self._order = by_degree[_spread(by_degree.size)]
        self.lines: list[Line] = []

    def run(self) -> None:
        """Tune, check and time the methods."""
        chosen: dict[str, tuple[Method, Try]] = {}
        for method, tries, one in self._found():
            if one:
                chosen[method.name] = method, one
            self._add(method.name, method.knob, tries, one)
        n_steps = round(chosen[POWER_ITERATION][1].setting)
        self._time_in_turns(chosen)
        chosen.clear()  # memory for GraphFrames
        self._add(GRAPHFRAMES, steps(1), *self._graphframes(n_steps))

    def _found(self) -> Iterator[tuple[Method, list[Try], Try | None]]:
        """Each method with what was tried and what was chosen; ours without, then with its best limit."""
        ours = fingerprints(self._graph, None)
        tries = self._search(ours)
        one = self._choose(ours, tries)
        yield ours, tries, one
        dearest_ms, limited = one.ms if one else math.inf, None
        for max_steps in STEP_LIMITS:
            method = fingerprints(self._graph, max_steps)
            tries = self._search(method, dearest_ms)
            one = self._choose(method, tries)
            if one and one.ms < dearest_ms:
                dearest_ms, limited = one.ms, (method, tries, one)
        if limited:
            yield limited
        for method in methods(self._graph):
            tries = self._search(method)
            yield method, tries, self._choose(method, tries)

    def _time_in_turns(self, chosen: dict[str, tuple[Method, Try]]) -> None:
        """Replace the times of the chosen settings by the best of some turns, unless they take long."""
        runs = [
            (name, partial(method.runs[0], self._judge.sources[self._order[: one.n_sources]], one.setting))
            for name, (method, one) in chosen.items()
            if one.ms * one.n_sources < 1e3 * ENOUGH_S
        ]
        best_s = best_turns(runs, ENOUGH_S)
        for i, line in enumerate(self.lines):
            if line.chosen and line.name in best_s:
                ms = 1e3 * best_s[line.name] / line.chosen.n_sources
                self.lines[i] = replace(line, chosen=replace(line.chosen, ms=ms))

    def figures(self) -> Iterator[Figure]:
        """Goals, then what each method takes."""
        name = self._course.name
        ms = {line.name: line.chosen.ms for line in self.lines if line.chosen}
        ours = min(ms[one] for one in (OURS, OURS_LIMITED) if one in ms)
        package = min((one for one in ms if one not in NO_PACKAGES), key=lambda one: ms[one])
        what = f"{name}: times the sources per second of the best package, {package}"
        yield at_least(what, ms[package] / ours, PACKAGE_GOAL, "times")
        by_hand = min(ms[one] for one in BY_HAND if one in ms) / ours
        what = f"{name}: times the sources per second of the better by hand"
        goal = self._course.by_hand_goal
        yield at_least(what, by_hand, goal, "times") if goal else note(what, by_hand, "times")
        what = f"{name}: times the sources per second of push with residuals added"
        if BETTER_PUSH in ms:
            yield note(what, ms[BETTER_PUSH] / ours, "times")
        what = f"{name}: times the sources per second of GraphFrames"
        yield at_least(what, self.lines[-1].best.ms / ours, GRAPHFRAMES_GOAL, "times")
        for line in self.lines:
            yield note(f"{name}: {line.shown}", line.best.ms, "ms per source")

    def _search(self, method: Method, dearest_ms: float = math.inf) -> list[Try]:
        """Try settings, cheapest first, until the answers are good, cost too much, or the time is up."""
        knob, setting, tries, spent_s = method.knob, method.knob.first, [], 0.0
        first = self._judge.sources[self._order[:1]]
        method.runs[0](first, setting)  # compiles it
        expected_s = cpu_s(lambda: method.runs[0](first, setting))
        while spent_s < SEARCH_S and (not tries or FEWEST * expected_s < LONGEST_TRY_S):
            one = self._try(method, setting, max(FEWEST, int(TRY_S / max(expected_s, 1e-6))))
            tries.append(one)
            if knob.fixed or one.rag >= CURVE_RAG or one.ms > dearest_ms:
                break
            spent_s += one.ms * one.n_sources / 1e3
            expected_s = one.ms / 1e3 * knob.next(setting) / setting
            setting = knob.next(setting)
        return tries

    def _choose(self, method: Method, tries: list[Try]) -> Try | None:
        """The cheapest setting that reaches the goal, with as many sources as there is time for."""
        reached = next((i for i, one in enumerate(tries) if one.rag >= GOAL), None)
        if reached is None:
            return None
        chosen = tries[reached]
        if method.knob.doubles and reached > 0:
            low, high = 0, FINE_STEPS  # in fine steps above the last setting that does not reach it
            while high - low > 1:
                middle = (low + high) // 2
                setting = tries[reached - 1].setting * 2 ** (middle / FINE_STEPS)
                one = self._try(method, setting, chosen.n_sources)
                low, high, chosen = (low, middle, one) if one.rag >= GOAL else (middle, high, chosen)
        n_sources = min(self._order.size, int(1e3 * FINAL_S / chosen.ms))
        if chosen.n_sources < n_sources:
            chosen = self._try(method, chosen.setting, n_sources)
            for _ in range(FINE_STEPS):
                if chosen.rag >= GOAL:
                    break
                chosen = self._try(method, method.knob.finer(chosen.setting), n_sources)
        return chosen if chosen.rag >= GOAL - LUCK else None

    def _try(self, method: Method, setting: float, n_sources: int) -> Try:
        rows = self._order[:n_sources]
        sources = self._judge.sources[rows]
        answers: list[NDArray[np.int32]] = []
        seconds: list[float] = []
        while len(seconds) < 3 and sum(seconds) < 1.0:  # quick ones are steadier if repeated
            seconds.append(cpu_s(lambda: answers.append(method.runs[0](sources, setting))))
        answers = [answers[0], *(run(sources, setting) for run in method.runs[1:])]
        rag = float(np.mean([self._judge.rag(ids, rows) for ids in answers]))
        return Try(setting, rows.size, rag, 1e3 * min(seconds) / rows.size)

    def _graphframes(self, n_steps: int) -> tuple[list[Try], Try | None]:
        """GraphFrames in its own process, from about the steps that power iteration needs on."""
        rows = self._order[: self._course.n_graphframes]
        ahead = range(n_steps - 1, n_steps + 1 + MORE_ITERATIONS)
        # One by one until it is good enough; where that does not take long, the first for a curve at once.
        batches = [(n_iterations,) for n_iterations in ahead]
        if rows.size > FEWEST:
            batches[:3] = [tuple(ahead[:3])]
        tries: list[Try] = []
        os.sched_setaffinity(0, self._all_cores)
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("graph.npz", "sources.npy", "scores.npz")]
            np.savez(files[0], indptr=self._graph.indptr, indices=self._graph.indices)
            np.save(files[1], self._judge.sources[rows])
            for batch in batches:
                command = [*GRAPHFRAMES_COMMAND, *map(str, files), "--max-iter", *map(str, batch)]
                quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
                ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=quiet)
                with np.load(files[2], allow_pickle=False) as answers:
                    for timing in json.loads(ended.stdout)["timings"]:
                        scores = answers[f"scores-{timing['max_iter']}"]
                        ids = top_of_columns(np.ascontiguousarray(scores.T), WIDTH)
                        ms = 1e3 * timing["core_seconds"] / rows.size
                        tries.append(Try(timing["max_iter"], rows.size, self._judge.rag(ids, rows), ms))
                if tries[-1].rag >= GOAL:
                    break
        pin_to_one_core()
        return tries, next((one for one in tries if one.rag >= GOAL), None)

    def _add(self, name: str, knob: Knob, tries: list[Try], chosen: Try | None) -> None:
        line = Line(name, knob.shown((chosen or _most_accurate(tries)).setting), tries, chosen)
        self.lines.append(line)
        print(f"{self._course.name}: {line.shown}: {line.best.ms:.4g} ms", file=sys.stderr, flush=True)


def _most_accurate(tries: list[Try]) -> Try:
    return max(tries, key=lambda one: one.rag)


def _spread(n: int) -> NDArray[np.int64]:
    """Positions below ``n`` in van der Corput's order, int64 [n]: each beginning of it is spread evenly."""
    width = max(1, (n - 1).bit_length())
    order = [int(f"{i:0{width}b}"[::-1], 2) for i in range(1 << width)]
    return np.array([position for position in order if position < n])


def measure() -> list[Figure]:
    """Measure all graphs; keep the curves for the pictures as well."""
    check(Path(GRAPHFRAMES_COMMAND[0]).exists(), "no GraphFrames: 'make bench-peers' installs it")
    everywhere = os.sched_getaffinity(0)
    pin_to_one_core()
    use_one_thread()
    figures: list[Figure] = []
    curves: dict[str, list[dict[str, Any]]] = {}
    for course in COURSES:
        contest = Contest(course, everywhere)
        contest.run()
        figures += contest.figures()
        curves[course.name] = [asdict(line) for line in contest.lines]
        CURVES.write_text(json.dumps(curves, indent=1, ensure_ascii=False) + "\n")
    return figures


if __name__ == "__main__":
    run_alone("peers", measure)
