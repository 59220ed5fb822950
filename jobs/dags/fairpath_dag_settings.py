"""Settings of the DAG: one TOML file, named by the environment variable ``AIRFLOW_FAIRPATH_CONFIG``.

The file is read at every parse, so this module needs the standard library only. What the pipeline itself does
(data, models, gate) stands in the pipeline's own settings; here stands how Airflow runs it. A wrong file is
an import error of the DAG, which names file, key, rule and value.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints
from zoneinfo import ZoneInfo

VARIABLE = "AIRFLOW_FAIRPATH_CONFIG"  # FAIRPATH_* are settings of the program, which refuses other names
STEPS = ("collect", "graph", "fingerprints", "train", "evaluate", "publish", "report", "notify")
DEFAULT_POOL = "default_pool"  # of every Airflow
_LONG_AGO = date(2000, 1, 1)
_YEAR_S = 365 * 24 * 3600
_MOST_RETRIES, _LARGEST_FACTOR = 1000, 100


class DagConfigError(ValueError):
    """The DAG's settings break a rule."""


@dataclass(frozen=True, slots=True)
class ProgramSettings:
    """The program that does the work, in an environment of its own.

    Parameters
    ----------
    program
        Path of ``fairpath`` on the workers.
    config
        Settings files of the pipeline, later ones over earlier ones.
    directory
        Where the program runs, so that relative paths in ``config`` mean something; by default the folder of
        the first file of ``config``.
    environment
        Variables for the program, beside those of the worker (Airflow's own and Python's are not handed on).
    """

    program: str
    config: tuple[str, ...]
    directory: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _absolute("program", self.program)
        if not self.config:
            raise DagConfigError("'config' must name at least one file (got [])")
        for path in self.config:
            _absolute("config", path)
        if not self.directory:
            object.__setattr__(self, "directory", str(PurePosixPath(self.config[0]).parent))
        _absolute("directory", self.directory)
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise DagConfigError(
                    "[environment] must name variables by letters, digits and underscores, no digit first "
                    f"(got {name!r})"
                )


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """When runs begin.

    Parameters
    ----------
    cron, timezone
        Ends of the data intervals; the end of a run's interval is the pipeline's ``--until``.
    start
        First day of the first interval; Airflow does nothing for days before it, and calls that a success.
    catchup
        Whether all intervals since ``start`` that had no run get one, oldest first.
    """

    cron: str = "0 0 * * *"
    timezone: str = "UTC"
    start: date = _LONG_AGO
    catchup: bool = False

    def __post_init__(self) -> None:
        if len(self.cron.split()) not in (5, 6):
            raise DagConfigError(f"'cron' must have five or six fields (got {self.cron!r})")
        if self.catchup and self.start == _LONG_AGO:
            raise DagConfigError("'start' must be given where 'catchup' is true")
        try:
            ZoneInfo(self.timezone)
        except (KeyError, OSError, ValueError) as error:  # unknown, a folder's name, no relative path
            raise DagConfigError(f"'timezone' must be a time zone's name (got {self.timezone!r})") from error


@dataclass(frozen=True, slots=True)
class WaitSettings:
    """How long a run waits for its deliveries.

    Parameters
    ----------
    every_s, timeout_s
        Seconds between two looks, and in all.
    when_missing
        ``continue`` with what is there, or ``fail``.
    """

    every_s: float = 300
    timeout_s: float = 6 * 3600
    when_missing: str = "continue"

    def __post_init__(self) -> None:
        _duration("every_s", self.every_s)
        _duration("timeout_s", self.timeout_s)
        _one_of("when_missing", self.when_missing, ("continue", "fail"))


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """What happens when a step fails: it is idempotent and resumes, so it is tried again.

    Parameters
    ----------
    times
        Retries of a step. A usage or configuration error is not tried again.
    delay_s, factor, longest_delay_s
        Seconds before the first retry, what each further delay is multiplied by, and the longest.
    """

    times: int = 3
    delay_s: float = 60
    factor: float = 2.0
    longest_delay_s: float = 3600

    def __post_init__(self) -> None:
        if not 0 <= self.times <= _MOST_RETRIES:
            raise DagConfigError(f"'times' must be from 0 to {_MOST_RETRIES} (got {self.times})")
        _duration("delay_s", self.delay_s)
        if not 1 <= self.factor <= _LARGEST_FACTOR:
            raise DagConfigError(f"'factor' must be from 1 to {_LARGEST_FACTOR} (got {self.factor})")
        _duration("longest_delay_s", self.longest_delay_s)


@dataclass(frozen=True, slots=True)
class FingerprintSettings:
    """Where fingerprints are computed.

    Parameters
    ----------
    by
        ``command``: the program, with the engine of the pipeline's settings. ``spark-submit``: the operator
        of Airflow's Spark provider. ``spark-server``: the program, through Spark Connect.
    remote
        For ``spark-server``: its URL. A token is better kept in the worker's environment
        (``SPARK_CONNECT_AUTHENTICATE_TOKEN``).
    connection, launcher, py_files, archive, properties
        For ``spark-submit``: Airflow's connection; the script of ``jobs/launch``; the zip and the environment
        archive that ``make package`` builds, none where the cluster's image has them; a file of Spark
        properties such as those in ``conf/spark``.
    """

    by: str = "command"
    remote: str = ""
    connection: str = "spark_default"
    launcher: str = ""
    py_files: str = ""
    archive: str = ""
    properties: str = ""

    def __post_init__(self) -> None:
        _one_of("by", self.by, ("command", "spark-submit", "spark-server"))
        if self.by == "spark-server" and not self.remote.startswith("sc://"):
            raise DagConfigError(
                f"'remote' must be a Spark Connect URL, sc://host:port (got {self.remote!r})"
            )
        if self.by == "spark-submit":
            _absolute("launcher", self.launcher)
            for name in ("py_files", "archive", "properties"):
                if getattr(self, name):
                    _absolute(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Where the router is trained.

    Parameters
    ----------
    by
        ``command``: the program. ``kubernetes``: the program in a pod, for a GPU.
    connection, namespace, image, pod_template
        For ``kubernetes``: Airflow's connection, none for the cluster that the worker runs in; where the pod
        runs; its image; a YAML file with all else (GPU, volumes, tolerations).
    """

    by: str = "command"
    connection: str = ""
    namespace: str = "default"
    image: str = ""
    pod_template: str = ""

    def __post_init__(self) -> None:
        _one_of("by", self.by, ("command", "kubernetes"))
        if self.by == "kubernetes":
            _absolute("pod_template", self.pod_template)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Airflow's pools for the two steps that need much; a pool that does not exist runs nothing."""

    spark: str = DEFAULT_POOL
    gpu: str = DEFAULT_POOL

    def __post_init__(self) -> None:
        for name in ("spark", "gpu"):
            if not getattr(self, name):
                raise DagConfigError(f"{name!r} must name a pool (got '')")


@dataclass(frozen=True, slots=True)
class DagSettings:
    """All of them; the sections of the file, beside ``timeouts_s``: seconds that a try of a step may take."""

    fairpath: ProgramSettings
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    wait: WaitSettings = field(default_factory=WaitSettings)
    retries: RetrySettings = field(default_factory=RetrySettings)
    fingerprints: FingerprintSettings = field(default_factory=FingerprintSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    pools: PoolSettings = field(default_factory=PoolSettings)
    timeouts_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for step, seconds in self.timeouts_s.items():
            if step not in STEPS:
                raise DagConfigError(f"[timeouts_s] has a step {step!r} (there are: {', '.join(STEPS)})")
            try:
                _duration(step, seconds)
            except DagConfigError as error:
                raise DagConfigError(f"[timeouts_s] {error}") from None
        given = self.timeouts_s
        defaults = {step: 6 * 3600.0 if step in ("fingerprints", "train") else 3600.0 for step in STEPS}
        object.__setattr__(self, "timeouts_s", {**defaults, **given})


def load(environ: Mapping[str, str] = os.environ) -> DagSettings:
    """Settings of the file that the environment names.

    Raises
    ------
    DagConfigError
        The variable is not set, the file cannot be read, or a setting breaks its rule.
    """
    path = environ.get(VARIABLE, "")
    if not path:
        raise DagConfigError(
            f"the environment variable {VARIABLE} must name the DAG's settings file (not set)"
        )
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DagConfigError(f"{path}, named by {VARIABLE}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # TOML, or no UTF-8
        raise DagConfigError(f"{path}: is not TOML ({error})") from error
    try:
        return read(content)
    except DagConfigError as error:
        raise DagConfigError(f"{path}: {error}") from None


def read(content: Mapping[str, Any]) -> DagSettings:
    """Settings from the content of a file.

    Raises
    ------
    DagConfigError
        A key is missing or unknown, or a value has the wrong type or breaks its rule.
    """
    made: DagSettings = _make(DagSettings, content, "")
    return made


def in_zone(given: str, timezone: str) -> datetime:
    """Time of an ISO 8601 text, UTC where it has no zone, as clocks of a time zone show it.

    Raises
    ------
    DagConfigError
        It is no such text, or lies at the edge of the calendar.
    """
    try:
        time = datetime.fromisoformat(given)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(ZoneInfo(timezone))
    except (OverflowError, ValueError) as error:
        raise DagConfigError(
            f"'until' must be a time such as 2026-01-31T00:00:00Z (got {given!r})"
        ) from error


def _make(kind: type[Any], content: Mapping[str, Any], section: str) -> Any:
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}
    for name in content:
        if name not in known:
            place = f"{section}{name!r}" if section else f"[{name}]"
            raise DagConfigError(f"{place} is not known (there are: {', '.join(known)})")
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name in content:
            values[name] = _value(hints[name], content[name], name, section)
        elif is_dataclass(hints[name]):
            values[name] = _make(hints[name], {}, f"[{name}] ")  # names the first key that is missing
        elif item.default is MISSING and item.default_factory is MISSING:
            raise DagConfigError(f"{section}{name!r} is missing")
    try:
        return kind(**values)
    except DagConfigError as error:
        raise DagConfigError(f"{section}{error}") from None


def _value(hint: Any, value: Any, name: str, section: str) -> Any:
    """Value of a field, in the type that the field asks for."""
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise DagConfigError(f"[{name}] must be a table (got {value!r})")
        return _make(hint, value, f"[{name}] ")  # type: ignore[arg-type]
    if hint == tuple[str, ...]:
        listed = [value] if isinstance(value, str) else value
        if isinstance(listed, list) and all(isinstance(part, str) for part in listed):
            for part in listed:
                _printable(f"{section}{name!r}", part)
            return tuple(listed)
        raise DagConfigError(f"{section}{name!r} must be a text or a list of texts (got {value!r})")
    if get_origin(hint) is dict:
        of = get_args(hint)[1]
        if not isinstance(value, dict):
            raise DagConfigError(f"[{name}] must be a table (got {value!r})")
        return {key: _value(of, part, key, f"{section}[{name}] ") for key, part in value.items()}
    plain: type[Any] | UnionType = int | float if hint is float else hint
    # bool is an int, and a datetime is a date: neither is meant.
    if (
        not isinstance(value, plain)
        or (isinstance(value, bool) and hint is not bool)
        or type(value) is datetime
    ):
        words = {
            str: "a text",
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            date: "a date",
        }
        raise DagConfigError(f"{section}{name!r} must be {words[hint]} (got {value!r})")
    if isinstance(value, str):
        _printable(f"{section}{name!r}", value)
    return value


def _printable(name: str, text: str) -> None:
    if "\0" in text:  # no path and no variable may hold it
        raise DagConfigError(f"{name} must hold no null character (got {text!r})")


def _absolute(name: str, path: str) -> None:
    if not PurePosixPath(path).is_absolute():
        raise DagConfigError(f"{name!r} must be an absolute path (got {path!r})")


def _duration(name: str, seconds: float) -> None:
    if not 0 < seconds <= _YEAR_S:
        raise DagConfigError(
            f"{name!r} must be positive and at most {_YEAR_S} seconds, a year (got {seconds})"
        )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DagConfigError(f"{name!r} must be one of {', '.join(allowed)} (got {value!r})")
