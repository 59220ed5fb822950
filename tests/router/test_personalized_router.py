from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
geometric = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")

from router.baselines.personalized_router import PersonalizedRouter, SummedConv, edge_counts  # noqa: E402
from router.persona import Choices, World, load_world, warm_data  # noqa: E402
from tests.oracles.persona_worlds import write_world  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load_world(write_world(tmp_path_factory.mktemp("world")))


def test_counted_edges_give_what_general_conv_gives(world: World) -> None:
    torch.manual_seed(0)
    data = warm_data(world, 1, "choice-only")
    choices = data.choices.take(np.arange(200))
    offered = np.random.default_rng(0).random((200, 4)) < 0.6
    offered[np.arange(200), choices.llms] = True
    choices = Choices(choices.users, choices.queries, choices.llms, offered)
    width, n = 5, data.n_queries
    ours = SummedConv(width)
    theirs = geometric.GeneralConv(width, width, in_edge_channels=width)
    theirs.lin_msg.load_state_dict(ours.message.state_dict())
    theirs.lin_edge.load_state_dict(ours.edge.state_dict())
    queries, llms, edges = torch.randn(n, width), torch.randn(4, width), torch.randn(2, width)
    event, llm = (torch.from_numpy(ids) for ids in np.nonzero(offered))
    query = torch.from_numpy(choices.queries)[event]
    chosen = (torch.from_numpy(choices.llms)[event] == llm).long()
    index = torch.stack([torch.cat([query, n + llm]), torch.cat([n + llm, query])])
    with torch.no_grad():
        expected = theirs(torch.cat([queries, llms]), index, edges[chosen].repeat(2, 1))
        got = torch.cat(ours(queries, llms, edges, edge_counts(choices, data)))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_all_users_get_the_same_answer(world: World) -> None:
    """The published model's defect, kept on purpose."""
    data = warm_data(world, 1, "choice-only")
    model = PersonalizedRouter(n_epochs=60, learning_rate=1e-2)
    model.fit(data)
    scores = model.scores(np.arange(3), np.arange(data.n_queries))
    assert ((scores > 0.0) & (scores < 1.0)).all()
    np.testing.assert_array_equal(scores[0], scores[2])
    again = PersonalizedRouter(n_epochs=60, learning_rate=1e-2)
    again.fit(data)
    np.testing.assert_array_equal(again.scores(np.arange(3), np.arange(data.n_queries)), scores)


def test_it_learns_what_everybody_likes(world: World) -> None:
    data = warm_data(world, 1, "choice-only")
    same = Choices(data.choices.users, data.choices.queries, np.full_like(data.choices.llms, 2))
    model = PersonalizedRouter(n_epochs=100, learning_rate=1e-2)
    model.fit(data.with_choices(same))
    assert (model.scores(np.arange(1), np.arange(data.n_queries)).argmax(axis=2) == 2).mean() > 0.9
