"""URLs: of files as Spark reads them; and with their credentials hidden, for messages and logs."""

from __future__ import annotations

import re
from pathlib import Path

HIDDEN = "(hidden)"

# A password may hold "/" and "@" although it should be percent-encoded: with a colon, up to the last "@".
_CREDENTIALS = re.compile(
    r"""(?i)(?<=://)(?:[^/@\s:]*:[^\s'"]+|[^/\s'"]+)(?=@)|(?:(?<=token=)|(?<=signature=))[^;&\s]+"""
)


def file_url(path: Path) -> str:
    """URL of a path on shared storage, as Spark reads it: a pattern, in which nothing is to match."""
    return "file://" + re.sub(r"([\[\]{}*?\\])", r"\\\1", str(path))


def without_credentials(text: str) -> str:
    """``text`` with the user info, tokens and signatures of its URLs hidden."""
    return _CREDENTIALS.sub(HIDDEN, text)
