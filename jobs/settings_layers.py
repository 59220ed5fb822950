"""The layers of the settings, and how they are put on top of each other.

From the strongest to the weakest: options of the command line, ``--set section.key=value``, environment
variables ``FAIRPATH_SECTION__KEY``, overlay files (``--config``, later ones win), the defaults of
:mod:`jobs.settings`. :func:`load_settings` remembers which layer each value came from.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource, SettingsError

from jobs.errors import ConfigurationError
from jobs.settings import ENV_PREFIX, Settings
from ppr.urls import HIDDEN, without_credentials

_SPARK_CONF = "spark.conf."
_SECRET_NAME = re.compile(
    r"(?i)(password|passwd|secret|token|credential|(access|account|api|private)[._-]?key)"
)


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
