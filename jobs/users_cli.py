"""The subcommands of ``users``: who asks to be forgotten."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer
from typer import Argument, Option

from jobs import options as opt
from jobs.command import print_result
from jobs.errors import ConfigurationError
from jobs.serve_store_cli import StoreUrl, existing_store, iso
from ppr.errors import DataError, MissingDataError, ResourceError

if TYPE_CHECKING:
    from router.erasure import Erasure

_DIGEST = re.compile("[0-9a-f]{64}")
_NOT_SWEPT = (
    "somebody reads the store: its files may hold parts of what was deleted, until a running service, the "
    "next 'users erase' or 'feedback prune' has swept them"
)

User = Annotated[str, Argument(metavar="USER", help="Key of the user, as requests name it.")]
MaybeErased = Annotated[
    str | None, Argument(metavar="USER", help="Key of the user, as requests name it; or --digests.")
]
MaybeUser = Annotated[str | None, Argument(metavar="USER", help="Only whether this one is; default: all.")]
Digests = Annotated[
    Path | None,
    Option(
        "--digests",
        metavar="FILE",
        help="Erase all users of a list that 'users erased --out' wrote: after restoring a backup, which has "
        "not heard of them.",
    ),
]
Releases = Annotated[
    Path | None, Option(help="Folder of releases: tells whether one of them still has the user.")
]
ListOut = Annotated[
    Path | None,
    Option("--out", "-o", metavar="FILE", resolve_path=True, help="Write the list here, for a backup."),
]

users = typer.Typer(help="Users who ask to be forgotten.", no_args_is_help=True)


@users.command()
def erase(
    store: StoreUrl,
    user: MaybeErased = None,
    digests: Digests = None,
    releases: Releases = None,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Forget a user: delete all that the store has of one, and refuse the user from now on.

    Running services refuse within a second. The next run of the pipeline makes a release without the user;
    releases of before have the user until they are pruned, and copies and backups as long as they are kept.

    "known": false means that nothing was there of such a user: is the key right? "swept": false means that
    somebody reads the store, whose files may hold parts of what was deleted until a running service has swept
    them.
    """
    if (user is None) == (digests is None):
        raise ConfigurationError("either 'USER' or '--digests' must be given")
    if releases is not None and not releases.is_dir():
        raise MissingDataError(f"{releases}: no such folder")
    given = None if digests is None else _read(digests)
    with existing_store(store, log_level, log_format) as opened:
        log = structlog.get_logger()
        if given is not None:
            applied = opened.apply_erasures(given)
            result: dict[str, Any] = {
                "listed": len(given),
                "new": applied.n_new,
                "deleted": applied.rows,
                "swept": applied.swept,
            }
        else:
            assert user is not None
            erased = opened.erase_user(user)
            held = None if releases is None else any(_holding(releases, user))
            known = erased.again or bool(held) or any(erased.rows.values())
            if not known:
                where = "the store" if releases is None else "the store or a release"
                log.warning(
                    "nothing is there of such a user, who is refused from now on: is it the key?",
                    looked=where,
                )
            result = {
                **_described(erased.erasure),
                "known": known,
                "deleted": erased.rows,
                "in_release": held,
                "swept": erased.swept,
            }
        if not result["swept"]:
            log.warning(_NOT_SWEPT)
    print_result(result)


@users.command()
def readmit(
    store: StoreUrl, user: User, log_level: opt.LogLevel = None, log_format: opt.LogFormat = None
) -> None:
    """Take an erased user again, as one who is new: what was before stays erased."""
    with existing_store(store, log_level, log_format) as opened:
        if not opened.readmit_user(user):
            raise ConfigurationError("'USER' must be one who is erased (this one is not)")
    print_result({"readmitted": True})


@users.command()
def erased(
    store: StoreUrl,
    user: MaybeUser = None,
    out: ListOut = None,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """List who was erased, by digests: what is kept of them is no more.

    A backup of the store brings back whoever was erased after it was made. Keep the list of --out beside the
    backups, and apply it by 'users erase --digests' once one is restored.
    """
    from router.erasure import user_digest

    if user is not None and out is not None:
        raise ConfigurationError("'USER' and '--out' do not go together: the file lists all")
    with existing_store(store, log_level, log_format) as opened:
        there = opened.erasures()
    if user is not None:
        there = tuple(one for one in there if one.user_digest == user_digest(user))
    listed = [_described(one) for one in there]
    if out is None:
        print_result({"erased": listed})
        return
    _write(out, {"erased": listed})
    print_result({"file": out, "erased": len(listed)})


def _holding(root: Path, user: str) -> Iterator[bool]:
    """For each release whether it has a user; one that cannot be read might have, and is told."""
    from router.errors import ReleaseError
    from router.releases import open_release, versions
    from router.service.serving import Serving

    for version in versions(root):
        try:
            yield Serving.open(open_release(root, version, verify=False), verify=False).holds(user)
        except ReleaseError as error:
            structlog.get_logger().warning("a release cannot be looked at", reason=str(error))


def _described(erasure: Erasure) -> dict[str, Any]:
    """An erasure as it is printed and listed."""
    return {
        "user_digest": erasure.user_digest,
        "requested_at": iso(erasure.requested_at, "microseconds"),
        "readmitted_at": iso(erasure.lifted_at, "microseconds"),
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a list whole, or leave the one that is there."""
    working = path.with_name(f".{path.name}.new")
    try:
        working.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        working.replace(path)
    except OSError as error:
        working.unlink(missing_ok=True)
        raise ResourceError(f"{path}: cannot be written ({error.strerror})") from None


def _read(path: Path) -> list[Erasure]:
    """Erasures of a list.

    Raises
    ------
    MissingDataError
        The file is not there.
    DataError
        It is not such a list.
    """
    from router.erasure import Erasure

    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["erased"]
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: not a list that 'users erased --out' wrote") from None
    if not isinstance(listed, list):
        raise DataError(f"{path}: 'erased' must be a list (got {type(listed).__name__})")
    found = []
    for position, one in enumerate(listed, 1):
        try:
            digest, lifted = one["user_digest"], one["readmitted_at"]
            times = [None if at is None else _time(at) for at in (one["requested_at"], lifted)]
            if times[0] is None or not _DIGEST.fullmatch(digest):
                raise ValueError(digest)
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}: entry {position} must have 'user_digest' (64 hex digits), 'requested_at' and "
                f"'readmitted_at' (times, the latter may be null) (got {str(one)[:120]})"
            ) from None
        found.append(Erasure(digest, times[0], times[1]))
    return found


def _time(text: str) -> float:
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
