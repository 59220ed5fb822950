"""``fairpath train-router`` from outside: results, idempotence, resuming, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs import train_router
from jobs.settings import RouterSettings, Settings
from ppr.errors import OutputExistsError
from router.bundle import Bundle
from router.dataset import RouterFiles
from router.errors import ResourceError
from router.scorer import Scorer
from tests.choice_files import write_files

ROOT = Path(__file__).resolve().parents[2]
SMALL = RouterSettings(encoder="hashing", device="cpu", n_factors=3, n_tastes=3, n_steps=20)
OPTIONS = ["--encoder", "hashing", "--device", "cpu", "--factors", "3", "--tastes", "3", "--steps", "20"]

pytestmark = pytest.mark.usefixtures("plain_surroundings")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RouterFiles:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def trained(files: RouterFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its report; not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "router"
    train_router.run(files, out, SMALL)
    return out


def test_the_command_writes_what_the_job_writes(fairpath, files, trained, tmp_path):
    result = fairpath("train-router", files.events, files.llms, "--out", tmp_path / "router", *OPTIONS)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["checksum"] == Bundle.open(trained).checksum
    assert (found["user"], found["llm"], found["tasks"]) == (40, 3, ["code", "poems"])
    assert found["metrics"]["validation"]["events"] == 48
    assert found["encoder"]["name"] == "hashing"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["router", "router.html"]
    assert "held-out choices" in (tmp_path / "router.html").read_text()
    Scorer.open(tmp_path / "router").user("u00")


def test_finished_output_is_kept_without_pytorch(files, trained):
    code = f"""
import sys
from pathlib import Path
from jobs.settings import RouterSettings
from jobs.train_router import run
from router.dataset import RouterFiles
files = RouterFiles(events=Path({str(files.events)!r}), llms=Path({str(files.llms)!r}))
assert run(files, Path({str(trained)!r}), RouterSettings(**{SMALL.model_dump()!r}))["kept"]
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "message"), [({"seed": 4}, "other parameters"), ({"n_steps": 21}, "n_steps")]
)
def test_other_settings_do_not_overwrite(files, trained, change, message):
    before = Bundle.open(trained).checksum
    with pytest.raises(OutputExistsError, match=message):
        train_router.run(files, trained, SMALL.model_copy(update=change))
    assert Bundle.open(trained).checksum == before


def test_other_input_does_not_overwrite(trained, tmp_path):
    files = write_files(tmp_path)
    table = pq.read_table(files.events)
    pq.write_table(table.slice(1), files.events)
    with pytest.raises(OutputExistsError, match="from other input"):
        train_router.run(files, trained, SMALL)


def test_what_does_not_matter_does_not_count(files, trained):
    other = SMALL.model_copy(update={"device": "auto", "stream_bytes": 1, "checkpoint_every": 7})
    assert train_router.run(files, trained, other)["kept"]


def test_a_killed_training_goes_on(files, trained, tmp_path, monkeypatch):
    import router.train

    advance = router.train._Training.advance

    def killed(self):
        if self.step == 15:
            raise KeyboardInterrupt
        return advance(self)

    settings = SMALL.model_copy(update={"checkpoint_every": 10})
    monkeypatch.setattr(router.train._Training, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        train_router.run(files, tmp_path / "router", settings)
    assert [p.suffix for p in tmp_path.iterdir()] == [".checkpoint"]
    steps = []

    def counted(self):
        steps.append(self.step)
        return advance(self)

    monkeypatch.setattr(router.train._Training, "advance", counted)
    train_router.run(files, tmp_path / "router", settings)
    assert steps == list(range(10, 20))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["router", "router.html"]
    assert Bundle.open(tmp_path / "router").checksum == Bundle.open(trained).checksum


def test_the_slower_of_two_equal_trainings_keeps_what_the_faster_wrote(files, trained, tmp_path, monkeypatch):
    import router.bundle_training

    train_bundle = router.bundle_training.train_bundle

    def overtaken(data, out, *args, checkpoint, **how):
        shutil.copytree(trained, out)
        (tmp_path / f"{checkpoint.name}.1.part").touch()  # of a process that was killed
        return train_bundle(data, out, *args, checkpoint=checkpoint, **how)

    monkeypatch.setattr(router.bundle_training, "train_bundle", overtaken)
    result = train_router.run(files, tmp_path / "router", SMALL)
    assert result["kept"]
    assert result["checksum"] == Bundle.open(trained).checksum
    assert sorted(p.name for p in tmp_path.iterdir()) == ["router", "router.html"]


def test_two_equal_trainings_at_once(fairpath, files, trained, tmp_path):
    command = [sys.executable, "-m", "jobs.cli", "train-router", files.events, files.llms]
    options = ["--out", tmp_path / "router", *OPTIONS, "--set", "router.checkpoint_every=1"]
    runs = [
        subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    found = [(*run.communicate(timeout=120), run.returncode) for run in runs]
    assert [code for *_, code in found] == [0, 0], found
    assert {json.loads(out)["checksum"] for out, *_ in found} == {Bundle.open(trained).checksum}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["router", "router.html"]


def test_profiles_without_a_graph(fairpath, tmp_path):
    files = write_files(tmp_path, users=True)
    arguments = [
        "train-router",
        files.events,
        files.llms,
        "--users",
        files.users,
        "--out",
        tmp_path / "router",
    ]
    result = fairpath(*arguments, *OPTIONS)
    assert result.code == 0, result.err
    scorer = Scorer.open(tmp_path / "router")
    known = scorer.user("u40")  # has a profile, but made no choice
    assert np.isfinite(scorer.scores(known, None, "code").preference).any()


def test_files_that_are_no_pages_of_this_program_are_not_replaced(fairpath, files, tmp_path):
    foreign = tmp_path / "r.html"
    foreign.write_text("<p>mine</p>")
    arguments = ["train-router", files.events, files.llms, "--out", tmp_path / "r", *OPTIONS]
    for options, code, message in (
        ([], 2, "r.html: exists and is not a page of this program"),
        (["--report", files.llms], 2, "exists and is not a page of this program"),
        (["--report", tmp_path], 2, "exists and is not a page of this program"),
        (["--report", tmp_path / "r"], 2, "'--report' must be another place than '--out'"),
        (["--report", foreign / "page.html"], 3, "cannot be written"),
    ):
        result = fairpath(*arguments, *options)
        assert (result.code, result.out) == (code, ""), result.err
        assert message in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert foreign.read_text() == "<p>mine</p>"


def test_an_evaluation_does_not_replace_a_table(fairpath, files, trained):
    before = files.llms.read_bytes()
    result = fairpath(
        "evaluate-router", "--bundle", trained, "--events", files.events, "--report", files.llms
    )
    assert (result.code, result.out) == (2, "")
    assert "exists and is not a page of this program" in result.err
    assert files.llms.read_bytes() == before


def test_a_page_of_this_program_is_replaced(fairpath, files, trained, tmp_path):
    page = Path(shutil.copy(trained.with_name("router.html"), tmp_path / "router.html"))
    before = page.stat().st_ino
    train_router.run(files, tmp_path / "router", SMALL)
    assert page.stat().st_ino != before


def test_too_little_memory_of_the_gpu_is_said_and_the_cpu_taken(
    files, trained, tmp_path, monkeypatch, capsys
):
    import router.bundle_training
    import router.train

    train_bundle = router.bundle_training.train_bundle

    def on_a_small_gpu(*args, device, **how):
        if device == "cuda":
            raise ResourceError("the memory of cuda does not suffice")
        return train_bundle(*args, device=device, **how)

    choose = router.train.choose_device
    gpu = torch.device("cuda")
    monkeypatch.setattr(router.train, "choose_device", lambda name: gpu if name == "auto" else choose(name))
    monkeypatch.setattr(router.bundle_training, "train_bundle", on_a_small_gpu)
    train_router.run(files, tmp_path / "router", SMALL.model_copy(update={"device": "auto"}))
    assert "training goes on on the CPU" in capsys.readouterr().out
    assert Bundle.open(tmp_path / "router").checksum == Bundle.open(trained).checksum


def test_dry_run_prints_settings_and_does_nothing(fairpath, tmp_path):
    result = fairpath(
        "train-router", "none.parquet", "none.csv", "--out", tmp_path / "r", "--dry-run", "--seed", 3
    )
    assert result.code == 0
    assert json.loads(result.out)["settings"]["router"]["seed"]["value"] == 3
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (lambda f: f.unlink(), 3, "no such file"),
        (lambda f: f.write_bytes(b"rubbish"), 3, "not a readable Parquet file"),
        (lambda f: pq.write_table(pq.read_table(f).drop_columns("llm"), f), 3, "a column of 'llm' is needed"),
    ],
)
def test_wrong_events(fairpath, tmp_path, spoil, code, message):
    files = write_files(tmp_path / "in")
    spoil(files.events)
    out = tmp_path / "out" / "router"
    result = fairpath("train-router", files.events, files.llms, "--out", out, *OPTIONS)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--fingerprints", "f"], 2, "'--fingerprints' goes with --graph"),
        (["--held-out", "1.5"], 2, "held_out"),
        (["--device", "no-such-device"], 2, "'device' must be auto, cpu, or cuda"),
        (["--graph", "none"], 3, "no such store"),
        (["--set", "router.no=1"], 2, "router"),
    ],
)
def test_wrong_options(fairpath, files, tmp_path, options, code, message):
    result = fairpath("train-router", files.events, files.llms, "--out", tmp_path / "r", *OPTIONS, *options)
    assert (result.code, result.out) == (code, ""), result.err
    assert message in result.err
    assert not (tmp_path / "r").exists()


def test_a_truncated_bundle_is_refused(fairpath, files, trained, tmp_path):
    out = Path(shutil.copytree(trained, tmp_path / "router"))
    (out / "weights.safetensors").write_bytes(b"")
    result = fairpath("train-router", files.events, files.llms, "--out", out, *OPTIONS)
    assert (result.code, result.out) == (3, "")
    assert "weights.safetensors: must have" in result.err


def test_validate_checks_a_bundle(fairpath, trained, tmp_path):
    result = fairpath("validate", trained)
    assert json.loads(result.out)["valid"]
    out = Path(shutil.copytree(trained, tmp_path / "router"))
    file = out / "embeddings" / "user.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = fairpath("validate", out)
    assert (result.code, result.out) == (3, "")
    assert "checksum does not match" in result.err


def test_evaluate_router_takes_one_kind_of_question(fairpath):
    for arguments, message in (
        ([], "give either --bundle with --events, or --benchmark with --data"),
        (["--bundle", "b"], "give either --bundle with --events, or --benchmark with --data"),
        (["--benchmark", "persona-sim"], "'--data' goes with --benchmark"),
        (["--bundle", "b", "--events", "e", "--strength", "mild"], "'--strength' goes with --benchmark"),
        (["--benchmark", "persona-sim", "--data", "d", "--history", "h"], "'--history' goes with --bundle"),
        (
            ["--bundle", "b", "--events", "e", "--history", "h", "--held-out-share", "0.2"],
            "give either --history or --held-out-share",
        ),
    ):
        result = fairpath("evaluate-router", *arguments)
        assert (result.code, result.out) == (2, "")
        assert message in result.err


def test_defaults_are_those_of_the_training():
    from router.train import Settings as Training

    chosen, default = Settings().router, Training()
    for name in ("n_factors", "n_tastes", "n_steps", "learning_rate", "seed"):
        assert getattr(chosen, name) == getattr(default, name)
