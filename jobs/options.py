"""Options of the command line, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, BadParameter, Option


def _output(path: Path) -> Path:
    if not path.name:
        raise BadParameter("must not be the root of the file system")
    return path


def _parquet(path: Path | None) -> Path | None:
    if path is not None and path.suffix != ".parquet":
        raise BadParameter(f"must end in .parquet (got {path.name!r})")
    return path


TIMES = [
    "%Y-%m-%d",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M:%S%z",
    "%Y-%m-%dT%H:%M:%S.%f",
    "%Y-%m-%dT%H:%M:%S.%f%z",
]
"""Forms of a time."""

GraphPath = Annotated[Path, Argument(metavar="GRAPH", help="Graph store.")]
GraphUrl = Annotated[str, Argument(metavar="GRAPH", help="Graph store: a path, or a URL such as s3://...")]
FingerprintsPath = Annotated[Path, Argument(metavar="FINGERPRINTS", help="Fingerprint store.")]
StorePath = Annotated[Path, Argument(metavar="STORE", help="Graph store, fingerprint store or bundle.")]
StorePaths = Annotated[list[Path], Argument(metavar="FINGERPRINTS...", help="Stores of disjoint sources.")]
InputPaths = Annotated[list[Path], Argument(metavar="INPUT...", help="CSV, TSV (also .gz), Parquet or npz.")]
OutPath = Annotated[
    Path,
    Option("--out", "-o", resolve_path=True, callback=_output, help="Where the result is written."),
]
ExportOut = Annotated[
    Path, Option("--out", "-o", resolve_path=True, callback=_parquet, help="Parquet file to write.")
]

Config = Annotated[list[Path] | None, Option(help="TOML overlay file; repeatable, later ones win.")]
Assign = Annotated[
    list[str] | None, Option("--set", metavar="SECTION.KEY=VALUE", help="A setting; repeatable.")
]
DryRun = Annotated[bool, Option("--dry-run", help="Print the resolved configuration and stop.")]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"] | None, Option(help="Lowest level logged.")]
LogFormat = Annotated[Literal["text", "json"] | None, Option(help="Form of the log lines.")]

PreviousGraph = Annotated[
    Path | None, Option("--previous", help="Graph store that this one comes after: its nodes keep their ids.")
]
BuildEngine = Annotated[Literal["local", "spark"] | None, Option("--engine", help="What builds.")]
Nodes = Annotated[Path | None, Option(help="Table of nodes (key[, kind]): isolated ones are kept too.")]
Src = Annotated[str | None, Option(help="Column of the source or user, by name or position from 0.")]
Dst = Annotated[str | None, Option(help="Column of the destination or item, by name or position.")]
Weight = Annotated[str | None, Option(help="Column of the weight, by name or position.")]
Delimiter = Annotated[str | None, Option(help="Delimiter of text files; default: looked for.")]
Header = Annotated[
    bool | None,
    Option("--header/--no-header", help="Text files begin with a line of column names; default: looked for."),
]
SrcKind = Annotated[str | None, Option(help="Kind of the source nodes.")]
DstKind = Annotated[str | None, Option(help="Kind of the destination nodes.")]
Directed = Annotated[bool | None, Option("--directed/--undirected", help="Edges have a direction.")]

Sources = Annotated[Path | None, Option(help="File of source keys, one a line; default: all nodes.")]
SourceKind = Annotated[str | None, Option(help="Kind of the sources.")]
Engine = Annotated[Literal["local", "spark", "dask"] | None, Option(help="What computes.")]
DemoEngine = Annotated[Literal["local", "spark"] | None, Option("--engine", help="What computes.")]
Master = Annotated[str | None, Option(help="Spark master URL, for the Spark engine.")]
Remote = Annotated[
    str | None,
    Option(
        metavar="sc://HOST:PORT",
        help="Spark Connect server to compute on, such as one of 'spark-server'. It takes "
        "SPARK_CONNECT_AUTHENTICATE_TOKEN from the environment, and the user from ';user_id=' or the system.",
    ),
]
Scheduler = Annotated[
    str | None,
    Option(
        metavar="tcp://HOST:PORT",
        help="Scheduler of a Dask cluster, for the Dask engine; default: a cluster within this process.",
    ),
]
Threads = Annotated[int | None, Option(help="Threads of the local engine, or of a Dask cluster within it.")]
Partitioned = Annotated[
    Literal["auto", "always", "never"] | None,
    Option(help="Cut the graph into parts; auto: where it exceeds the workers' memory."),
]
WorkerMemory = Annotated[
    str | None,
    Option(
        metavar="BYTES",
        help="Graph and messages that a worker may hold, such as 2GB or 512MiB; default: asked.",
    ),
]
NWalks = Annotated[int | None, Option(help="Walks per source.")]
RestartProb = Annotated[float | None, Option(help="Probability that a walk stops at each step.")]
TopK = Annotated[str | None, Option(metavar="INTEGER|none", help="Entries kept per row.")]
MaxSteps = Annotated[str | None, Option(metavar="INTEGER|none", help="Longest walk in moves.")]
Seed = Annotated[int | None, Option(help="Seed of all draws.")]
TargetKinds = Annotated[
    list[str] | None, Option("--target-kind", help="Kind that rows may hold; repeatable.")
]
ExcludeNeighbors = Annotated[
    bool | None,
    Option("--exclude-neighbors/--include-neighbors", help="Leave a source's own neighbours out of its row."),
]

K = Annotated[int | None, Option("-k", help="Length of the answer.")]
Steps = Annotated[int | None, Option(help="Steps composed before the stored rows are used.")]
QueryKey = Annotated[str | None, Argument(metavar="[KEY]", help="Key of the node asked about.")]
FingerprintsOption = Annotated[Path | None, Option("--fingerprints", "-f", help="Fingerprint store.")]
Kind = Annotated[str | None, Option(help="Kind of the node.")]
Edge = Annotated[list[str] | None, Option(metavar="KEY[:WEIGHT]", help="Edge of a new node; repeatable.")]
EdgesFile = Annotated[Path | None, Option(help="CSV file (key[,weight]) of a new node's edges.")]
EdgeKind = Annotated[str | None, Option(help="Kind of the nodes that the edges lead to.")]
Exact = Annotated[bool, Option("--exact", help="Solve exactly, without fingerprints; for small graphs.")]

Users = Annotated[list[str] | None, Option("--user", help="Key of a user; repeatable. Default: all users.")]
UsersFile = Annotated[Path | None, Option("--users", help="File of user keys, one a line.")]
ParquetOut = Annotated[
    Path | None,
    Option(
        "--out", "-o", resolve_path=True, callback=_parquet, help="Parquet file; default: JSON on stdout."
    ),
]
Kinds = Annotated[list[str] | None, Option("--kind", help="Kind recommended; repeatable.")]
UserKind = Annotated[str | None, Option(help="Kind of the users.")]
PopularityDiscount = Annotated[float | None, Option(help="Scores are divided by degree to this power.")]
ExcludeSeen = Annotated[
    bool | None, Option("--exclude-seen/--include-seen", help="Leave out what a user has already.")
]

Test = Annotated[
    Path | None,
    Option(help="Held-out interactions: CSV or Parquet (user, item), or .txt 'user item item ...'."),
]
ExactSample = Annotated[int | None, Option(help="Sources compared with the exact solver.")]

EventsPath = Annotated[Path, Argument(metavar="EVENTS", help="Events (user, query, llm): CSV or Parquet.")]
LlmsPath = Annotated[Path, Argument(metavar="LLMS", help="The LLMs (llm, prices, ...): CSV or Parquet.")]
GraphOption = Annotated[Path | None, Option("--graph", help="Graph store of users and items.")]
QueriesFile = Annotated[
    Path | None, Option("--queries", help="Queries (id, text or embedding, task): CSV or Parquet.")
]
AnswersFile = Annotated[
    Path | None, Option("--answers", help="Measured answers (query, llm, numbers): CSV or Parquet.")
]
ProfilesFile = Annotated[Path | None, Option("--users", help="Users and their attributes: CSV or Parquet.")]
Encoder = Annotated[
    Literal["auto", "hashing", "all-MiniLM-L6-v2-int8"] | None, Option(help="Encoder of texts.")
]
ItemTraining = Annotated[
    Literal["closed-forms", "joint"] | None,
    Option("--items", help="Rank items by closed forms, or also by vectors trained with the tastes."),
]
Device = Annotated[str | None, Option(help="auto (the GPU where there is one), cpu or cuda.")]
TrainingSteps = Annotated[int | None, Option("--steps", help="Steps of the optimiser.")]
Factors = Annotated[int | None, Option("--factors", help="Factors of users, queries and LLMs.")]
Tastes = Annotated[int | None, Option("--tastes", help="Tastes that users are drawn from.")]
HeldOut = Annotated[float | None, Option(help="Share of the choices that the training is judged by.")]
Report = Annotated[
    Path | None, Option(resolve_path=True, help="HTML page of the training; default: beside the bundle.")
]

BundleOption = Annotated[Path | None, Option("--bundle", help="Bundle to evaluate.")]
EventsOption = Annotated[Path | None, Option("--events", help="Events (user, query, llm): CSV or Parquet.")]
HistoryFile = Annotated[
    Path | None, Option("--history", help="Events that the bundle was trained on, for the baselines.")
]
HeldOutShare = Annotated[
    float | None,
    Option(help="Instead: share of each user's last events that is judged, the rest is history."),
]
Benchmark = Annotated[Literal["persona-sim"] | None, Option(help="Benchmark on simulated users.")]
BenchmarkData = Annotated[Path | None, Option("--data", help="Folder of the benchmark's data.")]
Strength = Annotated[
    Literal["mild", "medium", "strong"] | None, Option(help="How much the simulated users differ.")
]
UserSeeds = Annotated[list[int] | None, Option("--seeds", help="Seed of users; repeatable.")]
Tracks = Annotated[list[str] | None, Option("--tracks", help="choice-only or telemetry; repeatable.")]
Protocols = Annotated[
    list[str] | None,
    Option("--protocols", help="warm, new-users or new-llm (minutes); repeatable; default: the first two."),
]
EvaluationReport = Annotated[Path | None, Option("--report", resolve_path=True, help="HTML page to write.")]

DemoOut = Annotated[Path, Option("--out", "-o", help="Folder of the results.")]
Interactions = Annotated[Path | None, Option(help="Your own interactions instead of the example.")]
LlmsOption = Annotated[Path | None, Option("--llms", help="The LLMs of those events: CSV or Parquet.")]
DemoUsers = Annotated[int | None, Option("--users", help="Users of the example.")]
DemoItems = Annotated[int | None, Option("--items", help="Items of the example.")]
DemoInteractions = Annotated[int | None, Option("--n-interactions", help="Interactions of the example.")]
AsJson = Annotated[bool, Option("--json", help="Print the results as JSON, lines for people on stderr.")]

ConnectHost = Annotated[str | None, Option("--host", help="Address that Spark Connect listens on.")]
ConnectPort = Annotated[int | None, Option("--port", help="Port of Spark Connect; 0 for any free one.")]
StatusHost = Annotated[str | None, Option(help="Address of the status page.")]
StatusPort = Annotated[int | None, Option(help="Port of the status page; 0 for any free one.")]
Policy = Annotated[Literal["uwfq", "cfq"] | None, Option(help="How users take turns.")]

ReleasesPath = Annotated[
    Path, Argument(metavar="RELEASES", help="Folder of releases, as 'publish' makes it.")
]
ServeHost = Annotated[str | None, Option("--host", help="Address that the service listens on.")]
ServePort = Annotated[int | None, Option("--port", help="Port of the service; 0 for any free one.")]
Workers = Annotated[int | None, Option("--workers", help="Processes that share the release.")]
StoreOption = Annotated[
    str | None,
    Option("--store", metavar="URL", help="Feedback store: sqlite:///... or postgresql+psycopg://..."),
]
Auth = Annotated[
    Literal["auto", "required", "off"] | None,
    Option(
        help="Whether requests need an API key; auto: unless only this machine can ask, and none is made."
    ),
]
StandIn = Annotated[
    bool | None,
    Option("--stand-in", help="Answer chats with a note that names the model, asking nobody: to try it out."),
]
OpenApiOut = Annotated[
    Path | None, Option("--out", "-o", resolve_path=True, help="File to write; default: standard output.")
]

ForGraph = Annotated[Path | None, Option("--graph", help="Graph that the fingerprints must belong to.")]
Version = Annotated[bool, Option("--version", help="Print the version and stop.")]
