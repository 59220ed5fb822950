"""The status page as HTML, from a template that escapes every name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from jobs.fairqueue.scheduler import JobSnapshot
from jobs.fairqueue.server import picture
from jobs.fairqueue.server.status import Status
from jobs.report.style import colour_rules

_ROWS = 200  # a browser shows no more; status.json has all


class StatusPage:
    """Renderer that remembers which colour each user has.

    Parameters
    ----------
    history_s
        Seconds shown in the picture.
    refresh_s
        Seconds after which a browser asks for the page again.
    """

    def __init__(self, *, history_s: float, refresh_s: int) -> None:
        environment = Environment(
            loader=PackageLoader("jobs.fairqueue.server"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(number=number, duration=duration, percent=percent, ratio=ratio)
        self._template = environment.get_template("status.html")
        self._history_s = history_s
        self._refresh_s = refresh_s
        self._palette = picture.Palette()

    def render(self, status: Status) -> str:
        """HTML of one moment."""
        queue = status.queue
        drawn = picture.draw(status.history, queue.slots, self._history_s, self._palette)
        unfinished = sorted(
            (job for job in queue.jobs if job.state != "finished"),
            key=lambda job: (job.virtual_finish, job.job),
        )
        known = {user.user for user in queue.users}
        departed = sorted({user for _, running in status.history for user in running} - known)
        running = status.history[-1][1] if status.history else {}
        return self._template.render(
            status=status,
            queue=queue,
            picture=drawn,
            size=(picture.WIDTH, picture.HEIGHT),
            n_colours=picture.COLOURS,
            others=picture.OTHERS,
            colours={band.user: band.colour for band in drawn.bands if band.user is not None},
            running=running,
            users=sorted(queue.users, key=lambda user: (not user.backlogged, user.user))[:_ROWS],
            departed=departed[:_ROWS],
            n_users=len(known) + len(departed),
            jobs=unfinished[:_ROWS],
            n_unfinished=len(unfinished),
            states=Counter(job.state for job in queue.jobs),
            progress=_progress,
            counters=_counters(status.counters),
            rules=colour_rules(),
            history_s=self._history_s,
            refresh_s=self._refresh_s,
        )


def _progress(job: JobSnapshot) -> float:
    """Part of its estimated cost that a job has had."""
    return min(1.0, job.realised_core_s / job.estimated_core_s) if job.estimated_core_s > 0 else 1.0


def _counters(counters: Mapping[str, int]) -> dict[str, str]:
    """Counters as text, times in seconds."""
    shown = {}
    for name, value in counters.items():
        label = name.replace("_", " ")
        if name.endswith("_ns"):
            shown[f"{label.removesuffix(' ns')} time, s"] = number(value / 1e9)
        else:
            shown[label] = number(value)
    if task_sets := counters.get("task_sets"):
        shown["callback time per task set, ms"] = number(counters.get("callback_ns", 0) / task_sets / 1e6)
    return shown


def number(value: float) -> str:
    """Count or measure with three digits, or all before the point."""
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Time for people, in its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def percent(part: float) -> str:
    """Part as a percentage."""
    return f"{100 * part:.0f} %"


def ratio(log2: float) -> str:
    """``log2`` of a quotient as the quotient."""
    return f"{2**log2:.2f}"
