from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppr.errors import (
    StoreError,
)
from ppr.fingerprints import (
    Rows,
)
from tests.oracles.fingerprint_runs import PARAMS, TRUTH
from tests.oracles.rows import table_of


def rows_of(ids: list[int], scores: list[float], mass: float = 1.0, moves: int = 3, source: int = 4) -> Rows:
    return Rows(
        np.asarray([source], np.int32),
        np.asarray([0, len(ids)]),
        np.asarray(ids, np.int32),
        np.asarray(scores, np.float32),
        np.asarray([mass]),
        np.asarray([moves]),
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_of([1, 9], [0.5, 0.25]), None),
        (rows_of([1, 9], [0.25, 0.25]), None),
        (rows_of([], []), None),
        (rows_of([9, 1], [0.25, 0.25]), "ties by ascending id"),
        (rows_of([1, 9], [0.25, 0.5]), "must descend"),
        (rows_of([1, 2, 1], [0.5, 0.25, 0.125]), "must not repeat"),
        (rows_of([1, 10], [0.5, 0.25]), "between 0 and 9"),
        (rows_of([1, -1], [0.5, 0.25]), "between 0 and 9"),
        (rows_of([1, 2], [0.5, 0.0]), "positive and finite"),
        (rows_of([1, 2], [np.nan, 0.5]), "positive and finite"),
        (rows_of([1, 2, 3, 5], [0.2, 0.1, 0.1, 0.1]), "at most 3 entries"),
        (rows_of([1], [0.5], mass=0.4), "at least the sum"),
        (rows_of([1], [0.5], mass=np.nan), "positive and finite"),
        (rows_of([1], [0.5], moves=-1), "moves must not be negative"),
        (rows_of([1], [0.5], source=10), "source must be a node id"),
    ],
)
def test_rules_of_rows(rows: Rows, message: str | None) -> None:
    rows = Rows.concat([rows_of([2], [0.5], source=3), rows])
    if message is None:
        rows.check(n_nodes=10, top_k=3)
    else:
        with pytest.raises(StoreError, match=rf"source {rows.sources[1]}: .*{message}"):
            rows.check(n_nodes=10, top_k=3)


row_lists = st.lists(
    st.lists(st.integers(0, 99), max_size=6, unique=True).map(sorted), min_size=1, max_size=12
)


@settings(derandomize=True, deadline=None)
@given(row_lists, st.data())
def test_rows_keep_their_content(lists: list[list[int]], data: st.DataObject) -> None:
    rows = Rows(
        np.arange(len(lists), dtype=np.int32),
        np.cumsum([0, *map(len, lists)]),
        np.asarray([node for row in lists for node in row], np.int32),
        np.asarray([node / 100 for row in lists for node in row], np.float32),
        np.ones(len(lists)),
        np.arange(len(lists)),
    )
    plain = rows.to_arrow().to_pylist()
    assert [row["ids"] for row in plain] == lists
    order = data.draw(st.permutations(range(len(lists))))
    assert rows.take(np.asarray(order)).to_arrow().to_pylist() == [plain[position] for position in order]
    cut = data.draw(st.integers(0, len(lists)))
    parts = [rows.slice(0, cut), rows.slice(cut, len(lists))]
    assert Rows.concat(parts).to_arrow().to_pylist() == plain
    assert (
        Rows.from_arrow(pa.concat_tables([part.to_arrow() for part in parts])).to_arrow() == rows.to_arrow()
    )
    chunks = list(rows.chunks(max_entries=5))
    assert Rows.concat(chunks).to_arrow().to_pylist() == plain
    assert all(chunk.ids.size <= 5 or len(chunk) == 1 for chunk in chunks)


def test_nullable_columns_of_other_engines_are_read() -> None:
    table = table_of(np.arange(60), TRUTH, PARAMS.top_k)
    nullable = pa.schema(
        [
            pa.field(
                field.name, pa.list_(field.type.value_type) if pa.types.is_list(field.type) else field.type
            )
            for field in table.schema
        ]
    )
    assert Rows.from_arrow(table.cast(nullable)).to_arrow() == table
