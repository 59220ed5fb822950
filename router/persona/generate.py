"""New worlds: a law of tastes over the features of real answers, and users drawn from it.

The utility of LLM m for user u, of prototype k, and query q of domain g is

    U(u, q, m) = [c + s · h] / √(1 + s²),
    c = Z(q, m) · w₀ / SD,
    h = Z(q, m) · (P(k) + PD(k, g) + e(u) + e(u, g)) + B(k, m) + b(u, m),

Z being the standardised features of the answers (:mod:`router.persona.responses`) and s the strength of
personal taste. c and h have unit variance; the parts of h have the shares of it that ``SHARES`` gives. P are
twelve kinds of people, written down by hand; PD, B, e and b are Gaussian. Parts of prototypes are centred
under the prototypes' frequencies π, and biases over the LLMs, so that h has no part that all users share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router.errors import DataError, ParameterError
from router.loaders import ResponseTable
from router.persona.data import Bools, Floats, Ints
from router.persona.responses import FEATURES, response_features, standardise
from router.persona.simulate import Deviations, draw_users
from router.persona.world import Strength, World

Doubles = NDArray[np.float64]

STRENGTHS: dict[Strength, float] = {"mild": 0.6, "medium": 1.0, "strong": 1.8}
SHARES = {"P": 0.40, "e_u": 0.15, "PD": 0.10, "e_ug": 0.05, "B": 0.15, "b": 0.15}
COMMON = {"quality": 1.0, "cost": -0.3, "latency": -0.2, "hedge": -0.3}
PROTOTYPES: dict[str, dict[str, float]] = {
    "frugal": {"cost": -2.0, "latency": -0.5},
    "accuracy_first": {"quality": 2.0, "explain": 0.5, "hedge": -0.3},
    "hurried": {"latency": -1.5, "length": -1.0, "direct": 1.0},
    "thorough_student": {"length": 1.2, "explain": 1.2, "structure": 0.5},
    "document_stylist": {"structure": 2.0, "formality": 0.5},
    "engineer": {"codemath": 1.5, "direct": 0.8, "warmth": -0.8},
    "warm_companion": {"warmth": 1.8, "formality": -0.8},
    "formal_editor": {"formality": 1.5, "warmth": -0.8, "structure": -0.5},
    "careful_sceptic": {"hedge": 1.5, "explain": 0.8},
    "fact_checker": {"specific": 1.5, "hedge": -0.8, "quality": 0.5},
    "minimalist": {"length": -1.5, "structure": -1.2, "direct": 0.8},
    "premium": {"cost": 1.2, "length": 0.5, "quality": 0.5},
}
# Domain of each task of RouteProfile; another task is a domain of its own.
DOMAINS = {
    "agentverse-logicgrid": "reason",
    "agentverse-mgsm": "reason",
    "gsm8k": "reason",
    "natural_qa": "openqa",
    "trivia_qa": "openqa",
    "mmlu": "choice",
    "commonsense_qa": "choice",
    "openbook_qa": "choice",
    "arc_challenge": "choice",
    "mbpp": "code",
    "human_eval": "code",
    "commongen": "creative",
}
TRAIN_SHARE = 0.7

_SPLIT_STREAM, _PROTOTYPE_STREAM, _BIAS_STREAM, _WHO_STREAM = 1, 2, 3, 11


@dataclass(frozen=True, slots=True)
class Answers:
    """What a world is built over: queries, LLMs, and what their answers are like.

    Attributes
    ----------
    tasks
        Task of each query [q].
    features
        Standardised, in the order of ``FEATURES``, float32 [q, m, 12].
    llm_names, prices_usd
        Names [m]; prices per million prompt and completion tokens, float32 [m, 2].
    query_embeddings, llm_embeddings
        float32 [q, d], [m, d].
    """

    tasks: tuple[str, ...]
    features: Floats
    llm_names: tuple[str, ...]
    prices_usd: Floats
    query_embeddings: Floats
    llm_embeddings: Floats

    @classmethod
    def of_world(cls, world: World) -> Answers:
        """Those of a world."""
        if world.feature_names != FEATURES:
            raise DataError(f"'world' must have the features {FEATURES} (got {world.feature_names})")
        return cls(
            tasks=tuple(world.task_names[task] for task in world.tasks),
            features=world.features,
            llm_names=world.llm_names,
            prices_usd=world.prices_usd,
            query_embeddings=world.query_embeddings,
            llm_embeddings=world.llm_embeddings,
        )

    @classmethod
    def of_table(
        cls,
        table: ResponseTable,
        active_billions: Sequence[float],
        *,
        prices_usd: Floats,
        query_embeddings: Floats,
        llm_embeddings: Floats,
    ) -> Answers:
        """Extract the features from responses; see :func:`router.persona.responses.response_features`."""
        features = standardise(response_features(table, active_billions))
        return cls(table.tasks, features, table.llms, prices_usd, query_embeddings, llm_embeddings)


def generate_world(
    answers: Answers,
    strength: Strength = "medium",
    *,
    seed: int = 7,
    split_seed: int = 0,
    user_seeds: Sequence[int] = (1, 2, 3),
    n_users: int = 1000,
) -> World:
    """Draw a law of tastes, split the queries, and draw users with their choices.

    Parameters
    ----------
    seed
        Of the prototypes' frequencies, domain tastes and biases.
    split_seed
        Of the split into training and test queries, 70 % to 30 % within each task.
    user_seeds
        A population of ``n_users`` is drawn for each.

    Raises
    ------
    ParameterError
        There is no such strength.
    DataError
        The features are not those of ``FEATURES``.
    """
    if strength not in STRENGTHS:
        raise ParameterError(f"'strength' must be one of {', '.join(STRENGTHS)} (got {strength!r})")
    if answers.features.shape[2] != len(FEATURES):
        raise DataError(f"'features' must be {len(FEATURES)} (got {answers.features.shape[2]})")
    task_names, tasks = _numbered(answers.tasks)
    _, domains = _numbered([DOMAINS.get(task, task) for task in answers.tasks])
    z, s = answers.features.astype(np.float64), STRENGTHS[strength]
    shares = _frequencies(len(PROTOTYPES), seed)
    tastes = _tastes(z, domains, shares, seed)
    common = z @ _vector(COMMON)
    scale = 1.0 / np.sqrt(1.0 + s * s)
    world = World(
        tasks=tasks,
        task_names=task_names,
        domains=domains,
        query_embeddings=answers.query_embeddings,
        llm_names=answers.llm_names,
        llm_embeddings=answers.llm_embeddings,
        prices_usd=answers.prices_usd,
        features=answers.features,
        feature_names=FEATURES,
        train_queries=_split(tasks, split_seed),
        base=(common / common.std() * scale).astype(np.float32),
        personal_scale=float(s * scale),
        users={},
        prototype_shares=shares,
        prototype_weights=tastes.weights,
        prototype_domain_weights=tastes.domain_weights,
        prototype_llm_bias=tastes.llm_bias,
    )
    users = {}
    for user_seed in user_seeds:
        rng = np.random.default_rng(np.random.SeedSequence([user_seed, _WHO_STREAM]))
        prototypes = rng.choice(shares.size, size=n_users, p=shares)
        users[user_seed] = draw_users(world, user_seed, prototypes, tastes.deviations)
    return replace(world, users=users)


@dataclass(frozen=True, slots=True)
class _Tastes:
    """P [k, f], PD [k, g, f], B [k, m], and the standard deviations of e(u), e(u, g), b."""

    weights: Doubles
    domain_weights: Doubles
    llm_bias: Doubles
    deviations: Deviations


def _tastes(z: Doubles, domains: Ints, shares: Doubles, seed: int) -> _Tastes:
    n_domains, n_llms = int(domains.max()) + 1, z.shape[1]
    answers = z.reshape(-1, z.shape[2])

    def scaled(part: Doubles, values: Doubles, share: float) -> Doubles:
        """Give a part, of which ``values`` [k, ...] are the contributions to h, its share of the variance."""
        variance = float(shares @ (values**2).reshape(len(shares), -1).mean(axis=1))
        return part * float(np.sqrt(share / variance))

    def centred(part: Doubles) -> Doubles:
        return np.asarray(part - np.tensordot(shares, part, axes=1))

    weights = np.stack([_vector(of_kind) for of_kind in PROTOTYPES.values()])
    weights = centred(weights / (weights @ answers.T).std(axis=1, keepdims=True))
    weights = scaled(weights, weights @ answers.T, SHARES["P"])
    rng = np.random.default_rng(np.random.SeedSequence([seed, _BIAS_STREAM]))
    by_domain = centred(rng.normal(size=(len(shares), n_domains, z.shape[2])))
    contributions = np.einsum("qmf,kqf->kqm", z, by_domain[:, domains], optimize=True)
    by_domain = scaled(by_domain, contributions, SHARES["PD"])
    bias = rng.normal(size=(len(shares), n_llms))
    bias = centred(bias - bias.mean(axis=1, keepdims=True))
    bias = scaled(bias, bias, SHARES["B"])
    # Var(Z · e) = σ² E|Z|² for e of variance σ² in every feature; centring takes 1/m of the variance of b.
    size = float((answers**2).sum(axis=1).mean())
    deviations = (
        float(np.sqrt(SHARES["e_u"] / size)),
        float(np.sqrt(SHARES["e_ug"] / size)),
        float(np.sqrt(SHARES["b"] * n_llms / (n_llms - 1))),
    )
    return _Tastes(weights, by_domain, bias, deviations)


def _frequencies(n: int, seed: int) -> Doubles:
    """π ∝ 1/√rank, the ranks permuted."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, _PROTOTYPE_STREAM]))
    weights = (1.0 + rng.permutation(n)) ** -0.5
    return np.asarray(weights / weights.sum())


def _split(tasks: Ints, seed: int) -> Bools:
    """Training queries, bool [q]."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, _SPLIT_STREAM]))
    train = np.zeros(tasks.size, dtype=bool)
    for task in range(int(tasks.max()) + 1):
        queries = rng.permutation(np.flatnonzero(tasks == task))
        train[queries[: round(TRAIN_SHARE * queries.size)]] = True
    return train


def _vector(weights: Mapping[str, float]) -> Doubles:
    return np.array([weights.get(name, 0.0) for name in FEATURES])


def _numbered(names: Sequence[str]) -> tuple[tuple[str, ...], Ints]:
    distinct = tuple(dict.fromkeys(names))
    place = {name: i for i, name in enumerate(distinct)}
    return distinct, np.array([place[name] for name in names], dtype=np.int64)
