"""Settings of the service: frozen models with their defaults. Nothing is read from the environment here.

Wherever a setting may have no value, the word ``none`` stands for that too, as in the commands' settings.
"""

from __future__ import annotations

import ipaddress
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from router.errors import ParameterError


def _none_word(value: object) -> object:
    return None if isinstance(value, str) and value.lower() == "none" else value


_NoneWord = BeforeValidator(_none_word)
OptionalStr = Annotated[str | None, _NoneWord]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
OptionalInt = Annotated[PositiveInt | None, _NoneWord]
OptionalFloat = Annotated[NotNegative | None, _NoneWord]
OptionalSecret = Annotated[SecretStr | None, _NoneWord]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderSettings(_Section):
    """What turns a query's text into the vector that the release asks for."""

    kind: Literal["release", "endpoint", "sentence-transformers", "none"] = Field(
        default="release",
        description="release: the one the release names, offline; endpoint: an OpenAI-compatible "
        "/v1/embeddings; none: requests bring embeddings",
    )
    name: OptionalStr = Field(default=None, description="model at the endpoint or of sentence-transformers")
    url: OptionalStr = Field(default=None, description="base URL of the endpoint, with its /v1")
    api_key: OptionalSecret = Field(default=None, description="key of the endpoint")
    threads: PositiveInt = Field(default=1, description="threads that encode")
    cache_entries: PositiveInt = Field(default=10_000, description="vectors of texts kept in memory")


class PolicySettings(_Section):
    """How scores become a choice; see :mod:`router.policy`."""

    exploration: Literal["greedy", "epsilon-greedy", "thompson"] = Field(
        default="greedy", description="how often what does not look best is tried"
    )
    epsilon: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.05, description="share of choices that epsilon-greedy draws at random"
    )
    cost_weight: NotNegative = Field(default=0.0, description="what one USD weighs, in logits of the choice")
    n_fallbacks: Annotated[int, Field(ge=0)] = Field(default=2, description="fallbacks named")
    answer_tokens: PositiveInt = Field(
        default=256,
        description="length of an answer that costs are expected of where nothing better is known",
    )


class LimitSettings(_Section):
    """What a request may take."""

    max_body_bytes: PositiveInt = Field(default=1 << 20, description="largest request body")
    timeout_s: PositiveFloat = Field(default=30.0, description="longest time of a request, chats excepted")
    requests_per_minute: OptionalInt = Field(
        default=None, description="requests per minute of a key without its own limit, or else an address"
    )
    max_text_chars: PositiveInt = Field(default=100_000, description="longest query text")


class BudgetSettings(_Section):
    """What may be spent."""

    user_usd: OptionalFloat = Field(default=None, description="USD that each user may spend per period")
    period: Literal["day", "month"] = Field(default="month", description="period of all budgets, in UTC")


class SessionSettings(_Section):
    """How a conversation keeps its LLM."""

    margin: NotNegative = Field(
        default=1.0, description="logits by which another LLM must be better before a session changes to it"
    )
    ttl_s: PositiveFloat = Field(default=86_400.0, description="idle time after which a session is forgotten")


class BreakerSettings(_Section):
    """When an LLM that fails is left alone."""

    failures: PositiveInt = Field(
        default=3,
        description="failures in a row after which an LLM rests: for a caller its own; for all those of at "
        "least two callers",
    )
    rest_s: PositiveFloat = Field(default=30.0, description="how long it is not asked then")


class UpstreamSettings(_Section):
    """One OpenAI-compatible service that answers chats."""

    name: str = Field(min_length=1, description="what messages and metrics call it")
    base_url: str = Field(pattern="^https?://", description="its URL, with its /v1")
    api_key: OptionalSecret = Field(default=None, description="its key")
    api_key_env: OptionalStr = Field(default=None, description="environment variable that holds its key")
    models: dict[str, str] = Field(description="its models: name in the catalogue to name at the upstream")
    timeout_s: PositiveFloat = Field(default=60.0, description="longest wait for an answer, or its next part")
    connect_timeout_s: PositiveFloat = Field(default=5.0, description="longest wait for a connection")

    def key(self) -> str | None:
        """Key to show to the upstream, or None; reads the environment where a variable is named.

        Raises
        ------
        ParameterError
            The variable is not set, or the key is none that a header can hold.
        """
        if self.api_key is not None:
            return self._sendable(self.api_key.get_secret_value(), "'api_key'")
        if self.api_key_env is None:
            return None
        place = f"the variable {self.api_key_env} of 'api_key_env'"
        try:
            return self._sendable(os.environ[self.api_key_env], place)
        except KeyError:
            raise ParameterError(f"upstream {self.name!r}: {place} must be set") from None

    def _sendable(self, key: str, place: str) -> str:
        for position, character in enumerate(key, 1):
            if not "!" <= character <= "~":
                raise ParameterError(
                    f"upstream {self.name!r}: {place} must be printable ASCII without spaces "
                    f"(its character {position} of {len(key)} is not)"
                )
        return key


class ServeSettings(_Section):
    """The service, apart from the releases that it serves."""

    store: OptionalStr = Field(
        default=None, description="URL of the feedback store; none: feedback.db beside the releases"
    )
    host: str = Field(default="127.0.0.1", description="address that the service listens on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8080, description="its port; 0 for any free")
    trusted_proxies: OptionalStr = Field(
        default=None,
        description="addresses of proxies, with commas between them, whose X-Forwarded-For names the caller; "
        "none: the header is ignored",
    )
    workers: PositiveInt = Field(default=1, description="processes that share the memory-mapped release")
    auth: Literal["auto", "required", "off"] = Field(
        default="auto",
        description="whether requests must show an API key; auto: unless the service is reached from this "
        "machine only and no key has been made",
    )
    poll_s: PositiveFloat = Field(default=0.5, description="how often CURRENT is looked at")
    stop_timeout_s: PositiveFloat = Field(
        default=30.0, description="longest wait for running requests at a stop"
    )
    keep_texts: bool = Field(default=False, description="keep the texts of queries with the decisions")
    belief_entries: PositiveInt = Field(default=10_000, description="users whose belief is kept in memory")
    encoder: EncoderSettings = EncoderSettings()
    policy: PolicySettings = PolicySettings()
    limits: LimitSettings = LimitSettings()
    budgets: BudgetSettings = BudgetSettings()
    sessions: SessionSettings = SessionSettings()
    upstreams: tuple[UpstreamSettings, ...] = Field(
        default=(), description="services that answer chats; a model is asked of the first that has it"
    )
    breaker: BreakerSettings = BreakerSettings()
    stand_in: bool = Field(
        default=False,
        description="answer chats with a note that names the model, asking nobody: to try things out",
    )

    @model_validator(mode="after")
    def _upstreams_have_names(self) -> ServeSettings:
        names = [upstream.name for upstream in self.upstreams]
        for name in names:
            if names.count(name) > 1:
                raise ParameterError(f"names of 'upstreams' must be unique ({name!r} appears twice)")
        return self

    @model_validator(mode="after")
    def _stand_in_is_alone(self) -> ServeSettings:
        if self.stand_in and self.upstreams:
            raise ParameterError("'stand_in' must not go with 'upstreams': it would answer in their place")
        return self

    @model_validator(mode="after")
    def _others_need_a_key(self) -> ServeSettings:
        if self.auth == "off" and not is_loopback(self.host):
            raise ParameterError(
                f"'auth' must not be off where other machines reach the service (got host {self.host!r})"
            )
        return self


class ServiceSettings(ServeSettings):
    """All that an app is built from."""

    releases: Path = Field(description="folder of the releases; see router.releases")

    @property
    def store_url(self) -> str:
        """URL of the feedback store."""
        return self.store or f"sqlite:///{self.releases.absolute().parent / 'feedback.db'}"

    @classmethod
    def of(cls, releases: Path, settings: ServeSettings) -> ServiceSettings:
        """Settings of a service of these releases."""
        fields: dict[str, Any] = {name: getattr(settings, name) for name in ServeSettings.model_fields}
        return cls(releases=releases, **fields)


@lru_cache(maxsize=256)  # asked of each request that shows no key
def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
