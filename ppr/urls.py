"""Credentials within URLs, hidden wherever a message or a log shows the URL."""

from __future__ import annotations

import re

HIDDEN = "(hidden)"

# A password may hold "/" and "@" although it should be percent-encoded: with a colon, up to the last "@".
_CREDENTIALS = re.compile(
    r"""(?i)(?<=://)(?:[^/@\s:]*:[^\s'"]+|[^/\s'"]+)(?=@)|(?:(?<=token=)|(?<=signature=))[^;&\s]+"""
)


def without_credentials(text: str) -> str:
    """``text`` with the user info, tokens and signatures of its URLs hidden."""
    return _CREDENTIALS.sub(HIDDEN, text)
