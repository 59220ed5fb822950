"""Say who a job belongs to and what it will cost."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobs.fairqueue.errors import (
    FairQueueParameterError,
    require_cost,
    require_non_negative,
    require_positive,
)
from jobs.fairqueue.spark.identity import JOB_PROPERTY, MAX_NAME_CHARS, encode_tag
from jobs.fairqueue.spark.install import installation_of, is_connect

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@contextmanager
def job(
    spark: SparkSession,
    *,
    user: str | None = None,
    cost_core_s: float | None = None,
    job_class: str | None = None,
    size: float | None = None,
    stages: int | None = None,
    name: str | None = None,
) -> Iterator[None]:
    """Everything that this thread runs on Spark in the block is one job.

    Where no fair queue is installed, the block changes nothing.

    Parameters
    ----------
    spark
        Session, classic or Connect.
    user
        Whose job it is; in a classic session only, for over Connect it is the connection's user.
    cost_core_s
        What the job will cost, core-seconds.
    job_class
        Jobs of one class cost about the same: the cost is learned; by default the place of the call.
    size
        Size of the job's input, in a unit of the class's own; the learned cost is scaled by it.
    stages
        Number of stages that the job will have.
    name
        Name of the job; jobs of one user with one name are one job.

    Raises
    ------
    FairQueueParameterError
        An argument breaks its rule, or names a user over Connect.
    """
    _check(user=user, job_class=job_class, name=name)
    if cost_core_s is not None:
        require_cost("'cost_core_s'", cost_core_s)
    if size is not None:
        require_non_negative("'size'", size)
    if stages is not None:
        require_positive("'stages'", stages)
        if stages != int(stages):
            raise FairQueueParameterError(f"'stages' must be a whole number (got {stages!r})")
    described: dict[str, Any] = {
        "job": name or uuid.uuid4().hex,
        "user": user,
        "class": job_class,
        "cost_core_s": cost_core_s,
        "size": size,
        "stages": stages,
    }
    description = {field: value for field, value in described.items() if value is not None}
    if is_connect(spark):
        if user is not None:
            raise FairQueueParameterError(
                f"'user' must not be given over Spark Connect, where it is the connection's (got {user!r})"
            )
        yield from _tagged(spark, description)
    else:
        yield from _with_property(spark, description)


def _tagged(spark: SparkSession, description: dict[str, Any]) -> Iterator[None]:
    tag = encode_tag(description)
    others = [other for other in spark.getTags() if other.startswith(tag.partition(".")[0] + ".")]
    for other in others:  # a block inside another counts as a job of its own
        spark.removeTag(other)
    spark.addTag(tag)
    try:
        yield
    finally:
        spark.removeTag(tag)
        for other in others:
            spark.addTag(other)


def _with_property(spark: SparkSession, description: dict[str, Any]) -> Iterator[None]:
    context = spark.sparkContext
    before = context.getLocalProperty(JOB_PROPERTY)
    text = json.dumps(description)
    context.setLocalProperty(JOB_PROPERTY, text)
    installation = installation_of(spark)
    if installation is not None:
        installation.open_job({JOB_PROPERTY: text})
    try:
        yield
    finally:
        context.setLocalProperty(JOB_PROPERTY, before)  # type: ignore[arg-type]
        if installation is not None:
            installation.close_job({JOB_PROPERTY: text})


def _check(**names: str | None) -> None:
    for field, value in names.items():
        if value is not None and not isinstance(value, str):
            raise FairQueueParameterError(f"{field!r} must be a text (got {value!r})")
        if value is not None and not 0 < len(value.strip()) <= MAX_NAME_CHARS:
            raise FairQueueParameterError(
                f"{field!r} must have between 1 and {MAX_NAME_CHARS} characters (got {value!r})"
            )
