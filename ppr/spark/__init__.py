"""The engine on Spark. Only the DataFrame API is used, so it runs through Spark Connect as well."""

from ppr.spark.blocks import compute_fingerprints_spark

__all__ = ["compute_fingerprints_spark"]
