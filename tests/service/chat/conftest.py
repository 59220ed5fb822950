"""The service of ``tests/service/conftest.py`` before an upstream that fails as it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from pydantic import SecretStr
from starlette.testclient import TestClient

from router.service.app import create_app
from router.service.service import Service
from router.service.settings import ServiceSettings, UpstreamSettings
from tests.service.fake_upstream import FakeUpstream, listening

SECRET = "sk-of-the-upstream-4711"
MODELS = {"brief": "up-brief", "kind": "up-kind", "unused-price": "up-third", "unlisted": "up-unlisted"}
QUESTION = [{"role": "user", "content": "code about topic 3"}]


@pytest.fixture
def upstream() -> FakeUpstream:
    """Answers for all models; u02 is routed to ``brief``, u03 to ``kind``."""
    return FakeUpstream()


@pytest.fixture
def chat_settings(service_settings: ServiceSettings, upstream: FakeUpstream) -> Iterator[ServiceSettings]:
    """Settings with that upstream, behind a socket, and short time limits."""
    with listening(upstream) as url:
        reached = UpstreamSettings(
            name="fake",
            base_url=f"{url}/v1",
            api_key=SecretStr(SECRET),
            models=MODELS,
            timeout_s=1.5,
            connect_timeout_s=1.5,
        )
        yield service_settings.model_copy(update={"upstreams": (reached,)})


@dataclass(frozen=True)
class Caller:
    """Asks a service that runs in this process."""

    client: TestClient

    @property
    def service(self) -> Service:
        """Its parts."""
        return self.client.app.state.service  # type: ignore[attr-defined, no-any-return]

    def ask(
        self, user: str | None = "u02", headers: dict[str, str] | None = None, **fields: Any
    ) -> httpx.Response:
        """Answer to a chat; ``auto`` and one question unless ``fields`` say otherwise."""
        body = {"model": "auto", "messages": QUESTION} | ({"user": user} if user else {}) | fields
        return self.client.post("/v1/chat/completions", json=body, headers=headers)


@pytest.fixture
def caller(chat_settings: ServiceSettings) -> Iterator[Caller]:
    """A caller of the service with those settings."""
    yield from serving(chat_settings)


def serving(settings: ServiceSettings) -> Iterator[Caller]:
    """A caller of a service with other settings."""
    with TestClient(
        create_app(settings),
        "http://127.0.0.1:8080",
        raise_server_exceptions=False,
        client=("127.0.0.1", 50000),
    ) as client:
        yield Caller(client)


@pytest.fixture
def chat_url(chat_settings: ServiceSettings) -> Iterator[str]:
    """Address of the service behind a socket of its own."""
    with listening(create_app(chat_settings)) as url:
        yield url
