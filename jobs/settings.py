"""Settings of the commands: frozen models with their defaults. :mod:`jobs.settings_layers` fills them.

Nothing is read when this module is imported, nor when :class:`Settings` is constructed. Everywhere the word
``none`` stands for "no value" where a setting may have none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    ForceDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from jobs.errors import ConfigurationError
from jobs.fairqueue.errors import require_positive
from jobs.fairqueue.tasks import ADVISORY_TASK_RUN_TIME_S
from jobs.pipeline.rules import check_may_lack, check_wait_for
from ppr.params import FingerprintParams
from router.service.settings import ServeSettings

ENV_PREFIX = "FAIRPATH_"


def _none_word(value: object) -> object:
    return None if isinstance(value, str) and value.lower() == "none" else value


def _column(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else _none_word(value)


def _split_words(value: object) -> object:
    return tuple(word for word in re.split(r"[,\s]+", value) if word) if isinstance(value, str) else value


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


_NoneWord = BeforeValidator(_none_word)
Words = Annotated[tuple[str, ...], BeforeValidator(_split_words)]
Places = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
OptionalInt = Annotated[int | None, _NoneWord]
OptionalStr = Annotated[str | None, _NoneWord]
OptionalBool = Annotated[bool | None, _NoneWord]
OptionalPath = Annotated[Path | None, _NoneWord]
OptionalSecret = Annotated[SecretStr | None, _NoneWord]
Column = Annotated[int | str | None, BeforeValidator(_column)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
OptionalFloat = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, _NoneWord]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GraphSettings(_Section):
    """How ``build-graph`` reads its inputs. Columns are given by name or, from 0, by position."""

    engine: Literal["local", "spark"] = Field(
        default="local", description="this process, or Spark for what one machine cannot sort"
    )
    src: Column = Field(default=None, description="column of the source or user; none looks for usual names")
    dst: Column = Field(default=None, description="column of the destination or item")
    weight: Column = Field(default=None, description="column of the edge weight")
    weighted: bool = Field(default=True, description="use weights, if there are any")
    src_kind: OptionalStr = Field(default=None, description="node kind of the source column")
    dst_kind: OptionalStr = Field(default=None, description="node kind of the destination column")
    directed: OptionalBool = Field(
        default=None, description="none: yes between nodes of one kind, no between two"
    )
    delimiter: OptionalStr = Field(default=None, description="delimiter of text files; none looks")
    header: OptionalBool = Field(
        default=None, description="whether text files begin with a header; none looks"
    )
    self_loops: Literal["drop", "keep"] = Field(
        default="drop", description="what becomes of an edge to its own source"
    )
    key_type: Literal["auto", "int64", "string"] = Field(default="auto", description="type of the node keys")


class FingerprintSettings(_Section):
    """What ``fingerprints`` computes, and on which engine."""

    engine: Literal["local", "spark", "dask"] = Field(
        default="local", description="threads of this process, Spark, or Dask"
    )
    threads: Annotated[PositiveInt | None, _NoneWord] = Field(
        default=None, description="threads of the local engine, or of a Dask cluster within this process"
    )
    partitioned: Literal["auto", "always", "never"] = Field(
        default="auto", description="cut the graph into parts; auto: where it exceeds the workers' memory"
    )
    worker_memory: Annotated[ByteSize | None, _NoneWord] = Field(
        default=None,
        description="bytes (or 2GB, 512MiB) of graph and messages that a worker may hold; none: a share of "
        "its machine's",
    )
    restart_prob: float = Field(default=0.15, description="probability that a walk stops at each step")
    n_walks: int = Field(default=3000, description="walks per source")
    top_k: OptionalInt = Field(default=200, description="entries kept per row, or none for all")
    seed: int = Field(default=0, description="seed of all draws")
    max_steps: OptionalInt = Field(default=None, description="longest walk in moves, or none")
    target_kinds: Words = Field(default=(), description="node kinds that a row may hold; empty for all")
    exclude_neighbors: bool = Field(
        default=False, description="leave a source and its own neighbours out of its row"
    )

    @field_validator("restart_prob", "n_walks", "top_k", "seed", "max_steps")
    @classmethod
    def _keeps_its_rule(cls, value: Any, info: Any) -> Any:
        FingerprintParams(**{info.field_name: value})  # the rules are written there, once
        return value

    @field_validator("worker_memory")
    @classmethod
    def _holds_messages(cls, value: ByteSize | None) -> ByteSize | None:
        if value is not None:
            from ppr.partitioned.choice import check_worker_memory  # with kernels: only where it is asked

            check_worker_memory(value)
        return value

    def params(self) -> FingerprintParams:
        """Parameters of the run, as ``ppr`` takes them."""
        of_the_engine = {"engine", "threads", "partitioned", "worker_memory"}
        return FingerprintParams(**self.model_dump(exclude=of_the_engine))


class RefreshSettings(_Section):
    """What ``refresh`` keeps."""

    tolerance: Annotated[float, Field(ge=0, lt=2)] = Field(
        default=0.05,
        description="how far (L1) a row's true fingerprint may move before it is computed anew; 0: all are",
    )


class SparkSettings(_Section):
    """The Spark session."""

    master: OptionalStr = Field(
        default=None, description="master URL; none: that of spark-submit, else local[*]"
    )
    remote: OptionalStr = Field(default=None, description="Spark Connect URL, instead of a master")
    app_name: str = Field(default="fairpath", description="name shown by Spark")
    cache_dir: OptionalStr = Field(
        default=None, description="where a machine keeps its copy of a graph given by URL"
    )
    conf: Annotated[dict[str, str], ForceDecode] = Field(default={}, description="further Spark properties")


class DaskSettings(_Section):
    """The Dask cluster."""

    scheduler: OptionalStr = Field(
        default=None,
        description="address of the scheduler, such as tcp://host:8786; none: a cluster within this process",
    )
    timeout_s: PositiveFloat = Field(
        default=30.0,
        description="how long the scheduler may take to answer, and all workers be lost or paused",
    )


class QuerySettings(_Section):
    """How ``query`` answers."""

    k: PositiveInt = Field(default=10, description="nodes returned")
    steps: Annotated[int, Field(ge=0)] = Field(
        default=2, description="steps composed before the stored rows are used"
    )
    epsilon: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=1e-5, description="mass per edge below which a node is answered from its stored row"
    )


class RecommendSettings(_Section):
    """How ``recommend`` ranks."""

    k: PositiveInt = Field(default=20, description="items per user")
    user_kind: str = Field(default="user", description="kind of the nodes that get recommendations")
    kinds: Words = Field(default=("item",), description="kinds of the nodes recommended")
    exclude_seen: bool = Field(default=True, description="leave out what the user has already")
    popularity_discount: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="scores are divided by the item's degree to this power"
    )
    steps: Annotated[int, Field(ge=0)] = Field(
        default=2, description="steps composed, where the rows can be composed"
    )


class EvaluateSettings(_Section):
    """What ``evaluate`` measures."""

    exact_sample: Annotated[int, Field(ge=0)] = Field(
        default=0, description="sources compared with the exact solver"
    )
    seed: int = Field(default=0, description="seed of the sample")


class RouterSettings(_Section):
    """How ``train-router`` reads its files and trains."""

    encoder: Literal["auto", "hashing", "all-MiniLM-L6-v2-int8"] = Field(
        default="auto", description="encoder of texts; auto takes MiniLM where it is installed, else hashing"
    )
    device: str = Field(default="auto", description="auto (the GPU where there is one), cpu, cuda")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of everything drawn")
    n_factors: PositiveInt | None = Field(
        default=None, description="factors of users, queries and LLMs; by default 12, 16 with answers"
    )
    n_tastes: PositiveInt = Field(default=16, description="tastes that users are drawn from")
    n_steps: PositiveInt | None = Field(
        default=None, description="steps of the optimiser; by default 800, 500 with answers"
    )
    learning_rate: PositiveFloat = Field(default=0.03, description="in the first half of the steps")
    threads: PositiveInt = Field(
        default=1, description="threads of the training on the CPU; results are equal where it is"
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of the choices that the training is judged by"
    )
    items: Literal["closed-forms", "joint"] = Field(
        default="closed-forms",
        description="how items are ranked: by closed forms, or also by vectors trained with the tastes",
    )
    top_k: PositiveInt = Field(default=50, description="near users, and items, kept of each fingerprint")
    checkpoint_every: PositiveInt = Field(default=100, description="steps between two checkpoints")
    stream_bytes: PositiveInt = Field(
        default=2 << 30, description="size of the events from which Dask spreads the reading over threads"
    )


class DemoSettings(_Section):
    """The built-in example."""

    engine: Literal["local", "spark"] = Field(default="spark", description="what computes")
    users: PositiveInt = Field(default=2000, description="users of the generated market")
    items: PositiveInt = Field(default=1500, description="items of the generated market")
    interactions: PositiveInt = Field(default=60_000, description="interactions of the generated market")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the market and of the draws")


class PipelineSettings(_Section):
    """What ``pipeline`` reads, and where its results go."""

    work: Path = Field(default=Path("pipeline"), description="folder of the steps' outputs and of the runs")
    releases: Path = Field(default=Path("releases"), description="folder of the releases")
    interactions: Places = Field(
        default=(), description="deliveries of interactions (user, item): files, folders or patterns"
    )
    choices: Places = Field(
        default=(), description="deliveries of choices of LLMs (user, query, llm), as train-router reads them"
    )
    llms: OptionalPath = Field(default=None, description="table of the LLMs; needed where there are choices")
    queries: OptionalPath = Field(default=None, description="table of the queries, or none")
    users: OptionalPath = Field(default=None, description="table of the users' attributes, or none")
    store: OptionalStr = Field(
        default=None, description="URL of the service's store: its feedback takes part; or none"
    )
    erased: OptionalPath = Field(
        default=None, description="text file of users to leave out, one a line, or none"
    )
    may_lack: Annotated[Words, AfterValidator(check_may_lack)] = Field(
        default=(), description="columns that a delivery may lack though others of its kind have them"
    )
    wait_for: Annotated[Places, AfterValidator(check_wait_for)] = Field(
        default=(),
        description="patterns, '{date}' for the last day of the interval, that must be there to be ready",
    )
    held_out_users: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of the users that releases are judged by"
    )
    held_out_events: Annotated[int, Field(ge=0)] = Field(
        default=3, description="last events of each of them that are held out, half of them at most"
    )
    keep_runs: PositiveInt = Field(default=3, description="runs whose outputs are kept")
    max_removed: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.2, description="share of removed nodes in a graph beyond which the next one begins anew"
    )
    notify_url: OptionalSecret = Field(
        default=None, description="URL that is told the result of each run, or none"
    )


class FairQueueSettings(_Section):
    """How the users of a shared application take turns."""

    policy: Literal["uwfq", "cfq"] = Field(
        default="uwfq", description="uwfq: fair between users, then short jobs first; cfq: users do not count"
    )
    weights: Annotated[dict[str, float], ForceDecode] = Field(
        default={}, description="weight by user; twice the weight is twice the share"
    )
    default_weight: PositiveFloat = Field(default=1.0, description="weight of a user not named in weights")
    default_user: str = Field(default="default", min_length=1, description="user of jobs that name none")
    grace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=2.0, description="pause after which a user's job counts as a new one"
    )
    advisory_task_run_time_s: PositiveFloat = Field(
        default=ADVISORY_TASK_RUN_TIME_S,
        description="longest that a task should run; an unknown job counts as that much per task",
    )
    estimates: OptionalPath = Field(
        default=None, description="file that keeps the learned costs over restarts; none forgets them"
    )
    poll_s: PositiveFloat = Field(default=0.5, description="how often what Spark has done is read")

    @field_validator("weights")
    @classmethod
    def _positive(cls, weights: dict[str, float]) -> dict[str, float]:
        for user, weight in weights.items():
            if not user.strip():
                raise ConfigurationError(f"a user in 'weights' must have a name (got {user!r})")
            require_positive(f"'weight' of user {user!r}", weight)
        return weights


class ServerSettings(_Section):
    """The shared application: Spark Connect, and its status page."""

    host: str = Field(default="localhost", description="address that Spark Connect listens on")
    port: Port = Field(default=15002, description="port of Spark Connect; 0 for any free one")
    status_host: str = Field(default="localhost", description="address of the status page")
    status_port: Port = Field(default=15003, description="port of the status page; 0 for any free one")
    token: OptionalSecret = Field(
        default=None, description="token that clients must show; none takes SPARK_CONNECT_AUTHENTICATE_TOKEN"
    )
    allow_unauthenticated: bool = Field(
        default=False, description="let other machines in without a token: they run code as this user"
    )
    stop_timeout_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=30.0, description="longest wait for running operations at a stop"
    )
    session_timeout_s: PositiveInt = Field(
        default=3600, description="idle time after which a client's session is closed"
    )
    max_message_bytes: PositiveInt = Field(default=128 << 20, description="largest message from a client")
    max_result_bytes: PositiveInt = Field(
        default=1 << 30, description="largest result of one action, over all its tasks"
    )
    history_s: PositiveInt = Field(default=300, description="how far back the picture of the slots reaches")
    refresh_s: PositiveInt = Field(default=5, description="how often the status page refreshes itself")


class GateSettings(_Section):
    """The rule by which a candidate is published or not; :mod:`jobs.pipeline.gate` says how it is applied."""

    min_users: Annotated[int, Field(ge=0)] = Field(
        default=20,
        description="users with held-out rows that a comparison needs, of choices and of items each",
    )
    too_few: Literal["refuse", "publish"] = Field(
        default="refuse",
        description="what becomes of a candidate that too few users judge, unless it is the first",
    )
    log_likelihood_tolerance: Tolerance = Field(
        default=0.01, description="nats per choice that a candidate may lose against the current release"
    )
    accuracy_tolerance: Tolerance = Field(
        default=0.01, description="share of choices foreseen that it may lose"
    )
    ndcg_tolerance: Tolerance = Field(default=0.005, description="NDCG of the items that it may lose")
    recall_tolerance: Tolerance = Field(default=0.01, description="recall of the items that it may lose")
    log_likelihood_floor: OptionalFloat = Field(
        default=None, description="lowest log-likelihood in nats per choice (below 0), or none"
    )
    accuracy_floor: OptionalFloat = Field(
        default=None, description="lowest share of choices foreseen, or none"
    )
    ndcg_floor: OptionalFloat = Field(default=None, description="lowest NDCG of the items, or none")
    recall_floor: OptionalFloat = Field(default=None, description="lowest recall of the items, or none")
    popularity_floor: bool = Field(
        default=True, description="refuse what is worse than always the most popular, beyond chance"
    )
    collapse: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5,
        description="refuse if users, items or rows fell below this share of the last run's; 0 never",
    )


class LogSettings(_Section):
    """Logs, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level shown"
    )
    format: Literal["text", "json"] = Field(default="text", description="lines for people or for machines")


class Settings(BaseSettings):
    """All settings. Constructing it reads nothing; :func:`~jobs.settings_layers.load_settings` does."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", enable_decoding=False
    )

    graph: GraphSettings = GraphSettings()
    fingerprints: FingerprintSettings = FingerprintSettings()
    refresh: RefreshSettings = RefreshSettings()
    spark: SparkSettings = SparkSettings()
    dask: DaskSettings = DaskSettings()
    query: QuerySettings = QuerySettings()
    recommend: RecommendSettings = RecommendSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    router: RouterSettings = RouterSettings()
    demo: DemoSettings = DemoSettings()
    pipeline: PipelineSettings = PipelineSettings()
    fairqueue: FairQueueSettings = FairQueueSettings()
    server: ServerSettings = ServerSettings()
    serve: ServeSettings = ServeSettings()
    gate: GateSettings = GateSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed: :mod:`jobs.settings_layers` merges the layers and knows their names."""
        return (init_settings,)
