"""The LLMs of a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.dataset.columns import Columns
from router.errors import DataError
from router.policy import Catalogue, Llm

_USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "llm": ("llm", "name", "model"),
    "description": ("description",),
    "input_usd_per_mtok": ("input_usd_per_mtok",),
    "output_usd_per_mtok": ("output_usd_per_mtok",),
    "context_tokens": ("context_tokens",),
    "capabilities": ("capabilities",),
}


def read_llms(
    path: Path, tell: Callable[[str], None] = lambda _: None
) -> tuple[Catalogue, dict[str, NDArray[np.float64]]]:
    """Read the LLMs, and what was measured of them: further columns that hold numbers, float64 [m] each.

    Parameters
    ----------
    path
        CSV or Parquet; column ``llm`` (or ``name``) is needed. Prices and limits may be missing. Capabilities
        are a list; in CSV, words with | between them.
    tell
        Is told of columns that are not used.

    Raises
    ------
    MissingDataError
        The file or the column of names is not there.
    DataError
        A name appears twice, or a value breaks its rule; names the file.
    """
    columns = Columns.open(path, _USUAL_NAMES, ("llm",))
    batch = columns.with_extra(columns.extra).whole()
    names = batch.texts("llm").to_pylist()

    def numbers(column: str) -> list[float | None]:
        if not batch.has(column):
            return [None] * len(names)
        return [None if np.isnan(value) else value for value in batch.numbers(column).tolist()]

    def cells(column: str) -> list[Any]:
        return batch.table[column].to_pylist() if batch.has(column) else [None] * len(names)

    rows = zip(
        names,
        cells("description"),
        numbers("input_usd_per_mtok"),
        numbers("output_usd_per_mtok"),
        numbers("context_tokens"),
        cells("capabilities"),
        strict=True,
    )
    try:
        catalogue = Catalogue(
            Llm(
                name=name,
                description=description or "",
                input_usd_per_mtok=input_price,
                output_usd_per_mtok=output_price,
                context_tokens=None if context is None else int(context),
                capabilities=frozenset(_words(capabilities)),
            )
            for name, description, input_price, output_price, context, capabilities in rows
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    behaviour = {}
    for name in columns.extra:
        try:
            behaviour[name] = batch.numbers(name)
        except DataError:
            tell(f"{path}: column {name!r} is not used: it does not hold numbers")
    return catalogue, behaviour


def _words(cell: Any) -> list[str]:
    if isinstance(cell, str):
        return [word.strip() for word in cell.split("|") if word.strip()]
    return list(cell or ())
