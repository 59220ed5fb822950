"""Settings of the commands: frozen models, and how their layers are put on top of each other.

From the strongest to the weakest: options of the command line, ``--set section.key=value``, environment
variables ``FAIRPATH_SECTION__KEY``, overlay files (``--config``, later ones win), the defaults below.
Nothing is read when this module is imported, nor when :class:`Settings` is constructed; :func:`load_settings`
reads the layers and remembers which of them each value came from.

In every layer the word ``none`` stands for "no value" where a setting may have none.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    ForceDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from jobs.errors import ConfigurationError
from ppr.params import FingerprintParams
from ppr.urls import HIDDEN, without_credentials

ENV_PREFIX = "FAIRPATH_"

_SPARK_CONF = "spark.conf."
_SECRET_NAME = re.compile(
    r"(?i)(password|passwd|secret|token|credential|(access|account|api|private)[._-]?key)"
)


def _none_word(value: object) -> object:
    return None if isinstance(value, str) and value.lower() == "none" else value


def _column(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else _none_word(value)


def _split_words(value: object) -> object:
    return tuple(word for word in re.split(r"[,\s]+", value) if word) if isinstance(value, str) else value


_NoneWord = BeforeValidator(_none_word)
Words = Annotated[tuple[str, ...], BeforeValidator(_split_words)]
OptionalInt = Annotated[int | None, _NoneWord]
OptionalStr = Annotated[str | None, _NoneWord]
OptionalBool = Annotated[bool | None, _NoneWord]
Column = Annotated[int | str | None, BeforeValidator(_column)]
PositiveInt = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GraphSettings(_Section):
    """How ``build-graph`` reads its inputs. Columns are given by name or, from 0, by position."""

    src: Column = Field(default=None, description="column of the source or user; none looks for usual names")
    dst: Column = Field(default=None, description="column of the destination or item")
    weight: Column = Field(default=None, description="column of the edge weight")
    weighted: bool = Field(default=True, description="use weights, if there are any")
    src_kind: OptionalStr = Field(default=None, description="node kind of the source column")
    dst_kind: OptionalStr = Field(default=None, description="node kind of the destination column")
    directed: OptionalBool = Field(
        default=None, description="none: yes between nodes of one kind, no between two"
    )
    delimiter: OptionalStr = Field(default=None, description="delimiter of text files; none looks")
    header: OptionalBool = Field(
        default=None, description="whether text files begin with a header; none looks"
    )
    self_loops: Literal["drop", "keep"] = Field(
        default="drop", description="what becomes of an edge to its own source"
    )
    key_type: Literal["auto", "int64", "string"] = Field(default="auto", description="type of the node keys")


class FingerprintSettings(_Section):
    """What ``fingerprints`` computes, and on which engine."""

    engine: Literal["local", "spark"] = Field(
        default="local", description="threads of this process, or Spark"
    )
    threads: Annotated[PositiveInt | None, _NoneWord] = Field(
        default=None, description="threads of the local engine"
    )
    restart_prob: float = Field(default=0.15, description="probability that a walk stops at each step")
    n_walks: int = Field(default=3000, description="walks per source")
    top_k: OptionalInt = Field(default=200, description="entries kept per row, or none for all")
    seed: int = Field(default=0, description="seed of all draws")
    max_steps: OptionalInt = Field(default=None, description="longest walk in moves, or none")
    target_kinds: Words = Field(default=(), description="node kinds that a row may hold; empty for all")
    exclude_neighbors: bool = Field(
        default=False, description="leave a source and its own neighbours out of its row"
    )

    @field_validator("restart_prob", "n_walks", "top_k", "seed", "max_steps")
    @classmethod
    def _keeps_its_rule(cls, value: Any, info: Any) -> Any:
        FingerprintParams(**{info.field_name: value})  # the rules are written there, once
        return value

    def params(self) -> FingerprintParams:
        """Parameters of the run, as ``ppr`` takes them."""
        return FingerprintParams(**self.model_dump(exclude={"engine", "threads"}))


class SparkSettings(_Section):
    """The Spark session."""

    master: OptionalStr = Field(
        default=None, description="master URL; none: that of spark-submit, else local[*]"
    )
    remote: OptionalStr = Field(default=None, description="Spark Connect URL, instead of a master")
    app_name: str = Field(default="fairpath", description="name shown by Spark")
    cache_dir: OptionalStr = Field(
        default=None, description="where a machine keeps its copy of a graph given by URL"
    )
    conf: Annotated[dict[str, str], ForceDecode] = Field(default={}, description="further Spark properties")


class QuerySettings(_Section):
    """How ``query`` answers."""

    k: PositiveInt = Field(default=10, description="nodes returned")
    steps: Annotated[int, Field(ge=0)] = Field(
        default=2, description="steps composed before the stored rows are used"
    )
    epsilon: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=1e-5, description="mass per edge below which a node is answered from its stored row"
    )


class RecommendSettings(_Section):
    """How ``recommend`` ranks."""

    k: PositiveInt = Field(default=20, description="items per user")
    user_kind: str = Field(default="user", description="kind of the nodes that get recommendations")
    kinds: Words = Field(default=("item",), description="kinds of the nodes recommended")
    exclude_seen: bool = Field(default=True, description="leave out what the user has already")
    popularity_discount: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="scores are divided by the item's degree to this power"
    )
    steps: Annotated[int, Field(ge=0)] = Field(
        default=2, description="steps composed, where the rows can be composed"
    )


class EvaluateSettings(_Section):
    """What ``evaluate`` measures."""

    exact_sample: Annotated[int, Field(ge=0)] = Field(
        default=0, description="sources compared with the exact solver"
    )
    seed: int = Field(default=0, description="seed of the sample")


class DemoSettings(_Section):
    """The built-in example."""

    engine: Literal["local", "spark"] = Field(default="spark", description="what computes")
    users: PositiveInt = Field(default=2000, description="users of the generated market")
    items: PositiveInt = Field(default=1500, description="items of the generated market")
    interactions: PositiveInt = Field(default=60_000, description="interactions of the generated market")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the market and of the draws")


class LogSettings(_Section):
    """Logs, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level shown"
    )
    format: Literal["text", "json"] = Field(default="text", description="lines for people or for machines")


class Settings(BaseSettings):
    """All settings. Constructing it reads nothing; :func:`load_settings` reads the layers."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", enable_decoding=False
    )

    graph: GraphSettings = GraphSettings()
    fingerprints: FingerprintSettings = FingerprintSettings()
    spark: SparkSettings = SparkSettings()
    query: QuerySettings = QuerySettings()
    recommend: RecommendSettings = RecommendSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    demo: DemoSettings = DemoSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed: the layers are merged by :func:`load_settings`, which knows their names."""
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings together with the layer that each value came from."""

    settings: Settings
    origins: Mapping[tuple[str, ...], str]

    def describe(self) -> dict[str, Any]:
        """Every setting as ``{"value": ..., "from": ...}``, secrets hidden: what ``--dry-run`` prints."""
        return {
            section: {
                key: {"value": redact(value, name=key), "from": self.origins.get((section, key), "default")}
                for key, value in values.items()
            }
            for section, values in self.settings.model_dump(mode="json").items()
        }


def load_settings(
    options: Mapping[str, Any] | None = None,
    *,
    assignments: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> Resolved:
    """Put all layers on top of each other and check the result.

    Parameters
    ----------
    options
        Values given on the command line, by ``"section.key"``; those that are None were not given.
    assignments
        ``section.key=value`` texts of ``--set``. The value is a TOML value, or else a bare word.
    files
        TOML overlay files, later ones win key by key.

    Raises
    ------
    ConfigurationError
        A layer is missing or cannot be read, names an unknown setting, or breaks the rule of one.
    """
    layers = [(str(path), _read_toml(path)) for path in files]
    layers.append(("environment", _read_environment()))
    layers += [(f"--set {text.partition('=')[0]}", _read_assignment(text)) for text in assignments]
    given = {name: value for name, value in (options or {}).items() if value is not None}
    layers += [("command line", _nest(name.split("."), value)) for name, value in given.items()]

    merged: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    for name, layer in layers:
        layer = _flatten_conf(layer)
        merged = _merge(merged, layer)
        origins.update(dict.fromkeys(_paths(layer), name))
    try:
        return Resolved(Settings(**merged), origins)
    except ValidationError as error:
        lines = [_explain(detail, origins) for detail in error.errors(include_url=False)]
        raise ConfigurationError("\n".join(lines)) from None


def redact(value: Any, *, name: str = "") -> Any:
    """Copy of a JSON-able value with secrets hidden: by the name of a key, and credentials within URLs."""
    if isinstance(value, Mapping):
        return {key: redact(item, name=f"{name}.{key}") for key, item in value.items()}
    if _SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, str):
        return without_credentials(value)
    return [redact(item) for item in value] if isinstance(value, list | tuple) else value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML ({error})") from None


def _read_environment() -> dict[str, Any]:
    for name in os.environ:
        section, delimiter, _ = name.removeprefix(ENV_PREFIX).partition("__")
        if not name.startswith(ENV_PREFIX) or section.lower() in Settings.model_fields:
            continue
        if not delimiter:
            raise ConfigurationError(f"environment: {name}: names must be {ENV_PREFIX}SECTION__KEY")
        raise ConfigurationError(f"environment: {name}: {_unknown_section(section.lower())}")
    try:
        return EnvSettingsSource(Settings)()
    except SettingsError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ConfigurationError(f"environment: {error}{cause}") from None


def _read_assignment(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if equals and key.startswith(_SPARK_CONF):
        name = key.removeprefix(_SPARK_CONF).strip().strip("\"'")
        return {"spark": {"conf": {name: _unquote(value.strip())}}}
    for line in (text, f"{key}={json.dumps(value, ensure_ascii=False)}") if equals else ():
        try:
            layer = tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            continue
        if layer and "\n" not in line:
            return layer
    got = f"{key}=..." if equals else text  # the value may be a secret
    raise ConfigurationError(f"--set: must be section.key=value (got {got!r})")


def _unquote(text: str) -> str:
    """A TOML string's content; everything else as it is."""
    if not text.startswith(('"', "'")):
        return text
    try:
        return str(tomllib.loads(f"value = {text}")["value"])
    except tomllib.TOMLDecodeError:
        return text


def _flatten_conf(layer: dict[str, Any]) -> dict[str, Any]:
    """``layer`` with one dotted name per Spark property: TOML reads ``spark.x = 1`` as nested tables."""
    spark = layer.get("spark")
    if not isinstance(spark, dict) or not isinstance(spark.get("conf"), dict):
        return layer
    return {**layer, "spark": {**spark, "conf": dict(_properties(spark["conf"]))}}


def _properties(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _properties(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            yield f"{prefix}{key}", str(value).lower()
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, int | float) else value


def _nest(path: Sequence[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nest(path[1:], value) if len(path) > 1 else value}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` put on ``below``: tables key by key at every depth, everything else replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _paths(layer: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in layer.items():
        yield (*prefix, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*prefix, key))


def _origin(origins: Mapping[tuple[str, ...], str], path: Sequence[str | int]) -> str | None:
    """Layer that set ``path``, or else the innermost table around it that a layer set."""
    parts = tuple(str(part) for part in path)
    return next((origins[parts[:n]] for n in range(len(parts), 0, -1) if parts[:n] in origins), None)


def _explain(detail: ErrorDetails, origins: Mapping[tuple[str, ...], str]) -> str:
    """One violated rule as ``layer: [section] 'key' rule (got value)``."""
    path, value = detail["loc"], detail["input"]
    origin = _origin(origins, path) or "settings"
    section, key = str(path[0]), ".".join(str(part) for part in path[1:])
    if detail["type"] == "extra_forbidden":
        return f"{origin}: {_unknown_section(section) if not key else _unknown_key(section, key)}"
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return f"{origin}: [{section}] {cause}"
    rule = detail["msg"].replace("Input should be", "must be")
    rule = rule[:1].lower() + rule[1:].split(", unable to")[0]
    name = f"[{section}] '{key}'" if key else f"[{section}]"
    return f"{origin}: {name} {rule} (got {redact(value, name=key)!r})"


def _unknown_section(name: str) -> str:
    return f"[{name}] is not a section of the settings; there are {', '.join(Settings.model_fields)}"


def _unknown_key(section: str, key: str) -> str:
    model = Settings.model_fields[section].annotation
    known = ", ".join(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else ""
    return f"[{section}] {key!r} is not a setting; there are {known}"
