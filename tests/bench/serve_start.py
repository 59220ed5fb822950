"""How soon the service is ready with a release of a million users, and what memory a worker takes.

Private memory is what a process shares with no other and with no file: pages of the memory-mapped release
are not in it, however few workers have read them. It is looked at after some thousand requests of all
kinds, so that what is made at a first use is there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import RESULTS, Figure, at_most, check, note, run_alone
from serve_load import in_own_process, load, prepared
from serve_process import Served, ask, private_mib, served
from serve_release import publish_random
from serve_speed import embedding

from router.encoders import MiniLmEncoder

N_USERS, N_ITEMS = 1_000_000, 20_000
STARTS = 5
READY_S, PRIVATE_MIB = 3.0, 250.0
LOAD_S, N_REQUESTS = 10.0, 4_000
WITHOUT_ENCODER = ("--set", "serve.encoder.kind=none")


def measure(n_users: int = N_USERS) -> list[Figure]:
    """Publish a release, start services on it, and load one."""
    encoder = MiniLmEncoder().identity
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        root, store = Path(folder) / "releases", f"sqlite:///{folder}/feedback.db"
        begin = time.perf_counter()
        publish_random(root, Path(folder), encoder, n_users=n_users, n_items=N_ITEMS)
        name = f"{n_users:,} users"
        return [
            note(f"making and publishing a release of {name}", time.perf_counter() - begin, "s"),
            *_starts(name, root, store),
            *_memory(root, store, n_users),
        ]


def _starts(name: str, root: Path, store: str) -> Iterator[Figure]:
    for label, options in (("with the encoder", ()), ("without", WITHOUT_ENCODER)):
        seconds = []
        for _ in range(STARTS):
            with served(root, store, *options) as service:
                seconds.append(service.started_s)
        yield at_most(f"start to ready, {name}, {label}, median", float(np.median(seconds)), READY_S, "s")
        yield note(f"start to ready, {name}, {label}, longest", max(seconds), "s")


def _memory(root: Path, store: str, n_users: int) -> Iterator[Figure]:
    with served(root, store, *WITHOUT_ENCODER, workers=2) as service, in_own_process() as client:
        yield note("private memory of a worker at its start", _most_private_mib(service), "MiB")
        answer = ask(service, "/v1/route", {"user": f"user-{n_users - 1}"})
        check(
            answer["based_on"]
            == {"source": "trained", "n_events": 0, "in_release": True, "unknown_items": 0},
            "user",
        )
        for requests in _loads(service.token, n_users):
            loaded = client.submit(load, service.port, requests, LOAD_S).result()
            check(set(loaded.statuses) <= {200, 201}, f"answered {dict(loaded.statuses)}")
        yield at_most(
            "private memory of a worker without the encoder, after some thousand requests",
            _most_private_mib(service),
            PRIVATE_MIB,
            "MiB",
        )


def _most_private_mib(service: Served) -> float:
    return max(private_mib(worker) for worker in service.workers())


def _loads(token: str, n_users: int) -> Iterator[list[bytes]]:
    """Requests of all kinds."""
    rng = np.random.default_rng(1)
    users = [f"user-{i}" for i in rng.integers(n_users, size=N_REQUESTS)]
    items = [
        {f"item-{i}": 1.0 for i in three} for three in rng.integers(N_ITEMS, size=(N_REQUESTS, 3)).tolist()
    ]
    vectors = [embedding(rng, 384).tolist() for _ in range(100)]
    routed = [{"user": user, "embedding": vectors[i % 100]} for i, user in enumerate(users)]
    yield [prepared("/v1/route", body, token) for body in routed]
    yield [prepared("/v1/route", {"interactions": some}, token) for some in items]
    yield [prepared("/v1/recommend", {"user": user}, token) for user in users]
    yield [prepared("/v1/recommend", {"interactions": some}, token) for some in items]
    yield [prepared("/v1/lookalike", {"users": [user]}, token) for user in users]
    yield [prepared(f"/v1/users/{user}/profile", token=token, method="GET") for user in users]
    yield [prepared("/v1/feedback", {"user": user, "llm": "llm-3", "thumbs": 1}, token) for user in users]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=N_USERS)
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    run_alone("serve_start", lambda: measure(given.users))
