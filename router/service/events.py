"""Server-sent events, as far as OpenAI-compatible endpoints use them: ``data`` lines ended by an empty line.

Source: the HTML standard, section 9.2 (server-sent events). Lines are split as bytes and only at line feeds,
because answers hold separators such as U+2028 unescaped.
"""

from __future__ import annotations

from typing import Any

import orjson

DONE = b"[DONE]"
"""Data of the event that ends a complete answer."""


class EventParser:
    """Cuts a stream of bytes into the data of its events.

    Parameters
    ----------
    max_bytes
        Most bytes that an unfinished event may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self._held_bytes = 0

    def feed(self, received: bytes) -> list[bytes]:
        """Take the next bytes; returns the data of the events that they complete.

        Raises
        ------
        ValueError
            An event is longer than allowed.
        """
        *lines, self._rest = (self._rest + received).split(b"\n")
        events = [event for line in lines if (event := self._line(line.removesuffix(b"\r"))) is not None]
        if len(self._rest) + self._held_bytes > self._max_bytes:
            raise ValueError(f"an event must have at most {self._max_bytes} bytes")
        return events

    def _line(self, line: bytes) -> bytes | None:
        """Take one line; returns the data of the event that it ends."""
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._held_bytes += len(line)
        elif not line and self._data:
            event = b"\n".join(self._data)
            self._data, self._held_bytes = [], 0
            return event
        return None


def event(content: Any) -> bytes:
    """One event whose data is ``content`` as JSON, or as it is where it is bytes."""
    return b"data: " + (content if isinstance(content, bytes) else orjson.dumps(content)) + b"\n\n"
