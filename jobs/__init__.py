"""The batch jobs: command line, settings, Spark session, example data."""
