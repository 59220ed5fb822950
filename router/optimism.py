"""The benefit of the doubt for an LLM that nobody was offered yet (telemetry track).

Of such an LLM only some answers are known. It has no weights of its own, and features of its answers are
predicted, that is, shrunk towards the mean: its expected logit is rarely the highest although it often would
be the best, and as long as it is not chosen nothing is learned of it. Its logit is therefore raised by a
multiple of the standard deviation of what is not known of it, as in upper confidence bounds (Auer, "Using
Confidence Bounds for Exploitation-Exploration Trade-offs", 2002). In task t, for a user who is drawn from the
tastes, z1 = [z, 1], that variance is

    mean over LLMs m of E (z1 · (W(t, m) - mean of W(t)))²  +  sum over features f of e(f) E (z1 · C(t, f))²,

the spread of the weights W that LLMs in use have beside their answers, and the variance e(f) by which
predicted features miss, through the weights C of features. By the law of total variance, e(f) is the variance
of the features that known LLMs' answers have, less that of the predictions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from router.model import TasteModel
from router.persona.data import Bools, ChoiceData, Floats


def untried_llms(data: ChoiceData) -> Bools:
    """LLMs whose answers were measured, but that were never on offer, bool [m]."""
    offered = data.choices.offered
    if data.features is None or offered is None:
        return np.zeros(data.n_llms, dtype=bool)
    return np.asarray(data.known_llms() & ~offered.any(axis=0))


def with_optimism(model: TasteModel, data: ChoiceData, features: Floats, optimism: float) -> TasteModel:
    """Raise the bias of LLMs that nobody was offered.

    Parameters
    ----------
    model
        Trained on ``data``.
    data
        Says which LLMs they are.
    features
        Features of all answers, measured or predicted, float32 [q, m, f].
    optimism
        Standard deviations to raise by.
    """
    untried, tried = untried_llms(data), data.known_llms() & ~untried_llms(data)
    if not untried.any() or not tried.any():
        return model
    pairs, by_task = model.pairs.clone(), model.by_task.clone()
    for llm in np.flatnonzero(untried).tolist():
        raised = optimism * _doubt(model, _missed(data, features, llm, tried), tried)
        by_task[:, llm, -1] += raised
        pairs[:, llm, -1] += raised[torch.from_numpy(data.tasks)]
    return replace(model, pairs=pairs, by_task=by_task)


def _doubt(model: TasteModel, missed: Tensor, tried: Bools) -> Tensor:
    """Standard deviation of what is not known of an LLM, by task, float32 [t]."""
    assert model.by_feature is not None
    moment = _second_moment(model)
    own = model.by_task[:, torch.from_numpy(tried)]
    own = own - own.mean(dim=1, keepdim=True)
    of_llms = ((own @ moment) * own).sum(dim=2).mean(dim=1)
    of_answers = ((model.by_feature @ moment) * model.by_feature).sum(dim=2) @ missed
    return (of_llms + of_answers).sqrt()


def _second_moment(model: TasteModel) -> Tensor:
    """E z1 z1ᵀ over users, float32 [d + 1, d + 1]."""
    shares = model.log_shares.softmax(0)
    centres = torch.cat([model.centres, torch.ones(model.n_tastes, 1)], dim=1)
    moment = (shares[:, None] * centres).T @ centres
    within = shares @ (2.0 * model.log_sds).exp()
    return moment + torch.cat([within, torch.zeros(1)]).diag()


def _missed(data: ChoiceData, features: Floats, llm: int, tried: Bools) -> Tensor:
    """Variance of the errors of an LLM's predicted features, float32 [f]."""
    assert data.features is not None
    shown = data.train_queries
    measured = data.features[shown][:, tried].astype(np.float64)
    known = ~np.isnan(measured)
    counts = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, measured, 0.0).sum(axis=0) / counts
    variance = (np.where(known, measured - mean, 0.0) ** 2).sum(axis=0) / counts
    # An LLM may have been offered without that its answers were measured.
    spread = variance.sum(axis=0) / np.maximum(known.any(axis=0).sum(axis=0), 1)
    foreseen = features[shown, llm].astype(np.float64).var(axis=0)
    return torch.from_numpy(np.maximum(spread - foreseen, 0.0).astype(np.float32))
