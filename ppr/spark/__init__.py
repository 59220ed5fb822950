"""The engine on Spark. Only the DataFrame API is used, so it runs through Spark Connect as well."""

from ppr.spark.blocks import compute_fingerprints_spark
from ppr.spark.building import build_graph_spark
from ppr.spark.partitioned import choose_engine, compute_fingerprints_partitioned_spark

__all__ = [
    "build_graph_spark",
    "choose_engine",
    "compute_fingerprints_partitioned_spark",
    "compute_fingerprints_spark",
]
