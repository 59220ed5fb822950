"""The queries of events: their embeddings and their tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from router.dataset.columns import Batch, Columns, kept_beside
from router.dataset.events import Events
from router.encoders import ENCODER_METADATA, Encoder, EncoderIdentity, encoder_name, open_encoder
from router.errors import BundleError, DataError, MissingDataError, UnknownNameError
from router.loaders.tables import vectors
from router.persona.data import Floats, Ints

EXTERNAL = "external"
_USUAL_NAMES = {
    "query": ("id", "query_id", "query"),
    "text": ("text", "query_text"),
    "task": ("task", "task_id"),
    "embedding": ("embedding", "query_embedding"),
}
_MOST_CLUSTERS = 12
_QUERIES_PER_CLUSTER = 30


@dataclass(frozen=True, slots=True)
class Tasks:
    """Kinds of queries.

    Attributes
    ----------
    names
        As the files have them; ``cluster 0``, ``cluster 1`` ... where queries were grouped by embeddings.
    centroids
        Mean embedding of each task's queries, float32 [t, d].
    given
        Whether the files name them.
    """

    names: tuple[str, ...]
    centroids: Floats
    given: bool


@dataclass(frozen=True, slots=True)
class Queries:
    """Distinct queries, in the order of :attr:`Events.query_keys`.

    Attributes
    ----------
    tasks
        Kinds of queries.
    tasks_of
        Task of each query, int64 [q].
    embeddings
        float32 [q, d].
    descriptions
        Embeddings of the LLMs' descriptions, float32 [m, d]; zeros where the encoder is not here.
    encoder
        What they come from.
    """

    tasks: Tasks
    tasks_of: Ints
    embeddings: Floats
    descriptions: Floats
    encoder: EncoderIdentity


def describe_queries(
    events: Events,
    descriptions: Sequence[str],
    *,
    path: Path | None,
    encoder: str,
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Queries:
    """Embeddings and tasks of the events' queries.

    Queries without task are grouped by k-means on their embeddings: about 30 a group, at most 12 groups.

    Parameters
    ----------
    events
        Their queries are texts; or ids, where there is a table of queries.
    descriptions
        What the LLMs are like, in words.
    path
        Table of queries (``id``, and ``text`` or ``embedding``, perhaps ``task``), or None.
    encoder
        Name of an encoder, or ``auto``. Not used where the table brings embeddings: they are of the encoder
        that its metadata name (``fairpath.encoder``), else of one called ``external``. If the one named is
        installed, queries that are not in the table are texts, which it encodes.
    seed
        Of the grouping.
    tell
        Is told which queries were taken for texts.

    Raises
    ------
    DataError
        A query is not in the table, a cell breaks its rule, or embeddings are not of one encoder.
    MissingDataError
        The encoder's packages are not installed.
    UnknownNameError
        There is no such encoder.
    """
    texts, words, embeddings = events.query_keys, events.query_tasks, None
    identity: EncoderIdentity | None = None
    chosen: Encoder | None = None
    if path is not None:
        identity = _kept_identity(path)
        chosen = None if identity is None else _installed(identity)
        texts, of_table, embeddings = _from_table(path, events, chosen, tell)
        words = words if of_table is None else of_table
    if embeddings is None:
        chosen = open_encoder(encoder_name(encoder))
        identity, embeddings = chosen.identity, chosen.encode(texts.tolist())
    identity = identity or EncoderIdentity(EXTERNAL, 1, embeddings.shape[1])
    if identity.dimension != embeddings.shape[1]:
        raise DataError(f"{path}: embeddings of {identity} must not have {embeddings.shape[1]} numbers")
    of_llms = np.zeros((len(descriptions), identity.dimension), dtype=np.float32)
    if chosen is not None:
        of_llms = chosen.encode(list(descriptions))
    if words is None:
        tasks_of = _group(embeddings, seed)
        names = [f"cluster {i}" for i in range(tasks_of.max() + 1)]
    else:
        distinct, tasks_of = np.unique(words.astype(str), return_inverse=True)
        names = distinct.tolist()
    tasks_of = tasks_of.astype(np.int64)
    sums = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(sums, tasks_of, embeddings)
    centroids = (sums / np.bincount(tasks_of)[:, None]).astype(np.float32)
    return Queries(Tasks(tuple(names), centroids, words is not None), tasks_of, embeddings, of_llms, identity)


def _kept_identity(path: Path) -> EncoderIdentity | None:
    """Encoder of a table's embeddings, where its metadata say so."""
    kept = kept_beside(path, ENCODER_METADATA)
    if len(kept) > 1:
        raise DataError(f"{path}: embeddings must be of one encoder (got {len(kept)} kinds of files)")
    text = kept.pop()
    if text is None:
        return None
    try:
        return EncoderIdentity.from_json(json.loads(text))
    except ValueError as error:
        raise DataError(f"{path}: the metadata name no encoder ({error})") from None


def _installed(identity: EncoderIdentity) -> Encoder | None:
    try:
        return open_encoder(identity)
    except (UnknownNameError, MissingDataError, BundleError):
        return None


def _from_table(
    path: Path, events: Events, encoder: Encoder | None, tell: Callable[[str], None]
) -> tuple[NDArray[Any], NDArray[Any] | None, Floats | None]:
    """Texts, tasks and embeddings of the events' queries."""
    batch = Columns.open(path, _USUAL_NAMES, ("query",)).whole()
    if not (batch.has("text") or batch.has("embedding")):
        raise DataError(f"{path}: a column 'text' or 'embedding' is needed")
    ids = batch.texts("query")
    found = pc.index_in(pa.array(events.query_keys, ids.type), value_set=ids)
    absent = found.is_null().to_numpy(zero_copy_only=False)
    encoded = encoder is not None and batch.has("embedding")
    if absent.any() and not (encoded and (events.query_tasks is not None or not batch.has("task"))):
        unknown = events.query_keys[absent][0]
        raise DataError(f"{path}: query {unknown!r} of the events is not there")
    rows = found.fill_null(0).to_numpy()
    columns: dict[str, NDArray[Any]] = {
        name: batch.texts(name).to_numpy(zero_copy_only=False) for name in ("text", "task") if batch.has(name)
    }
    if batch.has("embedding"):
        columns["embedding"] = vectors(batch.table, "embedding", path)
    for name, values in columns.items():
        _check_unique(batch, ids, name, values)
    of_events = {name: values[rows] for name, values in columns.items()}
    if encoder is not None and absent.any():
        texts = events.query_keys[absent]
        tell(f"{path}: {len(texts)} queries of the events are not there, taken for texts: {texts[0]!r} ...")
        of_events["embedding"][absent] = encoder.encode(texts.tolist())
        if "task" in of_events and events.query_tasks is not None:
            of_events["task"][absent] = events.query_tasks[absent]
    return of_events.get("text", events.query_keys), of_events.get("task"), of_events.get("embedding")


def _check_unique(batch: Batch, ids: pa.Array, name: str, values: NDArray[Any]) -> None:
    """Check that rows of the same id agree in a column, [n] or [n, d]."""
    _, first, place = np.unique(
        ids.dictionary_encode().indices.to_numpy(), return_index=True, return_inverse=True
    )
    same = values == values[first[place]]
    wrong = np.flatnonzero(~(same if same.ndim == 1 else same.all(axis=1)))
    if wrong.size:
        row = int(wrong[0])
        raise batch.error(row, f"query {ids[row].as_py()!r} was given before with another {name!r}")


def _group(embeddings: Floats, seed: int) -> Ints:
    """Group by k-means; groups are numbered without gaps, int64 [q]."""
    distinct = len(np.unique(embeddings, axis=0))
    k = min(_MOST_CLUSTERS, len(embeddings) // _QUERIES_PER_CLUSTER, distinct)
    if k < 2:
        return np.zeros(len(embeddings), dtype=np.int64)
    from scipy.cluster.vq import kmeans2  # takes a third of a second to load, which reading tables must not

    _, labels = kmeans2(embeddings.astype(np.float64), k, minit="++", seed=np.random.default_rng(seed))
    groups: Ints = np.unique(labels, return_inverse=True)[1]
    return groups
