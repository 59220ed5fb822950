"""The demo's report: what it shows of single users, of the graph and of the run."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Set
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import numpy.typing as npt

from jobs.demo_measure import measure
from jobs.demo_quality import Quality, TestPart
from jobs.report import Fact, Neighbour, Neighbourhood, QualityRow, ReportData, UserCard
from ppr.blocks import plan_blocks, predicted_moves
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.recommend import recommend

Ranking = tuple[npt.NDArray[np.int32], npt.NDArray[np.floating]]  # of one user, or of several as rows

_SHOWN_USERS = 3
_CARD_ITEMS = 8
_DRAWN_HISTORY = 12
_DRAWN_USERS = 7
_DRAWN_ITEMS = 10
_READABLE_HISTORY = range(5, 16)
_MEASURED_EDGES = 3_000_000  # above, the exact solver takes longer than a demo may
_N_BLOCKS = 24  # bars that can be told apart
_PACKAGES = ("fairpath", "numpy", "numba", "scipy", "pyarrow", "pyspark")


@dataclass(frozen=True, slots=True)
class Shown:
    """Users shown by name: cards of all, a drawing of one."""

    cards: tuple[UserCard, ...]
    neighbourhood: Neighbourhood


def show_users(
    graph: Graph,
    complete: FingerprintStore,
    test: TestPart,
    best: Ranking,
    groups: Mapping[str, str],
    seed: int,
) -> Shown:
    """Draw users of the test part at random and describe them.

    Users with a history of a readable length are preferred; nothing else decides. The one of them with the
    most categories in the history is drawn with the neighbourhood.

    Parameters
    ----------
    graph, complete
        The training graph and complete rows of its nodes, for similar users.
    test
        The users and what they went for later.
    best
        Ids and scores recommended to the users of ``test``, ``[b, k]``.
    groups
        Category by item key.
    seed
        Seed of the draw.
    """
    readable = np.flatnonzero(np.isin(graph.out_degree[test.users], _READABLE_HISTORY))
    rows = readable if len(readable) >= _SHOWN_USERS else np.arange(len(test.users))
    chosen = np.random.default_rng(seed).permutation(rows)[:_SHOWN_USERS].tolist()
    describer = _Describer(graph, groups)
    cards = tuple(
        describer.card(int(test.users[row]), (best[0][row], best[1][row]), test.items(row)) for row in chosen
    )
    variety = [len({item.group for item in card.history}) for card in cards]
    row = chosen[int(np.argmax(variety))]
    user = int(test.users[row])
    ids, scores = recommend(graph, complete, [user], _DRAWN_USERS, kinds=("user",))
    picture = describer.neighbourhood(
        user, (ids[0], scores[0]), (best[0][row], best[1][row]), test.items(row)
    )
    return Shown(cards, picture)


def build_report(
    graph: Graph,
    stores: tuple[FingerprintStore, FingerprintStore],
    quality: Quality,
    shown: Shown,
    run: Mapping[str, str],
) -> ReportData:
    """Measure accuracy and time, and put everything together.

    Parameters
    ----------
    graph
        The training graph.
    stores
        Complete rows and three-hop rows.
    quality
        Metrics by method.
    shown
        Users to show.
    run
        As text: ``data``, ``split``, ``engine``, and ``how`` the complete rows came about.
    """
    complete = stores[0]
    accuracy, cost = measure(graph, complete.params) if graph.n_edges <= _MEASURED_EDGES else ((), ())
    predicted, actual = _work(graph, complete)
    return ReportData(
        title="Fairpath demo",
        summary=f"Recommendations from {run['data']}, tested on {run['split']}.",
        facts=_facts(graph, complete, quality, run),
        degrees={kind: graph.out_degree[graph.nodes_of_kind(kind)] for kind in graph.kinds},
        accuracy=accuracy,
        cost=cost,
        predicted_moves=predicted,
        actual_moves=actual,
        quality_metrics=tuple(next(iter(quality.values()))),
        quality=tuple(QualityRow(label, tuple(values.values())) for label, values in quality.items()),
        quality_note=_quality_note(quality, run),
        neighbourhood=shown.neighbourhood,
        users=shown.cards,
        parameters=_parameters(stores, run["engine"]),
    )


def _facts(
    graph: Graph, complete: FingerprintStore, quality: Quality, run: Mapping[str, str]
) -> tuple[Fact, ...]:
    kinds = ", ".join(f"{len(graph.nodes_of_kind(kind)):,} {kind}s" for kind in graph.kinds)
    metric = next(iter(next(iter(quality.values()))))
    baseline, *ours = (values[metric] for label, values in quality.items() if label != "planted truth")
    moves = f"{complete.moves.sum() / 1e6:,.1f} M"
    return (
        Fact("nodes", f"{graph.n_nodes:,}", kinds),
        Fact("edges", f"{graph.n_edges:,}", "both directions counted"),
        Fact("moves for complete rows", moves, run["how"]),
        Fact(metric, f"{max(ours):.3f}", f"popularity {baseline:.3f}"),
    )


def _quality_note(quality: Quality, run: Mapping[str, str]) -> str:
    note = (
        f"Held out: {run['split']}. Only items that are new to the user count. Recall and NDCG are means "
        "over users, higher is better."
    )
    if "planted truth" in quality:
        note += (
            " The planted truth ranks by the probabilities that the data were drawn from: no method can do "
            "better on average. The planted share is the probability that a method's list catches, as a "
            "share of the best list's."
        )
    return note


def _work(graph: Graph, store: FingerprintStore) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Predicted and counted moves of each block, for blocks of a size that can be drawn."""
    predicted = predicted_moves(graph, store.params)
    blocks = plan_blocks(graph, None, store.params, block_moves=float(predicted.sum()) / _N_BLOCKS)
    actual = [int(store.moves[store.rows(block)].sum()) for block in blocks]
    return np.array([predicted[block].sum() for block in blocks]), np.array(actual)


def _parameters(stores: tuple[FingerprintStore, ...], engine: str) -> dict[str, dict[str, str]]:
    groups = {
        name: {key: _text(value) for key, value in store.params.to_json().items()}
        for name, store in zip(("complete rows", "three-hop rows"), stores, strict=True)
    }
    groups["versions"] = {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}
    groups["machine"] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "engine": engine,
    }
    return groups


def _text(value: object) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) or "all" if isinstance(value, list) else str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True, slots=True)
class _Describer:
    """Turns node ids into what a report shows."""

    graph: Graph
    groups: Mapping[str, str]  # group of an item's key; "item" where there is none

    def card(self, user: int, ranking: Ranking, held_out: Set[int]) -> UserCard:
        """History, the heaviest first, beside the recommendations, best first."""
        return UserCard(
            self._key(user),
            self._neighbours(self._heaviest(user, _CARD_ITEMS)),
            self._neighbours(_first(ranking, _CARD_ITEMS), held_out),
        )

    def neighbourhood(
        self, user: int, similar: Ranking, ranking: Ranking, held_out: Set[int]
    ) -> Neighbourhood:
        """One user's heaviest items, nearest users and best recommendations, with their links."""
        history = self._heaviest(user, _DRAWN_HISTORY)
        users, nearness = _first(similar, _DRAWN_USERS)
        recommended = _first(ranking, _DRAWN_ITEMS)
        keys = self.graph.keys(users)
        return Neighbourhood(
            user=self._key(user),
            history=self._neighbours(history),
            similar=tuple(Neighbour(str(k), score=float(s)) for k, s in zip(keys, nearness, strict=True)),
            recommended=self._neighbours(recommended, held_out),
            history_links=self._links(users, history[0])[:, ::-1],
            recommended_links=self._links(users, recommended[0]),
        )

    def _links(self, users: npt.NDArray[np.int32], items: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Pairs of positions (user, item) that the graph joins."""
        graph = self.graph
        joined = [np.isin(items, graph.indices[graph.indptr[u] : graph.indptr[u + 1]]) for u in users]
        return np.argwhere(np.array(joined, dtype=bool).reshape(len(users), len(items)))

    def _heaviest(self, user: int, count: int) -> Ranking:
        ids = self.graph.indices[self.graph.indptr[user] : self.graph.indptr[user + 1]]
        weights = self.graph.weights(user)
        order = np.lexsort((ids, -weights))[:count]
        return ids[order], weights[order]

    def _neighbours(self, ranking: Ranking, held_out: Set[int] = frozenset()) -> tuple[Neighbour, ...]:
        keys = [str(key) for key in self.graph.keys(ranking[0])]
        return tuple(
            Neighbour(key, self.groups.get(key, "item"), float(score), int(node) in held_out)
            for key, node, score in zip(keys, *ranking, strict=True)
        )

    def _key(self, user: int) -> str:
        return str(self.graph.keys([user])[0])


def _first(ranking: Ranking, count: int) -> Ranking:
    """Best entries of a padded ranking."""
    kept = np.flatnonzero(ranking[0] >= 0)[:count]
    return ranking[0][kept], ranking[1][kept]
