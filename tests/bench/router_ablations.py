"""What the parts of the personal router are worth, for whom it is good, and whether its probabilities hold.

Real responses, simulated users; their items are Gowalla's, and their kind of taste follows from the items
with probability ρ. *Without* is what the prior over tastes goes without, in training and in use. Without
masking, a user's own choices come back to it in training, as in PersonalizedRouter's: the cost of a leak.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from datasets import shared_file
from harness import Figure, note, run_alone
from persona_runs import ABLATIONS, PARTS, SEEDS, Run, results
from router_choice import by_seed, mean

from router.evaluate import Calibration, activity_thirds, by_group, calibration, cost_efficiency
from router.loaders import read_route_profile
from router.persona import TRACKS, Track, World, load_world, paired_difference
from router.persona.generate import PROTOTYPES

OURS = "ours"
RHO = 0.6
KS = (0, 1)


def measure() -> list[Figure]:
    """All parts."""
    results(all_runs())
    return [*ablations(), *reliability(), *groups(), *cost_efficiencies()]


def all_runs() -> list[Run]:
    """Everything that is measured here."""
    runs = by_seed("ablations", OURS, track="choice-only", rho=RHO)
    for track in TRACKS:
        runs += by_seed("held-out choices", OURS, track=track)
        runs += by_seed("warm", OURS, track=track)
    return runs


def ablations() -> Iterator[Figure]:
    """G of new users without the parts one by one, and the paired difference to the whole."""
    runs = by_seed("ablations", OURS, track="choice-only", rho=RHO)
    found = results(runs)
    for name in ABLATIONS:
        for k in KS:
            for part in PARTS:
                key = f"k={k}, {part}"
                what = "the whole" if name == "nothing" else f"without {name}"
                label = f"G, Gowalla items, rho={RHO:g}, choice-only, {key}: {what}"
                yield note(label, mean(runs, f"{name}: {key}"))
                if name == "nothing":
                    continue
                pair = ([found[run][f"{which}: {key}"] for run in runs] for which in (name, "nothing"))
                difference, low, high = paired_difference(*pair)
                yield note(f"{label}, less the whole", difference, interval=(low, high))


def reliability() -> Iterator[Figure]:
    """Calibration on choices held out of the training data."""
    for track in TRACKS:
        found = pooled_calibration(track)
        name = f"held-out choices, {track}, medium"
        yield note(f"{name}: expected calibration error", found.expected_error)
        yield note(f"{name}: log-likelihood", found.log_likelihood)
        yield note(f"{name}: best temperature", found.temperature)
        yield note(f"{name}: log-likelihood at it", found.log_likelihood_at_temperature)
        for i in np.flatnonzero(found.counts):
            yield note(f"{name}, bin {i}: confidence", found.confidence[i])
            yield note(f"{name}, bin {i}: accuracy", found.accuracy[i])
            yield note(f"{name}, bin {i}: choices", found.counts[i])


def pooled_calibration(track: Track) -> Calibration:
    """Calibration on the held-out choices of all seeds."""
    runs = by_seed("held-out choices", OURS, track=track)
    found = results(runs)
    logits, chosen = (np.concatenate([found[run][name] for run in runs]) for name in ("logits", "chosen"))
    return calibration(logits, chosen.astype(np.int64))


def groups() -> Iterator[Figure]:
    """G of known users by activity and by prototype."""
    world = load_world(shared_file("persona-sim"))
    names = {"activity": activity_of(world), "prototype": prototypes_of(world)}
    for track in TRACKS:
        found = results(by_seed("warm", OURS, track=track))
        for part in PARTS:
            gains = np.concatenate([result[part] for result in found.values()])
            for kind, group_of in names.items():
                for group, figure in by_group(gains, group_of).items():
                    label = f"G, warm, medium, {track}, {part}, {kind} {group} ({figure.n_users} users)"
                    yield note(label, figure.mean, interval=(figure.low, figure.high))


def activity_of(world: World) -> list[str]:
    """Third by activity of the users of all seeds."""
    counts = [
        np.bincount(users.choices.users, minlength=len(users.weights))
        for users in (world.of_seed(seed) for seed in SEEDS)
    ]
    return list(activity_thirds(np.concatenate(counts)))


def prototypes_of(world: World) -> list[str]:
    """Prototype of the users of all seeds."""
    names = list(PROTOTYPES)
    return [names[k] for seed in SEEDS for k in world.of_seed(seed).prototypes.tolist()]


def cost_efficiencies() -> Iterator[Figure]:
    """The multi-cost-efficiency protocol, which hardly tests personalisation; known: .341, .343, .440."""
    files = [f"routeprofile/{name}" for name in ("routing_test_data.json.gz", "candidate_models.json")]
    table, _ = read_route_profile(*map(shared_file, files))
    found = cost_efficiency(table, load_world(shared_file("persona-sim")).query_embeddings)
    for name in ("best_single", "ridge", "blind", "oracle"):
        label = f"multi-cost-efficiency, RouteProfile: {name.replace('_', ' ')}"
        yield note(label, getattr(found, name))


if __name__ == "__main__":
    run_alone("router_ablations", measure)
