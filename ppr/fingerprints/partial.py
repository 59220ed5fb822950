"""The folder of an unfinished output: one process works in it, and it says what it is to become."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from ppr.errors import OutputExistsError, StoreError
from ppr.manifest import difference

_PLAN = "plan.json"


def partial_path(out: Path) -> Path:
    """Folder of an unfinished output."""
    return out.with_name(f"{out.name}.partial")


class OutputLock:
    """Exclusive lock on a partial folder, held through a file in it; goes with the process that holds it.

    Raises
    ------
    OutputExistsError
        Another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                file: BinaryIO = (folder / "lock").open("ab")
            except FileNotFoundError:  # the other run has just finished and removed the folder
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise OutputExistsError(f"{folder}: another process is computing this output") from None
            self._file = file
            if _same_file(file, folder / "lock"):
                return
            file.close()

    def release(self) -> None:
        """Let others in."""
        self._file.close()


def _same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def stored_plan(partial: Path, identity: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Plan that an output was begun with; stores the given one where it is new.

    Parameters
    ----------
    partial
        Its folder.
    identity
        What the output is made from; see :func:`ppr.fingerprints.writer.store_identity`.
    plan
        JSON-able.

    Raises
    ------
    OutputExistsError
        The folder holds something that is made otherwise.
    StoreError
        What is stored is damaged.
    """
    path = partial / _PLAN
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        there = stored["identity"]
        differing = [key for key in identity if there.get(key) != identity[key]]
        found = {} if differing else {name: stored[name] for name in plan}
    except FileNotFoundError:
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"identity": identity, **plan}), encoding="utf-8")
        new.replace(path)
        return plan
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: damaged; remove {partial} to start again ({error!r})") from error
    for key in differing:
        raise OutputExistsError(
            f"{partial}: holds an unfinished run, made {difference(key, there.get(key), identity[key])}; "
            "finish that, or remove it"
        )
    return found
