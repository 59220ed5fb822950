"""The page of a run: what it says in each case, and that it is one file that is safe to open."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from jobs.pipeline.drift import POPULARITY
from jobs.pipeline.gate import Facts, decide
from jobs.pipeline.page import render_page, write_page
from jobs.pipeline.page_figures import bytes_text, seconds_text
from jobs.settings import GateSettings
from ppr.errors import OutputExistsError
from tests.pipeline.run_reports import (
    CURRENT,
    LLMS,
    PUBLISHED,
    evaluation,
    failed,
    fingerprints,
    nothing_new,
    report,
)

SECTIONS = (
    *("Quality", "Candidate against the current release", "Quality by what is known of a user", "Deliveries"),
    *(
        "Data",
        "Who and what the rows are of",
        "How much there is of each",
        "Fingerprints",
        "Steps",
        "Releases",
    ),
)


class _Reader(HTMLParser):
    """Headings, text outside of pictures, pictures, and whatever a page would fetch or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.words: list[str] = []
        self.pictures = 0
        self.outside: list[str] = []
        self.open: list[str] = []
        self.classes: set[str] = set()
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.pictures += tag == "svg"
        if tag in ("script", "link", "img", "iframe", "object"):
            self.outside.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.outside.append(f"{tag} {name}={value}")
            if name == "class":
                self.classes.update((value or "").split())

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if "svg" not in self.open and "style" not in self.open:
            self.words.append(data)


def _read(content: dict[str, Any]) -> _Reader:
    found = _Reader(render_page(json.loads(json.dumps(content, allow_nan=False, sort_keys=True))))
    assert not found.outside
    return found


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Report of a published run."""
    return report(tmp_path_factory.mktemp("usual"))


@pytest.fixture
def judged(usual: dict[str, Any]) -> dict[str, Any]:
    """The same without the parts whose pictures take time: what was judged, and the decision."""
    return deepcopy(usual) | dict.fromkeys(("description", "drift", "steps", "deliveries"))


def test_a_published_run_tells_everything(usual: dict[str, Any]) -> None:
    found = _read(usual)
    assert found.headings == ["Published", *SECTIONS]
    assert "good" in found.classes
    assert f"Release {PUBLISHED} is served from now on." in found.text
    assert "Data until 2026-01-31 00:00 UTC; started 2026-01-31 02:00 UTC, took 48 s." in found.text
    assert "✗" not in found.text
    told = "Left out of the held-out choices: 7 with a thumb down, 2 of LLMs that no release offers."
    assert told in found.text
    told = "items: 11 repeats of what the candidate was trained on, 3 of items that no release knows."
    assert told in found.text
    assert "interactions 4,000 4,400 +10.0%" in found.text
    assert "interactions/2026-01-29.parquet interactions 1,210 0 3 1,207" in found.text
    assert found.pictures == 6


def test_what_the_fingerprints_go_on_from(usual: dict[str, Any]) -> None:
    judged = {name: usual[name] for name in ("run", "state", "fingerprints")}
    told = _read(judged).text
    assert "Refreshed: they go on from the run 20260130T000000Z." in told
    assert "by more than 0.05 since" in told
    for row in ("computed anew 991 (1.4%)", "nodes whose edges changed 1,187", "at most 0.0499", "12 (0.0%)"):
        assert row in told
    made = judged["fingerprints"]
    same = {"recomputed": 0, "rows_changed": 0}
    told = _read(judged | {"fingerprints": made | same}).text
    assert "Those of the run 20260130T000000Z: nothing in the graph has changed since." in told
    in_full = {"recomputed": made["rows"], "rows_changed": None, "why": "made in full: over half are new"}
    told = _read(judged | {"fingerprints": made | in_full}).text
    assert "Made in full: over half are new." in told
    assert "Refreshed" not in told
    told = _read(judged | {"fingerprints": fingerprints(first=True)}).text
    assert "Made in full: there is no run before this one." in told
    assert "at most" not in told
    assert "Fingerprints" not in _read(judged | {"fingerprints": None}).headings


def test_bins_of_popularity_are_in_their_order(usual: dict[str, Any]) -> None:
    content = {name: usual[name] for name in ("run", "state", "description", "drift")}
    page = render_page(json.loads(json.dumps(content, sort_keys=True)))
    places = [page.index(f">{name}<") for name in POPULARITY]
    assert places == sorted(places)


def test_a_refused_run_says_why_first(tmp_path: Path) -> None:
    found = _read(report(tmp_path, gain=-0.06, tilt=0.7))
    assert found.headings[0] == "Not published"
    assert "warn" in found.classes
    assert f"Release {CURRENT} stays." in found.text
    assert found.text.index("✗") < found.text.index("more rules are kept") < found.text.index("✓")
    assert "worse by more than the tolerance 0.01, and not by chance" in found.text


def test_the_first_run_has_nothing_to_compare_with(tmp_path: Path) -> None:
    found = _read(report(tmp_path, first=True))
    assert found.headings[0] == "Published"
    assert "Candidate against the current release" not in found.headings
    assert "Nothing was published before this run." in found.text
    assert "There is no run before this one to compare with." in found.text
    assert "last run" not in found.text.partition("Data There is")[2]


def test_nothing_new_judges_nothing(tmp_path: Path) -> None:
    found = _read(nothing_new(tmp_path))
    assert found.headings[0] == "Nothing new"
    assert f"The candidate is what is served already: release {CURRENT}." in found.text
    assert "Quality" not in found.headings


def test_a_failed_run_shows_its_error_as_text(tmp_path: Path) -> None:
    content = failed(tmp_path)
    page = render_page(content)
    found = _Reader(page)
    assert found.headings[0] == "Failed"
    assert f"Step train: {content['error']['text']}" in found.text
    assert "DataError" in found.text
    assert "<unknown>" not in page


def _no_choices(content: dict[str, Any]) -> None:
    content["evaluation"]["choices"] = None


def _no_items(content: dict[str, Any]) -> None:
    content["evaluation"]["items"] = None


def _nothing(content: dict[str, Any]) -> None:
    content["evaluation"] |= {"choices": None, "items": None}


@pytest.mark.parametrize(
    ("change", "part"), [(_no_choices, "choices"), (_no_items, "items"), (_nothing, "choices")]
)
def test_parts_without_held_out_rows(
    judged: dict[str, Any], change: Callable[[dict[str, Any]], None], part: str
) -> None:
    content = judged
    change(content)
    content["decision"] = decide(content["evaluation"], GateSettings(), Facts()).to_json()
    content["state"] = "refused"
    found = _read(content)
    assert f"0 users with held-out {part}" in found.text
    assert ("Nothing was held out" in found.text) == (change is _nothing)


def test_groups_of_single_users_have_no_interval(judged: dict[str, Any]) -> None:
    judged["evaluation"] = evaluation(n_users=4)
    assert _read(judged).headings[1] == "Quality"


def test_erased_users_are_told_beside_what_is_not_kept(judged: dict[str, Any]) -> None:
    judged["evaluation"] = evaluation(gain=-0.06)
    judged["decision"] = decide(judged["evaluation"], GateSettings(), Facts(erasures=2)).to_json()
    found = _read(judged)
    assert "It does not keep all rules." in found.text
    assert "2 erased users leave with the current release" in found.text
    assert {"verdict", "warn"} <= found.classes


def test_a_run_that_failed_at_once_has_a_page() -> None:
    error = {"step": "collect", "type": "DataError", "text": "orders.csv: empty"}
    found = _read({"run": "latest", "state": "failed", "error": error})
    assert found.headings == ["Failed"]
    assert "Step collect: orders.csv: empty" in found.text


def test_keys_are_shown_as_they_are(usual: dict[str, Any]) -> None:
    content = deepcopy(usual) | dict.fromkeys(("evaluation", "decision", "steps"))
    odd = "<b>$5_{x}$ & co</b>"
    for shift in content["drift"]["shares"].values():
        for side in ("now", "before"):
            if LLMS[0] in shift[side]:
                shift[side][odd] = shift[side].pop(LLMS[0])
    content["deliveries"][0]["name"] = odd
    page = render_page(content)
    assert "<b>$5" not in page
    assert page.count("&lt;b&gt;$5_{x}$ &amp; co&lt;/b&gt;") >= 3  # two pictures and the table


def test_equal_reports_give_equal_pages(usual: dict[str, Any], tmp_path: Path) -> None:
    content = usual
    first = write_page(tmp_path / "a.html", content).read_text(encoding="utf-8")
    assert first == render_page(report(tmp_path))
    ids = re.findall(r'\bid="([^"]+)"', first)
    assert len(ids) == len(set(ids))
    (tmp_path / "mine.html").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="not a page of this program"):
        write_page(tmp_path / "mine.html", content)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.004, "0.00 s"), (9.994, "9.99 s"), (31.4, "31 s"), (75, "1 min 15 s"), (7260, "2 h 01 min")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (20 * 2**20, "20 MiB"), (3 * 2**40, "3,072 GiB")],
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium")
def test_on_a_phone_nothing_is_cut_off_without_a_hint(usual: dict[str, Any], tmp_path: Path) -> None:
    """What is wider than the screen scrolls in its own part, with a shadow where there is more."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    image = pytest.importorskip("PIL.Image")
    path = write_page(tmp_path / "run.html", usual | {"run": "20250801T000000Z"})
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 380, "height": 900})
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        assert page.locator("h1").evaluate("h1 => h1.scrollWidth <= h1.clientWidth")
        parts = page.locator("figure, .scroll")
        wide = parts.evaluate_all("all => all.map(one => one.scrollWidth > one.clientWidth)")
        assert any(wide)
        for part, is_wide in zip(parts.all(), wide, strict=True):
            part.scroll_into_view_if_needed()
            for end, dark in ((0, (False, is_wide)), (10_000, (is_wide, False))):
                part.evaluate(f"one => one.scrollTo({end}, 0)")
                seen = image.open(BytesIO(part.screenshot())).convert("L")
                # The bottom lines hold no words: a shadow is what is darker there than the surface.
                edges = [seen.getpixel((x, seen.height - 3)) for x in (1, seen.width - 2)]
                assert tuple(edge < 235 for edge in edges) == dark
        browser.close()
