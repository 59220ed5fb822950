"""What the service's endpoints cost beside an empty endpoint of the same server, in interleaved rounds.

One worker, an API key, 50 LLMs, one load generator in a process of its own. Of each round the ratio to the
empty endpoint's numbers is taken, and of the rounds the median.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, Figure, at_least, at_most, check, note, run_alone
from serve_beside import BESIDE_ENCODER
from serve_load import Loaded, in_own_process, load, prepared
from serve_process import BESIDE, Served, ask, served
from serve_release import N_LLMS, publish_random

from router.encoders import MiniLmEncoder
from router.releases import current_version, open_release
from router.service.app import create_app
from router.service.desk import Ask
from router.service.service import Service
from router.service.serving import Serving
from router.service.settings import EncoderSettings, ServiceSettings

N_USERS, N_ITEMS = 100_000, 20_000
N_REQUESTS = 4_000  # different ones; of texts so many that none comes again
ROUNDS, ROUND_S, WARM_S = 9, 2.0, 1.0
N_DECISIONS = 3_000
SHARE, TAIL = 0.5, 3.0  # of the empty endpoint's throughput, and of its 99 % latency
DECISION_US, BESIDE_ENCODER_MS = 300.0, 2.0
EMPTY = "empty endpoint"
WITH_TEXT = "/v1/route with a text"
MEASURED = ("/v1/route with an embedding", "/v1/route with an embedding in base64", "/v1/recommend")


def measure(n_users: int = N_USERS, rounds: int = ROUNDS) -> list[Figure]:
    """Publish a release, check what the service says of it, then load it."""
    encoder = MiniLmEncoder().identity
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        root, store = Path(folder) / "releases", f"sqlite:///{folder}/feedback.db"
        publish_random(root, Path(folder), encoder, n_users=n_users, n_items=n_users // 5)
        deciding = list(_decisions(root, f"{store}.decisions", n_users))
        with served(root, store, program=BESIDE) as service, in_own_process() as client:
            _check_answers(root, service)
            loads = _loads(service, n_users)
            for requests in loads.values():
                client.submit(load, service.port, requests, WARM_S).result()
            measured = _rounds(client, service, loads, rounds)
    return [*deciding, *_ratios(measured), *_texts(measured[WITH_TEXT])]


def _loads(service: Served, n_users: int) -> dict[str, list[bytes]]:
    """Requests by what they ask."""
    rng = np.random.default_rng(1)
    users = [f"user-{i}" for i in rng.integers(n_users, size=N_REQUESTS)]

    def requests(path: str, bodies: Sequence[Any]) -> list[bytes]:
        return [prepared(path, body, service.token) for body in bodies]

    vectors = [embedding(rng, 384) for _ in users]
    routed = [
        {"user": user, "embedding": vector.tolist()} for user, vector in zip(users, vectors, strict=True)
    ]
    packed = [
        {"user": user, "embedding_base64": base64.b64encode(vector.astype("<f4").tobytes()).decode()}
        for user, vector in zip(users, vectors, strict=True)
    ]
    texts = [{"user": user, "query": f"Compare {i} with {i**2}, please"} for i, user in enumerate(users)]
    items = {f"item-{i}": 1.0 for i in range(3)}
    return {
        EMPTY: [prepared("/empty")],
        MEASURED[0]: requests("/v1/route", routed),
        MEASURED[1]: requests("/v1/route", packed),
        MEASURED[2]: requests("/v1/recommend", [{"user": user, "k": 10} for user in users]),
        "/v1/recommend with a new user's items": requests("/v1/recommend", [{"interactions": items}]),
        WITH_TEXT: requests("/v1/route", texts),
    }


def embedding(rng: np.random.Generator, dimension: int) -> np.ndarray:
    """Vector of unit length, as a client may round it."""
    vector = rng.normal(size=dimension)
    return np.round(vector / np.linalg.norm(vector), 6)


def _rounds(
    client: Executor, service: Served, loads: dict[str, list[bytes]], rounds: int
) -> dict[str, list[Loaded]]:
    measured = defaultdict(list)
    for number in range(rounds):
        for name, requests in loads.items():
            part = number * len(requests) // rounds  # texts that were not asked before
            turned = [*requests[part:], *requests[:part]]
            one = client.submit(load, service.port, turned, ROUND_S, heads=name == WITH_TEXT).result()
            check(set(one.statuses) == {200}, f"{name}: answered {dict(one.statuses)}")
            measured[name].append(one)
    return measured


def _ratios(measured: dict[str, list[Loaded]]) -> Iterator[Figure]:
    empty = measured[EMPTY]
    for name, loaded in measured.items():
        yield note(f"{name}: answers", float(np.median([one.per_second for one in loaded])), "per s")
        yield note(f"{name}: 99 %", float(np.median([one.percentile_ms(99) for one in loaded])), "ms")
        if name in (EMPTY, WITH_TEXT):
            continue
        share = np.median([one.per_second / none.per_second for one, none in zip(loaded, empty)])
        tail = np.median([one.percentile_ms(99) / none.percentile_ms(99) for one, none in zip(loaded, empty)])
        wanted = name in MEASURED
        label = f"{name}: throughput over that of the {EMPTY}"
        yield at_least(label, share, SHARE) if wanted else note(label, share)
        label = f"{name}: 99 % over that of the {EMPTY}"
        yield at_most(label, tail, TAIL) if wanted else note(label, tail)


def _texts(loaded: list[Loaded]) -> Iterator[Figure]:
    """What a request with a text takes beside its encoding, which the service itself measures."""
    mark = f"{BESIDE_ENCODER}: ".encode()
    beside_ms = [
        1e3 * float(head.split(mark, 1)[1].split(b"\r\n", 1)[0]) for one in loaded for head in one.heads
    ]
    yield at_most(
        f"{WITH_TEXT}: beside the encoder, 99 %", float(np.percentile(beside_ms, 99)), BESIDE_ENCODER_MS, "ms"
    )
    yield note(f"{WITH_TEXT}: beside the encoder, median", float(np.median(beside_ms)), "ms")


def _check_answers(root: Path, service: Served) -> None:
    """The service over HTTP says what its release says when it is asked directly."""
    version = current_version(root)
    assert version is not None
    serving = Serving.open(open_release(root, version, verify=False), verify=False)
    vector = embedding(np.random.default_rng(0), serving.scorer.encoder.dimension)
    scores = serving.scorer.scores(serving.belief("user-7").user, vector.astype(np.float32))
    answer: Any = ask(service, "/v1/route", {"user": "user-7", "embedding": vector.tolist()})
    check(len(answer["models"]) == N_LLMS, "50 candidates")
    check(answer["chosen"] == serving.catalogue.names[int(scores.preference.argmax())], "/v1/route")
    check(answer["based_on"]["source"] == "trained", "/v1/route knows the user")
    answer = ask(service, "/v1/recommend", {"user": "user-7", "k": 10})
    found = [(one["item"], one["score"]) for one in answer["items"]]
    check([item for item, _ in found] == [item for item, _ in serving.recommend("user-7", None, 10)], "items")


def _decisions(root: Path, store: str, n_users: int) -> Iterator[Figure]:
    """Time of a decision inside our code: from user and embedding to the recorded choice."""
    times = asyncio.run(_times(root, store, n_users))
    label = f"a decision among {N_LLMS} candidates inside our code"
    yield at_most(f"{label}, median", float(np.median(times)), DECISION_US, "µs")
    yield note(f"{label}, 99 %", float(np.percentile(times, 99)), "µs")


async def _times(root: Path, store: str, n_users: int) -> list[float]:
    settings = ServiceSettings(releases=root, store=store, encoder=EncoderSettings(kind="none"))
    app = create_app(settings)
    rng = np.random.default_rng(2)
    times = []
    async with app.router.lifespan_context(app):
        service: Service = app.state.service
        for user in rng.integers(n_users, size=N_DECISIONS).tolist():
            vector = embedding(rng, service.live.serving.scorer.encoder.dimension).astype(np.float32)
            begin = time.perf_counter()
            await service.desk.route(Ask(user=f"user-{user}", embedding=vector), None)
            times.append(1e6 * (time.perf_counter() - begin))
    return times


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=N_USERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    run_alone("serve_speed", lambda: measure(given.users, given.rounds))
