"""Export of fingerprints for other programs: one Parquet file with the original keys beside dense ids."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ppr.errors import OutputExistsError
from ppr.fingerprints.rows import Rows
from ppr.fingerprints.store import FingerprintStore
from ppr.graph import Graph
from ppr.manifest import full_disk_is_an_error

_IDENTITY = b"fairpath"


def export_parquet(store: FingerprintStore, graph: Graph, path: str | Path) -> None:
    """Write all rows of a store into one Parquet file.

    Columns: ``source``, ``source_kind``, ``source_key``, then, as lists of equal length, ``ids``, ``kinds``,
    ``keys`` and ``scores``, then ``mass`` and ``moves``. Keys are int64 or string as in the graph.

    Raises
    ------
    StoreError
        The store was computed from another graph.
    OutputExistsError
        ``path`` is there and is not this export; where it is, nothing is done.
    ResourceError
        The disk is full.
    """
    store.check_graph(graph)
    path = Path(path)
    identity = {"export": {"fingerprints": store.checksum, "graph": graph.checksum}}
    if path.exists():
        if _identity_of(path) != identity:
            raise OutputExistsError(
                f"{path}: exists and is not this export; choose another output or remove it"
            )
        return
    key_type = pa.int64() if graph.nodes.is_integer else pa.string()
    kind_type = pa.dictionary(pa.uint8(), pa.string())
    schema = pa.schema(
        [
            ("source", pa.int32()),
            ("source_kind", kind_type),
            ("source_key", key_type),
            ("ids", pa.list_(pa.int32())),
            ("kinds", pa.list_(kind_type)),
            ("keys", pa.list_(key_type)),
            ("scores", pa.list_(pa.float32())),
            ("mass", pa.float64()),
            ("moves", pa.int64()),
        ],
        metadata={_IDENTITY: json.dumps(identity)},
    )
    working = path.with_name(f".{path.name}.new-{os.getpid()}")
    with full_disk_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pq.ParquetWriter(working, schema, compression="zstd") as writer:
                for rows in store.arrays.chunks():
                    writer.write_table(_with_keys(rows, graph, schema))
            working.replace(path)
        finally:
            working.unlink(missing_ok=True)


def _identity_of(path: Path) -> Any:
    """What a Parquet file says it was exported from; None where it says nothing."""
    try:
        return json.loads((pq.read_schema(path).metadata or {}).get(_IDENTITY, b"null"))
    except (pa.ArrowException, OSError, ValueError):
        return None


def _with_keys(rows: Rows, graph: Graph, schema: pa.Schema) -> pa.Table:
    plain = rows.to_arrow()
    offsets = plain.column("ids").chunk(0).offsets
    columns = {name: plain.column(name) for name in plain.schema.names} | {
        "source_kind": _kinds(graph, rows.sources),
        "source_key": _keys(graph, rows.sources, schema.field("source_key").type),
        "kinds": pa.ListArray.from_arrays(offsets, _kinds(graph, rows.ids)),
        "keys": pa.ListArray.from_arrays(offsets, _keys(graph, rows.ids, schema.field("source_key").type)),
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _keys(graph: Graph, ids: NDArray[np.int32], key_type: pa.DataType) -> pa.Array:
    return graph.nodes.keys.take(pa.array(ids)).cast(key_type)


def _kinds(graph: Graph, ids: NDArray[np.int32]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(graph.kind_ids[ids], type=pa.uint8()), list(graph.kinds))
