"""Training in a pod; imported only where the settings ask for it."""

from __future__ import annotations

from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import Context

from fairpath_dag_settings import DagSettings
from fairpath_dag_tasks import arguments


class PodStep(KubernetesPodOperator):
    """The step ``train``, in a pod of the template; the pod has the pipeline's folders and settings mounted.

    Parameters
    ----------
    settings
        Settings of the DAG.
    **kwargs
        What every operator takes.
    """

    def __init__(self, *, settings: DagSettings, **kwargs: Any) -> None:
        chosen = settings.training
        super().__init__(
            kubernetes_conn_id=chosen.connection or None,
            in_cluster=None if chosen.connection else True,
            namespace=chosen.namespace,
            image=chosen.image or None,
            pod_template_file=chosen.pod_template,
            name="fairpath-train",
            cmds=["fairpath"],
            env_vars=settings.fairpath.environment,
            get_logs=True,
            do_xcom_push=False,
            **kwargs,
        )
        self.settings = settings

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        super().render_template_fields(context, jinja_env)
        self.arguments = arguments(self.settings, "train", context)
