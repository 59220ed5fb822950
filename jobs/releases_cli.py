"""The subcommands ``releases``: what there is, going back, making room, and object stores."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Annotated, Any

import structlog
import typer
from typer import Argument, Option

from jobs import options as opt
from jobs.command import print_result, settings_for, utc
from jobs.errors import ConfigurationError
from jobs.logs import log_interrupt
from jobs.progress import Update, show_progress
from jobs.settings_layers import redact

_MIB = 1 << 20

Where = Annotated[
    str, Argument(metavar="RELEASES", help="Folder of releases, or a URL such as s3://bucket/releases.")
]
Local = Annotated[str, Argument(metavar="FOLDER", help="Folder of releases.")]
Url = Annotated[str, Argument(metavar="URL", help="Object store, such as s3://bucket/releases.")]
Version = Annotated[str, Argument(metavar="VERSION|current|previous", help="Release.")]
MaybeVersion = Annotated[str | None, Argument(metavar="[VERSION]", help="Release; default: the current one.")]
Table = Annotated[bool, Option("--table", help="Print a table for people instead of JSON.")]
Verify = Annotated[bool, Option("--verify", help="Compare every byte, not only sizes.")]
Compare = Annotated[bool, Option("--verify/--no-verify", help="Compare every byte first.")]
Edges = Annotated[bool, Option("--edges/--no-edges", help="Compare the edges too, which reads both graphs.")]
Names = Annotated[int, Option(min=0, help="Names given of items and LLMs that came and went.")]
UserNames = Annotated[int, Option(min=0, help="Names given of users that came and went.")]
To = Annotated[str | None, Option(help="Release to go back to; default: the last before the current one.")]
Keep = Annotated[int | None, Option(help="The newest that stay; all others may go.")]
OlderThan = Annotated[float | None, Option(metavar="DAYS", help="Of those, only what is older.")]
ErasedBefore = Annotated[
    datetime | None,
    Option(
        formats=opt.TIMES,
        help="Releases go too in which erasures of users up to this time were not carried out; UTC.",
    ),
]
Try = Annotated[bool, Option("--dry-run", help="Say what would go, and remove nothing.")]
All = Annotated[bool, Option("--all", help="All releases and what became of them: a backup.")]
Activate = Annotated[bool, Option("--activate/--no-activate", help="Switch to it there.")]
Again = Annotated[bool, Option("--again", help="Switch to it even if it was rolled back from there.")]
NewEncoder = Annotated[bool, Option("--new-encoder", help="Switch to a model of another encoder.")]
Threads = Annotated[int, Option(min=1, help="Files that are moved at once.")]
Every = Annotated[
    float | None,
    Option(metavar="SECONDS", help="Go on, and pull whenever another becomes current; until SIGTERM."),
]
KeepPulled = Annotated[int | None, Option("--keep", min=1, help="With --every: newest that stay.")]

releases = typer.Typer(help="Releases of a folder or an object store.", no_args_is_help=True)


@releases.command("list")
def list_releases(
    where: Where, table: Table = False, log_level: opt.LogLevel = None, log_format: opt.LogFormat = None
) -> None:
    """List all releases, the newest first, and which one is in use."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from router.releases.overview import overview

    found = overview(place_there(where))
    _warn(found["warnings"])
    if table:
        from jobs.releases_table import print_table

        print_table(found)
    else:
        print_result(found)


@releases.command()
def show(
    where: Where,
    version: Version = "current",
    verify: Verify = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Show all there is to say of a release."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from router.releases.overview import whole

    place = place_there(where)
    found = whole(place, _named(place, version), verify=verify)
    _warn(found["warnings"])
    print_result(found)


@releases.command()
def diff(
    where: Where,
    before: Annotated[str, Argument(metavar="BEFORE", help="VERSION, current or previous.")] = "previous",
    after: Annotated[str, Argument(metavar="AFTER", help="VERSION, current or previous.")] = "current",
    edges: Edges = True,
    names: Names = 5,
    user_names: UserNames = 0,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Show what differs between two releases: users, items, LLMs, edges, parameters, figures."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from router.releases.diff import diff as compare

    place = place_there(where)
    first, second = _named(place, before), _named(place, after)
    print_result(compare(place, first, second, edges=edges, names=names, user_names=user_names))


@releases.command()
def rollback(
    where: Where,
    to: To = None,
    verify: Compare = True,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Go back to the release before the current one; services follow by themselves."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from router.releases.places import readable_current
    from router.releases.places import rollback as go_back

    place = place_there(where)
    before = readable_current(place)
    print_result({"place": place.shown, "before": before, "current": go_back(place, to, verify=verify)})


@releases.command()
def activate(
    where: Where,
    version: Annotated[str, Argument(metavar="VERSION", help="Release to switch to.")],
    new_encoder: NewEncoder = False,
    verify: Compare = True,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Switch to a release: one that waits, or again to one that was rolled back from."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from router.releases.places import activate as switch_to
    from router.releases.places import readable_current

    place = place_there(where)
    before = readable_current(place)
    switched = switch_to(place, version, verify=verify, new_encoder=new_encoder)
    print_result({"place": place.shown, "before": before, "current": version, "switched": switched})


@releases.command()
def prune(
    where: Where,
    keep: Keep = None,
    older_than: OlderThan = None,
    erased_before: ErasedBefore = None,
    dry_run: Try = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Remove old releases; never the current one, nor what a rollback goes to, nor a newer one.

    With --erased-before the last two go as well, once the current release is without the users who were
    erased; exit code 3 says that a release stays that is not.
    """
    settings_for({"log.level": log_level, "log.format": log_format})
    if keep is None and erased_before is None:
        raise ConfigurationError("give '--keep', '--erased-before', or both")
    from router.releases.pruning import PruneRule
    from router.releases.pruning import prune as make_room

    rule = PruneRule(
        keep=keep,
        older_than_days=older_than,
        erased_before=None if erased_before is None else utc(erased_before),
    )
    place = place_there(where)
    done = make_room(place, rule, dry_run=dry_run)
    print_result({"place": place.shown, **done})
    if done["unerased"]:
        structlog.get_logger().warning(
            "releases stay that may hold users who were erased: publish one without them, then prune again",
            releases=done["unerased"],
        )
        raise typer.Exit(0 if dry_run else 3)


@releases.command()
def push(
    folder: Local,
    url: Url,
    version: MaybeVersion = None,
    everything: All = False,
    activate: Activate = True,
    again: Again = False,
    new_encoder: NewEncoder = False,
    verify: Annotated[
        bool, Option("--verify", help="Read back what is there; send what is damaged.")
    ] = False,
    threads: Threads = 8,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Send a release to an object store and switch it to that; goes on where it broke off, and repairs."""
    settings_for({"log.level": log_level, "log.format": log_format})
    _check_url(url)
    _check_all(everything, version)
    from router.errors import MissingDataError
    from router.releases.backup import push_all
    from router.releases.push import push as send

    root = folder_of_releases(folder, "'FOLDER'", "releases go between a folder and an object store")
    if not root.is_dir():
        raise MissingDataError(f"{root}: no such folder")
    with show_progress() as update:
        options: dict[str, Any] = {"activate": activate, "again": again, "new_encoder": new_encoder}
        options |= {"verify": verify, "threads": threads, "tell": _mib(update, "push")}
        done = push_all(root, url, **options) if everything else send(root, url, version, **options)
    _print_transferred(done)


@releases.command()
def pull(
    url: Url,
    folder: Local,
    version: MaybeVersion = None,
    everything: All = False,
    activate: Activate = True,
    again: Again = False,
    every: Every = None,
    keep: KeepPulled = None,
    threads: Threads = 8,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Fetch a release from an object store, compare every byte, and switch the folder to it."""
    settings_for({"log.level": log_level, "log.format": log_format})
    _check_url(url)
    if every is None and keep is not None:
        raise ConfigurationError("'--keep' goes with --every")
    if every is not None and not 0 < every < float("inf"):
        raise ConfigurationError(f"'--every' must be positive and finite (got {every})")
    if every is not None and (version is not None or everything or not activate):
        raise ConfigurationError(
            "'--every' follows what is current: it takes no VERSION, no --all and no --no-activate"
        )
    _check_all(everything, version)
    from router.releases.backup import pull_all
    from router.releases.follow import follow
    from router.releases.pull import pull as fetch
    from router.releases.transfer import StoppedError

    root = folder_of_releases(folder, "'FOLDER'", "releases go between a folder and an object store")
    with _stopping() as (stopped, received), show_progress(lines=every is None) as update:
        tell = _mib(update, "pull")
        if every is not None:
            n_switches = follow(
                url,
                root,
                every_s=every,
                stopped=stopped,
                keep=keep,
                again=again,
                threads=threads,
                tell=tell,
                note=structlog.get_logger().info,
            )
            print_result({"switches": n_switches})
            raise typer.Exit(130 if signal.SIGINT in received else 0)
        options: dict[str, Any] = {"activate": activate, "again": again, "threads": threads}
        options |= {"tell": tell, "stopped": stopped}
        try:
            done = pull_all(url, root, **options) if everything else fetch(url, root, version, **options)
        except StoppedError:
            log_interrupt()
            raise typer.Exit(130) from None
    _print_transferred(done)


def place_there(where: str) -> Any:
    """A place that is there; an object store of which nothing is there may be a misspelt one."""
    from router.errors import MissingDataError
    from router.releases.objects import ObjectStore
    from router.releases.places import place_of

    place = place_of(where)
    if isinstance(place, ObjectStore) and not place.is_there():
        raise MissingDataError(f"{place.shown}: there is nothing")
    return place


def _named(place: Any, version: str) -> str:
    """A version, also where it is given by its place."""
    from router.releases.places import earlier_versions

    if version not in ("current", "previous"):
        return version
    found = place.current() if version == "current" else next(iter(earlier_versions(place)), None)
    if found is None:
        from router.errors import ReleaseError

        raise ReleaseError(f"{place.shown}: there is no {version} release")
    return str(found)


def folder_of_releases(given: str, option: str, hint: str) -> Path:
    """A folder; :class:`ConfigurationError` where a URL is given."""
    if "://" in given:
        raise ConfigurationError(f"{option} must be a folder (got {redact(given)}): {hint}")
    return Path(given).resolve()


def _check_all(everything: bool, version: str | None) -> None:
    if everything and version is not None:
        raise ConfigurationError(f"'--all' takes no VERSION (got {version!r})")


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        structlog.get_logger().warning(warning)


def _check_url(url: str) -> None:
    if "://" not in url:
        raise ConfigurationError(f"'URL' must be that of an object store, such as s3://bucket (got {url!r})")


def _mib(update: Update, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: update(stage, -(-done // _MIB), -(-total // _MIB), "MiB")


def _print_transferred(done: Any) -> None:
    """Print what one transfer did, or those of all releases."""
    several = done if isinstance(done, list) else [done]
    log = structlog.get_logger()
    for one in several:
        if one.held_back is not None:
            log.warning("not switched; --again does it all the same", reason=one.held_back)
        if one.repaired:
            log.warning("a damaged release was repaired", release=one.version, files=len(one.repaired))
    if not isinstance(done, list):
        print_result(asdict(done))
        return
    if several[-1].current is None:
        log.warning("it is not known which release is in use: nothing was switched")
    print_result(
        {
            "releases": [asdict(one) for one in several],
            "current": several[-1].current,
            "moved_bytes": sum(one.moved_bytes for one in several),
            "known_bytes": sum(one.known_bytes for one in several),
        }
    )


@contextmanager
def _stopping() -> Iterator[tuple[Event, list[int]]]:
    """An event that SIGTERM and SIGINT set, and which of them came."""
    stopped, received = Event(), list[int]()

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
