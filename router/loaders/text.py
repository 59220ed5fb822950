"""Lines of text files, with this package's errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ppr import errors
from ppr.readers import text
from router.errors import DataError, MissingDataError


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file in UTF-8, plain or gzip, with their numbers from 1.

    Raises
    ------
    MissingDataError
        The file is not there.
    DataError
        It is not UTF-8, or a damaged gzip file.
    """
    try:
        yield from text.numbered_lines(path)
    except errors.MissingDataError as error:
        raise MissingDataError(str(error)) from None
    except errors.DataError as error:
        raise DataError(str(error)) from None
