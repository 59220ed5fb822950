"""Merging fingerprint stores that were computed for different sources of one graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppr.errors import ParameterError, StoreError
from ppr.fingerprints.rows import Rows
from ppr.fingerprints.store import FingerprintStore
from ppr.fingerprints.writer import StoreWriter, sources_identity, store_identity
from ppr.manifest import finished, new_store

_CHUNK_ROWS = 4096


def merge_stores(paths: Sequence[str | Path], out: str | Path) -> FingerprintStore:
    """Merge stores of the same graph and parameters into one; does nothing if it is there already.

    Parameters
    ----------
    paths
        Stores whose sources are disjoint.
    out
        Folder of the merged store.

    Raises
    ------
    ParameterError
        No store was given.
    StoreError
        A store is damaged, graphs or parameters differ, or a source is in two stores.
    OutputExistsError
        ``out`` is there and holds something else.
    """
    if not paths:
        raise ParameterError("'paths' must name at least one store (got none)")
    stores = [FingerprintStore.open(path) for path in paths]
    first, out = stores[0], Path(out)
    for store in stores[1:]:
        if store.graph_checksum != first.graph_checksum:
            raise StoreError(f"{store.path}: computed from another graph than {first.path}")
        if store.params != first.params:
            raise StoreError(f"{store.path}: computed with other parameters than {first.path}")
    for store in stores:
        if store.refreshed is not None:
            raise StoreError(f"{store.path}: was refreshed; merge stores that were not, then refresh")
    store_of = np.repeat(np.arange(len(stores)), [store.n_sources for store in stores])
    sources = np.concatenate([store.sources for store in stores])
    order = np.argsort(sources, kind="stable")
    sources, store_of = sources[order], store_of[order]
    twice = np.flatnonzero(sources[1:] == sources[:-1])
    if twice.size:
        pair = [stores[index].path for index in store_of[twice[0] : twice[0] + 2]]
        raise StoreError(f"source {sources[twice[0]]} is in two stores: {pair[0]} and {pair[1]}")
    n_live = first.n_nodes - first.n_removed
    identity = store_identity(first.graph_checksum, first.params, sources_identity(sources, n_live))
    if finished(out, identity) is None:
        with (
            new_store(out) as folder,
            StoreWriter(
                folder,
                first.params,
                n_nodes=first.n_nodes,
                n_removed=first.n_removed,
                graph_checksum=first.graph_checksum,
            ) as writer,
        ):
            for start in range(0, sources.size, _CHUNK_ROWS):
                chunk = slice(start, start + _CHUNK_ROWS)
                writer.append(_gather(stores, sources[chunk], store_of[chunk]))
            writer.close()
    return FingerprintStore.open(out)


def _gather(stores: list[FingerprintStore], sources: NDArray[np.int32], store_of: NDArray[np.intp]) -> Rows:
    """Rows of ``sources``, each from its store."""
    members = [np.flatnonzero(store_of == index) for index in range(len(stores))]
    parts = [
        store.arrays.take(store.rows(sources[own]))
        for store, own in zip(stores, members, strict=True)
        if own.size
    ]
    return Rows.concat(parts).take(np.argsort(np.concatenate(members), kind="stable"))
