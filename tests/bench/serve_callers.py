"""Callers of a service who ask all kinds of things and notice everything that goes wrong; see serve_soak."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson
from serve_beside import WORKER
from serve_load import prepared

N_CALLERS = 8
PAIR = ("llm-0", "llm-1")  # one at each of the two upstreams
_TRIES = 10  # of feedback that found no answer, under one idempotency key
_WAIT_S = 0.2
_TIMEOUT_S = 30.0
_KNOWN_S = 5.0  # how long after a kill a connection without any answer is taken for the killed worker's


@dataclass
class Tally:
    """What callers saw.

    Attributes
    ----------
    answers
        Answers of success by kind.
    failures
        Requests that failed, by kind and what happened.
    lost
        ``(when, worker)`` of requests whose connection ended without an answer; worker is 0 where the
        connection had none before. Unix seconds.
    forgotten
        ``(when, worker)`` of feedback about decisions that are unknown, with the worker that decided.
    feedback
        Ids of accepted feedback.
    """

    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    lost: list[tuple[float, int]] = field(default_factory=list)
    forgotten: list[tuple[float, int]] = field(default_factory=list)
    feedback: list[str] = field(default_factory=list)

    def outside(self, kills: list[tuple[float, int]]) -> int:
        """Requests that failed and were not a killed worker's own; kills as ``(when, worker)``."""
        killed = {worker for _, worker in kills}

        def own(when: float, worker: int) -> bool:
            if worker:
                return worker in killed
            return any(0 <= when - killed_at < _KNOWN_S for killed_at, _ in kills)

        others = [one for one in self.lost + self.forgotten if not own(*one)]
        return self.failures.total() + len(others)


def call(port: int, token: str, n_users: int, seconds: float) -> Tally:
    """Ask for some time, over several connections."""
    return asyncio.run(_call(port, token, n_users, seconds))


async def _call(port: int, token: str, n_users: int, seconds: float) -> Tally:
    tally = Tally()
    end = time.monotonic() + seconds
    callers = [_Caller(port, token, n_users, random.Random(number), tally) for number in range(N_CALLERS)]
    await asyncio.gather(*(caller.until(end) for caller in callers))
    return tally


class _LostError(Exception):
    """The connection ended without an answer."""


class _Caller:
    def __init__(self, port: int, token: str, n_users: int, rng: random.Random, tally: Tally) -> None:
        self._port, self._token, self._n_users, self._rng, self._tally = port, token, n_users, rng, tally
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._worker = 0

    async def until(self, end: float) -> None:
        """Ask again and again."""
        while time.monotonic() < end:
            await self._decide_and_tell()
            for kind, method, path, body in self._others():
                await self._ask(kind, method, path, body)

    def _others(self) -> list[tuple[str, str, str, Any]]:
        user, items = f"user-{self._rng.randrange(self._n_users)}", {f"item-{self._rng.randrange(1000)}": 1.0}
        chat = {
            "model": "auto",
            "user": user,
            "messages": [{"role": "user", "content": f"question {self._rng.randrange(1000)}"}],
            "stream": self._rng.random() < 0.5,
            "fairpath": {"candidates": PAIR},
        }
        return [
            ("route, new user", "POST", "/v1/route", {"interactions": items, "items": 5}),
            ("recommend", "POST", "/v1/recommend", {"user": user, "k": 10}),
            ("recommend, new user", "POST", "/v1/recommend", {"interactions": items}),
            ("chat", "POST", "/v1/chat/completions", chat),
            self._rng.choice(
                [
                    ("lookalike", "POST", "/v1/lookalike", {"users": [user]}),
                    ("profile", "GET", f"/v1/users/{user}/profile", None),
                    ("page", "GET", "/", None),
                    ("metrics", "GET", "/metrics", None),
                ]
            ),
        ]

    async def _decide_and_tell(self) -> None:
        vector = [self._rng.gauss(0.0, 0.05) for _ in range(384)]
        wanted = {"user": f"user-{self._rng.randrange(self._n_users)}", "embedding": vector}
        answer = await self._ask("route", "POST", "/v1/route", wanted)
        if answer is None:
            return
        decided_by, key = self._worker, f"{self._rng.getrandbits(64):x}"
        told = {"decision_id": orjson.loads(answer)["decision_id"], "thumbs": 1}
        for _ in range(_TRIES):
            accepted = await self._ask("feedback", "POST", "/v1/feedback", told, key, decided_by)
            if accepted:
                self._tally.feedback.append(orjson.loads(accepted)["feedback_id"])
            if accepted is not None:
                return
            await asyncio.sleep(_WAIT_S)

    async def _ask(
        self, kind: str, method: str, path: str, body: Any, key: str | None = None, decided_by: int = 0
    ) -> bytes | None:
        """Content of an answer, empty where it is one of failure; None where there was none."""
        request = prepared(path, body, self._token, method)
        if key is not None:
            request = request.replace(b"\r\n", f"\r\nidempotency-key: {key}\r\n".encode(), 1)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                status, content = await self._exchange(request)
        except (_LostError, OSError, asyncio.IncompleteReadError):
            self._tally.lost.append((time.time(), self._worker))
            await self._hang_up()
            return None
        except TimeoutError:
            self._tally.failures[f"{kind}: no answer in {_TIMEOUT_S:g} s"] += 1
            await self._hang_up()
            return None
        if status == 404 and decided_by:
            self._tally.forgotten.append((time.time(), decided_by))
        elif status >= 300:
            self._tally.failures[f"{kind}: {status} {content[:300]!r}"] += 1
        elif b"text/event-stream" in self._head and not content.rstrip().endswith(b"data: [DONE]"):
            self._tally.failures[f"{kind}: the stream broke off {content[-300:]!r}"] += 1
        else:
            self._tally.answers[kind] += 1
            return content
        return b""

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        if self._writer is None:
            self._worker = 0
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(request)
        self._head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        fields = dict(line.split(b": ", 1) for line in self._head.split(b"\r\n")[1:] if line)
        self._worker = int(fields[WORKER.encode()])
        if b"content-length" in fields:
            content = await self._reader.readexactly(int(fields[b"content-length"]))
        else:
            content = await self._chunks()
        if fields.get(b"connection") == b"close":
            await self._hang_up()
        return int(self._head[9:12]), content

    async def _chunks(self) -> bytes:
        parts = []
        while length := int(await self._reader.readuntil(b"\r\n"), 16):
            parts.append(await self._reader.readexactly(length))
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return b"".join(parts)

    async def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
