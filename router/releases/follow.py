"""A folder of releases that follows an object store, so that services on many machines follow one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from ppr.errors import PprError
from router.errors import ReleaseError, RouterError
from router.releases.local import open_release
from router.releases.objects import ObjectStore
from router.releases.places import Folder, readable_current, rolled_back_from
from router.releases.pruning import PruneRule, prune
from router.releases.pull import pull
from router.releases.transfer import StoppedError, Told


def follow(
    url: str,
    root: str | Path,
    *,
    every_s: float,
    stopped: Event,
    keep: int | None = None,
    again: bool = False,
    threads: int = 8,
    tell: Told = lambda done, total: None,
    note: Callable[..., None] = lambda event, **about: None,
) -> int:
    """Pull the current release of an object store whenever it becomes another one, until stopped.

    What goes wrong is noted and tried again; the folder stays as it is until then. A release of which files
    are missing or cut short is fetched again. One that was rolled back from here is left alone until the
    object store names another one.

    Parameters
    ----------
    url, root, again, threads, tell
        See :func:`router.releases.transfer.pull`.
    every_s
        How often the object store is asked.
    stopped
        Set from outside to end it.
    keep
        Newest releases that stay in the folder (:mod:`router.releases.pruning`); None: all.
    note
        Told what happened: an event, and what belongs to it.

    Returns
    -------
    int
        Times that it switched.

    Raises
    ------
    ParameterError
        There is no such file system.
    ResourceError
        The package that reaches it is not installed.
    """
    there, here = ObjectStore(url), Folder(Path(root))
    n_switches, last = 0, ""

    def once(event: str, **about: Any) -> None:
        nonlocal last
        if (told := f"{event} {about}") != last:
            last = told
            note(event, **about)

    while not stopped.is_set():
        try:
            wanted = there.current()
            if wanted is None:
                once("nothing to follow", place=there.shown, reason="there is no current release")
            elif wanted != readable_current(here) or not _is_there(here, wanted):
                if not again and wanted in rolled_back_from(here):
                    once("not followed", release=wanted, reason="it was rolled back from here")
                else:
                    done = pull(url, root, wanted, again=again, threads=threads, tell=tell, stopped=stopped)
                    n_switches += done.switched
                    last = ""
                    event = "followed" if done.switched else "repaired"
                    note(event, release=wanted, moved_bytes=done.moved_bytes)
                    if keep is not None:
                        prune(here, PruneRule(keep=keep))
        except StoppedError:
            break
        except (RouterError, PprError, OSError) as error:
            once("not followed", reason=str(error))
        stopped.wait(every_s)
    return n_switches


def _is_there(here: Folder, version: str) -> bool:
    """Whether a release is there, all files in their sizes; comparing every byte takes too long."""
    try:
        open_release(here.root, version, verify=False)
    except ReleaseError:
        return False
    return True
