"""How well choices that were held out are foreseen, beside two simple baselines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.persona.data import Choices, Floats, Ints

Doubles = NDArray[np.float64]
_PRIOR_COUNT = 2.0  # choices that the population's shares count as in a user's own


def split_choices(choices: Choices, share: float, seed: int) -> tuple[Choices, Choices]:
    """Split choices at random into those to train on and those held out; at least one remains to train on."""
    order = np.random.default_rng(seed).permutation(len(choices))
    n_held = min(round(share * len(choices)), len(choices) - 1)
    return choices.take(np.sort(order[n_held:])), choices.take(np.sort(order[:n_held]))


def foreseen(logits: NDArray[np.floating], choices: Choices) -> dict[str, float]:
    """Mean log-likelihood of choices (nats), and how often the best LLM on offer was chosen.

    Parameters
    ----------
    logits
        Of each choice and LLM, [n, m]; -inf: will not be chosen.
    choices
        What was chosen.
    """
    x = on_offer(logits, choices)
    return {
        "log_likelihood": float(log_likelihoods(logits, choices).mean()),
        "accuracy": float((x.argmax(axis=1) == choices.llms).mean()),
    }


def on_offer(logits: NDArray[np.floating], choices: Choices) -> Doubles:
    """Logits of the LLMs on offer, float64 [n, m]; -inf for the others."""
    x = logits.astype(np.float64)
    return x if choices.offered is None else np.where(choices.offered, x, -np.inf)


def log_likelihoods(logits: NDArray[np.floating], choices: Choices) -> Doubles:
    """Log-likelihood of each choice among the LLMs on offer (nats), float64 [n]."""
    x = on_offer(logits, choices)
    x = x - x.max(axis=1, keepdims=True)
    log_p: Doubles = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return log_p[np.arange(len(choices)), choices.llms]


def validate(choices: Choices, held_out: Choices, logits: Floats, tasks: Ints) -> dict[str, Any]:
    """Figures of a router and of baselines on the same choices.

    Parameters
    ----------
    choices
        What the router was trained on.
    held_out
        Choices that it did not see; users and queries are numbered alike.
    logits
        Its logits of them, float32 [n, m].
    tasks
        Task of each query, int64 [q].
    """
    shares = baselines(choices, held_out, tasks, logits.shape[1])
    return {
        "events": len(held_out),
        **foreseen(logits, held_out),
        "baselines": {name: foreseen(np.log(of), held_out) for name, of in shares.items()},
    }


def baselines(choices: Choices, held_out: Choices, tasks: Ints, n_llms: int) -> dict[str, Doubles]:
    """Shares of the LLMs, [n, m]: ``popularity`` the same for all, by ``task``, and ``user_task``.

    Parameters
    ----------
    choices
        To count.
    held_out
        Whose shares are given; users and queries are numbered alike.
    tasks
        Task of each query, int64 [q].
    n_llms
        Number m of LLMs.
    """
    m, t = n_llms, int(tasks.max(initial=-1)) + 1
    of_choices, of_held_out = tasks[choices.queries], tasks[held_out.queries]
    of_all = np.bincount(choices.llms, minlength=m) + 1.0
    of_all /= of_all.sum()
    by_task = np.zeros((t, m))
    np.add.at(by_task, (of_choices, choices.llms), 1.0)
    by_task = (by_task + _PRIOR_COUNT * of_all) / (by_task.sum(axis=1, keepdims=True) + _PRIOR_COUNT)
    # Only the users and tasks that are asked for: users × tasks × LLMs may be large.
    wanted, places = np.unique(held_out.users * t + of_held_out, return_inverse=True)
    made = choices.users * t + of_choices
    at = np.searchsorted(wanted, made).clip(max=len(wanted) - 1)
    kept = wanted[at] == made
    own = np.zeros((len(wanted), m))
    np.add.at(own, (at[kept], choices.llms[kept]), 1.0)
    of_task = by_task[of_held_out]
    own = own[places]
    user_task = (own + _PRIOR_COUNT * of_task) / (own.sum(axis=1, keepdims=True) + _PRIOR_COUNT)
    return {
        "popularity": np.broadcast_to(of_all, of_task.shape),
        "task": of_task,
        "user_task": user_task,
    }
