"""Dask engine: the same blocks as tasks of a Dask cluster, for people without a JVM.

A task is one block; :mod:`ppr.workers` says what its worker does with it. Only receipts pass through the
scheduler. Two waves are in flight, so that no worker waits for a wave's last block.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dask import config as dask_config
from distributed import Client, Future, KilledWorker, LocalCluster, Security
from distributed.comm.addressing import parse_address
from distributed.comm.core import CommClosedError
from distributed.comm.registry import get_backend
from distributed.versions import VersionMismatchWarning
from numpy.typing import NDArray

from ppr import errors
from ppr.blocks import DEFAULT_BLOCK_MOVES, plan_blocks
from ppr.errors import ParameterError, PprError, ResourceError
from ppr.fingerprints import FingerprintRun, FingerprintStore
from ppr.params import FingerprintParams
from ppr.workers import WaveTask, check_receipts, code_digest, driver_graph, wave_size

DEFAULT_TIMEOUT_S = 30.0
"""How long a scheduler may take to answer, and a cluster to have a worker that works."""

Receipt = int | tuple[str, str]
"""What comes back for a block: its number of rows, or name and text of an error of this package."""

_LOGGERS = ("distributed", "tornado", "asyncio")
_LOOK_EVERY_S = 2.0  # at the workers, while a block is awaited
_ALIKE = {"python": 2, "dask": None, "distributed": None}  # parts of the versions compared


def compute_fingerprints_dask(
    client: Client | str,
    graph_url: str | Path,
    out: str | Path,
    params: FingerprintParams,
    *,
    sources: NDArray[np.int32] | None = None,
    progress: Callable[[int, int], None] | None = None,
    block_moves: float = DEFAULT_BLOCK_MOVES,
    wave_blocks: int | None = None,
    cache_dir: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> FingerprintStore:
    """Compute fingerprints with Dask; resumes a killed run, does nothing when ``out`` is finished.

    Parameters
    ----------
    client
        Client of a cluster, or the address of a scheduler, such as ``tcp://host:8786``.
    graph_url
        Graph store: a path that driver and workers share, or a URL of fsspec, of which each machine makes one
        checked local copy.
    out
        Folder of the fingerprint store, on storage that driver and workers share.
    params
        Parameters of the rows.
    sources
        int32 node ids, in any order; None for every node.
    progress
        Called with (blocks done, blocks in all) at the start and after each wave.
    block_moves
        Predicted moves per block, which is one task.
    wave_blocks
        Blocks per wave, two of which a kill may lose; by default up to sixteen per thread of the cluster, and
        an eighth of all.
    cache_dir
        Where each machine keeps copies of remote graphs; by default below its temporary folder.
    timeout_s
        How long the scheduler may take to answer, and the cluster be without a worker that works.

    Returns
    -------
    FingerprintStore
        The finished store.

    Raises
    ------
    ParameterError
        A parameter breaks its rule, or ``out`` exists and was made otherwise.
    StoreError
        The graph store is damaged, or differs between driver and workers.
    ResourceError
        Scheduler or workers are not there, were lost, have other versions, or cannot reach the graph or this
        package; or the output is not shared.
    """
    if wave_blocks is not None and wave_blocks < 1:
        raise ParameterError(f"'wave_blocks' must be positive (got {wave_blocks})")
    location, graph = driver_graph(graph_url, cache_dir)
    out = Path(out).resolve()
    blocks = plan_blocks(graph, sources, params, block_moves=block_moves)
    with dask_client(client, timeout_s) if isinstance(client, str) else nullcontext(client) as client:
        slots = _threads(client, timeout_s)
        _check_versions(client)
        _check_code(client)
        if wave_blocks is None:
            wave_blocks = wave_size(len(blocks), slots)
        run = FingerprintRun.begin(graph, out, params, lambda: blocks, wave_blocks)
        if run is None:
            return FingerprintStore.open(out, graph=graph, verify=False)
        report = progress or (lambda done, total: None)
        with run, _Waves(client, run, timeout_s) as waves:
            report(run.n_blocks_done, run.n_blocks)
            for index, wave in run.pending_waves():
                folder = str(run.begin_wave(index))
                waves.submit(index, WaveTask(location, graph.checksum, cache_dir, params, folder), wave)
                if len(waves) > 1:
                    waves.complete_first()
                    report(run.n_blocks_done, run.n_blocks)
            while len(waves):
                waves.complete_first()
                report(run.n_blocks_done, run.n_blocks)
            return run.finish()


@contextmanager
def dask_client(address: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Iterator[Client]:
    """Client of the scheduler at an address; closed at the end.

    Parameters
    ----------
    address
        Such as ``tcp://host:8786``. Certificates for ``tls://`` are taken from Dask's own configuration.
    timeout_s
        How long the scheduler may take to answer.

    Raises
    ------
    ParameterError
        It is no address.
    ResourceError
        No scheduler answers there.
    """
    _check_address(address)
    with _quiet():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VersionMismatchWarning)  # what matters is checked below
                client = Client(address, timeout=timeout_s, set_as_default=False)
        except (OSError, ImportError) as error:
            raise ResourceError(f"{address}: no Dask scheduler answers there ({error})") from error
        with client:
            yield client


def _check_address(address: str) -> None:
    """Check an address before a client is made: one that fails half-way blocks the program's end."""
    scheme, place = parse_address(address)
    try:
        host, port = get_backend(scheme).get_address_host_port(place)
        why = "" if host and 0 < port < 1 << 16 else "a host and a port from 1 to 65535 belong to it"
    except ValueError as error:
        why = str(error)
    except (ImportError, NotImplementedError):
        why = f"{scheme}:// cannot be used here"
    if why:
        raise ParameterError(
            f"'scheduler' must be an address such as tcp://host:8786 (got {address!r}: {why})"
        )
    if scheme in ("tls", "wss") and not dask_config.get("distributed.client.security-loader", None):
        try:
            certificates = Security().get_connection_args("client")["ssl_context"]
        except OSError as error:
            raise ResourceError(f"'distributed.comm.tls' of Dask's configuration: {error}") from error
        if certificates is None:
            raise ParameterError(
                f"'scheduler' must not be {scheme}:// where Dask's configuration names no certificates, "
                f"'distributed.comm.tls' (got {address!r})"
            )


@contextmanager
def local_client(threads: int | None = None) -> Iterator[Client]:
    """Client of a cluster within this process: one worker, whose threads release the GIL; closed at the end.

    Parameters
    ----------
    threads
        Threads; by default one per processor that this process may use.

    Raises
    ------
    ParameterError
        ``threads`` is not positive.
    """
    if threads is not None and threads < 1:
        raise ParameterError(f"'threads' must be positive (got {threads})")
    with (
        _quiet(),
        LocalCluster(
            processes=False,
            n_workers=1,
            threads_per_worker=threads or len(os.sched_getaffinity(0)),
            memory_limit=0,  # the mapped graph counts as this process's memory
            dashboard_address="127.0.0.1:0",  # any free port, for this machine only
            worker_dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Dask log nothing in this process: what fails is raised here, what it logs are tracebacks."""
    names = [*_LOGGERS, *(name for name in logging.root.manager.loggerDict if name.split(".")[0] in _LOGGERS)]
    before = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in before:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


class _Waves:
    """Waves whose blocks are tasks of the cluster, first in, first out; cancelled where the run fails."""

    def __init__(self, client: Client, run: FingerprintRun, timeout_s: float) -> None:
        self._client = client
        self._run = run
        self._timeout_s = timeout_s
        self._waves: list[tuple[int, str, Sequence[NDArray[np.int32]], list[Future[Receipt]]]] = []

    def __enter__(self) -> _Waves:
        return self

    def __exit__(self, *_: object) -> None:
        left = [future for *_, futures in self._waves for future in futures]
        if left and self._client.status == "running":
            self._client.cancel(left)

    def __len__(self) -> int:
        return len(self._waves)

    def submit(self, index: int, task: WaveTask, blocks: Sequence[NDArray[np.int32]]) -> None:
        """Hand the blocks of a wave to the cluster."""
        with _readable_errors():
            futures = self._client.map(
                partial(_write, task), range(len(blocks)), blocks, pure=False, key="fairpath-block"
            )
        self._waves.append((index, task.folder, blocks, futures))

    def complete_first(self) -> None:
        """Wait for the oldest wave, check that its files are here, and complete it."""
        index, folder, blocks, futures = self._waves[0]
        with _readable_errors():
            receipts = {number: self._n_rows(future) for number, future in enumerate(futures)}
        check_receipts(folder, blocks, receipts)
        self._run.complete_wave(index)
        del self._waves[0]

    def _n_rows(self, future: Future[Receipt]) -> int:
        last_at_work = time.monotonic()
        while True:
            try:
                receipt: Receipt = future.result(timeout=_LOOK_EVERY_S)
                if isinstance(receipt, int):
                    return receipt
                name, message = receipt
                raise getattr(errors, name)(message)
            except TimeoutError:
                states = _states(self._client)
                if "running" in states:
                    last_at_work = time.monotonic()
                elif time.monotonic() - last_at_work > self._timeout_s:
                    how = "paused, their memory is full" if states else "lost"
                    raise ResourceError(f"all workers of the Dask cluster are {how}{_MEMORY_HINT}") from None


def _write(task: WaveTask, number: int, sources: NDArray[np.int32]) -> Receipt:
    """Write a block; errors of this package come back as text: Dask cannot pickle those with two bases."""
    try:
        return task.write(number, sources)
    except PprError as error:
        return type(error).__name__, str(error)


_MEMORY_HINT = (
    "; pages of the mapped graph count as a worker's memory: start workers with --memory-limit 0, or with "
    "room for the graph"
)


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Turn what Dask raises into errors of this package; a worker's own defect is raised as it came."""
    try:
        yield
    except PprError:
        raise
    except KilledWorker as error:
        raise ResourceError(
            f"Dask gave up a block whose workers died ({_line(error)}){_MEMORY_HINT}"
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise ResourceError(
            f"the Dask scheduler was lost, or cancelled the blocks ({_line(error)})"
        ) from error
    except OSError as error:
        raise ResourceError(f"Dask failed ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _states(client: Client) -> list[str]:
    """State of each worker: running, paused, closing."""
    workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return [worker["status"] for worker in workers.values()]


def _threads(client: Client, timeout_s: float) -> int:
    """Threads of the cluster, once it has a worker."""
    try:
        client.wait_for_workers(1, timeout=timeout_s)
    except TimeoutError:
        raise ResourceError(f"the Dask cluster has no workers (waited {timeout_s:g} s)") from None
    return sum(client.nthreads().values())


def _check_code(client: Client) -> None:
    """Check that the scheduler and all workers can import this package, and have the same code of it."""

    def load() -> str:  # within a function: pickled by value, so that it arrives where this package is not
        import ppr.workers

        return str(getattr(ppr.workers, "code_digest", str)())  # code of before has no digest

    found: dict[str, Any] = {}
    try:
        found["scheduler"] = client.run_on_scheduler(load)  # it reads the tasks that it hands on
    except ImportError as error:
        found["scheduler"] = error
    for place, theirs in (found | client.run(load, on_error="return")).items():
        if isinstance(theirs, ImportError):
            raise ResourceError(
                f"Dask's {place} cannot import what it needs ({theirs}): install fairpath for its Python"
            )
        if isinstance(theirs, str) and theirs != code_digest():
            raise ResourceError(
                f"the code of fairpath at Dask's {place} must be the same as here; install the same version"
            )


def _check_versions(client: Client) -> None:
    found = client.get_versions()
    ours = found["client"]["packages"]
    for place, theirs in [("scheduler", found["scheduler"]), *found["workers"].items()]:
        for package, parts in _ALIKE.items():
            here, there = (packages.get(package) for packages in (ours, theirs["packages"]))
            if here.split(".")[:parts] != there.split(".")[:parts]:
                raise ResourceError(
                    f"the version of {package} at Dask's {place} must be {here}, as here (got {there})"
                )
