"""Worlds of simulated users over real responses, as files.

The utility of LLM m for user u and query q of domain g is

    U(u, q, m) = base(q, m) + scale · (Z(q, m) · w(u, g) + b(u, m)),

Z being standardised features of the real responses. Users choose argmax(U/τ + Gumbel noise), τ = 0.4.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from router.errors import DataError, MissingDataError, ParameterError
from router.persona.data import Bools, Choices, Floats, Ints

Strength = Literal["mild", "medium", "strong"]

TEMPERATURE = 0.4
_FEATURES = ("features", "standardised", "task", "domain", "llm", "query_embedding", "llm_embedding")
_WORLD = ("base", "personal_scale", "train_query", "domains", "pi", "P", "PD", "B")
_USERS = ("user_weights", "user_llm_bias", "user_prototype", "event_user", "event_query", "event_choice")


@dataclass(frozen=True, slots=True)
class Users:
    """Simulated users of one seed: their tastes and their choices. Tastes are for evaluation only.

    Attributes
    ----------
    weights
        Weight of each response feature, by domain, float32 [u, g, f].
    llm_bias
        float32 [u, m].
    prototypes
        int64 [u].
    choices
        What they chose on training queries, in order of time within a user.
    """

    weights: Floats
    llm_bias: Floats
    prototypes: Ints
    choices: Choices


@dataclass(frozen=True, slots=True)
class World:
    """Queries, LLMs and the law of the users' choices.

    Attributes
    ----------
    tasks, task_names
        int64 [q] and the names.
    domains
        Group of tasks that tastes depend on, int64 [q]. Not for routers.
    query_embeddings, llm_embeddings
        float32 [q, d], [m, d].
    llm_names, prices_usd
        Names; prices per million prompt and completion tokens, float32 [m, 2].
    features, feature_names
        Standardised features of the responses, float32 [q, m, f], and their names.
    train_queries
        bool [q].
    base
        The part of the utility that all users share, float32 [q, m].
    personal_scale
        Factor of the personal part.
    users
        By seed.
    prototype_shares, prototype_weights, prototype_domain_weights, prototype_llm_bias
        The prototypes that users are drawn around: float64 [k], [k, f], [k, g, f], [k, m].
    """

    tasks: Ints
    task_names: tuple[str, ...]
    domains: Ints
    query_embeddings: Floats
    llm_names: tuple[str, ...]
    llm_embeddings: Floats
    prices_usd: Floats
    features: Floats
    feature_names: tuple[str, ...]
    train_queries: Bools
    base: Floats
    personal_scale: float
    users: dict[int, Users]
    prototype_shares: NDArray[np.float64]
    prototype_weights: NDArray[np.float64]
    prototype_domain_weights: NDArray[np.float64]
    prototype_llm_bias: NDArray[np.float64]

    def utilities(self, seed: int) -> Floats:
        """Noise-free utility of every LLM for every user and query, float32 [u, q, m]; for evaluation only.

        Raises
        ------
        ParameterError
            There are no users of this seed.
        """
        users = self.of_seed(seed)
        return self.utilities_of(users.weights, users.llm_bias)

    def utilities_of(self, weights: Floats, llm_bias: Floats) -> Floats:
        """Utilities for users of given tastes, float32 [u, q, m]."""
        personal = np.empty((len(weights), *self.base.shape), dtype=np.float32)
        for g in np.unique(self.domains):
            there = self.domains == g
            personal[:, there] = np.einsum("qmf,uf->uqm", self.features[there], weights[:, g], optimize=True)
        personal += llm_bias[:, None]
        personal *= self.personal_scale
        personal += self.base
        return personal

    def of_seed(self, seed: int) -> Users:
        """Users of a seed.

        Raises
        ------
        ParameterError
            There are none.
        """
        if seed not in self.users:
            raise ParameterError(f"'seed' must be one of {sorted(self.users)} (got {seed})")
        return self.users[seed]


def load_world(folder: Path, strength: Strength = "medium", *, llms: Path | None = None) -> World:
    """Load a world.

    Parameters
    ----------
    folder
        Holds ``routeprofile_features.npz`` and ``world_<strength>.npz``.
    strength
        How much users differ.
    llms
        JSON file of the LLMs' prices, by name (``input_price``, ``output_price``); prices are NaN without it.

    Raises
    ------
    MissingDataError
        A file or an array in it is missing.
    DataError
        A file is damaged, or the two do not belong together.
    """
    responses = _read(folder / "routeprofile_features.npz", _FEATURES)
    path = folder / f"world_{strength}.npz"
    world = _read(path, _WORLD)
    seeds = sorted(int(name.removeprefix("event_user_")) for name in world if name.startswith("event_user_"))
    task_names, tasks = _number(responses["task"])
    domain_names = world["domains"].tolist()
    if not set(responses["domain"].tolist()) <= set(domain_names):
        raise DataError(f"{path}: 'domains' must name the domain of every query (got {domain_names})")
    if world["base"].shape != responses["standardised"].shape[:2]:
        raise DataError(f"{path}: 'base' must have a row per query and a column per LLM of the features")
    names = tuple(responses["llm"].tolist())
    return World(
        tasks=tasks,
        task_names=task_names,
        domains=np.array([domain_names.index(name) for name in responses["domain"].tolist()]),
        query_embeddings=responses["query_embedding"],
        llm_names=names,
        llm_embeddings=responses["llm_embedding"],
        prices_usd=_prices(llms, names),
        features=responses["standardised"],
        feature_names=tuple(responses["features"].tolist()),
        train_queries=world["train_query"],
        base=world["base"],
        personal_scale=float(world["personal_scale"]),
        users={seed: _users(path, world, seed) for seed in seeds},
        prototype_shares=world["pi"],
        prototype_weights=world["P"],
        prototype_domain_weights=world["PD"],
        prototype_llm_bias=world["B"],
    )


def _read(path: Path, needed: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file ({error})") from None
    for name in needed:
        if name not in arrays:
            raise MissingDataError(f"{path}: array '{name}' is missing")
    return arrays


def _users(path: Path, world: dict[str, NDArray[Any]], seed: int) -> Users:
    missing = [f"{name}_{seed}" for name in _USERS if f"{name}_{seed}" not in world]
    if missing:
        raise MissingDataError(f"{path}: array '{missing[0]}' is missing")
    weights, bias, prototypes, *events = (world[f"{name}_{seed}"] for name in _USERS)
    users, queries, llms = (column.astype(np.int64) for column in events)
    choices = Choices(users, queries, llms)
    choices.check(len(weights), *world["base"].shape)
    return Users(weights, bias, prototypes.astype(np.int64), choices)


def _number(names: NDArray[Any]) -> tuple[tuple[str, ...], Ints]:
    """Number names in order of their first appearance."""
    distinct = tuple(dict.fromkeys(names.tolist()))
    places = {name: i for i, name in enumerate(distinct)}
    return distinct, np.array([places[name] for name in names.tolist()])


def _prices(path: Path | None, names: tuple[str, ...]) -> Floats:
    prices = np.full((len(names), 2), np.nan, dtype=np.float32)
    if path is None:
        return prices
    try:
        llms = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    for row, name in zip(prices, names):
        if name in llms:
            row[:] = llms[name].get("input_price", np.nan), llms[name].get("output_price", np.nan)
    return prices
