"""What LLMs answered to benchmark queries, and what users preferred.

RouteProfile, RouterBench and PersonaRoute-Bench each have a file format of their own; here they become a
table of queries × LLMs, or one of interactions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.errors import DataError, MissingDataError
from router.loaders.tables import numbers, open_table, strings, vectors
from router.loaders.text import numbered_lines
from router.policy import Catalogue, Llm

Doubles = NDArray[np.float64]

_PERSONA_TEXT = ("query", "metric", "llm", "best_llm", "task_description")
_PERSONA_NUMBERS = ("performance_preference", "effect", "cost", "reward")
_PERSONA_VECTORS = ("query_embedding", "task_description_embedding")
_COST = "|total_cost"
_TOKENS = ("prompt_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class ResponseTable:
    """Answers of several LLMs to the same queries.

    Attributes
    ----------
    queries, tasks
        Text and task of each query [q].
    llms
        Names [m].
    quality
        Score of each answer, float64 [q, m]; NaN where there is none.
    cost_usd
        float64 [q, m]; NaN where unknown.
    tokens
        Tokens of prompt and answer, float64 [q, m, 2], NaN where unknown; or None.
    responses
        Text of each answer, [q][m]; or None.
    """

    queries: tuple[str, ...]
    tasks: tuple[str, ...]
    llms: tuple[str, ...]
    quality: Doubles
    cost_usd: Doubles
    tokens: Doubles | None = None
    responses: tuple[tuple[str, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class PersonaRoute:
    """Interactions of simulated users with LLMs, one row each, as PersonaRoute-Bench has them.

    Attributes
    ----------
    users, tasks
        Keys, str [n].
    queries, llms, best_llms, metrics, task_descriptions
        str [n]; ``best_llms`` is the LLM of the best reward for the user and query.
    preference
        How much the user cares for effect rather than cost, float64 [n], 0 to 1.
    effect, cost, reward
        float64 [n], as in the file: effect and cost are scaled to 0 to 1 there.
    query_embeddings, task_embeddings
        float32 [n, d].
    """

    users: NDArray[np.str_]
    tasks: NDArray[np.str_]
    queries: NDArray[np.str_]
    llms: NDArray[np.str_]
    best_llms: NDArray[np.str_]
    metrics: NDArray[np.str_]
    task_descriptions: NDArray[np.str_]
    preference: Doubles
    effect: Doubles
    cost: Doubles
    reward: Doubles
    query_embeddings: NDArray[np.float32]
    task_embeddings: NDArray[np.float32]

    def __len__(self) -> int:
        return self.users.size


def read_persona_route(path: str | Path) -> PersonaRoute:
    """Read a table of PersonaRoute-Bench: CSV or Parquet.

    Raises
    ------
    MissingDataError
        The file or a column is not there; columns that are not known are ignored.
    DataError
        A cell is empty, a number not finite, a preference outside 0..1, or an embedding of another length
        than those before it; the file is empty or a pickle.
    """
    file = Path(path)
    table = open_table(file, ("user_id", "task_id", *_PERSONA_TEXT, *_PERSONA_NUMBERS, *_PERSONA_VECTORS))
    text = {name: strings(table, name, file) for name in ("user_id", "task_id", *_PERSONA_TEXT)}
    number = {name: numbers(table, name, file) for name in _PERSONA_NUMBERS}
    preference = number["performance_preference"]
    outside = np.flatnonzero((preference < 0.0) | (preference > 1.0))
    if outside.size:
        raise DataError(
            f"{file}: row {outside[0] + 1}: 'performance_preference' must lie in 0..1 "
            f"(got {preference[outside[0]]})"
        )
    return PersonaRoute(
        users=text["user_id"],
        tasks=text["task_id"],
        queries=text["query"],
        llms=text["llm"],
        best_llms=text["best_llm"],
        metrics=text["metric"],
        task_descriptions=text["task_description"],
        preference=preference,
        effect=number["effect"],
        cost=number["cost"],
        reward=number["reward"],
        query_embeddings=vectors(table, "query_embedding", file),
        task_embeddings=vectors(table, "task_description_embedding", file),
    )


def read_routerbench(path: str | Path) -> ResponseTable:
    """Read RouterBench's wide table, saved as CSV or Parquet.

    LLMs are the columns ``<name>`` that have a column ``<name>|total_cost`` beside them; costs are in USD.
    Queries and tasks are ``prompt`` and ``eval_name``; answers are in ``<name>|model_response``, if anywhere.

    Raises
    ------
    MissingDataError
        The file or a column is not there.
    DataError
        No column names an LLM, a score or cost is not finite, or the file is empty or a pickle, the form
        that the set is published in: reading it would run code from it.
    """
    file = Path(path)
    table = open_table(file, ("prompt", "eval_name"))
    names = tuple(
        name.removesuffix(_COST)
        for name in table.column_names
        if name.endswith(_COST) and name.removesuffix(_COST) in table.column_names
    )
    if not names:
        raise DataError(f"{file}: no LLM: there must be columns '<name>' and '<name>{_COST}'")
    answers = [f"{name}|model_response" for name in names]
    responses = None
    if set(answers) <= set(table.column_names):
        columns = [strings(table, name, file, empty=True).tolist() for name in answers]
        responses = tuple(zip(*columns, strict=True))
    return ResponseTable(
        queries=tuple(strings(table, "prompt", file).tolist()),
        tasks=tuple(strings(table, "eval_name", file).tolist()),
        llms=names,
        quality=np.stack([numbers(table, name, file) for name in names], axis=1),
        cost_usd=np.stack([numbers(table, name + _COST, file) for name in names], axis=1),
        responses=responses,
    )


def read_route_profile(responses: str | Path, models: str | Path) -> tuple[ResponseTable, Catalogue]:
    """Read RouteProfile's answers and its description of the LLMs: two JSON files, plain or gzip.

    An answer without a score counts as 0, as the set's authors do. Costs are tokens times prices.

    Returns
    -------
    table, catalogue
        With the LLMs in one order, that of the first query.

    Raises
    ------
    MissingDataError
        A file or a field is not there.
    DataError
        A file is no such JSON, a number is not one, or queries have different LLMs.
    """
    answers_file, models_file = Path(responses), Path(models)
    entries = _json(answers_file)
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{answers_file}: must be a list of at least one query")
    first = _field(entries[0], "model_performance", answers_file, 1)
    catalogue = _catalogue(models_file, tuple(first))
    quality = np.empty((len(entries), len(first)))
    tokens = np.empty((*quality.shape, 2))
    texts: list[tuple[str, ...]] = []
    for row, entry in enumerate(entries):
        given = _field(entry, "model_performance", answers_file, row + 1)
        if set(given) != set(first):
            raise DataError(f"{answers_file}: query {row + 1}: must have the LLMs of the first one")
        cells = [given[name] for name in first]
        texts.append(tuple(str(_field(cell, "response", answers_file, row + 1) or "") for cell in cells))
        for column, cell in enumerate(cells):
            score = _field(cell, "task_performance", answers_file, row + 1)
            values = (
                0.0 if score is None else score,
                *(
                    _field(cell, name, answers_file, row + 1)
                    for name in ("prompt_tokens", "completion_tokens")
                ),
            )
            if not all(isinstance(value, int | float) and np.isfinite(value) for value in values):
                raise DataError(
                    f"{answers_file}: query {row + 1}: score and tokens must be finite numbers (got {values})"
                )
            quality[row, column], *tokens[row, column] = values
    table = ResponseTable(
        queries=tuple(str(_field(entry, "query", answers_file, i)) for i, entry in enumerate(entries, 1)),
        tasks=tuple(str(_field(entry, "task_name", answers_file, i)) for i, entry in enumerate(entries, 1)),
        llms=catalogue.names,
        quality=quality,
        cost_usd=(tokens * catalogue.prices).sum(axis=2),
        tokens=tokens,
        responses=tuple(texts),
    )
    return table, catalogue


def _catalogue(path: Path, names: tuple[str, ...]) -> Catalogue:
    described = _json(path)
    if not isinstance(described, dict):
        raise DataError(f"{path}: must map names of LLMs to their descriptions")
    llms = []
    for name in names:
        if name not in described:
            raise MissingDataError(f"{path}: no LLM {name!r}, of which there are answers")
        fields = described[name]
        prices = [fields.get(key) for key in ("input_price", "output_price")]
        if not all(price is None or isinstance(price, int | float) for price in prices):
            raise DataError(f"{path}: LLM {name!r}: prices must be numbers (got {prices})")
        llms.append(
            Llm(
                name=name,
                description=str(fields.get("feature", "")),
                input_usd_per_mtok=prices[0],
                output_usd_per_mtok=prices[1],
            )
        )
    return Catalogue(llms)


def _json(path: Path) -> Any:
    document = "".join(line for _, line in numbered_lines(path))
    try:
        return json.loads(document)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None


def _field(entry: Any, name: str, path: Path, row: int) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise MissingDataError(f"{path}: query {row}: no field {name!r}")
    return entry[name]
