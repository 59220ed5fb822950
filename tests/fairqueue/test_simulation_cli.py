"""``fairpath fairqueue simulate`` from outside: its output, its report, and bad input."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from html import unescape
from pathlib import Path

import pytest

from jobs.fairqueue.simulation import study
from jobs.fairqueue.simulation.policies import TITLES
from jobs.fairqueue.simulation.scenarios import SCENARIOS
from jobs.fairqueue.simulation.study import Number, run_study
from jobs.fairqueue.simulation_report import render_simulation_report
from tests.command_line import Result

TRACE = """workflow_id,user_id,ts_submit_seconds,runtime,resource_amount_requested
1,ann,0,8000,1
2,bob,1,4000,1
3,ann,2,1000,1
"""


@pytest.fixture
def simulate(fairpath: Callable[..., Result]) -> Callable[..., Result]:
    return partial(fairpath, "fairqueue", "simulate")


@pytest.fixture(scope="module")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> study.Study:
    """The whole evaluation on few seeds."""
    trace = tmp_path_factory.mktemp("trace") / "trace.csv"
    trace.write_text(TRACE)
    with pytest.MonkeyPatch.context() as patch:
        _few_seeds(patch)
        return run_study(trace)


def _few_seeds(patch: pytest.MonkeyPatch) -> None:
    import dataclasses

    patch.setattr(study, "NOISE_SEEDS", 1)
    patch.setattr(study, "FAIRNESS_SEEDS", 1)
    one = {name: dataclasses.replace(scenario, seeds=1) for name, scenario in SCENARIOS.items()}
    patch.setattr(study, "SCENARIOS", one)


@pytest.mark.long
def test_json_on_stdout_and_the_report(
    simulate: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _few_seeds(monkeypatch)
    result = simulate("--out", tmp_path / "new" / "report.html")
    assert result.code == 0
    found = json.loads(result.out)
    assert found["report"] == str(tmp_path / "new" / "report.html")
    assert set(found["workloads"]) == {"s1", "s2", "s3", "s4"}
    assert set(found["workloads"]["s2"]) == set(TITLES)
    assert all(set(number) == {"name", "value", "unit", "goal", "ok"} for number in found["numbers"])
    assert not [number for number in found["numbers"] if "Google" in number["name"]]
    assert "The flood" in result.err
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")


def test_report_tells_the_numbers_and_is_self_contained(small_study: study.Study) -> None:
    page = render_simulation_report(small_study)
    assert render_simulation_report(small_study) == page
    text = unescape(re.sub(r"<[^>]+>", " ", page))
    for number in small_study.numbers:
        assert number.name in text
    for evaluation in small_study.evaluations:
        for outcome in evaluation.outcomes.values():
            assert f"{outcome.mean_s:.2f}" in text
    assert "58.6" in text  # published
    pictures = re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) == 6 + 4 + 1
    for picture in pictures:
        assert ET.fromstring(picture).attrib["role"] == "img"
        assert not re.findall(r"#[0-9a-f]{6}\b", picture)  # a literal colour would not change in the dark
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert not re.search(r"url\((?!#)|<script|<link|<img", page)


def test_numbers_know_whether_their_goal_is_reached(small_study: study.Study) -> None:
    for number in small_study.numbers:
        assert (number.ok is None) == (number.goal is None)
        if number.goal is not None:
            assert number.ok == (number.value <= float(number.goal.removeprefix("≤ ")))
    assert study.at_most("x", 2, 2, "s") == Number("x", 2.0, "s", "≤ 2", True)
    published = list(study.beside_published(small_study))
    assert len(published) == 5 * 4 + 4
    assert "scenario 2, UWFQ, infrequent users (published 4.5 s)" in {number.name for number in published}
    names = [number.name for number in (*small_study.numbers, *published)]
    assert len(set(names)) == len(names)


def test_dry_run_computes_nothing(simulate: Callable[..., Result], tmp_path: Path) -> None:
    result = simulate("--out", tmp_path / "r.html", "--trace", tmp_path / "t.csv", "--seed", 7, "--dry-run")
    assert result.code == 0
    assert json.loads(result.out)["arguments"] == {
        "out": str(tmp_path / "r.html"),
        "trace": str(tmp_path / "t.csv"),
        "seed": 7,
    }
    assert list(tmp_path.iterdir()) == []


def test_bad_paths_and_rows_end_with_their_exit_code(simulate: Callable[..., Result], tmp_path: Path) -> None:
    missing = simulate("--out", tmp_path / "r.html", "--trace", tmp_path / "none.csv")
    assert missing.code == 3
    assert "none.csv: no such file" in missing.err
    trace = tmp_path / "t.csv"
    trace.write_text(TRACE + "4,ann,3,-1,1\n")
    bad = simulate("--out", tmp_path / "r.html", "--trace", trace)
    assert bad.code == 3
    assert "t.csv, row 5: 'runtime' must be positive (got '-1')" in bad.err
    assert bad.out == ""
    for args in (["--out", tmp_path / "r.pdf"], ["--seed", -1]):
        assert simulate(*args).code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
