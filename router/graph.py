"""The graph of users, items, LLMs and tasks, and the edges by which a user hears of others.

======================================  =================================================================
edges                                   weights and attributes
======================================  =================================================================
user  -took->     item                  weight of the interactions
user  -chose->    llm                   number of choices; means of the outcomes where they are given
llm   -served->   task                  number of choices; means of the answers' features where measured
user  -alike->    user                  likeness of features, the nearest users
user  -near->     user                  PPR mass
item  -taken_by-> user                  the interactions the other way round
item  -reached->  user                  PPR mass
llm   -wanted->   user                  PPR mass, composed: p(u, m) = Σ_{v≠u} p(u, v) n(v, m) / n(v)
======================================  =================================================================

The lower five lead to users and carry what a user hears (:mod:`router.prior`): their weights sum to 1 for
each user that has any, the raw mass is the attribute. A user's own choices must not come back to the user
as evidence. Hence there are no edges from a user to itself; users without choices send nothing; and the PPR
mass between users and LLMs is composed from walks among users and items and the choices of *other* users.
Walks over choices themselves would carry a user's own choices back in a way that no later step can take out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import HeteroData

from router.errors import DataError
from router.persona.data import Bools, ChoiceData, Floats, Ints, Support, UserLinks

TOOK = ("user", "took", "item")
CHOSE = ("user", "chose", "llm")
SERVED = ("llm", "served", "task")
ALIKE = ("user", "alike", "user")
NEAR = ("user", "near", "user")
TAKEN_BY = ("item", "taken_by", "user")
REACHED = ("item", "reached", "user")
WANTED = ("llm", "wanted", "user")
HEARD = (ALIKE, NEAR, TAKEN_BY, REACHED)
_FIELDS = {NEAR: "near", TAKEN_BY: "interactions", REACHED: "near_items"}  # of UserLinks
_ROWS = 1024  # of users whose neighbours are searched at a time; bounds memory


@dataclass(frozen=True, slots=True)
class Edges:
    """Edges into users, in order of the users.

    Attributes
    ----------
    index
        Source and user, int64 [2, e].
    weight
        Sums to 1 for each user that has any, float32 [e].
    mass
        As given, float32 [e].
    own
        From items: the user's own part in the item's sum over users, float32 [e]; None otherwise.
    """

    index: Tensor
    weight: Tensor
    mass: Tensor
    own: Tensor | None = None

    def of(self, first: int, last: int) -> Edges:
        """Those into some consecutive users, who are numbered from 0."""
        start, stop = torch.searchsorted(self.index[1], torch.tensor([first, last])).tolist()
        index = self.index[:, start:stop] - torch.tensor([[0], [first]])
        own = None if self.own is None else self.own[start:stop]
        return Edges(index, self.weight[start:stop], self.mass[start:stop], own)


@dataclass(frozen=True, slots=True)
class Listeners:
    """Users whose prior is asked for.

    Attributes
    ----------
    x
        Features, standardised, float32 [u, p].
    edges
        Into the users, by type.
    known
        Which of the known users they are, int64 [u]; None for new users.
    """

    x: Tensor
    edges: dict[tuple[str, str, str], Edges] = field(default_factory=dict)
    known: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def parts(self, n: int) -> Iterator[Listeners]:
        """The users, n at a time; one part where there are none."""
        for first in range(0, max(len(self), 1), n):
            last = min(first + n, len(self))
            edges = {edge: edges.of(first, last) for edge, edges in self.edges.items()}
            known = None if self.known is None else self.known[first:last]
            yield Listeners(self.x[first:last], edges, known)


def build_graph(
    data: ChoiceData, *, n_neighbors: int = 50, outcomes: Floats | None = None, masked: bool = True
) -> HeteroData:
    """Build the graph of the known users.

    Parameters
    ----------
    data
        Users with features and links, LLMs and tasks, and who chose what.
    n_neighbors
        Nearest users by features; 0 for none.
    outcomes
        What came of each choice, such as reward and thumb, float32 [n, r]; NaN where not known.
    masked
        Leave out what would bring a user's own choices back to the user. Without it, one can only see what
        that leak does.

    Returns
    -------
    HeteroData
        With ``x`` of users (features, standardised), items (the same), LLMs (see :func:`llm_features`) and
        tasks (mean embedding of their training queries).

    Raises
    ------
    DataError
        The outcomes are not of these choices.
    """
    graph = HeteroData()
    _add_nodes(graph, data)
    _add_choices(graph, data, outcomes)
    links = data.links or UserLinks()
    if links.interactions is not None:
        _set(graph, TOOK, _edges(sp.csr_array(links.interactions.T), normalise=False))
    senders = graph["user"].n_choices.numpy() > 0
    features = data.user_features
    for edge, rows in _heard(features, features, links, n_neighbors, senders, same=masked).items():
        if edge == NEAR:
            rows = _from(rows, senders, loops=not masked)
        _set(graph, edge, _edges(rows, own=_own(links, rows, edge, senders, masked)))
    if NEAR in graph.edge_types:
        _set(graph, WANTED, _edges(_composed(graph), normalise=False))
    return graph


def known_users(graph: HeteroData) -> Listeners:
    """The graph's own users as those whose prior is asked for."""
    edges = {}
    for edge in HEARD:
        if edge in graph.edge_types:
            store = graph[edge]
            edges[edge] = Edges(store.edge_index, store.edge_weight, store.edge_attr[:, 0], store.get("own"))
    return Listeners(graph["user"].x, edges, torch.arange(graph["user"].num_nodes))


def new_users(graph: HeteroData, support: Support, *, n_neighbors: int = 50) -> Listeners:
    """Users that the graph does not hold, with edges from the users and items that it does.

    Raises
    ------
    DataError
        Features, users or items are not those of the graph.
    """
    user, links = graph["user"], support.links or UserLinks()
    features, known = support.user_features, user.profile.numpy()
    if features is None:
        x = torch.zeros(support.n_users, known.shape[1])
    else:
        if features.shape[1] != known.shape[1]:
            raise DataError(f"'user_features' must have {known.shape[1]} columns (got {features.shape[1]})")
        x = torch.from_numpy((features - graph.center) / graph.scale)
    senders = user.n_choices.numpy() > 0
    edges = {}
    for edge, rows in _heard(features, known, links, n_neighbors, senders, same=False).items():
        n_sources = graph[edge[0]].num_nodes if edge[0] in graph.node_types else 0
        if rows.shape[1] != n_sources:
            name = _FIELDS.get(edge, "user_features")
            raise DataError(
                f"{name!r} must have a column for each of {n_sources} known {edge[0]}s (got {rows.shape[1]})"
            )
        if edge == NEAR:
            rows = _from(rows, senders, loops=True)
        edges[edge] = _edges(rows)
    return Listeners(x, edges)


def feature_neighbours(
    features: Floats, known: Floats, k: int, *, same: bool, among: Bools | None = None
) -> sp.csr_array:
    """Each user's k known users of largest positive dot product, ties by ascending id, [u, known].

    Parameters
    ----------
    features, known
        float32 [u, p], [known, p].
    k
        Neighbours.
    same
        Whether both are the same users; a user is then no neighbour of its own.
    among
        Known users that may be neighbours, bool [known]; all by default.
    """
    columns = np.arange(len(known)) if among is None else np.flatnonzero(among)
    k = min(k, columns.size)
    found = [sp.csr_array((0, len(known)), dtype=np.float32)]
    for first in range(0, len(features) if k else 0, _ROWS):
        affinity = (features[first : first + _ROWS] @ known[columns].T).clip(0.0)
        if same:
            affinity[np.arange(first, first + len(affinity))[:, None] == columns] = 0.0
        least = np.partition(affinity, -k, axis=1)[:, [-k]]
        more, tied = affinity > least, affinity == least
        kept = more | (tied & (tied.cumsum(axis=1) <= k - more.sum(axis=1, keepdims=True)))
        rows, at = np.nonzero(kept & (affinity > 0.0))
        shape = (len(affinity), len(known))
        found.append(sp.csr_array((affinity[rows, at], (rows, columns[at])), shape=shape))
    if not k:
        return sp.csr_array((len(features), len(known)), dtype=np.float32)
    return sp.csr_array(sp.vstack(found))


def llm_features(data: ChoiceData) -> Floats:
    """What is known of LLMs, float32 [m, ...].

    Embedding of the description; logarithms of the prices and whether they are unknown; in the telemetry
    track the means of their answers' features and whether none was measured. 0 where unknown.
    """
    parts = [data.llm_embeddings, *_filled(np.log(np.maximum(data.prices_usd, np.float32(1e-6))))]
    if data.features is not None:
        parts += _filled(_means(data.features, axis=0))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _add_nodes(graph: HeteroData, data: ChoiceData) -> None:
    features = np.zeros((data.n_users, 0), np.float32) if data.user_features is None else data.user_features
    graph["user"].profile = torch.from_numpy(features)
    graph["user"].x, graph.center, graph.scale = _standardised(features)
    graph["user"].n_choices = torch.from_numpy(np.bincount(data.choices.users, minlength=data.n_users))
    graph["llm"].x = torch.from_numpy(llm_features(data))
    by_task = sp.csr_array(
        (
            np.ones(data.n_queries, np.float32)[data.train_queries],
            (data.tasks[data.train_queries], np.flatnonzero(data.train_queries)),
        ),
        shape=(data.n_tasks, data.n_queries),
    )
    n_queries = np.maximum(by_task.sum(axis=1), 1.0)[:, None]
    graph["task"].x = torch.from_numpy((by_task @ data.query_embeddings / n_queries).astype(np.float32))
    links = data.links or UserLinks()
    matrices = [m for m in (links.interactions, links.near_items) if m is not None]
    if links.item_features is not None or matrices:
        n_items = matrices[0].shape[1] if links.item_features is None else len(links.item_features)
        items = np.zeros((n_items, 0), np.float32) if links.item_features is None else links.item_features
        graph["item"].x = _standardised(items)[0]


def _add_choices(graph: HeteroData, data: ChoiceData, outcomes: Floats | None) -> None:
    choices = data.choices
    if outcomes is None:
        outcomes = np.zeros((len(choices), 0), np.float32)
    if len(outcomes) != len(choices):
        raise DataError(f"'outcomes' must have {len(choices)} rows (got {len(outcomes)})")
    pairs, place, counts = np.unique(
        choices.users * data.n_llms + choices.llms, return_inverse=True, return_counts=True
    )
    _connect(graph, CHOSE, np.stack(np.divmod(pairs, data.n_llms)), counts)
    graph[CHOSE].edge_attr = torch.from_numpy(_group_means(outcomes, place, len(pairs)))

    counts = np.zeros((data.n_llms, data.n_tasks))
    np.add.at(counts, (choices.llms, data.tasks[choices.queries]), 1)
    measured = np.zeros((data.n_llms, data.n_tasks, 0), np.float32)
    if data.features is not None:
        # [q, m, f] -> [t, m * f] -> [m, t, f]
        n_features = data.features.shape[2]
        means = _group_means(data.features.reshape(data.n_queries, -1), data.tasks, data.n_tasks)
        measured = means.reshape(data.n_tasks, data.n_llms, n_features).transpose(1, 0, 2)
    served = (counts > 0) | ~np.isnan(measured).all(axis=2) & (measured.shape[2] > 0)
    _connect(graph, SERVED, np.stack(np.nonzero(served)), counts[served])
    graph[SERVED].edge_attr = torch.from_numpy(measured[served])


def _connect(
    graph: HeteroData, edge: tuple[str, str, str], index: Ints, weights: NDArray[np.generic]
) -> None:
    graph[edge].edge_index = torch.from_numpy(index.astype(np.int64))
    graph[edge].edge_weight = torch.from_numpy(weights.astype(np.float32))


def _set(graph: HeteroData, edge: tuple[str, str, str], edges: Edges) -> None:
    store = graph[edge]
    store.edge_index = edges.index
    store.edge_weight, store.edge_attr = edges.weight, edges.mass[:, None]
    if edges.own is not None:
        store.own = edges.own


def _heard(
    features: Floats | None,
    known: Floats | None,
    links: UserLinks,
    n_neighbors: int,
    senders: Bools,
    *,
    same: bool,
) -> dict[tuple[str, str, str], sp.csr_array]:
    """Rows of each type of edges that lead to users, users × sources."""
    found = {edge: getattr(links, name) for edge, name in _FIELDS.items()}
    if features is not None and known is not None and known.shape[1] and n_neighbors:
        found[ALIKE] = feature_neighbours(features, known, n_neighbors, same=same, among=senders)
    return {edge: found[edge] for edge in HEARD if found.get(edge) is not None}


def _from(rows: sp.csr_array, senders: Bools, *, loops: bool) -> sp.csr_array:
    """Keep the edges from users who have something to say."""
    coo = rows.tocoo()
    kept = senders[coo.col] & (loops | (coo.row != coo.col))
    return sp.csr_array((coo.data[kept], (coo.row[kept], coo.col[kept])), shape=rows.shape)


def _edges(rows: sp.csr_array, own: Floats | None = None, *, normalise: bool = True) -> Edges:
    """Edges from columns to rows; ``own`` lies as the entries do."""
    rows = sp.csr_array(rows)
    kept = rows.data > 0.0
    of_row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))[kept]
    mass = rows.data[kept].astype(np.float64)
    weight = mass / np.bincount(of_row, mass, minlength=rows.shape[0])[of_row] if normalise else mass
    return Edges(
        torch.from_numpy(np.stack([rows.indices[kept], of_row]).astype(np.int64)),
        torch.from_numpy(weight.astype(np.float32)),
        torch.from_numpy(mass.astype(np.float32)),
        None if own is None else torch.from_numpy(own[kept].astype(np.float32)),
    )


def _own(
    links: UserLinks, rows: sp.csr_array, edge: tuple[str, str, str], senders: Bools, masked: bool
) -> Floats | None:
    """The part of each entry's user in its item's sum over users who made choices."""
    if edge[0] != "item":
        return None
    coo = rows.tocoo()
    if links.interactions is None or not masked:
        return np.zeros(coo.nnz, np.float32)
    own = np.asarray(links.interactions[coo.row, coo.col], dtype=np.float32).ravel()
    return np.where(senders[coo.row], own, np.float32(0.0))


def _composed(graph: HeteroData) -> sp.csr_array:
    """PPR mass from users to LLMs through other users, [u, m]."""
    n_users, n_llms = graph["user"].num_nodes, graph["llm"].num_nodes
    (users, llms), counts = graph[CHOSE].edge_index.numpy(), graph[CHOSE].edge_weight.numpy()
    shares = counts / graph["user"].n_choices.numpy()[users]
    (sources, targets), mass = graph[NEAR].edge_index.numpy(), graph[NEAR].edge_attr[:, 0].numpy()
    near = sp.csr_array((mass, (targets, sources)), shape=(n_users, n_users))
    return sp.csr_array(near @ sp.csr_array((shares, (users, llms)), shape=(n_users, n_llms)))


def _standardised(features: Floats) -> tuple[Tensor, Floats, Floats]:
    # Features of all nodes alike may not vary at all.
    center, scale = features.mean(axis=0), features.std(axis=0) + np.float32(1e-6)
    return torch.from_numpy((features - center) / scale), center, scale


def _means(values: Floats, axis: int) -> Floats:
    """Means of the numbers among values; NaN where there are none."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=axis), known.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _group_means(values: Floats, groups: Ints, n_groups: int) -> Floats:
    """Means of the numbers in each column by group, float32 [n_groups, columns]; NaN where there are none."""
    known = ~np.isnan(values)
    total, count = np.zeros((2, n_groups, values.shape[1]))
    np.add.at(total, groups, np.where(known, values, 0.0))
    np.add.at(count, groups, known)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _filled(values: Floats) -> list[Floats]:
    """The values with 0 for NaN, and whether they were NaN."""
    unknown = np.isnan(values)
    return [np.where(unknown, np.float32(0.0), values), unknown.astype(np.float32)]
