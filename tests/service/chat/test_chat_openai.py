"""The official client, against the service behind a socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from router.service.settings import ServiceSettings
from router.service.store import open_store
from tests.service.fake_upstream import Behaviour, FakeUpstream

openai = pytest.importorskip("openai", reason="the openai client is not installed")


@pytest.fixture
def openai_client(chat_settings: ServiceSettings, chat_url: str) -> Iterator[openai.OpenAI]:
    with open_store(chat_settings.store_url) as store:
        _, token = store.create_key("app", ["route"])
    with openai.OpenAI(base_url=f"{chat_url}/v1", api_key=token, max_retries=0, timeout=10) as client:
        yield client


def ask(client: openai.OpenAI, user: str = "u02", **fields):  # type: ignore[no-untyped-def]
    messages = [{"role": "user", "content": "code about topic 3"}]
    return client.chat.completions.create(model="auto", user=user, messages=messages, **fields)


def test_two_users_one_question_two_llms(openai_client: openai.OpenAI) -> None:
    answers = {user: ask(openai_client, user) for user in ("u02", "u03")}
    assert {user: answer.model for user, answer in answers.items()} == {"u02": "brief", "u03": "kind"}
    assert {answer.choices[0].message.content for answer in answers.values()} == {"Hello there."}


def test_streams_and_models(openai_client: openai.OpenAI) -> None:
    chunks = list(ask(openai_client, stream=True, stream_options={"include_usage": True}))
    assert (
        "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == "Hello there."
    )
    assert {chunk.model for chunk in chunks} == {"brief"}
    assert chunks[-1].usage.total_tokens == 120
    assert openai_client.models.list().data[0].id == "auto"
    assert openai_client.models.retrieve("fairpath/auto").owned_by == "fairpath"


def test_errors_are_the_clients_own(openai_client: openai.OpenAI, upstream: FakeUpstream) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        openai_client.models.retrieve("nobody")
    assert unknown.value.code == "model_not_found"
    upstream.behaviours["up-brief"] = Behaviour("refuse")
    with pytest.raises(openai.BadRequestError, match="wrong request"):
        ask(openai_client)
    upstream.behaviours["up-brief"] = Behaviour("break_off")
    with pytest.raises(openai.APIError, match="'brief'"):
        list(ask(openai_client, stream=True))
    upstream.behaviours |= {f"up-{name}": Behaviour("error") for name in ("brief", "kind", "third")}
    with pytest.raises(openai.InternalServerError, match="no LLM answered"):
        ask(openai_client)
