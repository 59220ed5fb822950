"""Whose job a task set belongs to, from the properties that Spark hands to its scheduler.

The user is, in this order: the one that Spark Connect knows the client by, the one that ``fairqueue.job`` was
given, a default. The job is: the block of ``fairqueue.job``, the Connect operation, the job group, the SQL
execution (its adaptive stages included), the Spark job. Names of jobs and of their classes begin with the
user, whose own blanks are escaped, so that names of two users never meet.

Properties come from clients. Nothing here raises on them: what cannot be read counts as absent, names are
made printable and short, and numbers are kept within what the scheduler takes. A Connect client can set any
Spark setting, and those that begin with ``spark`` become properties, the tags of its operation included. So
the property of ``fairqueue.job`` begins otherwise, and the user in the tags is believed only if Spark
Connect's call site, which no setting changes, does not name another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.fairqueue.errors import MAX_COST_CORE_S

JOB_PROPERTY = "fairpath.fairqueue.job"
"""Local property of a classic session that describes the job, as JSON."""

TAG_PREFIX = "fairqueue."
"""Beginning of the tag that describes the job over Spark Connect; base64url of JSON follows."""

MAX_NAME_CHARS = 120
_MAX_SIZE = 1e18
_MAX_STAGES = 1e6

_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_OPERATION_TAG = re.compile(
    rf"SparkConnect_OperationTag_User_(.*)_Session_({_UUID})_Operation_({_UUID})", re.S
)
_CALL_SITE = re.compile(
    rf'Spark Connect - session_id: "{_UUID}"\s+user_context \{{\s+user_id: "((?:[^"\\]|\\.)*)"'
)
_SESSION_TAG = re.compile(rf"SparkConnect_SessionTag_User_.*_Session_{_UUID}_Tag_(.*)", re.S)


Operation = tuple[str, str, str]
"""An operation of Spark Connect: user, session, operation, as Spark names them."""


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """A job as its task sets name it.

    Attributes
    ----------
    user, job
        Names; ``job`` begins with ``user``.
    job_class
        Jobs of one class are expected to cost about the same.
    cost_core_s, size, stages
        What the owner declares, or None: core-seconds, size of the input, number of stages.
    operation
        The Connect operation that the job is, or None.
    class_given
        Whether the owner named the class; else jobs of very different size may share it.
    """

    user: str
    job: str
    job_class: str
    cost_core_s: float | None = None
    size: float | None = None
    stages: int | None = None
    operation: Operation | None = None
    class_given: bool = False


def identify(
    properties: Mapping[str, str], spark_job: Callable[[], int], *, default_user: str
) -> JobIdentity:
    """Identity of the job that a task set with these properties belongs to.

    ``spark_job`` gives the number of the Spark job; it is called where nothing else names the job.
    """
    tags = [tag for tag in str(properties.get("spark.job.tags") or "").split(",") if tag]
    operation = next((found for tag in tags if (found := _OPERATION_TAG.fullmatch(tag))), None)
    client = _call_site_user(properties)
    if client and operation is not None and operation[1] != client:
        operation = None
    over_connect = operation is not None or client is not None
    declared = _declared(properties, tags, over_connect=over_connect)
    if operation is not None:
        user = operation[1]
    else:
        user = client or ("" if over_connect else _text(declared.get("user")))
    user = user or default_user
    user = bounded(user)
    prefix = user.replace("\\", "\\\\").replace(" ", "\\ ")
    kind, name = _job(properties, declared, operation, spark_job)
    given = _text(declared.get("class"))
    return JobIdentity(
        user=user,
        job=bounded(f"{prefix} {kind} {name}"),
        job_class=bounded(f"{prefix}: {given or _label(properties)}"),
        class_given=bool(given),
        cost_core_s=_number(declared.get("cost_core_s"), MAX_COST_CORE_S),
        size=_number(declared.get("size"), _MAX_SIZE),
        stages=int(_number(declared.get("stages"), _MAX_STAGES) or 0) or None,
        operation=(operation[1], operation[2], operation[3]) if operation and kind == "operation" else None,
    )


def bounded(name: str) -> str:
    """``name``, printable and of bounded length; names that lose something keep apart by a digest."""
    printable = "".join(character if character.isprintable() else "�" for character in name)
    if printable == name and len(name) <= MAX_NAME_CHARS:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{printable[: MAX_NAME_CHARS - 14]}… {digest}"


def encode_tag(description: Mapping[str, Any]) -> str:
    """Session tag that carries the description of a job over Spark Connect; tags hold no commas."""
    return TAG_PREFIX + base64.urlsafe_b64encode(json.dumps(description).encode()).decode()


def decode_tag(tag: str) -> dict[str, Any]:
    """What :func:`encode_tag` was given; empty for any other tag."""
    if not tag.startswith(TAG_PREFIX):
        return {}
    try:
        return _object(base64.b64decode(tag[len(TAG_PREFIX) :], altchars=b"-_", validate=True).decode())
    except (binascii.Error, UnicodeDecodeError):
        return {}


def _call_site_user(properties: Mapping[str, str]) -> str | None:
    """User in the call site, where Spark Connect prints the beginning of the request as protocol buffer text.

    Bytes beyond ASCII are printed as octal escapes. Where the name is too long to be printed whole, None.
    """
    found = _CALL_SITE.match(str(properties.get("callSite.short") or ""))
    try:
        return found and found[1].encode().decode("unicode_escape").encode("latin-1").decode()
    except UnicodeError:
        return None


def _declared(properties: Mapping[str, str], tags: list[str], *, over_connect: bool) -> dict[str, Any]:
    """What the owner says about the job in ``fairqueue.job``."""
    if not over_connect:
        return _object(properties.get(JOB_PROPERTY))
    return next(filter(None, map(decode_tag, _own_tags(tags))), {})


def _own_tags(tags: list[str]) -> Iterator[str]:
    """The tags that a client added to its session, without what Spark Connect puts before them."""
    for tag in tags:
        found = _SESSION_TAG.fullmatch(tag)
        yield found[1] if found else tag


def _job(
    properties: Mapping[str, str],
    declared: dict[str, Any],
    operation: re.Match[str] | None,
    spark_job: Callable[[], int],
) -> tuple[str, str]:
    if name := _text(declared.get("job")):
        return "job", name
    if operation is not None:
        return "operation", operation[3]
    if name := _text(properties.get("spark.jobGroup.id")):
        return "group", name
    if name := _text(properties.get("spark.sql.execution.root.id")):
        return "execution", name
    return "spark-job", str(spark_job())


def _label(properties: Mapping[str, str]) -> str:
    """What the job does, in Spark's words: its description, else where it was called.

    Spark Connect describes a query by the beginning of its plan, which is different each time; all such
    queries of a user are one class.
    """
    found = _text(properties.get("spark.job.description")) or _text(properties.get("callSite.short"))
    return found if found and not found.startswith("Spark Connect - ") else "query"


def _object(text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _number(value: Any, largest: float) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(min(value, largest)) if usable and 0 <= value < math.inf else None
