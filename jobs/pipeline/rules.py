"""Rules of the settings of a pipeline, beyond the types of their values."""

from __future__ import annotations

import glob
import string
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from jobs.settings import PipelineSettings


def check_may_lack(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Check the columns that a delivery may lack.

    Raises
    ------
    ConfigurationError
        One of them is the task.
    """
    if "task" in columns:
        raise ConfigurationError(
            "'may_lack' must not name 'task': a model has a task for every choice or for none, so all "
            "deliveries of choices have that column, or none"
        )
    return columns


def check_wait_for(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Check the patterns of what a run waits for.

    Raises
    ------
    ConfigurationError
        One has another field than ``{date}``.
    """
    for pattern in patterns:
        try:
            fields = [(name, conversion) for _, name, _, conversion in string.Formatter().parse(pattern)]
            pattern.format(date=date(2026, 1, 31))
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            fields = [("", None)]
        if any(field not in ((None, None), ("date", None)) for field in fields):
            raise ConfigurationError(f"'wait_for' must have no other field than {{date}} (got {pattern!r})")
    return patterns


def check_places(settings: PipelineSettings) -> None:
    """Check that what a pipeline writes to are folders of their own.

    Raises
    ------
    ConfigurationError
        ``work`` or ``releases`` is a file, one is in the other, or among the deliveries.
    """
    written = {"work": settings.work, "releases": settings.releases}
    for name, path in written.items():
        there = next((place for place in (path, *path.parents) if place.exists()), None)
        if there is not None and not there.is_dir():
            raise ConfigurationError(f"[pipeline] {name!r} must be a folder (got {path}: {there} is a file)")
    work, releases = settings.work.resolve(), settings.releases.resolve()
    if work == releases or work in releases.parents or releases in work.parents:
        raise ConfigurationError(
            "[pipeline] 'work' and 'releases' must be two folders, neither in the other "
            f"(got {settings.work} and {settings.releases})"
        )
    for kind in ("interactions", "choices"):
        for place in getattr(settings, kind):
            for name, path in written.items():
                if _is_in(path.resolve(), place):
                    raise ConfigurationError(
                        f"[pipeline] {name!r} must not be among the deliveries (got {path}, and {kind!r} has "
                        f"{place})"
                    )


def _is_in(path: Path, place: str) -> bool:
    """Whether a folder is, or is in, what a place or pattern names; it may not exist yet."""
    if not glob.has_magic(place):
        return Path(place).resolve() in (path, *path.parents)
    pattern = Path(place).absolute()
    of_any_depth = "**" in pattern.parts
    return any(
        fnmatchcase(str(folder), form)
        for folder in (path, *path.parents)
        for form in (str(pattern), str(pattern).replace("**/", ""))
        if of_any_depth or len(folder.parts) == len(pattern.parts)
    )
