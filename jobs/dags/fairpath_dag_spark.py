"""Fingerprints by spark-submit; imported only where the settings ask for it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import Context

from fairpath_dag_settings import DagSettings
from fairpath_dag_tasks import arguments


class SparkSubmitStep(SparkSubmitOperator):
    """The step ``fingerprints``: the driver on the worker, its tasks on the cluster of the connection.

    Parameters
    ----------
    settings
        Settings of the DAG.
    **kwargs
        What every operator takes.
    """

    def __init__(self, *, settings: DagSettings, **kwargs: Any) -> None:
        chosen = settings.fingerprints
        conf = {
            "spark.pyspark.driver.python": str(PurePosixPath(settings.fairpath.program).with_name("python"))
        }
        if chosen.archive:
            conf["spark.pyspark.python"] = "environment/bin/python"
        super().__init__(
            conn_id=chosen.connection,
            application=chosen.launcher,
            py_files=chosen.py_files or None,
            archives=f"{chosen.archive}#environment" if chosen.archive else None,
            properties_file=chosen.properties or None,
            conf=conf,
            # The session is the one that spark-submit starts, whatever the pipeline's settings say.
            env_vars={
                **settings.fairpath.environment,
                "FAIRPATH_SPARK__MASTER": "none",
                "FAIRPATH_SPARK__REMOTE": "none",
            },
            deploy_mode="client",
            name="fairpath-fingerprints",
            **kwargs,
        )
        self.settings = settings

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        super().render_template_fields(context, jinja_env)
        self.application_args = arguments(self.settings, "fingerprints", context)
