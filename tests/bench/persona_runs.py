"""Runs of routers on persona-sim: one router, one protocol, one seed of users.

A run gives numbers for each user, so that routers can be compared on the same users. Runs go to as many
processes as there are cores, one thread each; the numbers do not depend on how many. They are kept below
build/bench/persona under the digest of the code that they come from, so that a benchmark can be run again in
part, and two benchmarks that ask for the same run share it.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import astuple, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from datasets import DATA, RESTART_PROB, gowalla, shared_file
from harness import RESULTS, ROOT
from numpy.typing import NDArray

from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from router.baselines import (
    FactorRouter,
    PopularityRouter,
    TelemetryRouter,
    UserKnnRouter,
    UserTaskRouter,
    log_likelihood,
)
from router.baselines.factors import Block
from router.baselines.personalized_router import PersonalizedRouter
from router.evaluate import BayesRouter
from router.persona import (
    ChoiceData,
    ChoiceRouter,
    Choices,
    SeenNew,
    Track,
    World,
    evaluate_new_llm,
    evaluate_new_users,
    evaluate_warm,
    judge_new_users,
    load_world,
    new_user_data,
    warm_data,
)
from router.persona.data import UserLinks
from router.persona.items import ItemWorld, item_world, spectral_features, taste_clusters
from router.persona.world import Strength
from router.personal import PersonalRouter
from router.prior import PriorSettings

SEEDS = (1, 2, 3)
SUPPORTS = (0, 1, 3, 5, 10)
PARTS = ("seen", "new")
PENALTIES = (5.0, 10.0, 20.0, 40.0)
KEPT = RESULTS / "persona"
# What the prior over tastes goes without.
ABLATIONS = {
    "nothing": PriorSettings(),
    "PPR edges": PriorSettings(near=False),
    "item edges": PriorSettings(items=False),
    "PPR and item edges": PriorSettings(near=False, items=False),
    "messages": PriorSettings(alike=False, near=False, items=False),
    "features": PriorSettings(attributes=False, alike=False),
    "masking": PriorSettings(masking=False),
}

_VALIDATION = 0.1
N_WALKS = 10_000
_LLMS = "routeprofile/candidate_models.json"
_BASELINE_CODE = ("router/persona", "router/baselines", "router/evaluate/bayes.py")
_OURS = (
    *("answers", "graph", "kernels", "model", "optimism", "personal", "prior", "prior_fit", "sampling"),
    *("newcomers", "posterior", "threads", "train", "variational"),
)
_OUR_CODE = (*_BASELINE_CODE, *(f"router/{name}.py" for name in _OURS))

Protocol = Literal["warm", "new users", "new LLM", "penalty", "held-out choices", "ablations"]
Result = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Run:
    """What is measured.

    Attributes
    ----------
    protocol
        Beside those of the benchmark: ``penalty``, log-likelihood of held-out training choices by penalty;
        ``held-out choices``, logits of our router and what was chosen; ``ablations``, new users in an item
        world, by what our prior over tastes goes without.
    router, track
        Name in :func:`routers`, and what the router sees.
    seed
        Of users.
    rho
        Item worlds: probability that a user's prototype follows from the taste in items; None without items.
    n_probes
        New LLM: probes a task.
    """

    protocol: Protocol
    router: str
    track: Track
    strength: Strength = "medium"
    seed: int = 1
    rho: float | None = None
    n_probes: int = 0


def ours(ablation: str = "nothing", checkpoint: Path | None = None) -> PersonalRouter:
    """The router, of the default size for the track."""
    return PersonalRouter(prior=ABLATIONS[ablation], device="cpu", checkpoint=checkpoint)


def routers(world: World, run: Run) -> dict[str, Callable[[], ChoiceRouter]]:
    """Routers by name; the penalty of the factor models is the one chosen for the strength."""

    def factors(*blocks: Block) -> Callable[[], ChoiceRouter]:
        return lambda: FactorRouter(blocks, factor_penalty=chosen_penalty(run.strength))

    return {
        "ours": ours,
        "Bayes, knows the law": lambda: BayesRouter(world),
        "popularity": lambda: PopularityRouter("all"),
        "popularity by task": lambda: PopularityRouter("task"),
        "popularity by query, blind to users": lambda: PopularityRouter("query"),
        "PersonalizedRouter as released": PersonalizedRouter,
        "user x task": UserTaskRouter,
        "user-kNN": UserKnnRouter,
        "MF": factors("task"),
        "MF + queries": factors("task", "query"),
        "bilinear": factors("task", "embedding"),
        "bilinear + queries": factors("task", "query", "embedding"),
        "response features": TelemetryRouter,
        "response features, own posterior": lambda: TelemetryRouter(new_users="posterior"),
    }


def results(runs: Sequence[Run]) -> dict[Run, Result]:
    """Results of runs, those not kept yet measured in parallel, the longest first."""
    strengths = sorted({run.strength for run in runs if run.protocol != "penalty"})
    _measure_all([penalty_run(strength) for strength in strengths])
    if any(run.rho is not None for run in runs):
        _gowalla_near()  # once, not in each process
    wanted = list(dict.fromkeys(runs))
    _measure_all(sorted(wanted, key=_cost, reverse=True))
    return {run: _load(run) for run in wanted}


def result(run: Run) -> Result:
    """Result of one run."""
    return results([run])[run]


def penalty_run(strength: Strength) -> Run:
    """The run that chooses the factor models' penalty."""
    return Run("penalty", "MF + queries", "choice-only", strength)


def chosen_penalty(strength: Strength) -> float:
    """Penalty of the factor models that is best on choices held out of the training data."""
    _measure_all([penalty_run(strength)])
    return PENALTIES[int(np.argmax(_load(penalty_run(strength))["log_likelihood"]))]


def _measure_all(runs: Sequence[Run]) -> None:
    missing = [run for run in runs if not _path(run).exists()]
    if not missing:
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    if len(missing) == 1:
        _done(missing[0], measure(missing[0]))
        return
    workers = min(len(os.sched_getaffinity(0)), len(missing))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(measure, run): run for run in missing}
        for future in as_completed(futures):
            _done(futures[future], future.result())


def measure(run: Run) -> float:
    """Measure a run and keep its result; gives the seconds it took."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    of_training = {"penalty": _by_penalty, "held-out choices": _held_out_choices, "ablations": _ablations}
    measured = of_training.get(run.protocol, _by_protocol)(run)
    path = _path(run)
    for stale in KEPT.glob(f"{_name(run)}.*.npz"):
        stale.unlink(missing_ok=True)
    beside = path.with_suffix(".part.npz")
    np.savez(beside, **measured)
    beside.replace(path)
    return time.perf_counter() - started


def _by_protocol(run: Run) -> Result:
    given = item_world_of(run) if run.rho is not None else None
    world = _world(run.strength) if given is None else given.world
    make = routers(world, run)[run.router]
    if run.protocol == "warm":
        return _by_user(evaluate_warm(world, run.seed, make, run.track), "")
    if run.protocol == "new LLM":
        found = evaluate_new_llm(world, run.seed, make, run.track, n_probes=run.n_probes)
        shares = {name: np.array(getattr(found, name)) for name in ("recall", "precision", "gain_where_best")}
        return {"new": found.quality.gain} | shares
    if given is not None:
        return _with_items(run, given, make())
    return _by_user_and_k(evaluate_new_users(world, run.seed, make, run.track, SUPPORTS), "")


def _with_items(run: Run, given: ItemWorld, model: ChoiceRouter) -> Result:
    """New users with their items: spectral features, edges, PPR; under ``without items`` the same without."""
    features, links = _spectral()[given.item_users], gowalla_links(given.item_users)
    data = warm_data(given.world, run.seed, run.track, user_features=features, links=links)
    model.fit(new_user_data(data, 0)[0])
    bare = replace(data, user_features=None, links=None)
    return _by_user_and_k(judge_new_users(given.world, run.seed, model, data, SUPPORTS), "") | _by_user_and_k(
        judge_new_users(given.world, run.seed, model, bare, SUPPORTS), "without items, "
    )


def _ablations(run: Run) -> Result:
    """The factors are trained once: the further fits find them in the checkpoint."""
    found: Result = {}
    given = item_world_of(run)
    with tempfile.TemporaryDirectory() as folder:
        for name in ABLATIONS:
            model = ours(name, Path(folder) / "factors.safetensors")
            gains = _with_items(run, given, model)
            found |= {f"{name}: {key}": values for key, values in gains.items()}
    return found


def item_world_of(run: Run) -> ItemWorld:
    """World of a run whose users went for items of Gowalla."""
    assert run.rho is not None
    return item_world(_world(run.strength), run.seed, _clusters(), rho=run.rho)


def _by_penalty(run: Run) -> Result:
    train, held_out = _with_choices_held_out(run)
    values = []
    for penalty in PENALTIES:
        model = FactorRouter(factor_penalty=penalty)
        model.fit(train)
        values.append(log_likelihood(model, held_out))
    return {"log_likelihood": np.array(values)}


def _held_out_choices(run: Run) -> Result:
    train, held_out = _with_choices_held_out(run)
    model = routers(_world(run.strength), run)[run.router]()
    model.fit(train)
    scores = model.scores(np.arange(train.n_users), np.arange(train.n_queries))
    logits = scores[held_out.users, held_out.queries].astype(np.float64)
    return {"logits": logits, "chosen": held_out.llms.astype(np.float64)}


def _with_choices_held_out(run: Run) -> tuple[ChoiceData, Choices]:
    data = warm_data(_world(run.strength), run.seed, run.track)
    held_out = np.random.default_rng(0).random(len(data.choices)) < _VALIDATION
    return data.with_choices(data.choices.take(~held_out)), data.choices.take(held_out)


def _by_user(found: SeenNew, prefix: str) -> Result:
    """G under the part's name, and accuracy."""
    gains = {prefix + part: getattr(found, part).gain for part in PARTS}
    return gains | {f"{prefix}{part}, accuracy": getattr(found, part).accuracy for part in PARTS}


def _by_user_and_k(by_k: dict[int, SeenNew], prefix: str) -> Result:
    return {name: values for k in by_k for name, values in _by_user(by_k[k], f"{prefix}k={k}, ").items()}


@cache
def _world(strength: Strength) -> World:
    return load_world(shared_file("persona-sim"), strength, llms=shared_file(_LLMS))


def gowalla_links(users: NDArray[np.int64]) -> UserLinks:
    """Interactions of users of Gowalla, in training, and who and what is near to them by PPR."""
    train, _ = gowalla()
    near = _gowalla_near()[users]
    n = train.shape[0]
    return UserLinks(
        interactions=sp.csr_array(train[users]),
        near=sp.csr_array(near[:, users]),
        near_items=sp.csr_array(near[:, n:]),
    )


@cache
def _gowalla_near() -> sp.csr_array:
    """PPR on Gowalla's training graph, users × (users, items); users outside all item worlds have no row."""
    path = DATA / "gowalla-near.npz"
    if not path.exists():
        DATA.mkdir(parents=True, exist_ok=True)
        sp.save_npz(path, _ppr_rows(gowalla()[0]))
    return sp.csr_array(sp.load_npz(path))


def _ppr_rows(train: sp.csr_array) -> sp.csr_array:
    n_users, n_items = train.shape
    both = sp.csr_array(sp.block_array([[None, train], [train.T, None]]))
    both.sort_indices()
    kind_ids = np.repeat(np.arange(2, dtype=np.uint8), (n_users, n_items))
    kinds = {"kind_ids": kind_ids, "kinds": ("user", "item")}
    graph = Graph.from_arrays(both.indptr, both.indices, None, directed=False, **kinds)
    worlds = [item_world(_world("medium"), seed, _clusters(), rho=0.0) for seed in SEEDS]
    sources = np.unique(np.concatenate([world.item_users for world in worlds])).astype(np.int32)
    params = FingerprintParams(restart_prob=RESTART_PROB, n_walks=N_WALKS, top_k=None)
    with tempfile.TemporaryDirectory(dir=DATA) as folder:
        store = compute_fingerprints(graph, Path(folder) / "near", params, sources=sources, threads=1)
        indptr = np.zeros(n_users + 1, dtype=np.int64)
        indptr[1 + sources] = np.diff(store.indptr)
        rows = np.array(store.scores), np.array(store.ids), np.cumsum(indptr)
    return sp.csr_array(rows, shape=(n_users, n_users + n_items))


@cache
def _clusters() -> NDArray[np.int64]:
    train, test = gowalla()
    return taste_clusters(train + test)


@cache
def _spectral() -> NDArray[np.float32]:
    return spectral_features(gowalla()[0])


def _cost(run: Run) -> int:
    """Rank of a run by its expected time: more trainings, dearer routers."""
    trainings = {"new LLM": 8, "ablations": 6}.get(run.protocol, 1)
    return trainings * {"ours": 20, "Bayes, knows the law": 20, "response features": 2}.get(run.router, 1)


def _name(run: Run) -> str:
    words = (str(value) for value in astuple(run))
    return "-".join("".join(c if c.isalnum() or c == "." else "_" for c in word) for word in words)


def _path(run: Run) -> Path:
    return KEPT / f"{_name(run)}.{_digest(run.router == 'ours')}.npz"


def _load(run: Run) -> Result:
    with np.load(_path(run), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@cache
def _digest(of_ours: bool) -> str:
    """Digest of the code that a result depends on."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for place in _OUR_CODE if of_ours else _BASELINE_CODE:
        for path in sorted(ROOT.glob(place if place.endswith(".py") else f"{place}/*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _done(run: Run, seconds: float) -> None:
    words = [run.protocol, run.router, run.track, run.strength, f"seed {run.seed}"]
    if run.rho is not None:
        words.append(f"rho={run.rho:g}")
    print(f"  {', '.join(words)}: {seconds:.0f} s", file=sys.stderr, flush=True)
