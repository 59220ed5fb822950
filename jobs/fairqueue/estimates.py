"""What a job will cost, learned from jobs of its class.

The order of fair queueing needs each job's core-seconds before it runs. Jobs of one class (a nightly report,
a query from one notebook cell) resemble each other, so the median of the last few realised costs is a good
guess, and one odd run does not spoil it. Where the size of the input is known, costs are learned per unit of
size. Until a first job of a class is over, what its first tasks say about it stands for the class.

How wrong the guesses were is measured too: the distribution of ``log2(actual / estimated)``, in which twice
and half are equally wrong.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from jobs.fairqueue.errors import (
    MAX_COST_CORE_S,
    EstimatesFileError,
    require_cost,
    require_non_negative,
    require_positive,
)

_FORMAT = 1
_REMEMBERED = 5  # runs per class
_ERRORS = 1000  # runs over which the error is measured


@dataclass(frozen=True, slots=True)
class EstimateError:
    """Error of the last estimates: ``log2(actual / estimated)``; 1 is half of what was needed."""

    count: int
    median_log2: float
    p90_absolute_log2: float


@dataclass(slots=True)
class _Class:
    """The last runs of a job class: (core-seconds, size or None), the latest last.

    A class without a finished run has one that was foreseen, and is not ``finished``.
    """

    runs: deque[tuple[float, float | None]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    stages: int | None = None
    finished: bool = False


class CostEstimator:
    """Core-seconds of a job, by its class and size.

    Parameters
    ----------
    default_core_s
        Cost of a job of an unknown class, core-seconds.
    max_classes
        Number of classes remembered; what was not used for longest is forgotten first.
    """

    def __init__(self, default_core_s: float = 10.0, *, max_classes: int = 10_000) -> None:
        self._default_core_s = require_positive("'default_core_s'", default_core_s)
        self._max_classes = int(require_positive("'max_classes'", max_classes))
        self._classes: OrderedDict[str, _Class] = OrderedDict()
        self._errors: deque[float] = deque(maxlen=_ERRORS)
        self._count = 0

    def __len__(self) -> int:
        return len(self._classes)

    def estimate(self, job_class: str | None, size: float | None = None) -> float:
        """Cost to expect, core-seconds.

        The median of the last runs of the class, scaled by ``size`` if the runs had sizes too; without any
        run, the default.
        """
        known = self._classes.get(job_class) if job_class is not None else None
        if known is None:
            return self._default_core_s
        self._classes.move_to_end(job_class)  # type: ignore[arg-type]  # a known class has a name
        if size is not None and size > 0:
            rates = [core_s / run_size for core_s, run_size in known.runs if run_size]
            if rates:
                return min(median(rates) * size, MAX_COST_CORE_S)
        return median(core_s for core_s, _ in known.runs)

    def knows(self, job_class: str | None) -> bool:
        """Whether there is more to say about a class than the default."""
        return job_class in self._classes

    def foresee(self, job_class: str, core_s: float, size: float | None = None) -> None:
        """Take in what a running job is going to use, unless a job of its class is over already."""
        known = self._classes.get(job_class)
        if known is None or not known.finished:
            self._remember(job_class, _Class(deque([(core_s, size)], maxlen=_REMEMBERED)))

    def unforesee(self, job_class: str) -> None:
        """Drop what was foreseen for a class: the job that it came from has failed."""
        known = self._classes.get(job_class)
        if known is not None and not known.finished:
            del self._classes[job_class]

    def stages(self, job_class: str | None) -> int | None:
        """Number of stages that the last job of the class had; None if unknown."""
        known = self._classes.get(job_class) if job_class is not None else None
        return known.stages if known else None

    def learn(
        self,
        job_class: str | None,
        core_s: float,
        size: float | None = None,
        estimated_core_s: float | None = None,
        stages: int | None = None,
    ) -> None:
        """Take in a finished job: what it used, and what was expected of it.

        Parameters
        ----------
        job_class
            Class of the job; of a job without one only the error is measured.
        core_s
            Core-seconds used.
        size
            Size of its input, in a unit of the class's own.
        estimated_core_s
            The estimate with which it was submitted, core-seconds.
        stages
            Number of its stages.

        Raises
        ------
        FairQueueParameterError
            A cost or size is negative, not finite or too large.
        """
        require_cost("'core_s'", core_s)
        if size is not None:
            require_non_negative("'size'", size)
        if estimated_core_s and core_s:
            self._count += 1
            self._errors.append(math.log2(core_s / estimated_core_s))
        if job_class is None:
            return
        known = self._classes.get(job_class)
        if known is None or not known.finished:
            known = _Class(finished=True)
        known.runs.append((core_s, size))
        known.stages = stages or known.stages
        self._remember(job_class, known)

    def _remember(self, job_class: str, known: _Class) -> None:
        self._classes[job_class] = known
        self._classes.move_to_end(job_class)
        if len(self._classes) > self._max_classes:
            self._classes.popitem(last=False)

    def error(self) -> EstimateError:
        """How wrong the estimates of the last finished jobs were; ``count`` counts all of them."""
        if not self._errors:
            return EstimateError(0, 0.0, 0.0)
        absolute = sorted(abs(error) for error in self._errors)
        return EstimateError(self._count, median(self._errors), absolute[math.ceil(0.9 * len(absolute)) - 1])

    def snapshot(self) -> dict[str, Any]:
        """What was learned, in plain values of its own: it may be written while the estimator goes on."""
        return {
            "format": _FORMAT,
            "classes": [
                {"name": name, "stages": known.stages, "runs": [list(run) for run in known.runs]}
                for name, known in self._classes.items()
                if known.finished
            ],
            "errors_log2": list(self._errors),
            "error_count": self._count,
        }

    @staticmethod
    def write(snapshot: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
        """Write a :meth:`snapshot`; the file is replaced as a whole."""
        target = Path(path)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", delete=False
        ) as file:
            try:
                json.dump(snapshot, file)
                file.close()
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learned; with other threads at the estimator, take a snapshot under their lock."""
        self.write(self.snapshot(), path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, default_core_s: float = 10.0, max_classes: int = 10_000
    ) -> CostEstimator:
        """Estimator with what :meth:`write` wrote.

        Raises
        ------
        EstimatesFileError
            The file is damaged or of another version.
        FileNotFoundError
            There is no such file.
        """
        estimator = cls(default_core_s, max_classes=max_classes)
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise EstimatesFileError(f"{path} must be JSON ({error})") from error
        version = document.get("format") if isinstance(document, dict) else None
        if version != _FORMAT:
            raise EstimatesFileError(f"'format' of {path} must be {_FORMAT} (got {version!r})")
        classes = document.get("classes")
        if not isinstance(classes, list):
            raise EstimatesFileError(f"'classes' of {path} must be a list (got {classes!r})")
        for number, entry in enumerate(classes):
            name, known = _class_of(entry, f"'classes[{number}]' of {path}")
            estimator._classes[name] = known
        while len(estimator._classes) > estimator._max_classes:
            estimator._classes.popitem(last=False)
        estimator._errors.extend(_errors_of(document, f"{path}"))
        estimator._count = document["error_count"]
        return estimator


def _class_of(entry: Any, where: str) -> tuple[str, _Class]:
    """One validated class of the file."""
    if not isinstance(entry, dict) or entry.keys() != {"name", "stages", "runs"}:
        raise EstimatesFileError(f"{where} must have 'name', 'stages' and 'runs' (got {entry!r})")
    name, stages, runs = entry["name"], entry["stages"], entry["runs"]
    if not isinstance(name, str):
        raise EstimatesFileError(f"'name' in {where} must be a string (got {name!r})")
    if stages is not None and not (type(stages) is int and stages > 0):
        raise EstimatesFileError(
            f"'stages' in {where} must be a positive whole number or null (got {stages!r})"
        )
    if not isinstance(runs, list) or not runs:
        raise EstimatesFileError(f"'runs' in {where} must be a list with at least one run (got {runs!r})")
    known = _Class(stages=stages, finished=True)
    for run in runs:
        if not (isinstance(run, list) and len(run) == 2 and _is_cost(run[0]) and run[0] <= MAX_COST_CORE_S):
            raise EstimatesFileError(f"a run in {where} must be [core-seconds, size] (got {run!r})")
        core_s, size = run
        if size is not None and not _is_cost(size):
            raise EstimatesFileError(
                f"the size of a run in {where} must be at least 0 or null (got {size!r})"
            )
        known.runs.append((float(core_s), None if size is None else float(size)))
    return name, known


def _errors_of(document: dict[str, Any], where: str) -> list[float]:
    """The validated error window of the file; their count is validated with it."""
    errors, count = document.get("errors_log2"), document.get("error_count")
    if not (isinstance(errors, list) and all(_is_finite(error) for error in errors)):
        raise EstimatesFileError(f"'errors_log2' of {where} must be a list of finite numbers")
    if type(count) is not int or count < len(errors):
        raise EstimatesFileError(
            f"'error_count' of {where} must be a whole number of at least {len(errors)} (got {count!r})"
        )
    return errors


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_cost(value: Any) -> bool:
    return _is_finite(value) and value >= 0
