"""What a router is trained on, from files: events, LLMs, and what else is known of queries, answers, users.

==============  =========================================================================================
events          user, query (text or id), llm; perhaps task, offered, thumbs, reward, cost_usd, latency_ms
llms            llm (or name); perhaps description, prices, context_tokens, capabilities, measured numbers
queries         id, text or embedding (of the encoder that the metadata name, else ``external``); perhaps task
answers         query, llm, numbers that were measured: quality, cost_usd, latency_ms, length ...
users           user, profile attributes
graph           store of users and items; its users are known even without events
fingerprints    store of that graph: who and what is near to a user by personalised PageRank
==============  =========================================================================================

**What counts as a choice.** An event says that its LLM was preferred to the others on offer, unless the user
then turned a thumb down: such an event does not tell what the user wants instead, and counts for the measured
figures only. Rewards are such figures: they (or, without them, the thumbs) make the quality to expect of an
LLM, where the quality of answers was not measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ppr.keys import DistinctKeys
from ppr.manifest import MANIFEST
from ppr.readers import file_identity
from router.attributes import AttributeCoding
from router.dataset.answers import Expected, expected_of_events, read_answers, standardise
from router.dataset.columns import Columns
from router.dataset.events import STREAM_BYTES, Events, read_events
from router.dataset.links import Links, read_links
from router.dataset.llms import read_llms
from router.dataset.profiles import fit_coding
from router.dataset.queries import Queries, Tasks, describe_queries
from router.encoders import EncoderIdentity, encoder_name
from router.errors import BundleError, DataError, MissingDataError, ParameterError
from router.persona.data import ChoiceData, Choices, Floats, Ints
from router.policy import Catalogue

__all__ = ["Reading", "RouterData", "RouterFiles", "encoder_name", "read_router_data"]

_USER_NAMES = {"user": ("user", "user_id")}


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterFiles:
    """Where the tables and stores lie; see the top of this module.

    Raises
    ------
    ParameterError
        Fingerprints are given without a graph.
    """

    events: Path
    llms: Path
    queries: Path | None = None
    answers: Path | None = None
    users: Path | None = None
    graph: Path | None = None
    fingerprints: Path | None = None

    def __post_init__(self) -> None:
        if self.fingerprints is not None and self.graph is None:
            raise ParameterError("'fingerprints' must come with the 'graph' that they were made from")

    def checksums(self) -> dict[str, str]:
        """Digests of the tables' files and checksums of the stores, hex, by their names here.

        Raises
        ------
        MissingDataError
            One is not there.
        BundleError
            A store's manifest is damaged.
        """
        found = {}
        for name in ("events", "llms", "queries", "answers", "users"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                raise MissingDataError(f"{path}: no such file or folder")
            if path is not None:
                found[name] = table_checksum(path)
        for name in ("graph", "fingerprints"):
            path = getattr(self, name)
            if path is not None and not (path / MANIFEST).is_file():
                raise MissingDataError(f"{path}: no such store")
            if path is not None:
                found[name] = _store_checksum(path)
        return found


def _store_checksum(path: Path) -> str:
    file = path / MANIFEST
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["checksum"])
    except (ValueError, TypeError, KeyError):
        raise BundleError(f"{file}: must be a JSON object with a 'checksum'; the store is damaged") from None


def table_checksum(path: Path) -> str:
    """Digest of a table's files, hex."""
    return sha256(json.dumps(file_identity(path)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read.

    Attributes
    ----------
    encoder
        Name of the encoder of texts; ``auto`` is MiniLM where it is installed, else hashed words.
    top_k
        Nearest users, and items, kept of each fingerprint.
    stream_bytes
        Size of the events from which Dask spreads the reading over threads; the result is the same.
    seed
        Of the grouping of queries without task.
    tell
        Is told what is left out.
    """

    encoder: str = "auto"
    top_k: int = 50
    stream_bytes: int = STREAM_BYTES
    seed: int = 0
    tell: Callable[[str], None] = field(default=lambda _: None, compare=False)


@dataclass(frozen=True, slots=True)
class RouterData:
    """Everything that a training reads.

    Attributes
    ----------
    data
        Choices, queries, LLMs, features of answers and users, ties of users, as arrays.
    user_keys
        Keys of the users, ascending; Arrow int64 or large_string.
    query_keys
        Texts or ids of the queries, object [q].
    catalogue
        The LLMs.
    behaviour
        Measured numbers of the LLMs by name, float64 [m].
    tasks
        Kinds of queries.
    encoder
        Encoder of the queries' embeddings.
    expected
        Quality, cost and latency by task and LLM.
    answer_features
        Names of the features of answers.
    attributes
        How profile attributes became features of users, or None.
    item_keys
        Keys of the items; none without a graph.
    """

    data: ChoiceData
    user_keys: pa.Array
    query_keys: NDArray[Any]
    catalogue: Catalogue
    behaviour: dict[str, NDArray[np.float64]]
    tasks: Tasks
    encoder: EncoderIdentity
    expected: Expected
    answer_features: tuple[str, ...]
    attributes: AttributeCoding | None
    item_keys: pa.Array


def read_router_data(files: RouterFiles, how: Reading | None = None) -> RouterData:
    """Read and check everything.

    Parameters
    ----------
    files
        Tables and stores.
    how
        Encoder, limits, seed.

    Raises
    ------
    MissingDataError
        A file, store or needed column is not there, or the packages of an encoder.
    DataError
        A cell breaks its rule or a name is unknown (with file and row), keys do not fit together, or graph
        and fingerprints do not belong together.
    UnknownNameError
        There is no such encoder.
    """
    how = how or Reading()
    catalogue, behaviour = read_llms(files.llms, how.tell)
    # Training draws choices by their position: sorted, the order of rows makes no difference.
    events = read_events(files.events, catalogue.names, stream_bytes=how.stream_bytes).sorted()
    if events.extra_columns:
        how.tell(f"{files.events}: columns not used: {', '.join(events.extra_columns)}")
    descriptions = [llm.description or llm.name for llm in catalogue.llms]
    queries = describe_queries(
        events, descriptions, path=files.queries, encoder=how.encoder, seed=how.seed, tell=how.tell
    )
    links = None if files.graph is None else read_links(files.graph, files.fingerprints, how.top_k)
    profiles = None if files.users is None else Columns.open(files.users, _USER_NAMES, ("user",))
    user_keys, users = _users(events, profiles, links)
    if links is not None:
        _check_overlap(files, events, links, user_keys.type, how)
    attributes, features = (None, None) if profiles is None else _attributes(profiles, user_keys, how)
    names, answers, expected = _answers(files.answers, events, queries, catalogue)
    choices = Choices(users, events.queries, events.llms, events.offered).take(events.thumbs >= 0)
    if not len(choices):
        raise DataError(f"{files.events}: no event is a choice (all have a thumb down)")
    if choices.offered is None:
        choices = _offered_if_chosen(choices, len(catalogue))
    data = ChoiceData(
        n_users=len(user_keys),
        choices=choices,
        tasks=queries.tasks_of,
        query_embeddings=queries.embeddings,
        train_queries=np.ones(queries.tasks_of.size, dtype=bool),
        llm_names=catalogue.names,
        llm_embeddings=queries.descriptions,
        prices_usd=_prices(catalogue),
        features=answers,
        user_features=features,
        links=None if links is None else links.of_users(user_keys).ties,
    )
    return RouterData(
        data=data,
        user_keys=user_keys,
        query_keys=events.query_keys,
        catalogue=catalogue,
        behaviour=behaviour,
        tasks=queries.tasks,
        encoder=queries.encoder,
        expected=expected,
        answer_features=names,
        attributes=attributes,
        item_keys=user_keys[:0] if links is None else links.item_keys,
    )


def _offered_if_chosen(choices: Choices, n_llms: int) -> Choices:
    """Where the file does not say what was on offer, an LLM that nobody ever took was not: it may be new."""
    taken = np.bincount(choices.llms, minlength=n_llms) > 0
    return choices if taken.all() else replace(choices, offered=np.tile(taken, (len(choices), 1)))


def _prices(catalogue: Catalogue) -> Floats:
    pairs = [(llm.input_usd_per_mtok, llm.output_usd_per_mtok) for llm in catalogue.llms]
    return np.array([[np.nan if p is None else p for p in pair] for pair in pairs], dtype=np.float32)


def _users(events: Events, profiles: Columns | None, links: Links | None) -> tuple[pa.Array, Ints]:
    """Keys of all users, ascending, and the user of each event."""
    sources = [events.user_keys]
    if profiles is not None:
        sources.append(profiles.whole().keys("user"))
    if links is not None:
        sources.append(links.user_keys)
    distinct = DistinctKeys()
    for keys in sources:
        distinct.add(keys)
    user_keys = distinct.sorted(as_strings=distinct.has_strings)
    if links is not None and user_keys.type != links.user_keys.type:
        raise DataError(
            f"keys of users must be of one type: those of the graph are {links.user_keys.type}, "
            "those of the events or users are text"
        )
    at = pc.index_in(events.user_keys.cast(user_keys.type), value_set=user_keys).to_numpy()
    return user_keys, at.astype(np.int64)[events.users]


def _check_overlap(
    files: RouterFiles, events: Events, links: Links, key_type: pa.DataType, how: Reading
) -> None:
    """Refuse a graph that none of the events' users is in; tell how many are not."""
    known = pc.is_in(events.user_keys.cast(key_type), value_set=links.user_keys.cast(key_type))
    n_known = pc.sum(known).as_py()
    if not n_known:
        raise DataError(
            f"{files.graph}: no user of the events is in the graph "
            f"(the first is {events.user_keys[0].as_py()!r}, the graph's {links.user_keys[0].as_py()!r})"
        )
    if n_known < len(known):
        how.tell(
            f"{files.graph}: {len(known) - n_known} of {len(known)} users of the events are not in the graph"
        )


def _attributes(
    profiles: Columns, user_keys: pa.Array, how: Reading
) -> tuple[AttributeCoding | None, Floats | None]:
    """Coding of the users' attributes, and features in the order of the keys; zeros where none are known."""
    batch = profiles.with_extra(profiles.extra).whole()
    keys = batch.keys("user").cast(user_keys.type)
    if len(keys.unique()) < len(keys):
        raise DataError(f"{profiles.path}: a user must have one row (got two)")
    coding = fit_coding(batch, profiles.extra, how.tell)
    if coding is None:
        return None, None
    features = np.zeros((len(user_keys), coding.width), dtype=np.float32)
    columns = {name: batch.table[name].to_pylist() for name in profiles.extra}
    features[pc.index_in(keys, value_set=user_keys).to_numpy()] = coding.encode_columns(columns)
    return coding, features


def _answers(
    path: Path | None, events: Events, queries: Queries, catalogue: Catalogue
) -> tuple[tuple[str, ...], Floats | None, Expected]:
    """Names and values of the answers' features, and what to expect of the LLMs."""
    n_tasks, n_llms = len(queries.tasks.names), len(catalogue)
    of_events = expected_of_events(events, queries.tasks_of, n_tasks, n_llms)
    if path is None:
        return (), None, of_events
    names, features = read_answers(path, events, catalogue.names)
    tasks, llms = np.broadcast_arrays(queries.tasks_of[:, None], np.arange(n_llms))
    measured = {name: features[..., i].ravel() for i, name in enumerate(names)}
    of_answers = Expected.of(measured, tasks.ravel(), llms.ravel(), n_tasks, n_llms)
    return names, standardise(features, queries.tasks_of), of_answers.or_else(of_events)
