"""Small worlds of simulated users, built in memory or as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEATURES = 3
DOMAINS = ("a", "b")
LLMS = ("one", "two", "three", "four")


def world_arrays(
    *, seed: int = 0, n_users: int = 60, n_tasks: int = 3, per_task: int = 12, n_choices: int = 15
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Arrays of the two files of a world: responses, users. Four prototypes, users of seed 1."""
    rng = np.random.default_rng(seed)
    n, m, f, g = n_tasks * per_task, len(LLMS), FEATURES, len(DOMAINS)
    tasks = np.repeat(np.arange(n_tasks), per_task)
    domains = tasks % g
    traits = rng.normal(size=(m, f))  # LLMs keep their character from query to query
    z = (traits + 0.6 * rng.normal(size=(n, m, f))).astype(np.float32)
    responses = {
        "features": np.array([f"f{i}" for i in range(f)]),
        "standardised": z - z.mean(axis=1, keepdims=True),
        "task": np.array([f"task{t}" for t in tasks]),
        "domain": np.array(DOMAINS)[domains],
        "llm": np.array(LLMS),
        "query_embedding": _unit(rng.normal(size=(n, 6))),
        "llm_embedding": _unit(rng.normal(size=(m, 6))),
    }
    train = np.tile(np.arange(per_task) % 4 != 3, n_tasks)
    prototypes = rng.integers(4, size=n_users)
    shared, by_domain = rng.normal(size=(4, f)), 0.3 * rng.normal(size=(4, g, f))
    biases = 0.5 * rng.normal(size=(4, m))
    weights = (shared[:, None] + by_domain)[prototypes] + 0.2 * rng.normal(size=(n_users, g, f))
    bias = biases[prototypes] + 0.2 * rng.normal(size=(n_users, m))
    users = {
        "pi": np.full(4, 0.25),
        "P": shared,
        "PD": by_domain,
        "B": biases,
        "base": (0.2 * responses["standardised"][..., 0]).astype(np.float32),
        "personal_scale": np.array(1.0),
        "train_query": train,
        "domains": np.array(DOMAINS),
        "user_weights_1": weights.astype(np.float32),
        "user_llm_bias_1": bias.astype(np.float32),
        "user_prototype_1": prototypes.astype(np.int8),
    }
    events = [
        (u, q, np.argmax(slow_utility(responses, users, u, q) / 0.4 + rng.gumbel(size=m)))
        for u in range(n_users)
        for q in rng.choice(np.flatnonzero(train), size=n_choices, replace=False)
    ]
    for name, column in zip(("user", "query", "choice"), np.array(events).T):
        users[f"event_{name}_1"] = column.astype(np.int16)
    return responses, users


def write_world(folder: Path, **options: int) -> Path:
    """Write a small world of medium strength and return its folder."""
    responses, users = world_arrays(**options)
    np.savez(folder / "routeprofile_features.npz", **responses)
    np.savez(folder / "world_medium.npz", **users)
    return folder


def slow_utility(
    responses: dict[str, NDArray[Any]], users: dict[str, NDArray[Any]], user: int, query: int
) -> NDArray[np.float64]:
    """Utility of each LLM, by the formula."""
    domain = list(users["domains"]).index(responses["domain"][query])
    weights, bias = users["user_weights_1"][user, domain], users["user_llm_bias_1"][user]
    return np.array(
        [
            users["base"][query, m]
            + users["personal_scale"] * (sum(responses["standardised"][query, m] * weights) + bias[m])
            for m in range(len(LLMS))
        ]
    )


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
