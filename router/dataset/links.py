"""Users and items of a graph store, and who is near to whom by its fingerprints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from scipy.sparse.linalg import svds
from threadpoolctl import threadpool_limits

from ppr import errors as ppr_errors
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from router.errors import BundleError, DataError, MissingDataError
from router.persona.data import Floats, Ints, UserLinks

USER, ITEM = "user", "item"
_RANK = 32


@dataclass(frozen=True, slots=True)
class Links:
    """Users, items, and what ties them.

    Attributes
    ----------
    user_keys, item_keys
        Keys of the rows and columns; Arrow int64 or large_string.
    ties
        Interactions; near users and items too, where there are fingerprints; spectral features of the items.
    """

    user_keys: pa.Array
    item_keys: pa.Array
    ties: UserLinks

    def of_users(self, keys: pa.Array) -> Links:
        """Same ties with a row for each of ``keys``, which hold all of the graph's users."""
        rows = pc.index_in(self.user_keys.cast(keys.type), value_set=keys).to_numpy()
        ties = UserLinks(
            interactions=_placed(self.ties.interactions, rows, len(keys)),
            near=_placed(self.ties.near, rows, len(keys), square=True),
            near_items=_placed(self.ties.near_items, rows, len(keys)),
            item_features=self.ties.item_features,
        )
        return replace(self, user_keys=keys, ties=ties)


def read_links(graph_path: Path, fingerprints: Path | None, top_k: int) -> Links:
    """Read users, items and their edges.

    Parameters
    ----------
    graph_path
        Store with nodes of the kinds ``user`` and ``item``.
    fingerprints
        Store of the same graph, or None. A user without a row has no near users or items.
    top_k
        Users, and items, kept of each fingerprint.

    Raises
    ------
    MissingDataError
        There is no store.
    BundleError
        A store is damaged, or the fingerprints are of another graph.
    DataError
        The graph has no users or no items.
    """
    try:
        graph = Graph.open(graph_path)
        store = None if fingerprints is None else FingerprintStore.open(fingerprints, graph=graph)
    except ppr_errors.MissingDataError as error:
        raise MissingDataError(str(error)) from None
    except ppr_errors.StoreError as error:
        raise BundleError(str(error)) from None
    for kind in (USER, ITEM):
        if kind not in graph.kinds:
            raise DataError(
                f"{graph_path}: the graph must have nodes of kind {kind!r} (it has {graph.kinds})"
            )
    users, items = (graph.nodes_of_kind(kind).astype(np.int64) for kind in (USER, ITEM))
    edges = sp.csr_array(
        (graph.weights().astype(np.float32), graph.indices, graph.indptr), shape=[graph.n_nodes] * 2
    )
    near, near_items = (None, None) if store is None else _nearest(store, users, items, graph.n_nodes, top_k)
    nodes = graph.nodes
    interactions = sp.csr_array(edges[users][:, items])
    return Links(
        user_keys=nodes.keys.take(pa.array(users)),
        item_keys=nodes.keys.take(pa.array(items)),
        ties=UserLinks(interactions, near, near_items, _spectral(interactions)),
    )


def _placed(
    matrix: sp.csr_array | None, rows: Ints, n_users: int, *, square: bool = False
) -> sp.csr_array | None:
    """Matrix with its rows (and, where square, its columns) moved to other places."""
    if matrix is None:
        return None
    coo = matrix.tocoo()
    columns = rows[coo.col] if square else coo.col
    shape = n_users, n_users if square else matrix.shape[1]
    return sp.csr_array((coo.data, (rows[coo.row], columns)), shape=shape)


def _spectral(interactions: sp.csr_array) -> Floats | None:
    """Leading right singular vectors of the normalised interactions, scaled to unit mean square, [i, r]."""
    rank = min(_RANK, min(interactions.shape) - 1)
    if rank < 1 or not interactions.nnz:
        return None
    visits = sp.csr_array(interactions, dtype=np.float64)
    visits.data[:] = 1.0
    of_users, of_items = (np.asarray(visits.sum(axis=axis)).ravel() for axis in (1, 0))
    scaled = sp.diags_array(1.0 / np.sqrt(of_users.clip(1.0))) @ visits
    scaled = scaled @ sp.diags_array(1.0 / np.sqrt(of_items.clip(1.0)))
    start = np.random.default_rng(0).normal(size=min(interactions.shape))
    with threadpool_limits(1, user_api="blas"):  # last bits depend on the number of threads
        _, _, vectors = svds(scaled, k=rank, v0=start)
    # The sign of a singular vector is arbitrary: its largest entry is made positive.
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    features: Floats = (vectors * np.sign(largest) * np.sqrt(vectors.shape[1])).T.astype(np.float32)
    return np.ascontiguousarray(features)


def _nearest(
    store: FingerprintStore, users: Ints, items: Ints, n_nodes: int, top_k: int
) -> tuple[sp.csr_array, sp.csr_array]:
    """Best ``top_k`` users and items of each user's fingerprint, the user itself left out."""
    user_row = np.full(n_nodes, -1)
    user_row[users] = np.arange(users.size)
    lengths = np.diff(store.indptr)
    of_row = user_row[np.repeat(store.sources, lengths)]
    ids, scores = np.asarray(store.ids, dtype=np.int64), np.asarray(store.scores, dtype=np.float32)
    result = []
    for wanted in (users, items):
        column = np.full(n_nodes, -1)
        column[wanted] = np.arange(wanted.size)
        kept = np.flatnonzero((of_row >= 0) & (column[ids] >= 0) & (users[of_row] != ids))
        # Entries are best first within a row: the place among the kept ones of a row is its rank.
        row = of_row[kept]
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        rank = np.arange(kept.size) - np.repeat(starts, np.diff(np.append(starts, kept.size)))
        best = kept[rank < top_k]
        shape = users.size, wanted.size
        result.append(sp.csr_array((scores[best], (of_row[best], column[ids[best]])), shape=shape))
    return result[0], result[1]
