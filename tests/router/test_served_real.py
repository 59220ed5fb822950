"""What a bundle serves is what the benchmark measures; real responses, simulated users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

from router.bundle_training import train_bundle
from router.dataset import Expected, RouterData, Tasks
from router.encoders import EncoderIdentity
from router.persona import Track, judge_new_users, load_world, new_user_data, warm_data
from router.persona.data import ChoiceData, Floats, Ints, Support
from router.personal import PersonalRouter
from router.policy import Catalogue, Llm
from router.scorer import Event, Scorer
from router.train import Settings

SETTINGS = Settings(n_steps=60, n_tastes=4, seed=1)
N_NEW = 20


class ServedRouter:
    """A bundle as the benchmark sees a router: queries by their keys, new ones by task and embedding."""

    def __init__(self, scorer: Scorer, data: RouterData) -> None:
        self.scorer = scorer
        self.data = data

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        """Scores of all LLMs, float32 [u, q, m]."""
        choices, names = support.choices, self.scorer.llms.names
        scores = []
        for user in range(support.n_users):
            rows = np.flatnonzero(choices.users == user)
            events = [
                Event(names[choices.llms[row]], query=self.data.query_keys[choices.queries[row]])
                for row in rows
            ]
            believed = self.scorer.user_from_events(events)
            scores.append([self._scores(believed, query) for query in queries.tolist()])
        return np.array(scores)

    def _scores(self, user, query):
        task, embeddings = self.data.tasks.names[self.data.data.tasks[query]], self.data.data.query_embeddings
        return self.scorer.scores(user, embeddings[query], task, query=self.data.query_keys[query]).preference


def router_data(data: ChoiceData) -> RouterData:
    """The world's choices as if they had been read from files."""
    nothing = np.full((data.n_tasks, data.n_llms), np.nan, dtype=np.float32)
    centroids = [data.query_embeddings[data.tasks == t].mean(axis=0) for t in range(data.n_tasks)]
    return RouterData(
        data=data,
        user_keys=pa.array(np.arange(data.n_users)),
        query_keys=np.array([f"query {i}" for i in range(data.n_queries)], dtype=object),
        catalogue=Catalogue(Llm(name=name) for name in data.llm_names),
        behaviour={},
        tasks=Tasks(tuple(f"task {t}" for t in range(data.n_tasks)), np.stack(centroids), given=True),
        encoder=EncoderIdentity("external", 1, data.query_embeddings.shape[1]),
        expected=Expected(nothing, nothing, nothing),
        answer_features=(),
        attributes=None,
        item_keys=pa.array([], pa.int64()),
    )


@pytest.mark.long
@pytest.mark.parametrize("track", ["choice-only", "telemetry"])
def test_new_users_are_served_as_they_are_measured(shared_data: Path, tmp_path: Path, track: Track) -> None:
    world = load_world(shared_data / "persona-sim")
    everybody = warm_data(world, 1, track)
    known, _ = new_user_data(everybody, 0, n_new=N_NEW)
    router = PersonalRouter(SETTINGS.resolved(known), device="cpu")
    router.fit(known)
    data = router_data(known)
    bundle = train_bundle(data, tmp_path / "bundle", SETTINGS, held_out=0.0, device="cpu")
    served = ServedRouter(Scorer(bundle), data)
    measured, found = (
        judge_new_users(world, 1, model, everybody, (10,), n_new=N_NEW)[10] for model in (router, served)
    )
    assert found.seen.gain.mean() == pytest.approx(measured.seen.gain.mean(), abs=0.01)
    assert served.scorer.user(5).vector == pytest.approx(router._posterior.mean[5].numpy(), abs=1e-3)
