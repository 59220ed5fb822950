"""What differs between two releases, against sets counted in plain Python."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppr.graph import Graph
from router.bundle import Bundle
from router.errors import ReleaseError
from router.publishing import publish
from router.releases import Release
from router.releases.diff import diff
from router.releases.overview import figures, overview, whole
from router.releases.places import Folder, place_of
from router.releases.push import push
from tests.releases.conftest import NOON
from tests.service.synthetic import EncoderIdentity, write_synthetic


def random_graph(path: Path, keys: list[Any], n_users: int, seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    dense = rng.random((len(keys), len(keys))) < 0.2
    np.fill_diagonal(dense, False)
    indptr = np.concatenate([[0], np.cumsum(dense.sum(axis=1))])
    kinds = [0] * n_users + [1] * (len(keys) - n_users)
    indices = np.nonzero(dense)[1]
    return Graph.from_arrays(indptr, indices, kind_ids=kinds, kinds=("user", "item"), keys=keys).save(path)


def edges_of(graph: Graph) -> set[tuple[str, str, str, str]]:
    kinds = [graph.kinds[kind] for kind in graph.kind_ids]
    keys = [str(key) for key in graph.nodes.keys_of(np.arange(len(kinds)))]
    return {
        (kinds[source], keys[source], kinds[target], keys[target])
        for source in range(len(kinds))
        for target in graph.indices[graph.indptr[source] : graph.indptr[source + 1]]
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Release, Release]:
    """Releases of overlapping users, items, LLMs and graphs; keys of the second graph are in other order."""
    folder = tmp_path_factory.mktemp("two")
    made = []
    for number in range(2):
        users = [f"u{i}" for i in range(5 * number, 20 + 10 * number)][:: 1 - 2 * number]
        items = [f"i{i}" for i in range(3 * number, 9 + number)]
        graph = random_graph(folder / f"g{number}", [*users, *items], len(users), number)
        write_synthetic(
            folder / f"m{number}",
            users=users[:-2],
            items=items,
            llms=[("one", "two", "three"), ("two", "three", "four", "five")][number],
            parents={"graph": graph.checksum},
            encoder=EncoderIdentity("hashing", 1, 16 * (1 + number)),
            seed=number,
        )
        made.append(
            publish(
                folder / "releases",
                model=folder / f"m{number}",
                graph=graph.path,
                now=NOON + timedelta(days=number),
                new_encoder=True,
            )
        )
    return folder / "releases", *made


@pytest.mark.parametrize("where", ["folder", "store"])
def test_against_sets(two, tmp_path, where):
    root, old, new = two
    place = Folder(root)
    if where == "store":
        for release in (old, new):
            push(root, f"file://{tmp_path}", release.version, new_encoder=True)
        place = place_of(f"file://{tmp_path}")
    found = diff(place, old.version, new.version, names=3, user_names=3)
    bundles, graphs = ([of.open(getattr(r, name)) for r in (old, new)] for of, name in
                       ((Bundle, "model"), (Graph, "graph")))  # fmt: skip
    for kind in ("user", "item"):
        keys = [set(b.keys(kind, np.arange(b.manifest["counts"][kind]))) for b in bundles]
        check(found["model"][kind], *keys)
    check(found["model"]["llm"], *(set(bundle.llms.names) for bundle in bundles))
    edges = [edges_of(graph) for graph in graphs]
    assert found["graph"]["edges"] == {
        "before": len(edges[0]),
        "after": len(edges[1]),
        "added": len(edges[1] - edges[0]),
        "gone": len(edges[0] - edges[1]),
    }
    assert found["encoder"] == {"dimension": [16, 32]}
    assert found["same_content"] == {"model": False, "graph": False}
    without = diff(place, old.version, new.version, edges=False)
    assert without["graph"]["edges"] == found["graph"]["edges"] | {"added": None, "gone": None}


def check(found: dict[str, Any], before: set[str], after: set[str]) -> None:
    counts = [found[name] for name in ("before", "after", "added", "gone")]
    assert counts == [len(before), len(after), len(after - before), len(before - after)]
    assert set(found["added_names"]) <= after - before
    assert set(found["gone_names"]) <= before - after
    assert len(found["gone_names"]) >= min(3, len(before - after))


def test_a_release_and_itself(two):
    root, old, _ = two
    found = diff(Folder(root), old.version, old.version)
    assert found["same_content"] == {"model": True, "graph": True}
    assert found["graph"]["edges"]["added"] == found["graph"]["edges"]["gone"] == 0
    assert not any(found["parameters"].values())
    assert found["metrics"] == found["encoder"] == found["times"] == {}
    with pytest.raises(ReleaseError, match="not the name of a release: 'x'"):
        diff(Folder(root), "x", old.version)


def test_overview(two, tmp_path):
    root, old, new = two
    found = overview(Folder(root))
    assert (found["current"], found["previous"]) == (new.version, old.version)
    assert [(row["version"], row["state"]) for row in found["releases"]] == [
        (new.version, "current"),
        (old.version, "previous"),
    ]
    row = found["releases"][0]
    graph = Graph.open(new.graph)
    assert (row["users"], row["items"], row["llms"], row["edges"]) == (23, 7, 4, len(graph.indices))
    stores = ("model", "graph")
    assert row["bytes"] == sum(
        path.stat().st_size for name in stores for path in (new.path / name).rglob("*") if path.is_file()
    )
    (root / "20270101T000000Z-badbadbadbad").mkdir()
    (root / "20270101T000000Z-badbadbadbad" / "release.json").write_text("{")
    damaged = overview(Folder(root))["releases"][0]
    assert damaged["version"] == "20270101T000000Z-badbadbadbad"
    assert "cannot be read" in damaged["damaged"]
    (root / "20270101T000000Z-badbadbadbad" / "release.json").unlink()
    (root / "20270101T000000Z-badbadbadbad").rmdir()
    shown = whole(Folder(root), old.version, verify=True)
    assert shown["record"] == old.manifest
    assert (shown["previous"], shown["current"], shown["compared"]) == (True, False, "every byte")
    assert [switch["action"] for switch in shown["switches"]] == ["activate", "activate"]


def test_figures():
    metrics = {"a": {"b": 1.5, "c": [1, 2], "d": {"e": 2}}, "f": True, "g": None, "h": 3}
    assert figures(metrics) == {"a.b": 1.5, "a.d.e": 2, "h": 3}
