"""Kills a push, a pull or a prune at each of many points, resumes it, and compares with an undisturbed one.

A child of this process does the work and ends itself with SIGKILL when it is about to touch the n-th file;
run as a script, because only a process of one thread may be forked.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from router import releases
from router.errors import ReleaseError
from router.releases.places import Folder, place_of
from router.releases.pruning import PruneRule, prune
from router.releases.pull import pull
from router.releases.push import push

TOUCHING = {"open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir", "shutil.copyfile"}


def main(what: str, scratch: Path, root: Path, n_points: int) -> None:
    """Print how often the work touches a file, and at how many of these points it was killed."""
    prepare, work, place_at = WORK[what]
    prepared, undisturbed = scratch / "prepared", scratch / "undisturbed"
    prepare(root, prepared)
    shutil.copytree(prepared, undisturbed)
    before = place_at(undisturbed)
    start = (before.current(), before.versions())
    n_touched = _count(lambda: work(root, undisturbed))
    wanted = _content(undisturbed)
    end = (place_at(undisturbed).current(), place_at(undisturbed).versions())
    points = sorted(random.Random(0).sample(range(1, n_touched), n_points))
    for point in points:
        folder = scratch / f"killed-{point}"
        shutil.copytree(prepared, folder)
        pid = os.fork()
        if pid == 0:
            _kill_at(point)
            work(root, folder)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"{what} {point}: was not killed ({status})")
        place = place_at(folder)
        current, versions = place.current(), place.versions()
        # Somewhere between start and end; and whatever there is, is whole.
        assert current in (start[0], end[0]), (point, current)
        assert set(versions) <= {*start[1], *end[1]}, (point, versions)
        assert set(versions) >= {*start[1]} & {*end[1]}, (point, versions)
        assert current is None or current in versions, (point, current)
        for version in versions:
            place.check(version, verify=True)
        work(root, folder)
        assert _content(folder) == wanted, (point, sorted(_content(folder).keys() ^ wanted.keys()))
        assert (place.current(), place.versions()) == end
        shutil.rmtree(folder)
    print(n_touched, len(points))


def _prepare_store(root: Path, folder: Path) -> None:
    """An object store with the older releases."""
    for version in releases.versions(root)[:-1]:
        push(root, f"file://{folder}/store", version)


def _prepare_copy(root: Path, folder: Path) -> None:
    """An object store with all, and a folder with the older ones."""
    _prepare_store(root, folder)
    for version in releases.versions(root)[:-1]:
        pull(f"file://{folder}/store", folder / "copy", version)
    push(root, f"file://{folder}/store")


def _prepare_folder(root: Path, folder: Path) -> None:
    shutil.copytree(root, folder / "copy")


def _push(root: Path, folder: Path) -> None:
    push(root, f"file://{folder}/store", threads=1)


def _pull(root: Path, folder: Path) -> None:
    pull(f"file://{folder}/store", folder / "copy", threads=1)


def _prune(root: Path, folder: Path) -> None:
    prune(Folder(folder / "copy"), PruneRule(keep=1))


def _prune_store(root: Path, folder: Path) -> None:
    prune(place_of(f"file://{folder}/store"), PruneRule(keep=1))


def _at_store(folder: Path) -> object:
    return place_of(f"file://{folder}/store")


def _at_copy(folder: Path) -> object:
    return Folder(folder / "copy")


def _prepare_full_store(root: Path, folder: Path) -> None:
    _prepare_store(root, folder)
    push(root, f"file://{folder}/store")


WORK = {
    "push": (_prepare_store, _push, _at_store),
    "pull": (_prepare_copy, _pull, _at_copy),
    "prune": (_prepare_folder, _prune, _at_copy),
    "prune-store": (_prepare_full_store, _prune_store, _at_store),
}


def _content(folder: Path) -> dict[str, bytes]:
    """All files, but the times and names of switches and locks, and a record that was being written."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in ("history.jsonl", ".lock", ".pull.lock")
        and ".json.new-" not in path.name
        and "history" not in path.parts
    }


_on_touch: Callable[[], None] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _on_touch is not None and event in TOUCHING:
        _on_touch()


def _count(work: Callable[[], None]) -> int:
    global _on_touch
    n = 0

    def count() -> None:
        nonlocal n
        n += 1

    _on_touch = count
    work()
    _on_touch = None
    return n


def _kill_at(point: int) -> None:
    global _on_touch
    n = 0

    def count() -> None:
        nonlocal n
        n += 1
        if n == point:
            os.kill(os.getpid(), signal.SIGKILL)

    _on_touch = count


if __name__ == "__main__":
    sys.addaudithook(_hook)
    os.fsync = lambda descriptor: None  # the page cache outlives a killed process
    try:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    except ReleaseError as error:
        raise SystemExit(repr(error)) from error
