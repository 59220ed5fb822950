"""Job: recommendations for some users or for all of them, as JSON or as a Parquet file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from jobs.keys import ids_of, read_ids
from jobs.progress import show_progress
from jobs.query import describe
from jobs.settings import RecommendSettings
from ppr.errors import OutputExistsError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.manifest import full_disk_is_an_error
from ppr.recommend import recommend

_CHUNK_USERS = 4096
_IDENTITY = b"fairpath"

Chunk = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]


def run(
    graph_path: Path,
    fingerprints: Path,
    settings: RecommendSettings,
    *,
    keys: list[str] | None = None,
    keys_file: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Recommend to the users of these keys, or to all; with ``out`` into a Parquet file.

    The result counts the users who got fewer than ``k`` items; a warning is logged if there are any.

    Raises
    ------
    OutputExistsError
        ``out`` is there, made from other stores or with other parameters. With the same, nothing is done.
    """
    graph = Graph.open(graph_path)
    store = FingerprintStore.open(fingerprints, graph=graph)
    users = _users(graph, settings.user_kind, keys, keys_file)
    chunks = _chunks(graph, store, users, settings)
    if out is None:
        answers = [answer for chunk in chunks for answer in _answers(graph, chunk)]
        n_full = sum(len(answer["items"]) == settings.k for answer in answers)
        return {"recommendations": answers, **_shortage(len(users), n_full, settings.k)}
    identity = {
        "graph": graph.checksum,
        "fingerprints": store.checksum,
        "users_sha256": hashlib.sha256(users.tobytes()).hexdigest(),
        "parameters": settings.model_dump(mode="json"),
    }
    if not _finished(out, identity):
        _write(out, identity, graph, chunks)
    shortage = _shortage(len(users), _count_full(out, settings.k), settings.k)
    return {"out": str(out), "users": len(users), **shortage, **identity}


def _shortage(n_users: int, n_full: int, k: int) -> dict[str, int]:
    """Count the users with fewer than ``k`` items, and warn if there are any."""
    n_short = n_users - n_full
    if n_short:
        structlog.get_logger().warning(
            "some users got fewer than k items; fingerprints with a larger --top-k or with "
            "--exclude-neighbors leave more to recommend",
            k=k,
            users=n_users,
            users_with_fewer_than_k=n_short,
        )
    return {"users_with_fewer_than_k": n_short}


def _count_full(out: Path, k: int) -> int:
    """Number of users in a finished file who got ``k`` items."""
    with pq.ParquetFile(out) as file:
        return sum(
            pc.sum(pc.equal(batch["rank"], k)).as_py() or 0 for batch in file.iter_batches(columns=["rank"])
        )


def _users(graph: Graph, kind: str, keys: list[str] | None, keys_file: Path | None) -> npt.NDArray[np.int32]:
    if keys is not None:
        return ids_of(graph, keys, kind)
    return graph.nodes_of_kind(kind) if keys_file is None else read_ids(graph, keys_file, kind)


def _chunks(
    graph: Graph, store: FingerprintStore, users: npt.NDArray[np.int32], settings: RecommendSettings
) -> Iterator[Chunk]:
    """Users with the ids and scores of their recommendations, some thousand users at a time."""
    with show_progress() as update:
        for start in range(0, len(users), _CHUNK_USERS):
            chunk = users[start : start + _CHUNK_USERS]
            yield chunk, *recommend(graph, store, chunk, **settings.model_dump(exclude={"user_kind"}))
            update("recommend", start + len(chunk), len(users))


def _answers(graph: Graph, chunk: Chunk) -> Iterator[dict[str, Any]]:
    users, ids, scores = chunk
    for user, row_ids, row_scores in zip(describe(graph, users), ids, scores, strict=True):
        kept = row_ids >= 0
        items = zip(describe(graph, row_ids[kept]), row_scores[kept].tolist(), strict=True)
        yield {"user": user["key"], "items": [item | {"score": score} for item, score in items]}


def _finished(out: Path, identity: dict[str, Any]) -> bool:
    if not out.exists():
        return False
    try:
        metadata = pq.read_schema(out).metadata or {}
    except (pa.ArrowException, OSError):
        metadata = {}
    if _IDENTITY not in metadata or json.loads(metadata[_IDENTITY]) != identity:
        raise OutputExistsError(f"{out}: exists and holds something else; choose another output or remove it")
    return True


def _write(out: Path, identity: dict[str, Any], graph: Graph, chunks: Iterator[Chunk]) -> None:
    """Write one row per user and item, best first, beside the final name, and rename."""
    key_type = pa.int64() if graph.nodes.is_integer else pa.string()
    schema = pa.schema(
        [
            ("user", key_type),
            ("rank", pa.int32()),
            ("kind", pa.string()),
            ("item", key_type),
            ("score", pa.float32()),
        ],
        metadata={_IDENTITY: json.dumps(identity)},
    )
    working = out.with_name(f".{out.name}.new-{os.getpid()}")
    with full_disk_is_an_error(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pq.ParquetWriter(working, schema) as writer:
                for chunk in chunks:
                    writer.write_table(_table(graph, chunk, schema))
            working.replace(out)
        finally:
            working.unlink(missing_ok=True)


def _table(graph: Graph, chunk: Chunk, schema: pa.Schema) -> pa.Table:
    users, ids, scores = chunk
    row, column = np.nonzero(ids >= 0)
    items = ids[row, column]
    kinds = np.array(graph.kinds, dtype=object)[graph.kind_ids[items]]
    columns = [graph.keys(users[row]), column + 1, kinds, graph.keys(items), scores[row, column]]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
