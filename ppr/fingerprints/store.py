"""Fingerprint store: rows in Parquet for the lake, the same rows as memory-mapped arrays for serving."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from ppr.errors import StoreError, UnknownNodeError
from ppr.fingerprints.rows import Rows
from ppr.fingerprints.writer import (
    ARRAYS,
    BOUNDS,
    FORMAT,
    VERSION,
    Refreshed,
    content_checksum,
    sources_identity,
)
from ppr.graph import Graph
from ppr.manifest import check_files, read_manifest
from ppr.params import FingerprintParams


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FingerprintStore:
    """A finished fingerprint store, opened read-only; safe to share between threads.

    Attributes
    ----------
    path
        Folder of the store.
    manifest
        Its manifest.
    params
        Parameters that it was computed with.
    n_nodes
        Nodes of its graph.
    arrays
        Memory-mapped rows, sources ascending.
    bounds
        For each row, how far at most the true fingerprint is from the one that the row estimates, in the L1
        norm, float64 [s]: what the graph has changed since the row was computed (:mod:`ppr.refresh`). Zeros
        in a store computed in full.
    """

    path: Path
    manifest: dict[str, Any]
    params: FingerprintParams
    n_nodes: int
    arrays: Rows
    bounds: NDArray[np.float64]

    @classmethod
    def open(cls, path: str | Path, *, graph: Graph | None = None, verify: bool = True) -> FingerprintStore:
        """Open a store.

        Parameters
        ----------
        path
            Folder of the store.
        graph
            Graph that the store must have been computed from.
        verify
            Compare every file with its SHA-256 (reads the whole store); otherwise only sizes are compared.

        Raises
        ------
        MissingDataError
            There is no store at ``path``.
        StoreError
            The store is damaged, of another version, or belongs to another graph.
        """
        folder = Path(path)
        manifest = read_manifest(folder, format_name=FORMAT, version=VERSION)
        try:
            if content_checksum(manifest) != manifest["checksum"]:
                raise StoreError(f"{folder}: manifest does not match its checksum")
            check_files(folder, manifest, verify=verify)
        except (AttributeError, KeyError, TypeError) as error:
            raise StoreError(f"{folder}: manifest is damaged ({error!r})") from error
        counts = manifest["counts"]
        others = ("sources", "tolerance")
        parameters = {name: value for name, value in manifest["parameters"].items() if name not in others}
        n_sources = counts["sources"]
        refreshed = "fingerprints" in manifest["parents"]
        store = cls(
            folder,
            manifest,
            FingerprintParams.from_json(parameters),
            counts["nodes"],
            _map_arrays(folder, n_sources=n_sources, n_entries=counts["entries"]),
            _map(folder, BOUNDS, np.dtype("<f8"), n_sources) if refreshed else np.zeros(n_sources),
        )
        if graph is not None:
            store.check_graph(graph)
        return store

    def __repr__(self) -> str:
        return f"<FingerprintStore of {self.n_sources} sources, {self.ids.size} entries, at {self.path}>"

    @property
    def checksum(self) -> str:
        """Digest of the content: identity of the store."""
        return str(self.manifest["checksum"])

    @property
    def graph_checksum(self) -> str:
        """Checksum of the graph that the store was computed from."""
        return str(self.manifest["parents"]["graph"])

    @property
    def refreshed(self) -> Refreshed | None:
        """How the store came from an older one; None where all rows were computed from its graph."""
        parent = self.manifest["parents"].get("fingerprints")
        return None if parent is None else Refreshed(parent, self.manifest["parameters"]["tolerance"])

    @property
    def n_removed(self) -> int:
        """Removed nodes of its graph."""
        return int(self.manifest["counts"].get("removed", 0))

    @property
    def n_sources(self) -> int:
        """Number of rows."""
        return len(self.arrays)

    @property
    def sources(self) -> NDArray[np.int32]:
        """Node id of each row, ascending, int32 [s]."""
        return self.arrays.sources

    @property
    def indptr(self) -> NDArray[np.int64]:
        """Row i owns entries ``indptr[i]`` to ``indptr[i + 1]``, int64 [s + 1]."""
        return self.arrays.indptr

    @property
    def ids(self) -> NDArray[np.int32]:
        """Node ids of all entries, best first within a row, int32 [e]."""
        return self.arrays.ids

    @property
    def scores(self) -> NDArray[np.float32]:
        """Estimated PageRank of all entries, not normalised, float32 [e]."""
        return self.arrays.scores

    @property
    def mass(self) -> NDArray[np.float64]:
        """Total estimate of each row over all nodes, kept or not, float64 [s]."""
        return self.arrays.mass

    @property
    def moves(self) -> NDArray[np.int64]:
        """Edges that were handed mass while each row was computed, int64 [s]."""
        return self.arrays.moves

    @property
    def composable(self) -> bool:
        """Whether rows may be combined into others: unlimited walks, no node left out on purpose."""
        params = self.params
        return params.max_steps is None and not params.target_kinds and not params.exclude_neighbors

    def check_graph(self, graph: Graph) -> None:
        """Check that the store was computed from ``graph``.

        Raises
        ------
        StoreError
            It was not.
        """
        if graph.checksum != self.graph_checksum:
            raise StoreError(
                f"{self.path}: computed from another graph "
                f"(checksum {self.graph_checksum[:12]}, this graph has {graph.checksum[:12]})"
            )

    def rows(self, sources: ArrayLike, graph: Graph | None = None) -> NDArray[np.int64]:
        """Positions of the rows of ``sources``, int64 [b].

        Raises
        ------
        UnknownNodeError
            A source has no row; names the first, with its key where the store's graph is given.
        """
        wanted = np.asarray(sources, dtype=np.int64).reshape(-1)
        positions = np.searchsorted(self.sources, wanted)
        # Beyond the last source, the last one stands for "not equal".
        missing = np.flatnonzero(self.sources[np.minimum(positions, self.n_sources - 1)] != wanted)
        if missing.size:
            raise self.no_row(int(wanted[missing[0]]), graph)
        return positions.astype(np.int64, copy=False)

    def no_row(self, node: int, graph: Graph | None, why: str = "") -> UnknownNodeError:
        """Error that names a node without a row, by its key where the store's graph is given."""
        who = f"node {node}"
        if graph is not None and 0 <= node < graph.n_nodes:
            who = f"{graph.kinds[graph.kind_ids[node]]} {graph.keys([node]).tolist()[0]!r}"
        return UnknownNodeError(
            f"{self.path}: {who} has no fingerprint in this store{why}; "
            "compute or refresh the store with it among the sources"
        )

    def row(
        self, source: int, graph: Graph | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], float]:
        """Ids, scores and total mass of one source's fingerprint.

        Raises
        ------
        UnknownNodeError
            The source has no row.
        """
        position = int(self.rows([source], graph)[0])
        entries = slice(int(self.indptr[position]), int(self.indptr[position + 1]))
        return self.ids[entries], self.scores[entries], float(self.mass[position])

    def validate(self, graph: Graph | None = None) -> None:
        """Check the content: order of sources, the rules of rows, and that the Parquet parts hold the same.

        Raises
        ------
        StoreError
            At the first violation.
        """
        if graph is not None:
            self.check_graph(graph)
        if np.any(self.sources[1:] <= self.sources[:-1]):
            raise StoreError(f"{self.path}: sources must ascend")
        of_sources = sources_identity(self.sources, self.n_nodes - self.n_removed)
        if of_sources != self.manifest["parameters"]["sources"]:
            raise StoreError(f"{self.path}: sources are not those of the manifest")
        largest = 0.0 if self.refreshed is None else self.refreshed.tolerance
        outside = np.flatnonzero(~((self.bounds >= 0.0) & (self.bounds <= largest)))
        if outside.size:
            raise StoreError(
                f"{self.path}: bound of source {self.sources[outside[0]]} must be between 0 and {largest} "
                f"(got {self.bounds[outside[0]]})"
            )
        if self.indptr[0] != 0 or self.indptr[-1] != self.ids.size or np.any(np.diff(self.indptr) < 0):
            raise StoreError(f"{self.path}: 'indptr' must ascend from 0 to {self.ids.size}")
        allowed = None if graph is None else _allowed_nodes(graph, self.params)
        removed = None if graph is None or not graph.removed.size else graph.removed
        for rows in self.arrays.chunks():
            rows.check(n_nodes=self.n_nodes, top_k=self.params.top_k)
            if allowed is not None and not allowed[rows.ids].all():
                raise StoreError(f"{self.path}: a row holds a node whose kind is not in 'target_kinds'")
            if removed is not None and (
                np.isin(rows.ids, removed).any() or np.isin(rows.sources, removed).any()
            ):
                raise StoreError(f"{self.path}: a row is of a removed node, or holds one")
        self._validate_parts()

    def _validate_parts(self) -> None:
        start = 0
        for part in sorted((self.path / "rows").glob("*.parquet")):
            for batch in _batches(part):
                rows = Rows.from_arrow(pa.Table.from_batches([batch]))
                mapped = self.arrays.slice(start, min(start + len(rows), self.n_sources))
                if not all(np.array_equal(getattr(rows, name), getattr(mapped, name)) for name in ARRAYS):
                    raise StoreError(f"{part}: rows differ from those of the arrays")
                start += len(rows)
        if start != self.n_sources:
            raise StoreError(f"{self.path}: Parquet parts must hold {self.n_sources} rows (got {start})")


def _batches(part: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(part) as file:
            yield from file.iter_batches(batch_size=4096)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{part}: not a readable Parquet file ({error})") from error


def _allowed_nodes(graph: Graph, params: FingerprintParams) -> NDArray[np.bool_] | None:
    """Which nodes a row may hold, bool [n], or None for all."""
    if not params.target_kinds:
        return None
    return np.isin(graph.kind_ids, [graph.kind_id(kind) for kind in params.target_kinds])


def _map_arrays(folder: Path, *, n_sources: int, n_entries: int) -> Rows:
    sizes = dict.fromkeys(ARRAYS, n_sources) | {
        "indptr": n_sources + 1,
        "ids": n_entries,
        "scores": n_entries,
    }
    return Rows(**{name: _map(folder, name, dtype, sizes[name]) for name, dtype in ARRAYS.items()})


def _map(folder: Path, name: str, dtype: np.dtype[Any], size: int) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    try:
        mode: Literal["r"] | None = "r" if size else None  # an empty file cannot be mapped
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise StoreError(f"{path}: not a readable array ({error})") from error
    if array.dtype != dtype or array.shape != (size,):
        raise StoreError(f"{path}: must be {dtype} of shape ({size},) (got {array.dtype} {array.shape})")
    # A plain view of the map: indexing np.memmap builds a subclass each time.
    plain: NDArray[Any] = array.view(np.ndarray)
    return plain
