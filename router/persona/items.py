"""Item worlds: persona-sim with users who also went for items.

The users are users of a real interaction set. A user's prototype follows from the user's taste in items with
probability ρ and is drawn at random otherwise, so ρ = 0 is the control. Taste is seen from all interactions,
test split included; routers see the training interactions only, as spectral features or as a graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.cluster.vq import kmeans2
from scipy.sparse.linalg import svds

from router.errors import ParameterError
from router.persona.data import Floats, Ints
from router.persona.simulate import draw_users
from router.persona.world import World

RANK = 32
_ITEM_STREAM = 40


@dataclass(frozen=True, slots=True)
class ItemWorld:
    """A world, and which users of the interaction set its users are.

    Attributes
    ----------
    world
        With the users of one seed.
    item_users
        Row of each user in the interaction set, int64 [u].
    """

    world: World
    item_users: Ints


def item_world(world: World, seed: int, clusters: Ints, *, rho: float, n_users: int = 1000) -> ItemWorld:
    """Give users of an interaction set prototypes by their taste, and draw their choices.

    Parameters
    ----------
    world
        Gives prototypes, queries and LLMs.
    seed
        Of everything drawn: which users take part, which taste means which prototype, tastes, choices.
    clusters
        Taste cluster of each user of the interaction set, int64; at most as many clusters as prototypes.
    rho
        Probability that the prototype follows from the cluster.

    Raises
    ------
    ParameterError
        ``rho`` is not a probability, or there are more clusters than prototypes.
    """
    if not 0.0 <= rho <= 1.0:
        raise ParameterError(f"'rho' must lie in 0..1 (got {rho})")
    n_prototypes = world.prototype_shares.size
    if clusters.max() >= n_prototypes:
        raise ParameterError(f"'clusters' must lie in 0..{n_prototypes - 1} (got {clusters.max()})")
    rng = np.random.default_rng(np.random.SeedSequence([seed, _ITEM_STREAM]))
    item_users = rng.choice(clusters.size, size=n_users, replace=False)
    prototype_of = rng.permutation(n_prototypes)
    by_chance = rng.choice(n_prototypes, size=n_users, p=world.prototype_shares)
    follows = rng.random(n_users) < rho
    prototypes = np.where(follows, prototype_of[clusters[item_users]], by_chance)
    return ItemWorld(replace(world, users={seed: draw_users(world, seed, prototypes)}), item_users)


def taste_clusters(
    interactions: sp.csr_array, *, n_clusters: int = 12, rank: int = RANK, seed: int = 0
) -> Ints:
    """Cluster users by k-means on their spectral features, int64 [u].

    Parameters
    ----------
    interactions
        All interactions, users × items.
    """
    features = spectral_features(interactions, rank=rank, seed=seed)
    rng = np.random.default_rng(seed)
    _, clusters = kmeans2(features, n_clusters, iter=50, minit="++", rng=rng, missing="raise")
    return np.asarray(clusters, dtype=np.int64)


def spectral_features(interactions: sp.csr_array, *, rank: int = RANK, seed: int = 0) -> Floats:
    """Left singular vectors of the degree-normalised interactions, rows of unit length, float32 [u, rank].

    Users without interactions get zeros.

    Parameters
    ----------
    interactions
        Users × items.
    """
    matrix = sp.csr_array(interactions, dtype=np.float64)
    by_user, by_item = (np.maximum(matrix.sum(axis=axis), 1.0) ** -0.5 for axis in (1, 0))
    normalised = sp.diags_array(by_user) @ matrix @ sp.diags_array(by_item)
    start = np.random.default_rng(seed).normal(size=min(normalised.shape))
    u, s, _ = svds(normalised, k=rank, v0=start)
    features = u * s
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    result: Floats = (features / np.maximum(norms, 1e-12)).astype(np.float32)
    return result
