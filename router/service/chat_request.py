"""What a chat asks of the router, read from the body of an OpenAI chat completion.

Tokens are estimated without a tokenizer, which every model has its own of: 4 bytes of UTF-8 make a token,
each message adds 4, each image 1,000; files, sounds, tools and what else is sent count by their size in the
body. ``max_completion_tokens`` or ``max_tokens`` bound the answer: the
context must have room for so many, and what they cost is reserved. An answer is expected to be as long as the
settings say, or as that bound where it is shorter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from router.errors import ParameterError
from router.service.schemas import Milliseconds, Name, Names, Usd
from router.service.sessions import session_id
from router.service.tokens import tokens_of

TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 1000
_COUNTED_APART = ("text", "image_url")
_IN_PROMPT = ("functions", "response_format", "prediction")
AUTOMATIC = ("auto", "fairpath/auto")
"""Names of a model that leave the choice to the router."""

_Choices = Annotated[int, Field(strict=True, ge=1, le=128)]
_Positive = Annotated[int, Field(strict=True, ge=1, le=10_000_000)]


class Demands(BaseModel):
    """What only Fairpath understands of a chat: demands on the LLM that answers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    task: Name | None = Field(default=None, description="task of the query")
    candidates: Names | None = Field(default=None, description="LLMs to choose from")
    exclude: Names = Field(default=[], description="LLMs not to choose")
    capabilities: Names = Field(default=[], description="what the LLM must be able to do")
    max_cost_usd: Usd | None = Field(default=None, description="most that the answer is expected to cost")
    max_latency_ms: Milliseconds | None = Field(
        default=None, description="longest expected answer; leaves out LLMs of unknown latency"
    )


class Message(BaseModel):
    """One message of the conversation; further fields pass through."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[Any] | None = None


class ChatBody(BaseModel):
    """Body of a chat completion: what is read here. Further fields pass through to the upstream."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "model": "auto",
                "user": "ada",
                "messages": [{"role": "user", "content": "Why is the sky blue?"}],
            }
        },
    )

    model: Annotated[str, Field(min_length=1, max_length=512)] = Field(
        description="auto: the router chooses; any other name is asked of the upstream that has it"
    )
    messages: Annotated[list[Message], Field(min_length=1)]
    user: Name | None = Field(default=None, description="whose preferences decide, and who pays")
    stream: StrictBool | None = None
    stream_options: dict[str, Any] | None = None
    max_completion_tokens: _Positive | None = None
    max_tokens: _Positive | None = None
    n: _Choices | None = None
    best_of: _Choices | None = None
    tools: list[Any] | None = None
    metadata: dict[str, Any] | None = Field(default=None, description="session_id names the conversation")
    fairpath: Demands | None = Field(
        default=None, description="demands on the LLM; headers may hold them too"
    )


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat as the router sees it.

    Attributes
    ----------
    body
        Its fields that were read.
    forwarded
        What an upstream gets, but for the model's name.
    demands
        Demands of body and headers together.
    session
        Name that the caller gave the conversation, or None.
    """

    body: ChatBody
    forwarded: dict[str, Any]
    demands: Demands
    session: str | None

    @classmethod
    def parse(cls, content: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """Read body and headers.

        Parameters
        ----------
        content
            The body.
        headers
            Headers by lower-case name. ``x-session-id`` names the conversation; ``x-fairpath-candidates``,
            ``-exclude`` and ``-capabilities`` (names with commas between them), ``-task``, ``-max-cost-usd``
            and ``-max-latency-ms`` are demands, where the body has none of that name.

        Raises
        ------
        ParameterError
            The body is not JSON.
        pydantic.ValidationError
            A field breaks its rule.
        """
        forwarded = _json(content)
        body = ChatBody.model_validate(forwarded)
        in_body = body.fairpath.model_dump(exclude_unset=True) if body.fairpath else {}
        forwarded.pop("fairpath", None)
        session = headers.get("x-session-id")
        if isinstance(metadata := forwarded.get("metadata"), dict):
            named = metadata.pop("session_id", None)
            session = session or (str(named) if named else None)
            if not metadata:
                del forwarded["metadata"]  # OpenAI takes it only together with other options
        return cls(body, forwarded, Demands.model_validate(_demands(headers) | in_body), session)

    @property
    def automatic(self) -> bool:
        """Whether the router is to choose."""
        return self.body.model in AUTOMATIC

    @property
    def text(self) -> str | None:
        """Text of the last message of the user: the query."""
        return next((_text(m) for m in reversed(self.body.messages) if m.role == "user"), None)

    @property
    def capabilities(self) -> frozenset[str]:
        """What an LLM must be able to do to answer this."""
        needed = set(self.demands.capabilities)
        if self.body.tools:
            needed.add("tools")
        if any(_is_image(part) for message in self.body.messages for part in _parts(message)):
            needed.add("vision")
        return frozenset(needed)

    @property
    def prompt_tokens(self) -> int:
        """Estimated length of the prompt."""
        further = self.body.model_extra or {}
        n_bytes = _size(self.body.tools) + sum(_size(further.get(name)) for name in _IN_PROMPT)
        tokens = TOKENS_PER_MESSAGE * len(self.body.messages)
        for message in self.body.messages:
            n_bytes += len((_text(message) or "").encode())
            n_bytes += _size(message.tool_calls) + _size(message.model_extra)
            n_bytes += sum(_size(part) for part in _parts(message) if part.get("type") not in _COUNTED_APART)
            tokens += TOKENS_PER_IMAGE * sum(map(_is_image, _parts(message)))
        return tokens + tokens_of(n_bytes)

    @property
    def max_answer_tokens(self) -> int | None:
        """Longest answer that the caller wants."""
        return self.body.max_completion_tokens or self.body.max_tokens

    @property
    def n_answers(self) -> int:
        """Answers that are written, and paid for, side by side."""
        return max(self.body.n or 1, self.body.best_of or 1)

    @property
    def wants_usage(self) -> bool:
        """Whether the caller asked for the tokens used at the end of a stream."""
        return bool((self.body.stream_options or {}).get("include_usage"))

    @property
    def continued(self) -> bool:
        """Whether an LLM has answered in this conversation before."""
        return any(message.role == "assistant" for message in self.body.messages)

    def session_id(self, key_id: str | None) -> str | None:
        """Identity of the conversation, which no other key or user shares.

        Where the caller gave no name, user and first message stand for it; None where there is neither.
        """
        name = self.session
        if name is None:
            first = next((_text(m) for m in self.body.messages if m.role == "user"), None)
            if not first:
                return None
            name = f"begins with {first}"
        return session_id(key_id, self.body.user, name)


def _size(value: Any) -> int:
    """Bytes of a value as JSON; 0 where there is none."""
    return len(orjson.dumps(value)) if value else 0


def _json(content: bytes) -> Any:
    """Value of a body that can be written again: deeper nesting is read than written."""
    try:
        value = orjson.loads(content)
        orjson.dumps(value)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise ParameterError(f"the body must be JSON ({error})") from None
    return value


def _demands(headers: Mapping[str, str]) -> dict[str, Any]:
    """Demands in headers, as the body would hold them."""
    demands: dict[str, Any] = {}
    for name in Demands.model_fields:
        value = headers.get(f"x-fairpath-{name.replace('_', '-')}")
        if value is not None and name in ("candidates", "exclude", "capabilities"):
            demands[name] = [part for each in value.split(",") if (part := each.strip())]
        elif value is not None:
            demands[name] = value
    return demands


def _parts(message: Message) -> Iterator[dict[str, Any]]:
    if isinstance(message.content, list):
        yield from message.content


def _is_image(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "image_url"


def _text(message: Message) -> str | None:
    """Text of a message, its parts on lines of their own."""
    if isinstance(message.content, str):
        return message.content or None
    texts = [part["text"] for part in _parts(message) if isinstance(part.get("text"), str)]
    return "\n".join(texts) or None
