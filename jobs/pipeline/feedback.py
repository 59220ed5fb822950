"""What the service's store gives a run: its users' feedback, and who asked to be forgotten."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.pipeline.deliveries import CHOICES, INTERACTIONS, Delivery
from jobs.settings import PipelineSettings
from ppr.errors import DataError, MissingDataError
from ppr.manifest import file_sha256
from router.erasure import Erasure, user_digest

QUERIES = "queries"
_TABLES = (INTERACTIONS, CHOICES, QUERIES)


@dataclass(frozen=True, slots=True)
class Exported:
    """The store's tables as files, and what matters beside them.

    Attributes
    ----------
    folder
        Where the tables are; they go with the run.
    checksums
        Digest of each table.
    encoder_known
        Whether it is known what made the queries' embeddings, if there are any.
    left_out
        Judgements that no training can read, by the reason.
    """

    folder: Path
    checksums: dict[str, str]
    encoder_known: bool
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True)
class Feedback:
    """Rows of the feedback.

    Attributes
    ----------
    interactions, choices
        As :mod:`jobs.pipeline.rows` has them.
    queries
        Embeddings of the choices' queries, or None.
    left_out
        Choices that cannot take part, by the reason.
    """

    interactions: pa.Table
    choices: pa.Table
    queries: pa.Table | None
    left_out: dict[str, int] = field(default_factory=dict)


def read_erasures(settings: PipelineSettings) -> dict[str, Erasure]:
    """Users to leave out, by their digests: of the store, and of the file, which has the last word.

    Raises
    ------
    MissingDataError
        The file is not there.
    DataError
        It is not UTF-8.
    FeedbackStoreError
        The store cannot be read.
    """
    found: dict[str, Erasure] = {}
    if has_store(settings):
        from router.service.store import open_store

        with open_store(str(settings.store)) as store:
            found = {erasure.user_digest: erasure for erasure in store.erasures()}
    if settings.erased is not None:
        try:
            lines = settings.erased.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            raise MissingDataError(f"[pipeline] 'erased': {settings.erased}: no such file") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{settings.erased}: not UTF-8 ({error})") from None
        for user in filter(None, map(str.strip, lines)):
            digest = user_digest(user)
            asked = found[digest].requested_at if digest in found else 0.0
            found[digest] = Erasure(digest, asked)
    return found


def has_store(settings: PipelineSettings) -> bool:
    """Whether there is a store to read; one of SQLite that no service has made yet is empty."""
    url = settings.store
    return url is not None and (not url.startswith("sqlite:///") or Path(url[len("sqlite:///") :]).exists())


@contextmanager
def exported(settings: PipelineSettings, folder: Path, until: datetime) -> Iterator[Exported | None]:
    """Feedback received before ``until``, in a folder that is removed at the end; None without a store.

    Raises
    ------
    FeedbackStoreError
        The store cannot be read.
    ResourceError
        The folder cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    if not has_store(settings):
        yield None
        return
    from router.releases import encoder_of
    from router.service.store import open_store

    try:
        with open_store(str(settings.store)) as store:
            told = store.export(
                folder,
                until=until.timestamp(),
                encoder_of=lambda version: encoder_of(settings.releases, version),
                some_tasks=True,
            )
        files = {name: folder / f"{name}.parquet" for name in _TABLES}
        checksums = {name: file_sha256(path) for name, path in files.items() if path.exists()}
        yield Exported(folder, checksums, told.encoder is not None, dict(told.left_out))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_feedback(
    there: Exported,
    llms: Sequence[str],
    *,
    queries: Path | None,
    tasks: bool | None,
    tell: Callable[[str], None],
) -> Feedback:
    """Rows of the feedback that can take part beside the deliveries.

    Parameters
    ----------
    there
        The tables.
    llms
        The catalogue.
    queries
        Table of the deliveries' queries, or None: then a query is its text.
    tasks
        Whether the deliveries name the tasks of their choices; None without deliveries.
    tell
        Is told of choices that are left out.
    """
    from jobs.pipeline.rows import SCHEMAS, read_choices, read_interactions
    from jobs.settings import GraphSettings

    interactions, choices = (SCHEMAS[kind].empty_table() for kind in (INTERACTIONS, CHOICES))
    left_out = dict(there.left_out)
    path = there.folder / f"{INTERACTIONS}.parquet"
    if pq.read_metadata(path).num_rows:
        interactions = read_interactions(Delivery(INTERACTIONS, path, ""), GraphSettings())
    path = there.folder / f"{CHOICES}.parquet"
    n_told = pq.read_metadata(path).num_rows
    if without := _settle_tasks(path, tasks):
        left_out["without a task"] = without
    if pq.read_metadata(path).num_rows:
        choices, retired = read_choices(Delivery(CHOICES, path, ""), llms, all_may_be_retired=True)
        if retired:
            left_out["of a retired LLM"] = sum(retired.values())
    embedded = QUERIES in there.checksums and len(choices) > 0
    mixed = tasks is not None or queries is not None
    if embedded and mixed and (queries is not None or not there.encoder_known):
        left_out["with an embedding only"] = len(choices)
        choices, embedded = choices.slice(0, 0), False
    elif queries is not None and len(choices):
        from router.dataset.columns import Columns

        ids = Columns.open(queries, {"query": ("id", "query_id", "query")}, ("query",)).whole().texts("query")
        choices = _filtered(
            choices, pc.is_in(choices["query"], value_set=ids), "with a query not in the table", left_out
        )
    if len(choices) < n_told:
        tell(f"feedback: choices left out of the training: {left_out}")
    table = pq.read_table(there.folder / f"{QUERIES}.parquet") if embedded else None
    return Feedback(interactions, choices, table, left_out)


def _settle_tasks(path: Path, delivered: bool | None) -> int:
    """Let all choices of the feedback have tasks, or none, as the deliveries do; gives how many are left out.

    Beside deliveries with tasks, choices without one are; beside others, or where some lack one, tasks are.
    """
    table = pq.read_table(path)
    named = "task" in table.column_names
    there = table["task"].is_valid() if named else pa.array([False] * len(table), pa.bool_())
    n_without = len(table) - int(pc.sum(there).as_py() or 0)
    if delivered:
        pq.write_table(table.filter(there), path)
        return n_without
    if named and (n_without or delivered is False):
        pq.write_table(table.drop_columns(["task"]), path)
    return 0


def newest(erasures: dict[str, Erasure]) -> str | None:
    """Time of the last erasure, ISO 8601; None where the store has none."""
    asked = [erasure.requested_at for erasure in erasures.values() if erasure.requested_at > 0]
    return datetime.fromtimestamp(max(asked), UTC).isoformat() if asked else None


def as_input(erasures: dict[str, Erasure]) -> list[list[Any]]:
    """Erasures as an input of a step."""
    return [[e.user_digest, e.lifted_at, e.requested_at] for _, e in sorted(erasures.items())]


def _filtered(table: pa.Table, kept: Any, reason: str, left_out: dict[str, int]) -> pa.Table:
    rest = table.filter(kept)
    if len(rest) < len(table):
        left_out[reason] = left_out.get(reason, 0) + len(table) - len(rest)
    return rest
