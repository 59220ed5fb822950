"""The page in a real browser: Chromium, driven by Playwright, against a server on a free port."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("playwright", reason="Playwright is not installed")

import httpx
import uvicorn
from playwright.sync_api import Browser, Locator, Page, Route, sync_playwright

from router.service.app import create_app
from router.service.settings import ServiceSettings
from router.service.store import open_store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

HOSTILE = "<img src=x onerror=\"document.title='broken into'\">"
REFUSED = "Failed to load resource"  # what the browser itself says of an answer with an error's status


@contextmanager
def _serving(settings: ServiceSettings) -> Iterator[str]:
    """A server on a free port, in a thread; gives its address."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="error", ws="none"))
    listening = socket.create_server(("127.0.0.1", 0))  # asks are kept until it has started
    thread = Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        httpx.get(f"{address}/readyz", timeout=20).raise_for_status()
        yield address
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="module")
def address(release_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that wants no key."""
    store = f"sqlite:///{tmp_path_factory.mktemp('page') / 'feedback.db'}"
    with _serving(ServiceSettings(releases=release_root, store=store)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def said() -> list[str]:
    """What the browser's console said."""
    return []


@pytest.fixture
def open_page(browser: Browser, said: list[str]) -> Iterator[Callable[..., Page]]:
    """Opens the page at an address, and keeps what the console says."""
    contexts = []

    def opened(url: str, **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(8000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()


def _profile_of(page: Page, user: str) -> Locator:
    """The profile, once it is that of a user."""
    profile = page.locator("#profile")
    profile.get_by_role("heading", name=f"What is believed of {user}", exact=True).wait_for()
    return profile


def _ask(page: Page, **fields: str) -> Locator:
    """Fill the form of questions, ask, and give the decisions."""
    for name, text in fields.items():
        page.fill(f"#{name}", text)
    with page.expect_response("**/v1/route"):
        page.get_by_role("button", name="Ask").click()
    decisions = page.locator("#decisions article")
    decisions.nth(1 if fields.get("other") else 0).wait_for()
    return decisions


def test_the_first_example_is_shown_at_once(
    address: str, open_page: Callable[..., Page], said: list[str]
) -> None:
    page = open_page(address)
    examples = page.locator("#examples a")
    examples.nth(11).wait_for()
    _profile_of(page, examples.first.inner_text())
    assert examples.first.get_attribute("aria-current") == "true"
    facts = page.locator("#facts")
    facts.get_by_text("ready").wait_for()
    assert "hashing" in facts.inner_text()
    assert page.locator("#forget").is_hidden()
    assert said == []


def test_what_is_typed_before_the_examples_come_is_looked_up(address: str, browser: Browser) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        held: list[Route] = []
        page.route("**/v1/users?*", lambda route: held.append(route))
        with page.expect_request("**/v1/users?*"):
            page.goto(address)
        page.fill("#user", "u03")
        held[0].continue_()
        page.locator("#examples a").first.wait_for()
        page.locator("#ask").wait_for()
        assert page.input_value("#user") == "u03"
        page.get_by_role("button", name="Look up").click()
        _profile_of(page, "u03")


def test_a_user_is_looked_up_and_described(
    address: str, open_page: Callable[..., Page], said: list[str]
) -> None:
    page = open_page(address)
    page.fill("#user", "u03")
    page.get_by_role("button", name="Look up").click()
    profile = _profile_of(page, "u03")
    told = httpx.get(f"{address}/v1/users/u03/profile").json()
    chance = f"{100 * told['overall']['llms'][0]['chance']:.0f}\xa0%"
    assert f"Would most likely choose kind ({chance})" in profile.inner_text()
    assert "Rests on the choices that the release was trained with." in profile.inner_text()
    assert profile.locator(".task h4").all_inner_texts() == ["code", "poems"]
    assert {"taste 1", "taste 2", "taste 3"} <= set(profile.locator(".label").all_inner_texts())
    assert page.evaluate("location.hash") == "#u03"
    page.go_back()
    _profile_of(page, page.locator("#examples a").first.inner_text())
    assert said == []


def test_neighborhood_is_drawn_and_leads_to_other_users(
    address: str, open_page: Callable[..., Page], said: list[str]
) -> None:
    page = open_page(f"{address}/#u03")
    profile = _profile_of(page, "u03")
    told = httpx.get(f"{address}/v1/users/u03/profile").json()["neighborhood"]
    drawing = profile.locator(".drawing svg")
    assert drawing.locator(".node").count() == len(told["nodes"]) > 5
    assert drawing.locator("path.own, path.others").count() == len(told["edges"])
    near = next(node["label"] for node in told["nodes"] if node["kind"] == "user")
    link = drawing.get_by_role("link", name=near)
    link.focus()
    lines = [edge for edge in told["edges"] if edge["source"] == f"user:{near}"]
    assert drawing.locator("path.others.lit").count() == len(lines)
    page.keyboard.press("Enter")
    _profile_of(page, near)
    assert said == []


@pytest.mark.parametrize("width", [340, 700, 1280])
def test_labels_do_not_overlap_and_nothing_overflows(
    address: str, open_page: Callable[..., Page], width: int
) -> None:
    page = open_page(f"{address}/#u03", viewport={"width": width, "height": 800})
    profile = _profile_of(page, "u03")
    profile.locator(".drawing text").first.wait_for()
    boxes = profile.locator(".drawing text").evaluate_all(
        "texts => texts.map(text => text.getBBox()).map(({x, y, width, height}) => [x, y, width, height])"
    )
    drawn = page.evaluate("document.querySelector('.drawing svg').getBoundingClientRect().width")
    assert all(x >= 0 and x + w <= drawn for x, _, w, _ in boxes)
    by_height = sorted(boxes, key=lambda box: box[1])
    for side in ([b for b in by_height if b[0] < drawn / 2], [b for b in by_height if b[0] >= drawn / 2]):
        assert all(
            one[1] + one[3] <= two[1] or one[0] + one[2] <= two[0] or two[0] + two[2] <= one[0]
            for one, two in pairwise(side)
        )
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_long_names_are_shortened_to_fit(address: str, open_page: Callable[..., Page]) -> None:
    page = open_page("about:blank", viewport={"width": 340, "height": 800})
    page.route("**/v1/users/*/profile", lambda route: route.fulfill(json=_hostile(route.fetch().json())))
    page.goto(f"{address}/#u02")
    labels = _profile_of(page, f"u02{HOSTILE}").locator(".drawing text")
    labels.first.wait_for()
    assert all("…" in label for label in labels.all_text_contents())
    drawn = page.evaluate("document.querySelector('.drawing svg').getBoundingClientRect().width")
    for box in labels.evaluate_all(
        "all => all.map(one => one.getBBox()).map(({x, width}) => [x, x + width])"
    ):
        assert 0 <= box[0] < box[1] <= drawn


def test_two_users_ask_the_same_and_get_different_models(
    address: str, open_page: Callable[..., Page], said: list[str]
) -> None:
    page = open_page(f"{address}/#u02")
    _profile_of(page, "u02")
    decisions = _ask(page, query="code about topic 3", other="u03")
    assert decisions.locator(".chosen").all_inner_texts() == ["brief", "kind"]
    comparison = page.locator("#comparison").inner_text()
    assert comparison == "Same question, different models: brief for u02, kind for u03."
    assert "brief is the likeliest choice of 3 candidates" in decisions.first.inner_text()
    assert decisions.first.locator("tbody tr").count() == 3
    assert decisions.first.locator(".scored li").count() == 5
    page.goto(f"{address}/#u05")
    _profile_of(page, "u05")
    assert page.locator("#decisions").inner_text() == ""
    assert not page.locator("#comparison").is_visible()
    assert said == []


def test_what_is_left_out_is_told_with_its_reason(
    address: str, open_page: Callable[..., Page], said: list[str]
) -> None:
    page = open_page(f"{address}/#u02")
    _profile_of(page, "u02")
    page.get_by_label("brief").check()
    decision = _ask(page, query="code about topic 3").first
    assert decision.locator(".chosen").inner_text() == "kind"
    assert "brief: " in decision.locator(".described").inner_text()
    assert said == []


def test_a_question_that_no_model_fulfils_shows_why(address: str, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{address}/#u02")
    _profile_of(page, "u02")
    _ask(page, **{"max-cost": "0"})
    page.locator("#decisions").get_by_text("No model is left.").wait_for()
    body = {"user": "u02", "constraints": {"max_cost_usd": 0}}
    told = httpx.post(f"{address}/v1/route", json=body).json()
    reasons = page.locator("#decisions .described li").all_inner_texts()
    assert reasons == [f"{llm}: {'; '.join(why)}" for llm, why in told["left_out"].items()]


def test_a_thumbs_down_and_the_right_choice_change_what_is_believed(
    address: str, open_page: Callable[..., Page], said: list[str]
) -> None:
    page = open_page(f"{address}/#u06")
    profile = _profile_of(page, "u06")
    decision = _ask(page, query="code about topic 3").first
    decision.get_by_role("button", name="Wrong choice").click()
    decision.get_by_text("Which would have been right?").wait_for()
    profile.get_by_text("changed nothing of this; only choices do").wait_for()
    decision.locator(".feedback").get_by_role("button", name="kind", exact=True).click()
    decision.get_by_text("Kept as a choice of kind.").wait_for()
    profile.get_by_text("and on 1 choice since").wait_for()
    assert profile.locator(".change").inner_text().startswith("Since the last feedback: ")
    assert profile.locator(".was").count() == 3
    assert said == []


def test_a_thumbs_down_takes_a_thumbs_up_back(address: str, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{address}/#u08")
    profile = _profile_of(page, "u08")
    decision = _ask(page, query="code about topic 3").first
    decision.get_by_role("button", name="Right choice").click()
    profile.get_by_text("and on 1 choice since").wait_for()
    decision.get_by_role("button", name="Wrong choice").click()
    decision.get_by_text("Which would have been right?").wait_for()
    assert "since" not in profile.locator(".evidence").inner_text()


def test_an_unknown_user_is_told_as_the_service_words_it(
    address: str, open_page: Callable[..., Page], said: list[str]
) -> None:
    page = open_page(f"{address}/#{HOSTILE}")
    problem = page.locator("#problem")
    problem.wait_for()
    assert problem.inner_text().startswith("unknown user '<img src=x")
    assert page.locator("#profile").inner_text() == ""
    decision = _ask(page, asker=HOSTILE, query="code about topic 3").first
    assert decision.get_by_text("nothing: the population's preferences").is_visible()
    assert page.title() != "broken into"
    assert all(REFUSED in message for message in said)


def test_hostile_names_stay_text(address: str, open_page: Callable[..., Page], said: list[str]) -> None:
    """Every string of a profile and of a decision is markup that would run a script."""

    page = open_page("about:blank")
    page.route("**/v1/users/*/profile", lambda route: route.fulfill(json=_hostile(route.fetch().json())))
    page.goto(f"{address}/#u02")
    profile = _profile_of(page, f"u02{HOSTILE}")
    profile.locator(".drawing .node").first.wait_for()
    body = {"user": "u02", "task": "code", "items": 2, "exclude": ["kind"]}
    told = _hostile(httpx.post(f"{address}/v1/route", json=body).json())
    page.route("**/v1/route", lambda route: route.fulfill(json=told))
    decision = _ask(page).first
    assert decision.locator(".chosen").inner_text() == f"brief{HOSTILE}"
    assert page.locator("img").count() == 0
    assert page.title() != "broken into"
    assert said == []


def _hostile(value: Any) -> Any:
    """An answer whose names and texts, but not the words that the page knows, hold markup."""
    if isinstance(value, dict):
        return {
            key: {name + HOSTILE: _hostile(one) for name, one in part.items()}
            if key in ("left_out", "attributes")
            else _hostile(part)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [_hostile(part) for part in value]
    known = ("self", "user", "item", "trained", "given")
    return value + HOSTILE if isinstance(value, str) and value not in known else value


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(
    release_root: Path, tmp_path: Path, open_page: Callable[..., Page], said: list[str]
) -> None:
    settings = ServiceSettings(
        releases=release_root, store=f"sqlite:///{tmp_path / 'feedback.db'}", auth="required"
    )
    store = open_store(settings.store_url)
    keys = [store.create_key("page", scopes)[1] for scopes in ({"route"}, {"read", "route", "feedback"})]
    store.close()
    with _serving(settings) as url:
        page = open_page(url)
        field = page.locator("#key")
        field.wait_for()
        assert "an API key is needed" in page.locator("#problem").inner_text()
        assert page.locator("#profile").inner_text() == ""
        for key, words in (("fp_0_wrong", "unknown, expired or revoked"), (keys[0], "scope read")):
            field.fill(key)
            page.get_by_role("button", name="Use it").click()
            page.get_by_text(words).wait_for()
        field.fill(keys[1])
        page.get_by_role("button", name="Use it").click()
        page.locator("#profile h2").wait_for()
        assert field.is_hidden()
        page.locator("#facts").get_by_text("hashing").wait_for()
        assert keys[1] not in page.url
        assert page.evaluate("Object.values(localStorage).length") == 0
        page.reload()
        page.locator("#profile h2").wait_for()
        page.get_by_role("button", name="Forget the key").click()
        page.get_by_text("an API key is needed").wait_for()
        assert field.is_visible()
        assert page.evaluate("Object.values(sessionStorage).length") == 0
    assert all(REFUSED in message for message in said)
