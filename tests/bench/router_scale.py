"""The prior over tastes on a graph too large to be used as a whole: one epoch by neighbour sampling.

Users of planted tastes take items, half of them of their own taste, some items far more popular than others;
all else is at random. Items gather from their users and users from their items, neighbours drawn anew at each
step. The defaults suit a CPU; a GPU takes ``--users 10000000 --edges 200000000``.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch
from harness import Figure, at_least, note, run_alone
from numpy.typing import NDArray

from router.graph import TAKEN_BY
from router.prior import PriorSettings, Sent
from router.prior_fit import PriorFit, Sampled
from router.sampling import Rows
from router.train import choose_device

USERS, EDGES = 200_000, 4_000_000
TASTES, CHOICES = 8, 5
USERS_PER_ITEM = 10
BATCH = 4096
CHUNK = 100_000  # users drawn at a time


def measure(n_users: int = USERS, n_edges: int = EDGES, device: str = "auto") -> list[Figure]:
    """Draw a graph and train for an epoch."""
    where = choose_device(device)
    started = time.perf_counter()
    rng = np.random.default_rng(0)
    tastes = rng.integers(TASTES, size=n_users, dtype=np.uint8)
    heard, took = interactions(rng, tastes, n_edges)
    log_evidence = evidence(rng, tastes)
    drawn = time.perf_counter() - started
    log_shares = torch.full((TASTES,), -math.log(TASTES))
    settings = PriorSettings(n_steps=math.ceil(n_users / BATCH), batch_size=BATCH)
    source = source_of(heard, took, log_evidence, log_shares, settings, where)
    fit = PriorFit(source, log_evidence.to(where), log_shares.to(where), settings, settings.batch_size)
    started = time.perf_counter()
    losses = [fit.advance(step) for step in range(settings.n_steps)]
    seconds = time.perf_counter() - started
    name = f"{n_users:,} users, {len(heard.indices):,} edges, {where.type}"
    figures = list(_costs(name, where, n_users, len(heard.indices), seconds, settings))
    end = max(1, len(losses) // 10)
    return [
        note(f"{name}: drawing the graph", drawn, "s"),
        *figures,
        note(f"{name}: loss at the start", float(np.mean(losses[:end])), "nats/user"),
        note(f"{name}: loss at the end", float(np.mean(losses[-end:])), "nats/user"),
        at_least(f"{name}: log-likelihood over the prior of all", gain(fit, source), 0.1, "nats/user"),
    ]


def interactions(rng: np.random.Generator, tastes: NDArray[np.uint8], n_edges: int) -> tuple[Rows, Rows]:
    """Items of each user, with weights that sum to 1, and users of each item."""
    n_users = len(tastes)
    n_items = max(n_users // USERS_PER_ITEM // TASTES, 1) * TASTES
    degrees = rng.poisson(n_edges / n_users, size=n_users)
    indptr = np.concatenate([[0], degrees.cumsum()])
    items = np.empty(indptr[-1], dtype=np.int32)
    for first in range(0, n_users, CHUNK):
        own = tastes[first : first + CHUNK].repeat(degrees[first : first + CHUNK])
        any_taste = rng.integers(TASTES, size=own.size, dtype=np.uint8)
        taste = np.where(rng.random(own.size, dtype=np.float32) < 0.5, own, any_taste)
        popular = rng.random(own.size, dtype=np.float32) ** 2 * (n_items // TASTES)
        items[indptr[first] : indptr[first] + own.size] = popular.astype(np.int32) * TASTES + taste
    took = sp.csr_array((np.ones(items.size, np.int8), items, indptr), shape=(n_users, n_items)).T.tocsr()
    weights = (1.0 / np.maximum(degrees, 1)).astype(np.float32).repeat(degrees)
    of_users = Rows(torch.from_numpy(indptr), torch.from_numpy(items), torch.from_numpy(weights))
    return of_users, Rows(torch.from_numpy(took.indptr.astype(np.int64)), torch.from_numpy(took.indices))


def evidence(rng: np.random.Generator, tastes: NDArray[np.uint8]) -> torch.Tensor:
    """Log-evidence for each taste of a few choices, half of them by the user's taste, float32 [u, k]."""
    result = np.zeros((len(tastes), TASTES), dtype=np.float32)
    for first in range(0, len(tastes), CHUNK):
        own = tastes[first : first + CHUNK]
        for _ in range(CHOICES):
            chosen = np.where(rng.random(own.size) < 0.5, own, rng.integers(TASTES, size=own.size))
            result[np.arange(first, first + own.size), chosen] += math.log(1.0 + TASTES)
    return torch.from_numpy(result)


def source_of(
    heard: Rows,
    took: Rows,
    log_evidence: torch.Tensor,
    log_shares: torch.Tensor,
    settings: PriorSettings,
    device: torch.device,
) -> Sampled:
    """Messages of two steps, user → item → user, on a device."""
    surprise = (log_shares + log_evidence).softmax(dim=1).sub_(log_shares.exp())
    n_users, n_items = len(surprise), len(took.indptr) - 1
    nothing = torch.zeros(n_users, 0, device=device)
    sums = torch.zeros(0, TASTES, dtype=torch.float64)
    sent = Sent(
        (nothing, surprise.to(device), nothing), torch.zeros(n_items, 0, device=device), sums, sums[:, 0]
    )
    return Sampled(sent, nothing, {TAKEN_BY: heard.to(device)}, took.to(device), settings, seed=0)


@torch.no_grad()
def gain(fit: PriorFit, source: Sampled) -> float:
    """What the fitted prior adds to the log-likelihood of some users' choices, in nats per user."""
    users = fit.users[:BATCH]
    evidence, messages = fit.evidence[users].cpu(), source(users, fit.settings.n_steps)
    prior = fit.prior()
    log_prior = prior({block: message.cpu() for block, message in messages.items()}, len(users))
    return float(((log_prior + evidence).logsumexp(1) - (prior.log_shares + evidence).logsumexp(1)).mean())


def _costs(
    name: str, device: torch.device, n_users: int, n_edges: int, seconds: float, settings: PriorSettings
) -> Iterator[Figure]:
    neighbours = n_users * settings.fan_out * (1 + settings.fan_out)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield note(f"{name}: one epoch", seconds, "s")
    yield note(f"{name}: edges of the graph a second", n_edges / seconds, "edges/s")
    yield note(f"{name}: neighbours drawn a second, at most", neighbours / seconds, "neighbours/s")
    yield note(f"{name}: peak resident memory", resident, "GiB")
    if device.type == "cuda":
        yield note(f"{name}: peak memory of the card", torch.cuda.max_memory_allocated(device) / 2**30, "GiB")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--edges", type=int, default=EDGES)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    run_alone("router_scale", lambda: measure(given.users, given.edges, given.device))
