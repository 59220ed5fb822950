"""How well a candidate foresees what was held out, beside the release that is served.

Both are opened and asked as a service does (:mod:`router.service.serving`): a user whom a release does not
hold is placed by its graph where that has the user, else is one of whom nothing is known; an item that it
does not know cannot be recommended, and an LLM of which it knows nothing is never its choice. Feedback that a
service takes in on top of its release is left out on both sides.

**The same rows.** Both are judged by the same users and rows. Left out, and counted, are rows that one of the
two has seen (an edge of its graph), rows whose item or LLM neither knows, events with a thumb down, which do
not tell what was wanted instead, and users beyond a sample of bounded size. A log-likelihood is that of a
choice among the LLMs on offer that both know, since probabilities over different LLMs do not compare; whether
the first choice was right is asked of each with all the LLMs that it knows.

**Users are the draws.** Every figure is a mean over users of each user's own mean. Differences are paired by
user, with 95 % bootstrap intervals over users (:mod:`jobs.pipeline.evaluation_figures`).

The result, equal for equal inputs::

    k, seed            as given
    current            version of the current release, or None
    current_unusable   why it could not be opened, or None: then it is compared with nothing
    ranks_items        {"candidate": bool, "current": bool | None}
    choices, items     None where there is nothing to judge by, else
      rows, users      judged
      left_out         {reason: rows}
      metrics          by log_likelihood (nats per choice) and accuracy, or ndcg and recall (at k):
        users          with a value
        candidate, current, popularity, user_task
                       {"mean", "low", "high"}; no current without one; user_task of choices only
        difference     candidate - current, {"mean", "low", "high"}, or None
        over_popularity  candidate - popularity
        groups         {group: {"users", "candidate", "current", "difference"}}, by what the training has of
                       a user
      sources          of choices: {whose: {what a belief rests on: users}}
      not_finite       of choices: {whose: rows with a score that is no finite number}
      unknown_users    of items: {whose: users}

Costs about a millisecond per row and release and, where texts are encoded, an encoding of each query that the
candidate does not know, or whose task nobody tells: of those held out, and of at most 20,000 choices from the
training, from which the baselines are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.pipeline.candidate import Candidate, HeldOut
from jobs.pipeline.evaluation_choices import judge_choices
from jobs.pipeline.evaluation_figures import CANDIDATE, CURRENT
from jobs.pipeline.evaluation_items import judge_items
from router.dataset.queries import EXTERNAL
from router.encoders import check_encoder
from router.errors import RouterError
from router.releases import Release
from router.service.serving import Serving


def evaluate(
    candidate: Candidate,
    current: Release | None,
    held_out: HeldOut,
    *,
    k: int = 20,
    max_users: int = 2000,
    seed: int = 0,
    queries: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Judge a candidate and the current release by the same held-out rows.

    Parameters
    ----------
    candidate
        What may be published.
    current
        What is served; None before the first release.
    held_out
        Rows that neither was trained on.
    k
        Length of the lists of items.
    max_users
        Most users judged, of choices and of items each; drawn at random.
    seed
        Of that sample and of the bootstrap.
    queries
        Table of the events' queries, as ``train-router`` takes it; None where queries are texts.
    tell
        Is told what is judged.

    Returns
    -------
    dict
        See the top of this module. It holds JSON values only.

    Raises
    ------
    ReleaseError
        The candidate cannot be opened.
    MissingDataError
        A file is not there, or the candidate's encoder is not installed.
    DataError
        A table breaks its rule; an LLM is known to neither.
    """
    served = {CANDIDATE: Serving.open(_AsRelease.of(candidate), verify=False)}
    unusable = None
    if current is not None:
        try:
            served[CURRENT] = _opened(current)
        except RouterError as error:
            unusable = str(error)  # it must not be in the way of a better one
            tell(f"the current release cannot be opened: {unusable}")
    shared: dict[str, Any] = {"max_users": max_users, "seed": seed, "tell": tell}
    return {
        "k": k,
        "seed": seed,
        "current": None if current is None else current.version,
        "current_unusable": unusable,
        "ranks_items": {
            name: served[name].has_items if name in served else None for name in (CANDIDATE, CURRENT)
        },
        "choices": judge_choices(
            served, held_out.choices, held_out.training_choices, queries=queries, **shared
        ),
        "items": judge_items(served, held_out.interactions, k=k, **shared),
    }


def _opened(current: Release) -> Serving:
    serving = Serving.open(current, verify=False)
    identity = serving.scorer.encoder
    if identity.name != EXTERNAL:
        check_encoder(identity)
    return serving


@dataclass(frozen=True, slots=True)
class _AsRelease(Release):
    """A candidate in the place of a release that it is not yet."""

    stores: Candidate

    @classmethod
    def of(cls, stores: Candidate) -> _AsRelease:
        return cls(stores.model.parent, CANDIDATE, {"feedback_until": None, "erased_until": None}, stores)

    @property
    def path(self) -> Path:
        return self.stores.model

    @property
    def model(self) -> Path:
        return self.stores.model

    @property
    def graph(self) -> Path | None:
        return self.stores.graph

    @property
    def fingerprints(self) -> Path | None:
        return self.stores.fingerprints
