"""Built-in example data: a seeded, believable market of users, items and language models.

Nothing here is a record of real people. Every quantity that a recommender or a router should find again is
planted and kept beside the data as *truth*:

* a user belongs to an archetype, and has a taste drawn from a Dirichlet around that archetype's categories;
* an interaction draws a category from the taste, then an item from the category's Zipf popularity, so that
  ``P(item | user) = taste[user, category(item)] * popularity[item]``;
* activity per user is log-normal, so a few users make much of the traffic;
* a user has a persona that weighs the models' quality, price, speed and tone, and chooses the model with the
  largest ``utility + Gumbel noise``, which makes the choices a softmax of the planted utility.

The market is a pure function of ``(seed, sizes)``. Interactions, users and model choices draw from separate
random streams, so that asking for more of one does not change the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from jobs import demo_words as words
from ppr.errors import ParameterError
from ppr.manifest import (
    check_files,
    describe_files,
    finished,
    new_store,
    read_manifest,
    write_manifest,
)

FORMAT = "fairpath-market"
VERSION = 3

FIRST_DAY = np.datetime64("2025-01-06T00:00:00", "s")
N_DAYS = 180
MIN_INTERACTIONS = 3  # per user: enough to split and to recommend from
ACTIVITY_SIGMA = 1.0  # of the log-normal activity
POPULARITY_EXPONENT = 0.8  # Zipf exponent of the items within a category
ARCHETYPE_FOCUS = 0.15  # Dirichlet concentration per category of an archetype's taste: a few categories each
TASTE_CONCENTRATION = 12.0  # how closely a user's taste follows the archetype's
EVENT_WEIGHTS = np.array([1.0, 2.0, 3.0, 5.0])  # view, favourite, basket, purchase
CHOICE_TEMPERATURE = 0.8  # scale of the Gumbel noise in the choice of a model
PERSONA_FOLLOWS_TASTE = 0.7  # probability that a user's persona is the archetype's, else it is any
TABLES = ("interactions", "items", "users", "llms", "llm_choices")
DELIVERIES, INTERACTIONS, CHOICES = "deliveries", "interactions", "choices"
TRUTH_FILE = "truth.npz"

_STREAMS = {"items": 1, "users": 2, "interactions": 3, "choices": 4}

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSizes:
    """How large the market is.

    Parameters
    ----------
    n_users, n_items
        Users and items; every category holds at least one item.
    n_interactions
        User-item events in all, at least three per user.
    n_choices
        Choices of a language model in all, at least one per user; None takes eight per user.
    """

    n_users: int = 2000
    n_items: int = 1500
    n_interactions: int = 60_000
    n_choices: int | None = None

    def __post_init__(self) -> None:
        if self.n_choices is None:
            object.__setattr__(self, "n_choices", 8 * self.n_users)
        least = {
            "n_users": 1,
            "n_items": len(words.CATEGORIES),
            "n_interactions": MIN_INTERACTIONS * self.n_users,
            "n_choices": self.n_users,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value < bound:
                raise ParameterError(f"'{name}' must be at least {bound} (got {value})")


@dataclass(frozen=True, slots=True)
class Market:
    """The tables that a job may read, and the planted truth that only an evaluation may read.

    ``truth`` holds the names along the axes (``users``, ``items``, ``categories``, ``tasks``, ``llms``) and
    beside them ``archetype [n_users]``, ``persona [n_users]``, ``taste [n_users, n_categories]`` (rows sum
    to 1), ``item_category [n_items]``, ``popularity [n_items]`` (sums to 1 within a category) and
    ``llm_utility [n_users, n_tasks, n_llms]``.
    """

    interactions: pa.Table
    items: pa.Table
    users: pa.Table
    llms: pa.Table
    llm_choices: pa.Table
    truth: dict[str, npt.NDArray[Any]]

    def tables(self) -> dict[str, pa.Table]:
        """Tables by the stem of their file."""
        return {name: getattr(self, name) for name in TABLES}


def make_market(seed: int = 0, sizes: MarketSizes | None = None) -> Market:
    """Generate the market; equal arguments give equal content.

    Parameters
    ----------
    seed
        Non-negative seed of all draws.
    sizes
        Sizes of the market, by default :class:`MarketSizes`'s own.

    Raises
    ------
    ParameterError
        ``seed`` is negative.
    """
    if seed < 0:
        raise ParameterError(f"'seed' must not be negative (got {seed})")
    sizes = sizes or MarketSizes()
    rng = {name: np.random.default_rng(np.random.SeedSequence([seed, i])) for name, i in _STREAMS.items()}
    item_keys, item_category, popularity = _items(rng["items"], sizes.n_items)
    user_keys = _numbered("user", sizes.n_users)
    archetype, taste, persona, joined_day = _users(rng["users"], sizes.n_users)
    utility = _llm_utility(rng["users"], persona)
    truth: dict[str, npt.NDArray[Any]] = {
        "users": user_keys,
        "items": item_keys,
        "categories": np.array(list(words.CATEGORIES)),
        "tasks": np.array(list(words.TASKS)),
        "llms": np.array([llm.name for llm in words.LLMS]),
        "archetype": archetype,
        "persona": persona,
        "taste": taste,
        "item_category": item_category,
        "popularity": popularity,
        "llm_utility": utility,
    }
    return Market(
        interactions=_interactions(rng["interactions"], sizes.n_interactions, joined_day, truth),
        items=pa.table({"item": item_keys, "category": truth["categories"][item_category]}),
        users=pa.table({"user": user_keys, "joined": _timestamps(joined_day * 86_400)}),
        llms=_llm_table(),
        llm_choices=_llm_choices(rng["choices"], sizes.n_choices or 8 * sizes.n_users, joined_day, truth),
        truth=truth,
    )


def write_market(out: Path, seed: int = 0, sizes: MarketSizes | None = None) -> Path:
    """Generate the market into folder ``out``: one Parquet file per table, ``truth.npz``, ``manifest.json``.

    Below ``deliveries/`` the interactions and the choices lie once more, in a file for each month, named by
    its last day: what a pipeline would be given from month to month.

    Does nothing where ``out`` already holds the same market.

    Raises
    ------
    OutputExistsError
        ``out`` is something else.
    ResourceError
        ``out`` cannot be written.
    """
    sizes = sizes or MarketSizes()
    identity = {"format": FORMAT, "version": VERSION, "parameters": {"seed": seed, **asdict(sizes)}}
    if finished(out, identity) is not None:
        return out
    market = make_market(seed, sizes)
    with new_store(out) as folder:
        for name, table in market.tables().items():
            pq.write_table(table, folder / f"{name}.parquet")
        for name, table in ((INTERACTIONS, market.interactions), (CHOICES, market.llm_choices)):
            _write_months(folder / DELIVERIES / name, table)
        np.savez_compressed(folder / TRUTH_FILE, **market.truth)  # type: ignore[arg-type]  # numpy's stub
        files = describe_files(folder)
        write_manifest(
            folder,
            {
                **identity,
                "parents": {},
                "counts": {name: table.num_rows for name, table in market.tables().items()},
                "files": files,
                "checksum": _checksum(files),
            },
        )
    return out


def read_market(folder: Path) -> Market:
    """Read a market that :func:`write_market` wrote.

    Raises
    ------
    MissingDataError
        There is no market in ``folder``.
    StoreError
        The market is damaged or of another version.
    """
    check_files(folder, read_manifest(folder, format_name=FORMAT, version=VERSION), verify=True)
    with np.load(folder / TRUTH_FILE, allow_pickle=False) as stored:
        truth = dict(stored)
    return Market(truth=truth, **{name: pq.read_table(folder / f"{name}.parquet") for name in TABLES})


def expected_shares(truth: Mapping[str, npt.NDArray[Any]]) -> FloatArray:
    """Planted probability of each item in a user's next event, ``[n_users, n_items]``, rows sum to 1."""
    shares: FloatArray = truth["taste"][:, truth["item_category"]] * truth["popularity"]
    return shares


def choice_probabilities(utility: FloatArray) -> FloatArray:
    """Planted probability of each model, softmax of ``utility / temperature`` over the last axis."""
    scaled = utility / CHOICE_TEMPERATURE
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: FloatArray = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities


def _write_months(folder: Path, table: pa.Table) -> None:
    """Write a file of the rows of each month, named by the month's last day."""
    folder.mkdir(parents=True)
    months = table["timestamp"].to_numpy().astype("datetime64[M]")
    for month in np.arange(months.min(), months.max() + 1):
        last_day = (month + 1).astype("datetime64[D]") - 1
        pq.write_table(table.filter(pa.array(months == month)), folder / f"{last_day}.parquet")


def _checksum(files: dict[str, dict[str, Any]]) -> str:
    """Digest of the files' own digests: the writer is deterministic, so equal content gives equal files."""
    return hashlib.sha256("".join(f["sha256"] for f in files.values()).encode()).hexdigest()


def _numbered(stem: str, count: int) -> npt.NDArray[np.str_]:
    """Keys ``stem-0000`` … with as many digits as the largest needs."""
    digits = max(4, len(str(count - 1)))
    return np.array([f"{stem}-{i:0{digits}d}" for i in range(count)])


def _items(rng: np.random.Generator, n_items: int) -> tuple[npt.NDArray[np.str_], IntArray, FloatArray]:
    """Keys, category and within-category popularity of the items; every category has one item at least."""
    n_categories = len(words.CATEGORIES)
    share = rng.dirichlet(np.full(n_categories, 8.0))
    extra = rng.choice(n_categories, size=n_items - n_categories, p=share)
    category = np.sort(np.concatenate([np.arange(n_categories), extra]))
    size = np.bincount(category, minlength=n_categories)
    first = np.concatenate([[0], np.cumsum(size)[:-1]])
    keys, popularity = [], np.empty(n_items)
    for index, nouns in enumerate(words.CATEGORIES.values()):
        keys += [f"{nouns[i % len(nouns)]}-{i // len(nouns) + 1:02d}" for i in range(size[index])]
        zipf = rng.permutation(np.arange(1, size[index] + 1) ** -POPULARITY_EXPONENT)
        popularity[first[index] : first[index] + size[index]] = zipf / zipf.sum()
    return np.array(keys), category, popularity


def _users(rng: np.random.Generator, n_users: int) -> tuple[IntArray, FloatArray, IntArray, IntArray]:
    """Archetype, taste, persona and the day of joining of each user."""
    n_archetypes, n_personas = words.N_ARCHETYPES, len(words.PERSONAS)
    # Archetypes are themselves of unequal size, as customer segments are.
    size = 1 / np.sqrt(np.arange(1, n_archetypes + 1))
    archetype = rng.choice(n_archetypes, size=n_users, p=size / size.sum())
    focus = rng.dirichlet(np.full(len(words.CATEGORIES), ARCHETYPE_FOCUS), size=n_archetypes)
    # The floor keeps every category possible, and a gamma draw of shape 0 has no meaning.
    shape = TASTE_CONCENTRATION * (0.9 * focus + 0.1 / len(words.CATEGORIES))
    gamma = rng.gamma(shape[archetype]) + 1e-12
    taste = gamma / gamma.sum(axis=1, keepdims=True)
    follows = rng.random(n_users) < PERSONA_FOLLOWS_TASTE
    persona = np.where(follows, archetype % n_personas, rng.integers(n_personas, size=n_users))
    joined_day = np.where(rng.random(n_users) < 0.6, 0, rng.integers(N_DAYS // 2, size=n_users))
    return archetype, taste, persona, joined_day


def _interactions(
    rng: np.random.Generator, n_interactions: int, joined_day: IntArray, truth: dict[str, npt.NDArray[Any]]
) -> pa.Table:
    """Events in the order of time."""
    taste, item_category, popularity = truth["taste"], truth["item_category"], truth["popularity"]
    user = _active_users(rng, len(taste), n_interactions, least=MIN_INTERACTIONS)
    category = _draw_rows(rng, taste, user)
    # One cumulative table serves all categories: category k occupies (k, k + 1].
    cumulative = np.cumsum(popularity)
    item = np.searchsorted(cumulative, category + rng.random(n_interactions), side="right")
    last = np.searchsorted(item_category, category, side="right") - 1  # guards the rounding of the sums
    item = np.minimum(item, last)
    second = _event_seconds(rng, joined_day[user])
    order = np.lexsort((item, user, second))
    depth = _depth(rng, taste[user, category])
    return pa.table(
        {
            "user": truth["users"][user[order]],
            "item": truth["items"][item[order]],
            "weight": EVENT_WEIGHTS[depth[order]],
            "timestamp": _timestamps(second[order]),
        }
    )


def _active_users(rng: np.random.Generator, n_users: int, n_events: int, *, least: int) -> IntArray:
    """User of each event, ascending: ``least`` events for everybody, the rest by log-normal activity."""
    activity = rng.lognormal(sigma=ACTIVITY_SIGMA, size=n_users)
    counts = least + rng.multinomial(n_events - least * n_users, activity / activity.sum())
    return np.repeat(np.arange(n_users), counts)


def _draw_rows(rng: np.random.Generator, probabilities: FloatArray, rows: IntArray) -> IntArray:
    """One draw from the distribution ``probabilities[row]`` for each of ``rows``."""
    cumulative = np.cumsum(probabilities, axis=1)
    draws = rng.random(len(rows)) * cumulative[rows, -1]
    chosen: IntArray = (cumulative[rows] <= draws[:, None]).sum(axis=1)
    return chosen


def _depth(rng: np.random.Generator, taste: FloatArray) -> IntArray:
    """How far an event goes, 0 view to 3 purchase: farther where the taste is strong."""
    passed = rng.random((len(taste), len(EVENT_WEIGHTS) - 1)) < (0.2 + 0.5 * np.minimum(taste, 1.0))[:, None]
    depth: IntArray = np.cumprod(passed, axis=1).sum(axis=1)
    return depth


def _event_seconds(rng: np.random.Generator, joined_day: IntArray) -> IntArray:
    """Seconds since the first day: a uniform day after joining, an hour that peaks in the evening."""
    day = joined_day + np.floor(rng.random(len(joined_day)) * (N_DAYS - joined_day)).astype(np.int64)
    hour = rng.choice(24, size=len(day), p=words.HOURS / words.HOURS.sum())
    seconds: IntArray = day * 86_400 + hour * 3_600 + rng.integers(3_600, size=len(day))
    return seconds


def _timestamps(seconds: IntArray) -> pa.Array:
    return pa.array(FIRST_DAY + seconds.astype("timedelta64[s]"), type=pa.timestamp("ms", tz="UTC"))


def _llm_table() -> pa.Table:
    return pa.table(
        {
            "llm": [llm.name for llm in words.LLMS],
            "input_usd_per_mtok": [llm.input_usd_per_mtok for llm in words.LLMS],
            "output_usd_per_mtok": [llm.output_usd_per_mtok for llm in words.LLMS],
            "tokens_per_s": [llm.tokens_per_s for llm in words.LLMS],
            "description": [llm.description for llm in words.LLMS],
            "context_tokens": [llm.context_tokens for llm in words.LLMS],
            "capabilities": pa.array([llm.capabilities for llm in words.LLMS], pa.list_(pa.string())),
        }
    )


def _llm_utility(rng: np.random.Generator, persona: IntArray) -> FloatArray:
    """Planted utility ``[n_users, n_tasks, n_llms]``: persona weights times traits, plus own leanings."""
    quality = np.array([llm.quality for llm in words.LLMS]).T  # [n_tasks, n_llms]
    price = np.log([llm.output_usd_per_mtok for llm in words.LLMS])
    speed = np.log([llm.tokens_per_s for llm in words.LLMS])
    warmth = np.array([llm.warmth for llm in words.LLMS])
    traits = np.stack(np.broadcast_arrays(quality, -price, speed, warmth))  # [n_traits, n_tasks, n_llms]
    traits = traits - traits.mean(axis=2, keepdims=True)
    traits /= traits.std(axis=(1, 2), keepdims=True)
    weights = np.array(list(words.PERSONAS.values()))[persona]  # [n_users, n_traits]
    leaning = rng.normal(scale=0.3, size=(len(persona), 1, len(words.LLMS)))
    utility: FloatArray = np.einsum("uf,ftm->utm", weights, traits) + leaning
    return utility


def _llm_choices(
    rng: np.random.Generator, n_choices: int, joined_day: IntArray, truth: dict[str, npt.NDArray[Any]]
) -> pa.Table:
    """Choices in the order of time, each with query, chosen model, thumbs, cost and latency."""
    utility = truth["llm_utility"]
    n_users, n_tasks, n_llms = utility.shape
    user = _active_users(rng, n_users, n_choices, least=1)
    second = _event_seconds(rng, joined_day[user])
    order = np.lexsort((user, second))
    user, second = user[order], second[order]
    task = rng.integers(n_tasks, size=n_choices)
    category = _draw_rows(rng, truth["taste"], user)  # people ask about what they care for
    seen = utility[user, task]
    llm = np.argmax(seen + rng.gumbel(scale=CHOICE_TEMPERATURE, size=(n_choices, n_llms)), axis=1)
    satisfaction = np.take_along_axis(seen - seen.mean(axis=1, keepdims=True), llm[:, None], axis=1)[:, 0]
    models = _llm_table()
    tokens_in = np.rint(rng.lognormal(mean=4.5, sigma=0.6, size=n_choices))
    tokens_out = np.rint(words.ANSWER_TOKENS[task] * rng.lognormal(sigma=0.4, size=n_choices))
    input_usd, output_usd, speed = (
        models[name].to_numpy()[llm] for name in ("input_usd_per_mtok", "output_usd_per_mtok", "tokens_per_s")
    )
    return pa.table(
        {
            "user": truth["users"][user],
            "task": truth["tasks"][task],
            "topic": truth["categories"][category],
            "query": _queries(rng, task, category),
            "llm": truth["llms"][llm],
            "thumbs": _thumbs(rng, satisfaction),
            "cost_usd": (tokens_in * input_usd + tokens_out * output_usd) / 1e6,
            "latency_ms": (200 + 1_000 * tokens_out / speed) * rng.lognormal(sigma=0.15, size=n_choices),
            "timestamp": _timestamps(second),
        }
    )


def _queries(rng: np.random.Generator, task: IntArray, category: IntArray) -> npt.NDArray[np.str_]:
    """Short question of each choice, from the task's phrases and the topic's nouns."""
    phrases, nouns = list(words.TASKS.values()), list(words.CATEGORIES.values())
    n_phrases, n_nouns = len(phrases[0]), len(nouns[0])
    texts = np.array(
        [
            [[[p.format(noun.replace("-", " ")) for noun in row] for row in nouns] for p in task_phrases]
            for task_phrases in phrases
        ]
    )  # [n_tasks, n_phrases, n_categories, n_nouns]
    phrase = rng.integers(n_phrases, size=len(task))
    noun = rng.integers(n_nouns, size=len(task))
    chosen: npt.NDArray[np.str_] = texts[task, phrase, category, noun]
    return chosen


def _thumbs(rng: np.random.Generator, satisfaction: FloatArray) -> npt.NDArray[np.int8]:
    """+1 or -1 where the user votes (two in five do), else 0; up with probability sigmoid(satisfaction)."""
    votes = rng.random(len(satisfaction)) < 0.4
    up = rng.random(len(satisfaction)) < 1 / (1 + np.exp(-satisfaction))
    return np.where(votes, np.where(up, 1, -1), 0).astype(np.int8)
