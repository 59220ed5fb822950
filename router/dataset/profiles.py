"""Which columns of a table of users become attributes, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from router.attributes import Attribute, AttributeCoding, Category, Number
from router.dataset.columns import Batch

MAX_CATEGORIES = 50


def fit_coding(
    batch: Batch, names: Sequence[str], tell: Callable[[str], None] = lambda _: None
) -> AttributeCoding | None:
    """Choose how to code the columns of a table of users; None where nothing is worth it.

    Dates, columns of one value only, and words of which there are more than 50 or as many as users (ids,
    names) are left out.

    Parameters
    ----------
    batch
        All users.
    names
        Columns that may be attributes.
    tell
        Is told of every column that is left out.
    """
    found: list[Attribute] = []
    for name in names:
        attribute = _attribute(batch, name)
        if isinstance(attribute, str):
            tell(f"{batch.path}: column {name!r} is left out: {attribute}")
        else:
            found.append(attribute)
    return AttributeCoding(tuple(found)) if found else None


def _attribute(batch: Batch, name: str) -> Attribute | str:
    """Coding of a column, or why there is none."""
    column = batch.table[name].combine_chunks()
    if pa.types.is_temporal(column.type):
        return "a date or a time"
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        return f"neither numbers nor words ({column.type})"
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if len(pc.unique(column.drop_null())) < 2:
        return "all values are the same"
    if _is_number(batch, column):
        values = batch.numbers(name)
        return Number(name, float(np.nanmean(values)), float(np.nanstd(values)))
    words = sorted(str(value) for value in pc.unique(column.drop_null()).to_pylist() if value != "")
    if len(words) > MAX_CATEGORIES or len(words) == len(batch) > 2:
        return f"{len(words)} different words, as ids or names have"
    return Category(name, tuple(words))


def _is_number(batch: Batch, column: pa.Array) -> bool:
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return True
    if not batch.is_text:
        return False
    try:
        pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
