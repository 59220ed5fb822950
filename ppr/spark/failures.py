"""Errors of workers and of Spark, as the caller should see them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from ppr import errors
from ppr.errors import PprError, ResourceError

_MARK = "fairpath-error:"


def marked(error: PprError) -> RuntimeError:
    """What a worker raises in place of an error of this package: Spark hands on its text, not its type."""
    return RuntimeError(_MARK + json.dumps([type(error).__name__, str(error)]))


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors of Spark come out as :func:`raise_readable` tells them."""
    try:
        yield
    except (PySparkException, Py4JError) as error:
        raise_readable(error)


def raise_readable(error: PySparkException | Py4JError) -> NoReturn:
    """Raise what a worker or Spark reported, without the traces around it.

    A worker's exception that is none of this package's own is a defect, and is raised as it came.
    """
    text = str(error)
    if found := re.search(re.escape(_MARK) + r"(\[.*?\"\])$", text, re.MULTILINE):
        name, message = json.loads(found[1])
        raise getattr(errors, name)(message) from None
    if found := re.search(r"ModuleNotFoundError: (No module named \S+)", text):
        raise ResourceError(
            f"a Spark worker cannot import what it needs ({found[1]}): install fairpath for the workers' "
            "Python, or pass its zip with --py-files"
        ) from None
    if found := re.search(r"No space left on device|Disk quota exceeded", text):
        raise ResourceError(
            f"a disk is full where Spark writes ({found[0]}): its shuffle files, in 'spark.local.dir' or "
            "SPARK_LOCAL_DIRS of the driver and workers, or what it writes beside the output"
        ) from error
    if "Traceback (most recent call last)" in text:
        raise error
    raise ResourceError(f"Spark failed ({_cause(text)})") from error


def _cause(text: str) -> str:
    """Message of the innermost Java exception that has one, else the first line."""
    causes = re.findall(r"^(?:Caused by)?: [\w.$]+: (.+)$", text, re.MULTILINE)
    return causes[-1] if causes else text.partition("\n")[0]
