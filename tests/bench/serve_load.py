"""A load generator that does not bound what it measures: prepared bytes over connections that are kept.

Closed loop: each connection sends its next request when the answer to the one before is complete. It runs in
a process of its own, see :func:`in_own_process`.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CONNECTIONS = 16
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"


@dataclass(frozen=True)
class Loaded:
    """What a load was answered with.

    Attributes
    ----------
    latencies_s
        Of each answer, float64 [n].
    statuses
        Answers by status.
    seconds
        How long it went on.
    heads
        Headers of each answer, where they were asked for.
    """

    latencies_s: np.ndarray
    statuses: Counter[int]
    seconds: float
    heads: list[bytes] = field(default_factory=list, repr=False)

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.latencies_s.size / self.seconds

    def percentile_ms(self, q: float) -> float:
        """Latency that ``q`` percent of the answers did not exceed."""
        return 1e3 * float(np.percentile(self.latencies_s, q))


def prepared(path: str, body: Any = None, token: str | None = None, method: str = "POST") -> bytes:
    """The bytes of a request."""
    content = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(content)}"]
    if body is not None:
        head.append("content-type: application/json")
    if token is not None:
        head.append(f"authorization: Bearer {token}")
    return "\r\n".join(head).encode() + _END_OF_HEAD + content


def load(
    port: int, requests: Sequence[bytes], seconds: float, connections: int = CONNECTIONS, heads: bool = False
) -> Loaded:
    """Send requests in turn for some time."""
    return asyncio.run(_load(port, requests, seconds, connections, heads))


@contextmanager
def in_own_process() -> Iterator[Executor]:
    """Executor of one process, for :func:`load`."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


async def _load(
    port: int, requests: Sequence[bytes], seconds: float, connections: int, heads: bool
) -> Loaded:
    loop = asyncio.get_running_loop()
    kept: list[_Connection] = []
    turn = iter(range(1 << 62))
    begin = time.perf_counter()
    end = begin + seconds

    def following() -> bytes | None:
        return requests[next(turn) % len(requests)] if time.perf_counter() < end else None

    for _ in range(connections):
        _, one = await loop.create_connection(lambda: _Connection(following), "127.0.0.1", port)
        kept.append(one)
    await asyncio.gather(*(one.done for one in kept))
    return Loaded(
        np.concatenate([one.latencies_s for one in kept]),
        sum((one.statuses for one in kept), Counter()),
        time.perf_counter() - begin,
        [head for one in kept for head in one.heads] if heads else [],
    )


class _Connection(asyncio.Protocol):
    def __init__(self, following: Callable[[], bytes | None]) -> None:
        self.latencies_s: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.heads: list[bytes] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._following = following
        self._received = b""
        self._wanted = 0  # length of the answer, 0 as long as it is not known
        self._sent_at = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._wanted:
            end = self._received.find(_END_OF_HEAD)
            if end < 0:
                return
            head = self._received[:end]
            self._wanted = end + len(_END_OF_HEAD) + _content_length(head)
            self.heads.append(head)
        if len(self._received) < self._wanted:
            return
        self.latencies_s.append(time.perf_counter() - self._sent_at)
        self.statuses[int(self._received[9:12])] += 1
        self._received, self._wanted = b"", 0
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server has closed the connection"))

    def _send(self) -> None:
        request = self._following()
        if request is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)


def _content_length(head: bytes) -> int:
    at = head.lower().index(_LENGTH) + len(_LENGTH)
    return int(head[at:].split(b"\r\n", 1)[0])
