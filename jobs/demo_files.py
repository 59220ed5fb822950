"""Tables that a demo keeps: written once, compared on every further run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ppr.errors import OutputExistsError
from ppr.manifest import full_disk_is_an_error


def keep_tables(out: Path, tables: Mapping[str, pa.Table], *, made: str) -> None:
    """Write tables, or keep those of an earlier run if they are the same.

    Parameters
    ----------
    out
        Folder.
    tables
        By file name.
    made
        What is made from them: while it is there, none of them may be missing.

    Raises
    ------
    OutputExistsError
        The folder holds other tables, or what was made from others.
    ResourceError
        The disk is full or the folder cannot be written.
    """
    with full_disk_is_an_error(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".parts-") as working:
            missing = []
            for name, table in tables.items():
                written = Path(working) / name
                pq.write_table(table, written)
                if not (out / name).exists():
                    missing.append(written)
                elif not _same_table(out / name, written):
                    raise other_data(out / name)
            if missing and (out / made).exists():
                raise other_data(out / made)
            for written in missing:
                written.replace(out / written.name)


def other_data(path: Path) -> OutputExistsError:
    """Error for something that was made from other data."""
    return OutputExistsError(f"{path}: exists with other data; choose another output or remove it")


def _same_table(path: Path, other: Path) -> bool:
    try:
        return bool(pq.read_table(path).equals(pq.read_table(other)))
    except (pa.ArrowException, OSError):
        return False
