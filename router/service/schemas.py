"""Bodies of requests and answers, with their rules and examples: what the OpenAPI document shows.

Requests are validated straight from their bytes, once; numbers must be finite. Answers are written by the
routes as plain JSON of these forms, NaN as null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from router.errors import ParameterError
from router.service.serving import Source  # at run time: pydantic reads it

_MAX_NAMES = 1000
MAX_NUMBERS = 16_384
# No control characters: databases do not keep NUL, and none belongs in a name.
Name = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
Names = Annotated[list[Name], Field(max_length=_MAX_NAMES)]
Weight = Annotated[float, Field(gt=0, le=1e9)]
Usd = Annotated[float, Field(ge=0, le=1e9)]
Milliseconds = Annotated[float, Field(ge=0, le=1e9)]
Tokens = Annotated[int, Field(ge=0, le=10**9)]
Interactions = Annotated[dict[Name, Weight], Field(max_length=_MAX_NAMES)]
Attributes = Annotated[dict[Name, str | bool | float], Field(max_length=100)]
Embedding = Annotated[list[float], Field(min_length=1, max_length=MAX_NUMBERS)]
Length = Annotated[int, Field(ge=1, le=1000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"example": fields})


class Constraints(_Body):
    """What an LLM must fulfil to be chosen."""

    max_cost_usd: Usd | None = Field(
        default=None, description="most that this request is expected to cost; leaves out unknown prices"
    )
    max_latency_ms: Milliseconds | None = Field(
        default=None, description="longest expected answer; leaves out LLMs of unknown latency"
    )
    capabilities: Names = Field(default_factory=list, description="what it must be able to do, such as tools")
    prompt_tokens: Tokens = Field(default=0, description="length of the prompt; 0: unknown")
    answer_tokens: Tokens = Field(
        default=0,
        description="room for the longest answer, which the context must have; costs are those of an answer "
        "of usual length, or of this one where it is shorter; 0: unknown",
    )


class RouteRequest(_Body):
    """Question which LLM suits a user and a query."""

    model_config = _example(
        user="ana",
        query="Write a haiku about the sea.",
        constraints={"max_cost_usd": 0.01},
        items=3,
    )

    user: Name | None = Field(default=None, description="whose preferences decide; none: the population's")
    query: Annotated[str, Field(max_length=1_000_000)] | None = Field(
        default=None, description="text of the query"
    )
    embedding: Embedding | None = Field(
        default=None,
        description="the query as a vector of the release's encoder, instead of encoding the text",
    )
    embedding_base64: Annotated[str, Field(max_length=1_000_000)] | None = Field(
        default=None,
        description="the same as base64 of little-endian float32: a third of the bytes, and read at once",
    )
    task: Name | None = Field(
        default=None, description="task of the query; without one, the task nearest to the query is taken"
    )
    candidates: Names | None = Field(default=None, description="LLMs to choose from; none: all")
    exclude: Names = Field(default_factory=list, description="LLMs not to choose")
    constraints: Constraints = Field(default_factory=Constraints, description="what the LLM must fulfil")
    interactions: Interactions | None = Field(
        default=None, description="items and their weights, of a user whom the release does not know"
    )
    attributes: Attributes | None = Field(
        default=None, description="profile of a user whom the release does not know"
    )
    items: Annotated[int, Field(ge=0, le=1000)] = Field(default=0, description="items to recommend as well")
    session_id: Name | None = Field(
        default=None, description="conversation, which keeps its LLM unless another is clearly better"
    )


class RankedLlm(_Answer):
    """One candidate."""

    llm: str
    preference: float = Field(description="probability that the user would choose it among the candidates")
    score: float = Field(description="expected logit of that choice")
    sd: float = Field(description="standard deviation of the score: how little is known")
    quality: float | None = Field(description="expected quality of its answers to such queries, if measured")
    cost_usd: float | None = Field(description="expected cost of this request, if known")
    latency_ms: float | None = Field(description="expected latency, if measured")
    propensity: float = Field(description="probability with which it is chosen in this situation")


class BasedOn(_Answer):
    """What the belief about a user rests on."""

    source: Source = Field(
        description="trained: the release knows the user; feedback: choices since; interactions: items, by "
        "what is near to them; attributes: of the profile; population: nothing is known of the user"
    )
    n_events: int = Field(description="choices since the release that were taken in")
    in_release: bool = Field(description="whether the release knows the user")
    unknown_items: int = Field(
        description="items, of the request or of feedback, that the release does not know"
    )


class RankedItem(_Answer):
    """One item."""

    item: str
    score: float = Field(description="comparable within this answer only")


class SessionState(_Answer):
    """The conversation that a decision belongs to."""

    session_id: str
    kept: bool = Field(description="whether its LLM stayed")


class BudgetState(_Answer):
    """What was left to spend before this request, null where there is no budget."""

    user_left_usd: float | None
    key_left_usd: float | None


class RouteAnswer(_Answer):
    """The choice, and why."""

    model_config = _example(
        decision_id="019ab3c0f1d27c6f8e4b2a90d1e3f5a7",
        release="20261124T180000Z-3f2a9c1b7d60",
        chosen="kind",
        fallbacks=["brief"],
        why="kind is the likeliest choice of 2 candidates (81 %; brief 19 %).",
        models=[
            {
                "llm": "kind",
                "preference": 0.81,
                "score": 1.2,
                "sd": 0.4,
                "quality": None,
                "cost_usd": 0.0021,
                "latency_ms": None,
                "propensity": 1.0,
            },
            {
                "llm": "brief",
                "preference": 0.19,
                "score": -0.25,
                "sd": 0.5,
                "quality": None,
                "cost_usd": 0.001,
                "latency_ms": None,
                "propensity": 0.0,
            },
        ],
        left_out={"luxury": ["costs 0.04 USD (the request's budget is 0.01 USD)"]},
        based_on={"source": "trained", "n_events": 0, "in_release": True, "unknown_items": 0},
        task="poems",
        task_source="nearest",
        items=None,
        session=None,
        budget={"user_left_usd": None, "key_left_usd": None},
    )

    decision_id: str = Field(description="what feedback refers to")
    release: str = Field(description="version of the release that decided")
    chosen: str = Field(description="the LLM to ask")
    fallbacks: list[str] = Field(description="those to ask when it fails, in order")
    why: str = Field(description="facts of this decision, readable")
    models: list[RankedLlm] = Field(description="the candidates, best first")
    left_out: dict[str, list[str]] = Field(description="the other LLMs, with the reasons against each")
    based_on: BasedOn
    task: str | None = Field(description="task that the query was taken for; null: the mean over all")
    task_source: Literal["query", "given", "nearest", "population"] = Field(
        description="query: it is known from training; given: by its name; nearest: to the query; "
        "population: there was neither"
    )
    items: list[RankedItem] | None = Field(description="items, where they were asked for")
    session: SessionState | None
    budget: BudgetState


class RecommendRequest(_Body):
    """Question which items suit a user."""

    model_config = _example(user="ana", k=5, exclude=["item-3"])

    user: Name | None = Field(default=None, description="for whom; none: for whoever has the interactions")
    interactions: Interactions | None = Field(
        default=None, description="items and their weights, beside those that the release knows of the user"
    )
    k: Length = Field(default=10, description="most items in the answer")
    exclude: Names = Field(default_factory=list, description="items not to recommend")
    allowed: Names | None = Field(
        default=None, description="the only items to recommend; none: all. For a user: with the scope read"
    )
    exclude_seen: bool = Field(
        default=True, description="leave out what the user has; false, for a user: with the scope read"
    )


class RecommendAnswer(_Answer):
    """Items, best first."""

    model_config = _example(
        release="20261124T180000Z-3f2a9c1b7d60",
        known_user=True,
        items=[{"item": "item-7", "score": 0.42}, {"item": "item-1", "score": 0.17}],
    )

    release: str
    known_user: bool = Field(description="whether the release knows the user")
    items: list[RankedItem]


class LookalikeRequest(_Body):
    """Question which users are nearest to some."""

    model_config = _example(users=["ana", "ben"], k=5)

    users: Annotated[list[Name], Field(min_length=1, max_length=100)] = Field(description="the segment")
    k: Length = Field(default=10, description="most users in the answer")
    exclude_given: bool = Field(default=True, description="leave the given users out")


class RankedUser(_Answer):
    """One user."""

    user: str
    score: float = Field(description="mean personalised PageRank from the given users")


class LookalikeAnswer(_Answer):
    """Users, nearest first."""

    model_config = _example(release="20261124T180000Z-3f2a9c1b7d60", users=[{"user": "eva", "score": 0.031}])

    release: str
    users: list[RankedUser]


class ErasedAnswer(_Answer):
    """A user is forgotten."""

    model_config = _example(
        requested_at=1764000000.25,
        known=True,
        deleted={"decisions": 12, "feedback": 3, "sessions": 1, "spending": 2, "reservations": 0},
        in_release=True,
        swept=True,
    )

    requested_at: float = Field(description="when, in seconds since 1970; the first time, where asked again")
    known: bool = Field(
        description="whether anything was there of the user, in the store or the release, or an erasure of "
        "before; else the name may be misspelt"
    )
    deleted: dict[str, int] = Field(description="rows deleted, by table of the store")
    in_release: bool = Field(
        description="whether the release that is served still has the user, hidden until the next one is made"
    )
    swept: bool = Field(
        description="whether all is deleted already; else the service goes on with it: there were many "
        "decisions, or somebody reads the store, whose files hold parts of them until then. Nothing of it is "
        "answered or exported meanwhile"
    )


class FeedbackRequest(_Body):
    """What happened: about a decision, or about a user."""

    model_config = _example(
        decision_id="019ab3c0f1d27c6f8e4b2a90d1e3f5a7",
        thumbs=1,
        cost_usd=0.0018,
        latency_ms=840,
        items={"item-7": 1.0},
    )

    decision_id: Name | None = Field(default=None, description="decision that this is about")
    user: Name | None = Field(default=None, description="needed where there is no decision")
    llm: Name | None = Field(default=None, description="LLM used or preferred; none: the decision's")
    thumbs: Literal[-1, 1] | None = Field(default=None, description="1 up, -1 down")
    score: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="one half and more is approval"
    )
    cost_usd: Usd | None = Field(
        default=None,
        description="what the answer cost; at most a hundred times the expected cost is charged to budgets",
    )
    latency_ms: Milliseconds | None = Field(default=None, description="how long it took")
    items: Interactions = Field(
        default_factory=dict, description="items that the user turned to, with weights"
    )
    occurred_at: Annotated[float, Field(ge=0, le=4102444800)] | None = Field(
        default=None, description="when, in seconds since 1970; none: now"
    )

    @model_validator(mode="after")
    def _about_something(self) -> FeedbackRequest:
        if self.decision_id is None and self.user is None:
            raise ParameterError("'decision_id' or 'user' must be given")
        told = (self.llm, self.thumbs, self.score, self.cost_usd, self.latency_ms)
        if all(value is None for value in told) and not self.items:
            raise ParameterError(
                "one of 'llm', 'thumbs', 'score', 'cost_usd', 'latency_ms', 'items' must be given"
            )
        return self


class FeedbackAnswer(_Answer):
    """Receipt: the feedback is on the disk."""

    model_config = _example(feedback_id="019ab3c0f2d27c6f8e4b2a90d1e3f5a7", replayed=False)

    feedback_id: str
    replayed: bool = Field(description="whether the same was accepted before under its idempotency key")


class Health(_Answer):
    """The process lives."""

    status: Literal["ok"]


class Readiness(_Answer):
    """Whether requests can be answered."""

    model_config = _example(ready=True, release="20261124T180000Z-3f2a9c1b7d60", reasons=[])

    ready: bool
    release: str | None
    reasons: list[str] = Field(description="what is missing")


class Switched(_Answer):
    """The release that is served now."""

    model_config = _example(release="20261124T180000Z-3f2a9c1b7d60")

    release: str


class Refused(_Answer):
    """A release that was not switched to."""

    version: str | None
    reason: str


class Releases(_Answer):
    """The releases on disk."""

    model_config = _example(
        serving="20261124T180000Z-3f2a9c1b7d60",
        current="20261124T180000Z-3f2a9c1b7d60",
        previous=None,
        versions=["20261124T180000Z-3f2a9c1b7d60"],
        encoder="hashing (version 1, 256 dimensions)",
        refused=None,
    )

    serving: str | None = Field(description="what this worker serves")
    current: str | None = Field(description="what CURRENT names")
    previous: str | None = Field(description="what a rollback would go to")
    versions: list[str]
    encoder: str | None = Field(description="encoder that query embeddings have to come from")
    refused: Refused | None
