"""The status page over HTTP, with a fair queue whose state is made up."""

from __future__ import annotations

import base64
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any, NamedTuple

import pytest

pytest.importorskip("starlette", reason="the extra 'server' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'server' is not installed")
from prometheus_client.parser import text_string_to_metric_families

from jobs.fairqueue.estimates import EstimateError
from jobs.fairqueue.scheduler import JobSnapshot, Snapshot, UserSnapshot
from jobs.fairqueue.server.app import create_app, status_page
from jobs.fairqueue.server.status import Application
from jobs.listening import listen

NOTHING = "\N{EN DASH}"
TOKEN = "correct-horse-battery-staple"
ATTACK = "<script>alert('bob')</script>"
APPLICATION = Application("team-spark", "sc://localhost:15002", "uwfq", "4.3.0", started_s=0.0)


class Sample(NamedTuple):
    now_s: float
    running: dict[str, int]


@dataclass
class MadeUpQueue:
    users: tuple[UserSnapshot, ...] = ()
    jobs: tuple[JobSnapshot, ...] = ()
    samples: list[Sample] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    broken: bool = False

    def snapshot(self) -> Snapshot:
        if self.broken:
            raise RuntimeError("the state contradicts itself")
        return Snapshot(100.0, 4, 12.5, self.users, self.jobs, EstimateError(3, 0.5, 2.0))

    def history(self, seconds: float) -> list[Sample]:
        return [sample for sample in self.samples if sample.now_s >= 100.0 - seconds]


def job(name: str, user: str, finish: float, state: str = "waiting", **other: Any) -> JobSnapshot:
    values = {
        "job_class": None,
        "submitted_s": 90.0,
        "estimated_core_s": 8.0,
        "realised_core_s": 2.0,
        "stages": 1,
        "running_tasks": 0,
    }
    return JobSnapshot(job=name, user=user, virtual_finish=finish, state=state, **{**values, **other})


@pytest.fixture(scope="module")
def shown_queue() -> MadeUpQueue:
    return MadeUpQueue()


@pytest.fixture
def queue(shown_queue: MadeUpQueue) -> MadeUpQueue:
    shown_queue.users = (
        UserSnapshot("alice", 2.0, True, 10.0, 40.0, 9.0, 123.0, 2),
        UserSnapshot(ATTACK, 1.0, True, 11.0, 20.0, 8.0, 7.5, 1),
    )
    shown_queue.jobs = (
        job("late", "alice", 40.0, job_class="nightly report"),
        job("early", "alice", 15.0, "running", running_tasks=3),
        job("middle", ATTACK, 20.0),
        job("last", ATTACK, 50.0, "idle", stages=0),
        job("done", "alice", 3.0, "finished"),
    )
    shown_queue.samples = [Sample(60.0, {"alice": 4}), Sample(80.0, {"alice": 1, ATTACK: 2})]
    shown_queue.counters = {
        "task_sets": 4,
        "callback_ns": 6_000_000,
        "priorities_written": 17,
        "poll_errors": 1,
    }
    shown_queue.broken = False
    return shown_queue


class Server:
    """Client of one status page."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, authorization: str | None = f"Bearer {TOKEN}") -> tuple[int, str, Any]:
        headers = {} if authorization is None else {"Authorization": authorization}
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), error.headers


@pytest.fixture(scope="module")
def shown_server(shown_queue: MadeUpQueue) -> Iterator[Server]:
    app = create_app(APPLICATION, shown_queue, token=TOKEN, history_s=60.0, refresh_s=7)
    with listen("localhost", 0, "status_port") as listening, status_page(app, listening) as url:
        yield Server(url)


@pytest.fixture
def server(shown_server: Server, queue: MadeUpQueue) -> Server:
    """Client of a page that shows ``queue``."""
    return shown_server


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("path", ["", "status.json", "metrics", "no-such-page"])
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Token {TOKEN}",
        TOKEN,
        basic("alice", "wrong"),
        basic(TOKEN, ""),
        "Basic !!!",
        "Basic " + base64.b64encode(TOKEN.encode()).decode(),
        "Bearer \xff\xfe",
    ],
)
def test_without_the_token_nothing_is_told(server, path, authorization):
    code, body, headers = server.get(path, authorization)
    assert code == 401
    assert headers["WWW-Authenticate"].startswith("Basic realm=")
    assert "alice" not in body
    assert TOKEN not in body


@pytest.mark.parametrize(
    "authorization",
    [f"Bearer {TOKEN}", f"bearer {TOKEN}", basic("anybody", TOKEN), basic("", TOKEN)],
)
@pytest.mark.parametrize("path", ["", "status.json", "metrics"])
def test_the_token_opens_every_page(server, path, authorization):
    code, body, headers = server.get(path, authorization)
    assert code == 200
    assert "alice" in body
    assert TOKEN not in body
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_health_needs_no_token_and_tells_nothing(server):
    assert server.get("healthz", None)[:2] == (200, "ok\n")


def test_without_a_token_set_everybody_is_let_in(queue):
    app = create_app(APPLICATION, queue, token=None)
    with listen("localhost", 0, "status_port") as listening, status_page(app, listening) as url:
        assert Server(url).get("status.json", None)[0] == 200


def test_json_holds_the_whole_state(server):
    status = json.loads(server.get("status.json")[1])
    assert status["application"]["connect_url"] == "sc://localhost:15002"
    assert status["queue"]["virtual_time"] == 12.5
    assert status["queue"]["users"][0] == {
        "user": "alice",
        "weight": 2.0,
        "backlogged": True,
        "virtual_time": 10.0,
        "virtual_finish": 40.0,
        "start": 9.0,
        "service_core_s": 123.0,
        "unfinished_jobs": 2,
    }
    assert [job["job"] for job in status["queue"]["jobs"]] == ["late", "early", "middle", "last", "done"]
    assert [job["state"] for job in status["queue"]["jobs"]] == [
        "waiting",
        "running",
        "waiting",
        "idle",
        "finished",
    ]
    assert [job["running_tasks"] for job in status["queue"]["jobs"]] == [0, 3, 0, 0, 0]
    assert status["queue"]["estimate_error"]["count"] == 3
    assert status["history"] == [
        {"age_s": 40.0, "running": {"alice": 4}},
        {"age_s": 20.0, "running": {"alice": 1, ATTACK: 2}},
    ]
    assert status["counters"]["poll_errors"] == 1


def test_metrics_are_those_of_the_snapshot(server):
    _, text, headers = server.get("metrics")
    assert headers["Content-Type"].startswith("text/plain")
    samples = {
        (
            sample.name.removeprefix("fairpath_fairqueue_"),
            *dict(sorted(sample.labels.items())).values(),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    expected = {
        ("slots",): 4,
        ("virtual_time",): 12.5,
        ("user_weight", "alice"): 2,
        ("user_backlogged", "alice"): 1,
        ("user_virtual_start", ATTACK): 8,
        ("user_virtual_finish", ATTACK): 20,
        ("user_service_core_seconds_total", "alice"): 123,
        ("user_jobs", "waiting", "alice"): 1,
        ("user_jobs", "running", "alice"): 1,
        ("user_jobs", "idle", ATTACK): 1,
        ("user_jobs", "finished", "alice"): 1,
        ("user_running_tasks", "alice"): 1,
        ("user_running_tasks", ATTACK): 2,
        ("estimates_total",): 3,
        ("estimate_error_median_log2",): 0.5,
        ("estimate_error_p90_absolute_log2",): 2,
        ("priorities_written_total",): 17,
        ("poll_errors_total",): 1,
        ("callback_errors_total",): 0,
        ("callback_seconds_count",): 4,
        ("callback_seconds_sum",): 0.006,
    }
    assert expected.items() <= samples.items()


class Tables(HTMLParser):
    """Cells of a page's tables, the elements that it has, and the addresses that it loads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href") and tag != "a"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


class Facts(HTMLParser):
    """Values and notes of a page's facts by their names."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.values: dict[str, list[str]] = {}
        self._tag = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._tag = tag

    def handle_endtag(self, tag):
        self._tag = ""

    def handle_data(self, data):
        if self._tag == "dt":
            self.values[data] = []
        elif self._tag == "dd":
            next(reversed(self.values.values())).append(data)


def test_page_shows_users_and_jobs_in_the_order_of_their_turn(server):
    page = Tables(server.get("")[1])
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["alice"] == ["2", "backlogged", "1", "2", "123", "9", "40"]
    jobs = [row for row in page.rows if row[0] in ("late", "early", "middle", "last", "done")]
    assert [row[0] for row in jobs] == ["early", "middle", "late", "last"]
    assert jobs[0][1:] == ["alice", "15", "running", "3", "2 of 8", "10 s", "1", NOTHING]
    assert jobs[2][-1] == "nightly report"
    assert jobs[3][3:5] == ["idle", "0"]


def test_page_counts_jobs_by_state(server):
    facts = Facts(server.get("")[1]).values
    assert facts["jobs running"] == ["1"]
    assert facts["jobs waiting"] == ["2", "and 1 between stages"]


def test_names_given_by_users_are_text_everywhere(server):
    html = server.get("")[1]
    page = Tables(html)
    assert "script" not in page.tags
    assert ATTACK not in html
    assert [row[0] for row in page.rows if "script" in row[0]] == [ATTACK]


def test_page_refreshes_itself_and_loads_nothing(server):
    _, html, headers = server.get("")
    assert '<meta http-equiv="refresh" content="7">' in html
    assert Tables(html).loaded == []
    assert not re.search(r"url\(|@import", html)
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_page_of_an_application_that_nobody_has_used(queue, server):
    queue.users, queue.jobs, queue.samples, queue.counters = (), (), [], {}
    code, html, _ = server.get("")
    assert code == 200
    assert "Nobody has run anything lately." in html
    assert "Nothing runs or waits." in html


def test_users_who_have_left_are_shown_as_long_as_the_picture_shows_them(queue, server):
    queue.users, queue.jobs = (), ()
    rows = {row[0]: row[1:] for row in Tables(server.get("")[1]).rows}
    assert rows["alice"] == [NOTHING, "gone", "1", "0", NOTHING, NOTHING, NOTHING]
    assert ATTACK in rows


def test_a_long_list_of_users_is_cut_on_the_page_and_whole_in_json(queue, server):
    queue.users = tuple(UserSnapshot(f"here-{n:03}", 1.0, True, 0, 1, 0, 0, 1) for n in range(250))
    queue.jobs = ()
    queue.samples = [Sample(90.0, {f"gone-{n:03}": 1 for n in range(300)})]
    html = server.get("")[1]
    rows = [row[0] for row in Tables(html).rows if row[0].startswith(("here-", "gone-"))]
    assert rows == [f"{kind}-{n:03}" for kind in ("here", "gone") for n in range(200)]
    assert Facts(html).values["users with work"] == ["250", "550 lately"]
    assert "and 150 more" in html
    status = json.loads(server.get("status.json")[1])
    assert (len(status["queue"]["users"]), len(status["history"][0]["running"])) == (250, 300)


def test_a_long_queue_is_cut_on_the_page_and_whole_in_json(queue, server):
    queue.jobs = tuple(job(f"job-{n:04}", "alice", float(n)) for n in range(1000, 0, -1))
    rows = [row[0] for row in Tables(server.get("")[1]).rows if row[0].startswith("job-")]
    assert rows == [f"job-{n:04}" for n in range(1, 201)]
    assert "and 800 more" in server.get("")[1]
    assert len(json.loads(server.get("status.json")[1])["queue"]["jobs"]) == 1000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_of_the_queue_is_an_error_of_one_request(queue, server):
    queue.broken = True
    code, body, _ = server.get("status.json")
    assert (code, body) == (500, "Internal Server Error")
    queue.broken = False
    assert server.get("status.json")[0] == 200


def test_requests_side_by_side(server):
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(server.get("")[0]), daemon=True) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert codes == [200] * 8
