"""The report page: what it says must be what the data say, and nothing may come from outside the file."""

from __future__ import annotations

import dataclasses
import errno
import re
import xml.etree.ElementTree as ET
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jobs.report import (
    AccuracyCurve,
    CostCurve,
    Fact,
    ModelShares,
    Neighbour,
    Neighbourhood,
    QualityRow,
    ReportData,
    RoutedUser,
    RouterReport,
    SupportCurves,
    TrainingCurve,
    UserCard,
    UserMap,
    write_report,
)
from jobs.report.figures import accuracy_figure, degree_figure, quality_figure, work_figure
from jobs.report.network import layered_positions
from jobs.report.page import render_report
from jobs.report.style import COLOURS, group_colours
from ppr.errors import ResourceError

WALKS = np.array([100, 300, 1000, 3000, 10000])


def curves() -> tuple[AccuracyCurve, ...]:
    rng = np.random.default_rng(0)
    found = []
    for label, factor in (("walk packets", 1.0), ("independent walks", 2.2)):
        l1 = factor * 3.0 / np.sqrt(WALKS)[:, None] * rng.uniform(0.6, 1.4, size=(len(WALKS), 30))
        found.append(AccuracyCurve(label, WALKS, np.clip(1 - 0.5 * l1, 0, 1), l1))
    return tuple(found)


def neighbourhood() -> Neighbourhood:
    rng = np.random.default_rng(1)
    groups = ("camping", "kitchen", "books", "games")
    history = tuple(Neighbour(f"item-{i:02d}", groups[i % 3], float(1 + i % 5)) for i in range(10))
    similar = tuple(Neighbour(f"user-{i:04d}", "", 0.1 / (1 + i)) for i in range(6))
    recommended = tuple(Neighbour(f"lamp-{i:02d}", groups[i % 4], 0.2 / (1 + i), i == 2) for i in range(8))
    history_links = np.stack([rng.integers(10, size=20), rng.integers(6, size=20)], axis=1)
    recommended_links = np.stack([rng.integers(6, size=20), rng.integers(8, size=20)], axis=1)
    return Neighbourhood("user-0042", history, similar, recommended, history_links, recommended_links)


def router_report(word: str = "ember-pro") -> RouterReport:
    rng = np.random.default_rng(3)
    models = (word, "delta-mini", "birch-chat")
    curve = SupportCurves(
        title=f"users of {word}",
        bins=("0", "1", "2-4"),
        n_users=np.array([20, 31, 45]),
        means={"counts": np.array([0.4, 0.5, 0.6]), f"Fairpath, {word}": np.array([0.4, 0.7, 0.9])},
        errors={"counts": np.full(3, 0.02), f"Fairpath, {word}": np.array([0.02, np.nan, 0.01])},
    )
    return RouterReport(
        note=f"Invented users of {word}.",
        quality_metrics=("gap closed",),
        quality=(QualityRow("counts", (0.512,)), QualityRow(f"Fairpath, {word}", (0.734,))),
        question=f"How is {word} made?",
        question_note=f"The first two users of {word}.",
        users=tuple(RoutedUser(f"user-{i} {word}", word, ((word, f"because {word}"),)) for i in (7, 8)),
        shares=(
            ModelShares(f"by task {word}", ("code", word), models, rng.dirichlet(np.ones(3), size=2)),
            ModelShares("by persona", ("frugal", "expert"), models, rng.dirichlet(np.ones(3), size=2)),
        ),
        curves=(curve, curve),
        curves_label=f"share {word}",
        user_map=UserMap(
            rng.normal(size=(40, 2)), (0.5, 0.2), {f"by {word}": tuple(models[i % 3] for i in range(40))}
        ),
    )


def training_curve() -> TrainingCurve:
    steps = np.arange(0, 100, 10)
    held_out = np.where(steps % 20 == 0, -1.4 + 0.002 * steps, np.nan)
    return TrainingCurve(steps, -1.5 + 0.004 * steps, 0.003 * steps, held_out)


def full_report() -> ReportData:
    rng = np.random.default_rng(2)
    picture = neighbourhood()
    return ReportData(
        title="Fairpath demo",
        summary="A generated market & its recommendations.",
        facts=(Fact("nodes", "3,500", "2,000 users, 1,500 items"), Fact("fingerprints", "12.1 s")),
        degrees={
            "user": np.sort(rng.zipf(1.7, size=2000)).clip(max=900),
            "item": rng.zipf(1.5, size=1500).clip(max=1500),
        },
        accuracy=curves(),
        cost=(
            CostCurve("walk packets", WALKS, 0.0004 * WALKS + 0.02, 60 + 2000 / WALKS),
            CostCurve("independent walks", WALKS, 0.0009 * WALKS + 0.05, 140 + 9000 / WALKS),
            CostCurve("exact solver", np.empty(0, dtype=np.int64), np.array([1.9]), np.empty(0)),
        ),
        predicted_moves=np.full(14, 2.1e6),
        actual_moves=rng.integers(1_900_000, 2_300_000, size=14),
        quality_metrics=("Recall@20", "NDCG@20", "planted mass"),
        quality=(
            QualityRow("popularity", (0.137, 0.09, 0.41)),
            QualityRow("Fairpath, 3 hops", (0.242, 0.171, 0.83)),
            QualityRow("planted truth", (0.287, 0.2, 1.0)),
        ),
        quality_note="The last fifth of the interactions was held out.",
        neighbourhood=picture,
        users=tuple(UserCard(f"user-{i:04d}", picture.history, picture.recommended) for i in range(3)),
        router=router_report(),
        training=training_curve(),
        parameters={"fingerprints": {"n_walks": "3000"}, "versions": {"numpy": "2.0"}},
    )


class Page(HTMLParser):
    """Tags with their attributes, and a check that every element is closed in order."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(full_report())


def test_page_is_well_formed_and_self_contained(page: str) -> None:
    parsed = Page(page)
    outside = {"script", "link", "img", "iframe", "image", "use-external"}
    assert not outside & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href"}:
                assert value is not None
                assert value.startswith("#")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    parsed = Page(page)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    referenced = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'xlink:href="#([^"]+)"', page))
    assert referenced
    assert referenced <= set(ids)


def test_every_picture_has_a_text_alternative_and_is_valid_xml(page: str) -> None:
    pictures = re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) == 11
    for picture in pictures:
        root = ET.fromstring(picture)
        assert root.attrib["role"] == "img"
        assert len(root.attrib["aria-label"]) > 20


def test_pictures_follow_the_colour_scheme(page: str) -> None:
    pictures = "".join(re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL))
    # A colour that stayed literal would not change in the dark: only clip paths may keep the default.
    assert set(re.findall(r"#[0-9a-f]{6}\b", pictures)) == set()
    for name in set(re.findall(r"var\(--([\w-]+)\)", page)):
        assert name in COLOURS


def test_numbers_of_the_data_are_on_the_page(page: str) -> None:
    text = unescape(re.sub(r"<[^>]+>", " ", page))
    for expected in ("0.512", "0.734", "because ember-pro", "How is ember-pro made?"):
        assert expected in text
    for expected in ("0.137", "0.242", "0.287", "3,500", "user-0042", "lamp-07", "n_walks", "3000"):
        assert expected in text
    marked = {card.user for card in full_report().users}
    assert page.count('title="chosen later">✓<') == len(marked)


def test_equal_data_give_equal_text(page: str) -> None:
    assert render_report(full_report()) == page


def test_text_from_the_data_is_escaped() -> None:
    evil = '<script>alert("1")</script>'
    nodes = (Neighbour(evil, evil, 1.0),)
    links = np.array([[0, 0]])
    data = ReportData(
        title=evil,
        summary=evil,
        facts=(Fact(evil, evil, evil),),
        quality_metrics=(evil,),
        quality=(QualityRow(evil, (0.5,)),),
        neighbourhood=Neighbourhood(evil, nodes, nodes, nodes, links, links),
        users=(UserCard(evil, nodes, nodes),),
        router=router_report(evil),
        parameters={evil: {evil: evil}},
    )
    assert Page(render_report(data)).find("script") == []


def test_dollar_signs_in_keys_are_text_not_formulas() -> None:
    nodes = (Neighbour("$x^2$", "a"),)
    links = np.array([[0, 0]])
    data = ReportData(
        title="t", summary="s", neighbourhood=Neighbourhood("$u$", nodes, nodes, nodes, links, links)
    )
    assert "$x^2$" in unescape(render_report(data))


def test_empty_parts_are_left_out() -> None:
    parsed = Page(render_report(ReportData(title="Nothing yet", summary="No data.")))
    assert parsed.find("svg") == []
    assert parsed.find("h2") == []


def test_a_user_without_neighbours_can_be_drawn() -> None:
    none = np.empty((0, 2), dtype=np.int64)
    lonely = Neighbourhood("user-1", (), (), (), none, none)
    data = dataclasses.replace(full_report(), neighbourhood=lonely)
    assert len(Page(render_report(data)).find("svg")) > 0


def test_degree_figure_draws_the_distribution_function() -> None:
    degree = np.array([0, 1, 1, 2, 5, 5, 5, 40])
    (line,) = degree_figure({"node": degree}).axes[0].lines
    for value, share in zip(line.get_xdata(), line.get_ydata(), strict=True):
        assert share == np.mean(degree >= value)
    assert list(line.get_xdata()) == [1, 2, 5, 40]


def test_accuracy_figure_draws_means() -> None:
    curve = curves()[0]
    left, right = accuracy_figure([curve]).axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), curve.rag.mean(axis=1))
    np.testing.assert_array_equal(right.lines[0].get_ydata(), curve.l1.mean(axis=1))


def test_quality_bars_start_at_zero_and_have_the_lengths_of_the_values() -> None:
    rows = [QualityRow("a", (0.1, 0.5)), QualityRow("b", (0.3, 0.0))]
    for column, axes in enumerate(quality_figure(("x", "y"), rows).axes):
        assert [bar.get_x() for bar in axes.patches] == [0, 0]
        assert [bar.get_width() for bar in axes.patches] == [row.values[column] for row in rows]
        assert axes.get_xlim()[0] == 0


def test_work_figure_counts_in_millions() -> None:
    axes = work_figure(np.array([2e6]), np.array([1_500_000])).axes[0]
    assert axes.patches[0].get_height() == 1.5


def test_layout_puts_linked_nodes_at_the_same_height() -> None:
    nodes = tuple(Neighbour(str(i), "g", -i) for i in range(5))
    backwards = np.array([[i, 4 - i] for i in range(5)])
    picture = Neighbourhood("u", nodes, nodes, nodes, backwards, backwards)
    history, similar, recommended = layered_positions(picture)
    assert np.all(np.diff(history) < 0)
    np.testing.assert_array_equal(similar[backwards[:, 1]], history[backwards[:, 0]])
    np.testing.assert_array_equal(recommended[backwards[:, 1]], similar[backwards[:, 0]])


def test_groups_beyond_the_palette_share_the_muted_colour() -> None:
    colours = group_colours(f"group {i % 11}" for i in range(50))
    assert len(colours) == 11
    assert len(set(colours.values())) == 9


def test_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, ReportData(title="first", summary=""))

    def fill_the_disk(working: Path, text: str, **_: object) -> None:
        working.write_bytes(text[:10].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(ResourceError, match="no space left"):
        write_report(path, ReportData(title="second", summary=""))
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert "first" in path.read_text(encoding="utf-8")
