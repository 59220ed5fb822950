"""Partitioned walks that are killed, run out of disk, or find their files damaged."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ppr.errors import OutputExistsError, ResourceError, StoreError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.partitioned import Progress, Sizes, compute_fingerprints_partitioned
from ppr.partitioned.exchange import ExchangeWriter
from ppr.partitioned.task import RoundTask
from tests.oracles.random_graphs import random_graph

PARAMS = FingerprintParams(n_walks=60, top_k=10)
GRAPH = random_graph(4, n_nodes=40, weighted=True)
SIZES = Sizes(3, 9, 400, 300)  # a batch begins, is gathered, finished, ranked, merged, beside all the others


@pytest.fixture(autouse=True)
def _not_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppr.manifest.sync", lambda path: None)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> FingerprintStore:
    return compute_fingerprints(GRAPH, tmp_path_factory.mktemp("expected") / "out", PARAMS, threads=1)


def compute(
    out: Path, progress: Callable[[Progress], None] | None = None, sizes: Sizes = SIZES
) -> FingerprintStore:
    return compute_fingerprints_partitioned(GRAPH, out, PARAMS, sizes=sizes, threads=1, progress=progress)


class Killed(BaseException):
    """Stands for a kill."""


def kill_after(n_rounds: int) -> Callable[[Progress], None]:
    def progress(seen: Progress) -> None:
        if seen.rounds >= n_rounds:
            raise Killed

    return progress


def rounds_of(out: Path) -> int:
    seen: list[Progress] = []
    compute(out, seen.append)
    return seen[-1].rounds


def test_killed_at_any_round_goes_on_from_there(tmp_path: Path, expected: FingerprintStore) -> None:
    n_rounds = rounds_of(tmp_path / "whole")
    assert n_rounds > 10
    for killed_at in range(n_rounds):
        out = tmp_path / f"out {killed_at}"
        with pytest.raises(Killed):
            compute(out, kill_after(killed_at))
        assert not out.exists()
        seen: list[Progress] = []
        store = compute(out, seen.append)
        assert (seen[0].rounds, seen[-1].rounds) == (killed_at, n_rounds)
        assert store.checksum == expected.checksum
        assert not out.with_name(f"{out.name}.partial").exists()


def test_killed_at_every_round(tmp_path: Path, expected: FingerprintStore) -> None:
    """Also within one: a task of each round dies after others have written their files."""
    out, run = tmp_path / "out", RoundTask.run
    killed: set[int] = set()

    def dying(task: RoundTask, graph: Graph, part: int) -> object:
        receipt = run(task, graph, part)
        if part == 1 and task.number not in killed:
            killed.add(task.number)
            raise Killed
        return receipt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoundTask, "run", dying)
        for _ in range(200):
            try:
                store = compute(out)
            except Killed:
                continue
            break
    assert len(killed) == rounds_of(tmp_path / "whole")
    assert store.checksum == expected.checksum


def test_other_sizes_finish_what_was_begun(tmp_path: Path, expected: FingerprintStore) -> None:
    """Parts and batches stay as they were begun."""
    out = tmp_path / "out"
    with pytest.raises(Killed):
        compute(out, kill_after(4))
    assert compute(out, sizes=Sizes(5, 3, 50, 10)).checksum == expected.checksum


def test_engines_finish_each_others_runs(tmp_path: Path, expected: FingerprintStore) -> None:
    n_rounds = rounds_of(tmp_path / "whole")
    out = tmp_path / "begun in parts"
    with pytest.raises(Killed):
        compute(out, kill_after(n_rounds - 3))
    assert compute_fingerprints(GRAPH, out, PARAMS, threads=1).checksum == expected.checksum
    calls = iter(range(2))

    def kill(done: int, total: int) -> None:
        if next(calls, None) is None:
            raise Killed

    out = tmp_path / "begun whole"
    with pytest.raises(Killed):
        compute_fingerprints(GRAPH, out, PARAMS, threads=1, block_moves=3000, progress=kill)
    assert compute(out).checksum == expected.checksum


def test_files_are_removed_when_nobody_reads_them(tmp_path: Path) -> None:
    """Messages go with the next round, stopped mass with the oldest batch."""
    rounds = tmp_path / "out.partial" / "rounds"
    oldest: list[int] = []

    def look(seen: Progress) -> None:
        folders = sorted(rounds.glob("round-*"))
        kept = {int(folder.name[6:]) for folder in folders}
        for folder in folders:
            if int(folder.name[6:]) < seen.rounds - 1:
                assert {path.name[:4] for path in folder.iterdir()} <= {"stop", "rest"}
        oldest.append(min(kept, default=0))

    compute(tmp_path / "out", look)
    assert oldest == sorted(oldest)
    assert oldest[-2] > 0


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "flipped":
        content[len(content) // 3] ^= 4
    elif how == "index":
        content[-40] ^= 4
    path.write_bytes(content[:-7] if how == "short" else content[:5] if how == "stub" else content)


@pytest.mark.parametrize("how", ["flipped", "index", "short", "stub", "missing"])
@pytest.mark.parametrize("what", ["messages", "stops", "rest", "candidates"])
def test_damaged_files_are_noticed(tmp_path: Path, expected: FingerprintStore, what: str, how: str) -> None:
    out = tmp_path / "out"
    done: list[Path] = []

    def progress(seen: Progress) -> None:
        for path in sorted((tmp_path / "out.partial").glob(f"rounds/*/{what}-*")) if not done else ():
            if path.stat().st_size > 200:
                damage(path, how)
                done.append(path)
                break

    with pytest.raises(
        StoreError, match=r"messages is (damaged|missing); the batches under way are discarded"
    ):
        compute(out, progress)
    assert done
    assert not out.exists()
    assert compute(out).checksum == expected.checksum


def test_damaged_state_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Killed):
        compute(out, kill_after(3))
    state = tmp_path / "out.partial" / "rounds" / "state.json"
    state.write_text(state.read_text()[:-9])
    with pytest.raises(StoreError, match=r"state\.json: damaged; remove .*rounds to start"):
        compute(out)


def test_any_other_digit_in_the_state_is_told(tmp_path: Path) -> None:
    """Other cuts or rounds would be other rows, without a sign."""
    out = tmp_path / "out"
    with pytest.raises(Killed):
        compute(out, kill_after(5))
    state = tmp_path / "out.partial" / "rounds" / "state.json"
    text = state.read_text()
    digits = [place for place, letter in enumerate(text) if letter.isdigit()]
    assert len(digits) > 50
    for place in digits:
        state.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        with pytest.raises(StoreError, match=r"state\.json: damaged; remove .*rounds to start"):
            compute(out)
    state.write_text("[]")
    with pytest.raises(StoreError, match=r"state\.json: damaged"):
        compute(out)


@pytest.mark.parametrize("how", ["flipped", "short", "stub", "missing"])
def test_sources_are_written_anew_by_every_run(tmp_path: Path, expected: FingerprintStore, how: str) -> None:
    """A flipped one is a source of a batch under way."""
    out = tmp_path / "out"
    with pytest.raises(Killed):
        compute(out, kill_after(2))
    path = tmp_path / "out.partial" / "rounds" / "sources.npy"
    if how == "flipped":
        sources = np.load(path)
        sources[:9] += 1
        np.save(path, sources)
    else:
        damage(path, how)
    assert compute(out).checksum == expected.checksum


@pytest.mark.parametrize("how", ["short", "stub", "missing"])
def test_sources_damaged_in_a_run_are_noticed(tmp_path: Path, expected: FingerprintStore, how: str) -> None:
    out = tmp_path / "out"

    def progress(seen: Progress) -> None:
        if seen.rounds == 3:
            damage(tmp_path / "out.partial" / "rounds" / "sources.npy", how)

    with pytest.raises(StoreError, match=r"sources is damaged or missing .* the batches under way are disc"):
        compute(out, progress)
    assert compute(out).checksum == expected.checksum


@pytest.mark.parametrize("failing", [3, 40, 200])
def test_full_disk_says_what_is_needed_and_can_go_on(
    tmp_path: Path, expected: FingerprintStore, failing: int
) -> None:
    append, calls = ExchangeWriter.append, iter(range(failing))

    def full(writer: ExchangeWriter, *arguments: object) -> None:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(writer, *arguments)  # type: ignore[arg-type]

    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExchangeWriter, "append", full)
        with pytest.raises(ResourceError, match=r"no space left .* in round \d+; .* takes about .* GB"):
            compute(out)
    assert not list((tmp_path / "out.partial").rglob(".*"))  # nothing half-written
    seen: list[Progress] = []
    assert compute(out, seen.append).checksum == expected.checksum
    assert (seen[0].rounds > 0) == (failing > 3)


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    def again(seen: Progress) -> None:
        if seen.rounds == 2:
            compute(tmp_path / "out")

    with pytest.raises(OutputExistsError, match="another process"):
        compute(tmp_path / "out", again)


def test_a_task_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    """Retries and speculative copies do no harm, also of a round that is over."""
    run, seen = RoundTask.run, 0

    def twice(task: RoundTask, graph: Graph, part: int) -> object:
        nonlocal seen
        receipt = run(task, graph, part)
        folder = Path(task.folder, f"round-{task.number:06d}")
        mine = [path for path in folder.iterdir() if path.name.endswith(f"-{part:05d}")]
        first = {path: path.read_bytes() for path in mine}
        assert run(task, graph, part) == receipt
        assert {path: path.read_bytes() for path in mine} == first
        seen += len(first)
        return receipt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoundTask, "run", twice)
        compute(tmp_path / "out")
    assert seen > 50
