"""What was learned from users, as the tables that ``train-router`` and ``build-graph`` read.

=====================  ===================================================================================
choices.parquet        a row for each judged decision: user, query, llm, offered, thumbs, reward, cost_usd,
                       latency_ms, timestamp, and task where all have one; what ``train-router`` calls
                       events
queries.parquet        id and embedding, where the queries are known by embeddings; for ``--queries``. Its
                       metadata name their encoder, where the releases that decided are at hand
interactions.parquet   user, item, weight, timestamp; for ``build-graph``
judgements.parquet     all feedback as it was received, with what is needed to estimate another policy from
                       it: the LLM that was routed to, its propensity, the release
=====================  ===================================================================================

The queries of the choices are texts, embeddings or, where there is neither, the names of tasks: whichever
most judged decisions have, because one table holds one kind of query. The others are left out and counted, as
are judgements on no decision, which have no query: services go on to apply those. No row is of a user who
was erased, or of what happened before one was readmitted. Rows are in the order of their ids, so equal
contents give equal files.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection, Row, and_, func, select

from ppr.manifest import new_store
from router.encoders import ENCODER_METADATA, EncoderIdentity
from router.erasure import Erasure, user_digest
from router.service.store import erasures
from router.service.store.database import Database
from router.service.store.decisions import embedding_of
from router.service.store.feedback import offered_with
from router.service.store.records import Exported
from router.service.store.tables import decisions, feedback

_BATCH_ROWS = 5000
_TIME = pa.timestamp("us", "UTC")
_CHOICES = pa.schema(
    {
        "user": pa.string(),
        "query": pa.string(),
        "llm": pa.string(),
        "offered": pa.list_(pa.string()),
        "thumbs": pa.int8(),
        "reward": pa.float64(),
        "cost_usd": pa.float64(),
        "latency_ms": pa.float64(),
        "timestamp": _TIME,
    }
)
_TASK = pa.field("task", pa.string())
_QUERIES = pa.schema({"id": pa.string(), "embedding": pa.list_(pa.float32())})
_INTERACTIONS = pa.schema(
    {"user": pa.string(), "item": pa.string(), "weight": pa.float64(), "timestamp": _TIME}
)
_JUDGEMENTS = pa.schema(
    {
        "feedback_id": pa.string(),
        "decision_id": pa.string(),
        "user": pa.string(),
        "llm": pa.string(),
        "routed_llm": pa.string(),
        "propensity": pa.float64(),
        "release": pa.string(),
        "source": pa.string(),
        "task": pa.string(),
        "thumbs": pa.int8(),
        "score": pa.float64(),
        "cost_usd": pa.float64(),
        "predicted_cost_usd": pa.float64(),
        "latency_ms": pa.float64(),
        "timestamp": _TIME,
    }
)
_JOINED = feedback.outerjoin(decisions, feedback.c.decision_id == decisions.c.decision_id)
_ORDER = func.coalesce(feedback.c.decision_id, feedback.c.feedback_id)
_ROWS = select(
    feedback,
    decisions.c.llm.label("routed_llm"),
    decisions.c.cost_usd.label("predicted_cost_usd"),
    *(decisions.c[name] for name in ("propensity", "release", "source", "task", "offered")),
    *(decisions.c[name] for name in ("query_hash", "query_text", "query_embedding")),
).select_from(_JOINED)


def export(
    database: Database,
    folder: Path,
    since: float | None,
    until: float | None,
    encoder_of: Callable[[str], EncoderIdentity | None],
    *,
    some_tasks: bool = False,
) -> Exported:
    """Write the tables; see :meth:`router.service.store.Store.export`."""
    received = and_(
        feedback.c.received_at >= (-math.inf if since is None else since),
        feedback.c.received_at < (math.inf if until is None else until),
    )
    with new_store(folder) as working, database.read(snapshot=True) as connection:
        erased = {one.user_digest: one for one in erasures.since(connection, 0)[1]}
        form = _Form.of(connection, received, cache(encoder_of), some_tasks)
        with ExitStack() as stack:
            tables = _Tables(working, form, stack)
            rows: Iterable[Row[*tuple[Any, ...]]] = connection.execution_options(
                yield_per=_BATCH_ROWS
            ).execute(_ROWS.where(received).order_by(_ORDER, feedback.c.at, feedback.c.feedback_id))
            kept = (row for row in rows if not _is_erased(row, erased)) if erased else rows
            for _, of_decision in groupby(kept, lambda row: row.decision_id or row.feedback_id):
                tables.add(list(of_decision))
    return Exported(
        folder=folder,
        n_choices=tables.choices.n_rows,
        n_queries=0 if tables.queries is None else tables.queries.n_rows,
        n_interactions=tables.interactions.n_rows,
        n_judgements=tables.judgements.n_rows,
        left_out=dict(sorted(tables.left_out.items())),
        encoder=form.encoder,
        feedback_until=None if tables.last_at is None else math.ceil(tables.last_at * 1e6) / 1e6,
        erased_until=max((one.requested_at for one in erased.values()), default=None),
    )


def _is_erased(row: Row[*tuple[Any, ...]], erased: Mapping[str, Erasure]) -> bool:
    """Whether a row is of a user who was erased, from before a readmission: none should be there."""
    erasure = None if row.user_key is None else erased.get(user_digest(row.user_key))
    return erasure is not None and erasure.covers(row.at)


class _Form:
    """Which kind of query the choices have, of which encoder, and whether they have tasks."""

    def __init__(
        self,
        column: str,
        embedding_bytes: int | None,
        with_tasks: bool,
        encoder: EncoderIdentity | None,
        encoder_of: Callable[[str], EncoderIdentity | None],
    ) -> None:
        self.column = column
        self.embedding_bytes = embedding_bytes
        self.with_tasks = with_tasks
        self.encoder = encoder
        self._encoder_of = encoder_of

    @classmethod
    def of(
        cls,
        connection: Connection,
        received: Any,
        encoder_of: Callable[[str], EncoderIdentity | None],
        some_tasks: bool,
    ) -> _Form:
        judged = (
            select(feedback.c.decision_id)
            .where(received, feedback.c.verdict != 0, feedback.c.user_key.is_not(None))
            .scalar_subquery()
        )
        chosen = decisions.c.decision_id.in_(judged)
        columns = {name: decisions.c[name] for name in ("query_text", "query_embedding", "task")}
        n_texts, n_embeddings = connection.execute(
            select(func.count(columns["query_text"]), func.count(columns["query_embedding"])).where(chosen)
        ).one()
        name = "query_text" if n_texts >= n_embeddings else "query_embedding"
        name = name if n_texts or n_embeddings else "task"
        query = columns[name]
        size, encoder = None, None
        if name == "query_embedding":  # those of the encoder that is in use now
            latest = select(func.length(query), decisions.c.release).where(chosen, query.is_not(None))
            size, release = connection.execute(latest.order_by(decisions.c.decision_id.desc()).limit(1)).one()
            encoder = encoder_of(release)
        counts = select(func.count(), func.count(decisions.c.task)).where(chosen, query.is_not(None))
        n_all, n_with_task = connection.execute(counts).one()
        with_tasks = n_with_task > 0 if some_tasks else n_with_task == n_all
        return cls(name, size, with_tasks, encoder, encoder_of)

    def query(self, row: Row[*tuple[Any, ...]]) -> str | None:
        """The query of a choice, or its id; None where this decision has another kind of query, or none."""
        if self.column == "query_embedding":
            return (row.query_hash or row.decision_id) if self._fits(row) else None
        text: str | None = getattr(row, self.column)
        return text

    def why_left_out(self, row: Row[*tuple[Any, ...]]) -> str:
        """Why a judgement is no row of the choices."""
        if row.user_key is None:
            return "of no user"
        if row.decision_id is None:
            return "on no decision"
        if getattr(row, self.column) is None:
            return f"on a decision without {self.column.removeprefix('query_')}"
        return "on a query of another encoder"

    def _fits(self, row: Row[*tuple[Any, ...]]) -> bool:
        """Whether the embedding is one of the encoder; by its length, where that is not known."""
        if row.query_embedding is None or len(row.query_embedding) != self.embedding_bytes:
            return False
        return self.encoder is None or self._encoder_of(row.release) in (None, self.encoder)


class _Tables:
    """The tables being written."""

    def __init__(self, folder: Path, form: _Form, stack: ExitStack) -> None:
        def writer(name: str, schema: pa.Schema) -> _Writer:
            return stack.enter_context(_Writer(folder / f"{name}.parquet", schema))

        self._form = form
        self._seen: set[str] = set()
        self.left_out: Counter[str] = Counter()
        self.last_at: float | None = None
        self.choices = writer("choices", _CHOICES.append(_TASK) if form.with_tasks else _CHOICES)
        self.queries = (
            writer("queries", _of_encoder(_QUERIES, form.encoder)) if form.embedding_bytes else None
        )
        self.interactions = writer("interactions", _INTERACTIONS)
        self.judgements = writer("judgements", _JUDGEMENTS)

    def add(self, rows: Sequence[Row[*tuple[Any, ...]]]) -> None:
        """Add all feedback on one decision, or one that is on none; in the order of its times."""
        for row in rows:
            self.last_at = row.at if self.last_at is None else max(row.at, self.last_at)
            of_feedback = {name: getattr(row, name, None) for name in _JUDGEMENTS.names}
            self.judgements.add(of_feedback | {"user": row.user_key, "timestamp": _microseconds(row.at)})
            if row.user_key is not None:
                for item, weight in json.loads(row.items or "[]"):
                    values = (row.user_key, item, weight, _microseconds(row.at))
                    self.interactions.add(dict(zip(_INTERACTIONS.names, values)))
        judged = [row for row in rows if row.verdict]
        if judged:
            self._add_choice(rows, judged[-1])

    def _add_choice(self, rows: Sequence[Row[*tuple[Any, ...]]], last: Row[*tuple[Any, ...]]) -> None:
        query = self._form.query(last)
        if query is None or last.user_key is None:
            self.left_out[self._form.why_left_out(last)] += 1
            return
        measured = [row for row in rows if row.llm == last.llm]  # not of what the user did not take
        choice = {
            "user": last.user_key,
            "query": query,
            "llm": last.llm,
            "offered": offered_with(last.offered, last.llm),
            "thumbs": last.verdict if last.verdict < 0 or last.thumbs is not None else 0,
            "reward": last.score,
            "cost_usd": _last(row.cost_usd for row in measured),
            "latency_ms": _last(row.latency_ms for row in measured),
            "timestamp": _microseconds(last.at),
        }
        self.choices.add(choice | ({"task": last.task} if self._form.with_tasks else {}))
        if self.queries is not None and query not in self._seen:
            self._seen.add(query)
            self.queries.add({"id": query, "embedding": embedding_of(last.query_embedding)})


class _Writer:
    """Rows into a Parquet file, some thousand at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self.n_rows = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._rows.append(row)
        self.n_rows += 1
        if len(self._rows) == _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []


def _of_encoder(schema: pa.Schema, encoder: EncoderIdentity | None) -> pa.Schema:
    """The schema, with the encoder in its metadata."""
    return (
        schema if encoder is None else schema.with_metadata({ENCODER_METADATA: json.dumps(encoder.to_json())})
    )


def _last(values: Iterator[float | None]) -> float | None:
    """Last of the values that is one."""
    return next((value for value in reversed(list(values)) if value is not None), None)


def _microseconds(unix_s: float) -> int:
    return round(unix_s * 1e6)
