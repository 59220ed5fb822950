"""Texts to vectors: kept, never computed twice at once, and refused where they would not mix."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from threading import Event as Flag
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from router.encoders import EncoderIdentity, HashingEncoder
from router.errors import BundleError, MissingDataError, ParameterError, ResourceError
from router.service.encoding import EndpointEncoder, QueryEncoder, open_query_encoder
from router.service.settings import EncoderSettings

HASHING = HashingEncoder(16)


class Counting:
    """The hashing encoder, slowed down and counted."""

    identity = HASHING.identity

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.go_on = Flag()
        self.go_on.set()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        self.go_on.wait(10)
        if texts[0] == "fails":
            raise ResourceError("no answer")
        return HASHING.encode(texts)


def test_vectors_are_kept_and_the_least_used_goes():
    counting = Counting()
    encoder = QueryEncoder(counting, cache_entries=2)

    async def ask() -> None:
        for text in ("a", "b", "a", "c", "a", "b"):
            found = await encoder.encode(text)
            np.testing.assert_array_equal(found, HASHING.encode([text])[0])
            assert not found.flags.writeable

    asyncio.run(ask())
    assert counting.texts == ["a", "b", "c", "b"]
    asyncio.run(ask())  # another event loop
    encoder.close()


def test_long_texts_are_not_kept():
    encoder = QueryEncoder(HASHING)
    for text in ("long " * 10_000, "longer " * 10_000):
        asyncio.run(encoder.encode(text))
    encoder.close()
    assert [sys.getsizeof(name) < 100 for name in encoder._kept] == [True, True]


def test_a_text_underway_is_encoded_once_though_one_gives_up():
    counting = Counting()
    counting.go_on.clear()
    encoder = QueryEncoder(counting, threads=2)

    async def ask() -> None:
        waiting = [asyncio.create_task(encoder.encode("the same")) for _ in range(5)]
        other = asyncio.create_task(encoder.encode("another"))
        while len(counting.texts) < 2:
            await asyncio.sleep(0.001)
        waiting[0].cancel()
        await asyncio.sleep(0.01)
        counting.go_on.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        for vector in found[1:]:
            np.testing.assert_array_equal(vector, HASHING.encode(["the same"])[0])
        await other

    asyncio.run(ask())
    assert sorted(counting.texts) == ["another", "the same"]
    encoder.close()


def test_failures_are_not_kept():
    counting = Counting()
    encoder = QueryEncoder(counting)
    for _ in range(2):
        with pytest.raises(ResourceError, match="no answer"):
            asyncio.run(encoder.encode("fails"))
    assert counting.texts == ["fails"] * 2
    encoder.close()


# Which encoder


def test_that_of_the_release():
    encoder = open_query_encoder(EncoderSettings(), HASHING.identity)
    assert encoder.identity == HASHING.identity
    np.testing.assert_array_equal(asyncio.run(encoder.encode("x y")), HASHING.encode(["x y"])[0])
    encoder.close()
    with pytest.raises(BundleError, match="made with encoder hashing"):
        open_query_encoder(EncoderSettings(), EncoderIdentity("hashing", 7, 16))
    with pytest.raises(ParameterError, match=r"'encoder.kind' must be one of .* \(got 'none'\)"):
        open_query_encoder(EncoderSettings(kind="none"), HASHING.identity)


def endpoint(
    answer: Callable[[list[str]], Any], status: int = 200
) -> tuple[EndpointEncoder, list[httpx.Request]]:
    asked = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        body = answer(json.loads(request.content)["input"])
        if isinstance(body, Exception):
            raise body
        return (
            httpx.Response(status, content=body)
            if isinstance(body, bytes)
            else httpx.Response(status, json=body)
        )

    url = "http://encoder.test/v1/"
    return EndpointEncoder(url, "some-model", "secret-key", transport=httpx.MockTransport(handle)), asked


def vectors(texts: list[str], dimension: int = 4) -> dict[str, Any]:
    """In reversed order, which the indices tell."""
    data = [
        {"index": i, "embedding": [len(text) + 1.0, *[2.0] * (dimension - 1)]} for i, text in enumerate(texts)
    ]
    return {"object": "list", "data": data[::-1]}


def test_an_endpoint():
    encoder, asked = endpoint(vectors)
    assert encoder.identity == EncoderIdentity("some-model", 1, 4)
    found = encoder.encode(["", "four"])
    np.testing.assert_allclose(
        found, [[1 / 13**0.5, *[2 / 13**0.5] * 3], [5 / 37**0.5, *[2 / 37**0.5] * 3]], rtol=1e-6
    )
    assert found.dtype == np.float32
    assert str(asked[-1].url) == "http://encoder.test/v1/embeddings"
    assert asked[-1].headers["authorization"] == "Bearer secret-key"
    assert json.loads(asked[-1].content) == {"model": "some-model", "input": ["", "four"]}


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (b"<html>", 200, "something else than embeddings"),
        ({"data": [{"index": 0}]}, 200, "something else than embeddings"),
        ({"data": [{"index": 0, "embedding": "abc"}]}, 200, "something else than embeddings"),
        ({"data": []}, 200, "vectors of shape"),
        (b'{"data": [{"index": 0, "embedding": [NaN, 1.0]}]}', 200, "not finite"),
        ({"error": {}}, 500, "answered 500"),
        ({"error": {}}, 401, "answered 401"),
        (httpx.ReadTimeout("slow"), 200, r"no answer \(ReadTimeout\)"),
        (httpx.ConnectError("refused"), 200, r"no answer \(ConnectError\)"),
    ],
)
def test_an_endpoint_that_answers_nonsense(answer, status, message):
    with pytest.raises(ResourceError, match=message) as raised:
        endpoint(lambda texts: answer, status)
    assert "secret-key" not in str(raised.value)


def test_an_endpoint_that_changes_its_dimension():
    lengths = iter([4, 5])
    encoder, _ = endpoint(lambda texts: vectors(texts, next(lengths)))
    with pytest.raises(ResourceError, match="5 dimensions instead of 4"):
        encoder.encode(["x"])


def test_an_endpoint_of_another_identity(monkeypatch):
    monkeypatch.setattr(
        "router.service.encoding.EndpointEncoder", lambda *args: SimpleNamespace(identity=wrong)
    )
    wrong = EncoderIdentity("some-model", 1, 8)
    settings = EncoderSettings(
        kind="endpoint", url="http://encoder.test/v1", name="some-model", api_key=SecretStr("secret-key")
    )
    with pytest.raises(BundleError, match="cannot be used with some-model"):
        open_query_encoder(settings, EncoderIdentity("some-model", 1, 4))
    for missing in ("url", "name"):
        with pytest.raises(ParameterError, match=f"'encoder.{missing}' must be given"):
            open_query_encoder(settings.model_copy(update={missing: None}), wrong)


def test_sentence_transformers(monkeypatch):
    settings = EncoderSettings(kind="sentence-transformers", name="a/model")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDataError, match="pip install sentence-transformers"):
        open_query_encoder(settings, EncoderIdentity("a/model", 1, 3))

    class SentenceTransformer:
        def __init__(self, name: str) -> None:
            assert name == "a/model"

        def encode(self, texts: list[str]) -> np.ndarray:
            return np.array([[3.0, 4.0, 0.0]] * len(texts), np.float32)

    monkeypatch.setitem(
        sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=SentenceTransformer)
    )
    encoder = open_query_encoder(settings, EncoderIdentity("a/model", 1, 3))
    np.testing.assert_allclose(asyncio.run(encoder.encode("x")), [0.6, 0.8, 0.0], rtol=1e-6)
    encoder.close()
