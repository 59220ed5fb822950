"""The README's newcomer: the demo, one command that serves it, and two clients that get personal answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.demo import RELEASES, run_demo
from jobs.demo_data import MarketSizes
from tests.service.served import serving

openai = pytest.importorskip("openai", reason="the openai client is not installed")

SIZES = MarketSizes(n_users=300, n_items=120, n_interactions=3000)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Any]]]:
    """Address of the service on a demo's release, and what the demo showed."""
    out = tmp_path_factory.mktemp("demo")
    lines: list[str] = []
    shown = run_demo(out=out, engine="local", sizes=SIZES, echo=lines.append)
    assert lines[-1].endswith(f"to serve it: fairpath serve {out / RELEASES}")
    with serving(out / RELEASES, out / "feedback.db", "--stand-in") as (_, _, ready):
        yield ready["url"], shown["router"]


def test_curl_gets_the_demos_two_answers(newcomer: tuple[str, dict[str, Any]]) -> None:
    if (curl := shutil.which("curl")) is None:
        pytest.skip("curl is not installed")
    url, shown = newcomer
    chosen = {}
    for user in shown["users"]:
        body = json.dumps({"user": user, "query": shown["question"]})
        command = [curl, "-s", f"{url}/v1/route", "-H", "Content-Type: application/json", "-d", body]
        chosen[user] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["chosen"]
    assert chosen == {user: about["llm"] for user, about in shown["users"].items()}
    assert len(set(chosen.values())) == 2


def test_the_openai_client_gets_the_demos_two_answers(newcomer: tuple[str, dict[str, Any]]) -> None:
    url, shown = newcomer
    messages = [{"role": "user", "content": shown["question"]}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-whatever", max_retries=0, timeout=30) as client:
        for user, about in shown["users"].items():
            answer = client.chat.completions.create(model="auto", user=user, messages=messages)
            assert answer.model == about["llm"]
            stream = client.chat.completions.create(model="auto", user=user, messages=messages, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
            assert f"a stand-in for {about['llm']}" in text


def test_the_readme_names_these_commands() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for command in ("fairpath serve demo/releases", "curl -s localhost:8080/v1/route", "--stand-in"):
        assert command in readme
