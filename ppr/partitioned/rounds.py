"""The driver of partitioned walks: rounds, each of which serves batches of many ages.

The waves of a fingerprint run are the batches of sources. In every round a new batch begins and all batches
under way make one step, so that the few messages of old batches share their round with the many of young
ones. (Pipelines: Lin, "Distributed Algorithms for Fully Personalized PageRank on Large Graphs", WWW 2019.)

Everything lives in ``<out>.partial/rounds``. A round is complete when ``state.json`` names it; the files that
it read are removed after that. So a killed task is run again from the same files, a killed driver goes on
from the last complete round, and neither changes a bit, since the content of every file is a function of the
run's parameters and of how the graph is cut.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ppr.blocks import check_sources, expected_moves
from ppr.errors import MessagesError, StoreError
from ppr.fingerprints import FingerprintRun, FingerprintStore
from ppr.fingerprints.partial import partial_path
from ppr.graph import Graph
from ppr.manifest import full_disk_is_an_error
from ppr.params import FingerprintParams
from ppr.partitioned.plan import Parts, Sizes, plan_parts
from ppr.partitioned.task import SOURCES, Batch, Receipt, RoundTask, round_folder

_STATE = "state.json"
_BYTES_PER_MOVE = 12  # of messages and stopped mass on the disk, roughly


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    rounds, expected_rounds
        Rounds done, and about how many there will be.
    batches_done, n_batches
        Batches whose rows are written.
    under_way
        Batches that walk.
    messages, n_bytes
        Messages and bytes written in the last round.
    """

    rounds: int
    expected_rounds: int
    batches_done: int
    n_batches: int
    under_way: int
    messages: int
    n_bytes: int


def run_rounds(
    graph: Graph,
    out: str | Path,
    params: FingerprintParams,
    execute: Callable[[RoundTask], Sequence[Receipt]],
    sizes: Sizes,
    *,
    sources: NDArray[np.int32] | None = None,
    progress: Callable[[Progress], None] | None = None,
    cut_share: float | None = None,
) -> FingerprintStore:
    """Compute fingerprints in rounds; resumes a killed run, does nothing when ``out`` is finished.

    Parameters
    ----------
    graph
        The graph, of which no more is touched here than where the parts are cut.
    out
        Folder of the fingerprint store.
    params
        Parameters of the rows.
    execute
        Runs ``task.run(graph, part)`` for every part, anywhere, and gives the receipts.
    sizes
        How the run is cut; a resumed run keeps the parts that it was begun with.
    sources
        int32 node ids, in any order; None for every node.
    progress
        Called at the start and after each round.
    cut_share
        Of a part, above which a row may be cut; see :func:`ppr.partitioned.plan.plan_parts`.

    Returns
    -------
    FingerprintStore
        The finished store, with the same bits as any other engine's.

    Raises
    ------
    ParameterError
        A parameter breaks its rule, or ``out`` exists and was made otherwise.
    StoreError
        A file of messages is damaged: what is under way is discarded, and running again computes it.
    ResourceError
        The disk is full.
    """
    wanted = graph.live if sources is None else check_sources(graph, sources)
    n_blocks = min(sizes.n_parts, sizes.batch_sources)
    run = FingerprintRun.begin(graph, out, params, lambda: _blocks(wanted, sizes, n_blocks), n_blocks)
    if run is None:
        return FingerprintStore.open(out, graph=graph, verify=False)
    report = progress or (lambda seen: None)
    with run:
        pending = list(run.pending_waves())
        bounds = {wave: _bounds(wanted, blocks) for wave, blocks in pending}
        rounds = _Rounds(Path(out), params, bounds, sizes)
        with full_disk_is_an_error(Path(out)):
            share = {} if cut_share is None else {"cut_share": cut_share}
            rounds.begin(wanted, lambda: plan_parts(graph, sizes.n_parts, **share))
        try:
            report(rounds.progress(run.n_waves, ()))
            while task := rounds.next_task(run):
                receipts = execute(task)
                for batch in task.merging:
                    run.complete_wave(batch.wave)
                with full_disk_is_an_error(Path(out)):
                    rounds.complete(task, receipts)
                report(rounds.progress(run.n_waves, receipts))
        except MessagesError as error:
            rounds.discard()
            raise StoreError(
                f"{out}: {error}; the batches under way are discarded: run again to compute them"
            ) from error
        return run.finish()


class _Rounds:
    """The state of a run between rounds, in memory and in its folder."""

    def __init__(
        self, out: Path, params: FingerprintParams, bounds: dict[int, tuple[int, ...]], sizes: Sizes
    ) -> None:
        self._folder = partial_path(out) / "rounds"
        self._params = params
        self._bounds = bounds
        self._chunk_messages, self._rest_messages = sizes.chunk_messages, sizes.rest_messages
        self._number = 0  # of the next round
        self._batches: list[Batch] = []
        self._parts: Parts | None = None
        self._waiting: list[int] = []

    def begin(self, sources: NDArray[np.int32], plan: Callable[[], Parts]) -> None:
        """Start, or go on after the last complete round; removes what is left of later ones."""
        self._folder.mkdir(exist_ok=True)
        stored = self._stored()
        if stored is None:
            for left in self._folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            self._parts = plan()
        else:
            self._number, self._parts, batches = stored
            for wave, *rounds in batches:
                if wave in self._bounds:
                    self._batches.append(Batch(wave, self._bounds[wave], *rounds))
        # Also of a run that goes on: the tasks believe what the file says.
        _replace(self._folder / SOURCES, lambda file: np.save(file, sources))
        under_way = {batch.wave for batch in self._batches}
        self._waiting = sorted(self._bounds.keys() - under_way, reverse=True)
        shutil.rmtree(round_folder(self._folder, self._number), ignore_errors=True)
        if stored is None:
            self._write_state()

    def next_task(self, run: FingerprintRun) -> RoundTask | None:
        """The next round, in which the next batch begins; None where all batches are merged."""
        assert self._parts is not None
        batches = list(self._batches)
        if self._waiting:
            wave = self._waiting[-1]
            batches.append(Batch(wave, self._bounds[wave], self._number))
        if not batches:
            return None
        batches.sort(key=lambda batch: batch.wave)
        with full_disk_is_an_error(self._folder):
            round_folder(self._folder, self._number).mkdir()
        longest = max(batch.last - batch.first for batch in batches)
        together = min(len(self._bounds), self._expected_steps(longest))
        moves = longest * expected_moves(self._params) * together
        task = RoundTask(
            str(self._folder),
            self._number,
            self._params,
            self._parts,
            self._chunk_messages,
            tuple(batches),
            {},
            int(moves * _BYTES_PER_MOVE),
            self._expected_steps(longest),
        )
        return replace(task, wave_folders={one.wave: str(run.begin_wave(one.wave)) for one in task.merging})

    def complete(self, task: RoundTask, receipts: Sequence[Receipt]) -> None:
        """Note that a round is complete, and remove the files that no later one reads."""
        assert self._parts is not None
        if sorted(receipt.part for receipt in receipts) != list(range(len(self._parts))):
            raise StoreError(f"round {task.number}: there must be one receipt of each part")
        sent = np.sum([receipt.sent for receipt in receipts], axis=0).tolist()
        messages = dict(zip((batch.wave for batch in task.walking), sent, strict=True))
        merged = task.merging
        self._batches = [
            self._aged(batch, task.number, messages.get(batch.wave, 0))
            for batch in task.batches
            if batch not in merged
        ]
        if self._waiting and any(batch.wave == self._waiting[-1] for batch in task.batches):
            self._waiting.pop()
        self._number = task.number + 1
        self._write_state()
        self._remove_unread()

    def _aged(self, batch: Batch, number: int, messages: int) -> Batch:
        """A batch after a round in which it sent that many messages."""
        if batch.ended is not None:
            return batch
        if messages == 0:
            return replace(batch, ended=number)
        # Few messages may carry much mass, and become many again.
        kept = (1.0 - self._params.restart_prob) ** (number - batch.started)
        walks = (batch.last - batch.first) * self._params.n_walks * kept
        if batch.gathered is None and max(messages, walks) <= self._rest_messages:
            return replace(batch, gathered=number + 1)
        return batch

    def discard(self) -> None:
        """Forget all batches under way."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def progress(self, n_waves: int, receipts: Sequence[Receipt]) -> Progress:
        """How far the run is after a round that gave these receipts."""
        longest = max((bounds[-1] - bounds[0] for bounds in self._bounds.values()), default=1)
        newest = max((batch.started for batch in self._batches), default=self._number)
        if self._waiting:
            newest = self._number + len(self._waiting) - 1
        expected = max(newest + self._expected_steps(longest) + 4, self._number + 1)
        if not self._batches and not self._waiting:
            expected = self._number
        return Progress(
            rounds=self._number,
            expected_rounds=expected,
            batches_done=n_waves - len(self._waiting) - len(self._batches),
            n_batches=n_waves,
            under_way=sum(batch.ended is None for batch in self._batches),
            messages=sum(sum(receipt.sent) for receipt in receipts),
            n_bytes=sum(receipt.n_bytes for receipt in receipts),
        )

    def _expected_steps(self, n_sources: int) -> int:
        """Steps until so few messages of a batch are left that one task takes them to their end, about."""
        walks = max(2.0, n_sources * self._params.n_walks / max(1, self._rest_messages))
        steps = math.ceil(math.log(walks) / -math.log1p(-self._params.restart_prob))
        longest = self._params.max_steps
        return steps + 1 if longest is None else min(steps, longest) + 1

    def _remove_unread(self) -> None:
        walked = [batch.started for batch in self._batches]
        oldest = min(walked, default=self._number)
        for folder in self._folder.glob("round-*"):
            number = int(folder.name.removeprefix("round-"))
            if number < self._number - 1:
                if number < oldest:
                    shutil.rmtree(folder)
                    continue
                for path in folder.iterdir():
                    if not path.name.startswith(("stops", "rest")):
                        path.unlink(missing_ok=True)

    def _write_state(self) -> None:
        assert self._parts is not None
        state = {
            "round": self._number,
            "parts": self._parts.to_json(),
            "batches": [[batch.wave, batch.started, batch.gathered, batch.ended] for batch in self._batches],
        }
        text = json.dumps(state | {"crc": _crc(state)}).encode()
        _replace(self._folder / _STATE, lambda file: file.write(text))

    def _stored(self) -> tuple[int, Parts, list[list[Any]]] | None:
        path = self._folder / _STATE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            if state.pop("crc") != _crc(state):
                raise ValueError("its checksum differs")
            return int(state["round"]), Parts.from_json(state["parts"]), list(state["batches"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path}: damaged; remove {self._folder} to start the batches under way again ({error!r})"
            ) from error


def _crc(state: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file aside and rename it; not flushed, as the files of messages are not."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        write(file)
    new.replace(path)


def _blocks(sources: NDArray[np.int32], sizes: Sizes, n_blocks: int) -> list[NDArray[np.int32]]:
    """Blocks of the run: each batch is a wave of as many blocks as there are parts to merge them."""
    batches = np.split(sources, range(sizes.batch_sources, sources.size, sizes.batch_sources))
    return [block for batch in batches for block in np.array_split(batch, min(n_blocks, max(batch.size, 1)))]


def _bounds(sources: NDArray[np.int32], blocks: list[NDArray[np.int32]]) -> tuple[int, ...]:
    """Positions at which the blocks of a wave begin, and where the last one ends."""
    first = int(np.searchsorted(sources, blocks[0][0]))
    ends = np.cumsum([block.size for block in blocks]) + first
    return (first, *ends.tolist())
