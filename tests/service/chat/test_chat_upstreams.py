from __future__ import annotations

import asyncio

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from pydantic import SecretStr

from router.errors import ParameterError
from router.service.settings import UpstreamSettings
from router.service.upstreams import UpstreamError, Upstreams
from tests.service.fake_upstream import Behaviour, FakeUpstream

BODY = {"messages": [{"role": "user", "content": "hello"}]}


def settings(name: str, **models: str) -> UpstreamSettings:
    return UpstreamSettings(name=name, base_url=f"http://{name}/v1/", models=models)


def test_a_model_is_asked_of_the_first_upstream_that_has_it() -> None:
    fake = FakeUpstream()

    async def run() -> None:
        transport = httpx.ASGITransport(fake)
        upstreams = Upstreams([settings("one", a="a1"), settings("two", a="a2", b="b2")], transport=transport)
        assert {llm: target.upstream for llm, target in upstreams.targets.items()} == {"a": "one", "b": "two"}
        for target in upstreams.targets.values():
            await upstreams.complete(target, BODY)
        await upstreams.aclose()

    asyncio.run(run())
    assert fake.asked() == ["a1", "b2"]
    assert [received.headers["host"] for received in fake.received] == ["one", "two"]
    assert "authorization" not in fake.received[0].headers
    assert fake.received[0].headers["accept-encoding"] == "identity"


def test_a_key_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    one = settings("one", a="a1").model_copy(update={"api_key_env": "ONE_KEY"})
    monkeypatch.delenv("ONE_KEY", raising=False)
    with pytest.raises(ParameterError, match="ONE_KEY"):
        Upstreams([one])
    monkeypatch.setenv("ONE_KEY", "sk-1")
    target = Upstreams([one]).targets["a"]
    assert target.headers["Authorization"] == "Bearer sk-1"
    assert "sk-1" not in repr(target)


@pytest.mark.parametrize("key", ["sk-\u00e9", "sk-1\n", "sk 1"])
def test_a_key_that_no_header_can_hold_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("ONE_KEY", key)
    for given in ({"api_key_env": "ONE_KEY"}, {"api_key": SecretStr(key)}):
        with pytest.raises(
            ParameterError, match=r"upstream 'one': .* printable ASCII .*character \d of"
        ) as told:
            Upstreams([settings("one", a="a1").model_copy(update=given)])
        assert "sk" not in str(told.value)


@pytest.mark.parametrize(
    "content", [b"[]", b"1", b"\xff", b'{"choices": 1}', b'{"choices": []}', b'{"choices": [{}]}']
)
def test_an_answer_of_another_form_is_malformed(content: bytes) -> None:
    async def run() -> None:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, content=content))
        upstreams = Upstreams([settings("one", a="a1")], transport=transport)
        with pytest.raises(UpstreamError) as raised:
            await upstreams.complete(upstreams.targets["a"], BODY)
        assert raised.value.reason == "malformed"
        await upstreams.aclose()

    asyncio.run(run())


def test_a_stream_ends_where_the_upstream_says_so() -> None:
    fake = FakeUpstream(a1=Behaviour(words=("x", "y")))

    async def run() -> list[str]:
        upstreams = Upstreams([settings("one", a="a1")], transport=httpx.ASGITransport(fake))
        stream = await upstreams.stream(upstreams.targets["a"], BODY | {"stream": True})
        words = []
        while (chunk := await stream.next()) is not None:
            words += [choice["delta"].get("content", "") for choice in chunk["choices"]]
        await stream.aclose()
        await upstreams.aclose()
        return words

    assert asyncio.run(run()) == ["x", "y", ""]
