"""The README's way from a GraphFrame to fingerprints in one, literally."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.graphframes.conftest import ROOT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
BEGIN = "**From a GraphFrame and back**"


def test_the_readme_goes_there_and_back(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    block = re.search(r"```python\n(.*?)\n```", rest, re.DOTALL)
    assert block is not None
    *statements, question = block[1].splitlines()
    pairs = [("ann", "tent"), ("bob", "tent"), ("eve", "lute")]
    vertices = [(name, "user") for name, _ in pairs] + [("tent", "item"), ("lute", "item"), ("kite", "item")]
    names: dict[str, Any] = {
        "spark": spark,
        "vertices": spark.createDataFrame(vertices, "id string, kind string"),
        "edges": spark.createDataFrame(pairs, "src string, dst string"),
    }
    monkeypatch.chdir(tmp_path)

    exec("\n".join(statements), names)
    found = eval(question, names).collect()

    assert {(row.a.id, row.b.id) for row in found} == {
        ("ann", "bob"), ("ann", "tent"), ("bob", "tent"), ("eve", "lute"),
    }  # fmt: skip
    assert {row.id for row in names["near"].vertices.collect()} == {name for name, _ in vertices}
