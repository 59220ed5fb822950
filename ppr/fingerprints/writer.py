"""Streaming writer of a fingerprint store: rows come in source order, memory stays bounded.

The files depend on the rows alone, not on how they were cut into waves: Parquet parts and row groups hold
fixed numbers of rows, and the arrays are appended to ``.npy`` files whose header is completed at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ppr.blocks import FINGERPRINT_SCHEMA
from ppr.errors import StoreError
from ppr.fingerprints.rows import Rows
from ppr.graph import Graph
from ppr.manifest import describe_files, write_manifest
from ppr.params import FingerprintParams

FORMAT = "fairpath-fingerprints"
VERSION = 1
ARRAYS: dict[str, np.dtype[Any]] = {
    "sources": np.dtype("<i4"),
    "indptr": np.dtype("<i8"),
    "ids": np.dtype("<i4"),
    "scores": np.dtype("<f4"),
    "mass": np.dtype("<f8"),
    "moves": np.dtype("<i8"),
}
BOUNDS = "bounds"
"""A further array, float64 [s], that refreshed stores have."""
ROWS_PER_PART = 65_536
_ENTRIES_PER_GROUP = 1 << 20
_ENTRIES_OF_A_FULL_ROW = 1 << 14


@dataclass(frozen=True, slots=True)
class Refreshed:
    """How a store came from an older one; see :mod:`ppr.refresh`.

    Attributes
    ----------
    parent
        Checksum of the older store.
    tolerance
        Largest bound that a kept row may have.
    """

    parent: str
    tolerance: float


def sources_identity(sources: NDArray[np.integer], n_live: int) -> str:
    """Return what the manifest says of the sources: ``"all"``, or the SHA-256 of their ascending ids.

    All are all nodes of the graph but removed ones, which are never sources; ``n_live`` is their number.
    """
    if sources.size == n_live:
        return "all"
    return "sha256:" + hashlib.sha256(np.ascontiguousarray(sources, dtype="<i4").tobytes()).hexdigest()


def store_identity(
    graph_checksum: str, params: FingerprintParams, sources: str, refreshed: Refreshed | None = None
) -> dict[str, Any]:
    """Return the part of a manifest that says what a store holds, known before it is computed."""
    parameters = {**params.to_json(), "sources": sources}
    parents = {"graph": graph_checksum}
    if refreshed is not None:
        parameters["tolerance"] = refreshed.tolerance
        parents["fingerprints"] = refreshed.parent
    return {"format": FORMAT, "version": VERSION, "parameters": parameters, "parents": parents}


def content_checksum(manifest: dict[str, Any]) -> str:
    """Digest of the identity, the counts and the array files; the Parquet parts hold the same rows again."""
    content = {key: manifest[key] for key in ("format", "version", "parameters", "parents", "counts")}
    if "refresh" in manifest:
        content["refresh"] = manifest["refresh"]
    names = [*ARRAYS, BOUNDS] if f"{BOUNDS}.npy" in manifest["files"] else ARRAYS
    content["arrays"] = {name: manifest["files"][f"{name}.npy"]["sha256"] for name in names}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class StoreWriter:
    """Writes rows into ``folder``, an existing empty folder.

    Parameters
    ----------
    folder
        Where the files go.
    params
        Parameters of the run.
    n_nodes
        Nodes of the graph.
    n_removed
        How many of them are removed.
    graph_checksum
        Checksum of the graph store.
    refreshed
        How the store comes from an older one, if it does.
    """

    def __init__(
        self,
        folder: Path,
        params: FingerprintParams,
        *,
        n_nodes: int,
        n_removed: int,
        graph_checksum: str,
        refreshed: Refreshed | None = None,
    ) -> None:
        self._folder = folder
        self._params = params
        self._n_nodes = n_nodes
        self._n_removed = n_removed
        self._graph_checksum = graph_checksum
        self._refreshed = refreshed
        self._arrays = {name: _ArrayFile(folder / f"{name}.npy", dtype) for name, dtype in ARRAYS.items()}
        self._group_rows = max(1, _ENTRIES_PER_GROUP // (params.top_k or _ENTRIES_OF_A_FULL_ROW))
        self._group_rows = min(self._group_rows, ROWS_PER_PART)
        self._waiting: list[Rows] = []  # rows that do not fill a row group yet
        self._part: pq.ParquetWriter | None = None
        self._compressing = ThreadPoolExecutor(1)  # one row group, beside the arrays of the next
        self._group: Future[None] | None = None
        self._rows_in_parts = 0
        self._n_entries = 0
        self._sources: list[NDArray[np.int32]] = []
        (folder / "rows").mkdir()

    @classmethod
    def of_graph(
        cls, folder: Path, params: FingerprintParams, graph: Graph, *, refreshed: Refreshed | None = None
    ) -> StoreWriter:
        """Writer of rows of a graph."""
        return cls(
            folder,
            params,
            n_nodes=graph.n_nodes,
            n_removed=graph.removed.size,
            graph_checksum=graph.checksum,
            refreshed=refreshed,
        )

    def append(self, rows: Rows) -> None:
        """Append rows, whose sources ascend and follow those already written.

        Raises
        ------
        StoreError
            They do not.
        """
        if not len(rows):
            return
        last = self._sources[-1][-1] if self._sources else -1
        if rows.sources[0] <= last or np.any(rows.sources[1:] <= rows.sources[:-1]):
            raise StoreError("fingerprint rows must come in ascending order of their sources, each once")
        self._begin()
        self._sources.append(rows.sources.copy())
        self._arrays["indptr"].append(rows.indptr[1:] - rows.indptr[0] + self._n_entries)
        self._n_entries += int(rows.indptr[-1] - rows.indptr[0])
        for name in ("sources", "ids", "scores", "mass", "moves"):
            self._arrays[name].append(getattr(rows, name))
        self._waiting.append(rows)
        self._write_groups(final=False)

    def close(
        self, bounds: NDArray[np.float64] | None = None, facts: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Complete all files and write the manifest, which is returned.

        Parameters
        ----------
        bounds
            Bound of each row of a refreshed store, float64 [s].
        facts
            What its manifest says of the refresh.
        """
        self._begin()
        self._write_groups(final=True)
        self._finish_group()
        if self._part is None:  # no rows: one empty part, so that the folder reads as a table
            self._part = self._open_part()
        self._part.close()
        for array in self._arrays.values():
            array.close()
        sources = np.concatenate([np.empty(0, dtype=np.int32), *self._sources])
        if bounds is not None:
            np.save(self._folder / f"{BOUNDS}.npy", np.ascontiguousarray(bounds, dtype="<f8"))
        n_live = self._n_nodes - self._n_removed
        manifest = store_identity(
            self._graph_checksum, self._params, sources_identity(sources, n_live), self._refreshed
        )
        manifest["counts"] = {
            "nodes": self._n_nodes,
            **({"removed": self._n_removed} if self._n_removed else {}),
            "sources": sources.size,
            "entries": self._n_entries,
        }
        if facts is not None:
            manifest["refresh"] = dict(facts)
        manifest["files"] = describe_files(self._folder)
        manifest["checksum"] = content_checksum(manifest)
        write_manifest(self._folder, manifest)
        return manifest

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files; a store is complete only after :meth:`close`."""
        self._compressing.shutdown()
        if self._part is not None:
            self._part.close()
        for array in self._arrays.values():
            array.close()

    def _begin(self) -> None:
        """Write the first bound of the rows, once."""
        if self._arrays["indptr"].size == 0:
            self._arrays["indptr"].append(np.zeros(1, dtype=np.int64))

    def _write_groups(self, *, final: bool) -> None:
        """Write the waiting rows in row groups of equal size, the last one excepted."""
        n_waiting = sum(len(rows) for rows in self._waiting)
        if n_waiting < self._next_group() and not (final and n_waiting):
            return
        rows = Rows.concat(self._waiting)
        start = 0
        while (size := min(self._next_group(), len(rows) - start)) > 0:
            if size < self._next_group() and not final:
                break
            self._write_group(rows.slice(start, start + size))
            start += size
        # A copy, so that the rest does not keep the whole wave in memory.
        self._waiting = [rows.take(np.arange(start, len(rows)))] if start < len(rows) else []

    def _next_group(self) -> int:
        return min(self._group_rows, ROWS_PER_PART - self._rows_in_parts % ROWS_PER_PART)

    def _write_group(self, rows: Rows) -> None:
        self._finish_group()
        if self._rows_in_parts % ROWS_PER_PART == 0:
            if self._part is not None:
                self._part.close()
            self._part = self._open_part()
        assert self._part is not None
        self._group = self._compressing.submit(
            self._part.write_table, rows.to_arrow(), row_group_size=len(rows)
        )
        self._rows_in_parts += len(rows)

    def _finish_group(self) -> None:
        """Wait for the row group that is being written; fails where it did."""
        if self._group is not None:
            group, self._group = self._group, None
            group.result()

    def _open_part(self) -> pq.ParquetWriter:
        path = self._folder / "rows" / f"part-{self._rows_in_parts // ROWS_PER_PART:05d}.parquet"
        return pq.ParquetWriter(path, FINGERPRINT_SCHEMA, compression="zstd", use_dictionary=False)


class _ArrayFile:
    """A one-dimensional ``.npy`` file that grows; numpy pads the header, so its length does not change."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self.size = 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self.size += values.size

    def close(self) -> None:
        if not self._file.closed:
            with self._file:  # closed also where a full disk refuses what is still buffered
                self._file.seek(0)
                self._write_header()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self._file, header)
