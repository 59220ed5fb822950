"""The Dask engine against the local one: the same bits whatever the cluster loses; readable errors."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from ppr import workers
from ppr.errors import OutputExistsError, ParameterError, ResourceError, StoreError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.workers import WaveTask
from tests.oracles.random_graphs import random_graph

distributed = pytest.importorskip("distributed", reason="distributed is not installed")
from dask import config as dask_config  # noqa: E402

from ppr import dask  # noqa: E402
from ppr.dask import compute_fingerprints_dask, dask_client, local_client  # noqa: E402

PARAMS = FingerprintParams(n_walks=200, top_k=30, seed=5)
ARRAYS = ("sources", "indptr", "ids", "scores", "mass", "moves")
SMALL_BLOCKS = 20_000  # predicted moves: the graph below falls into some tens of blocks
SHORT_S = 0.2


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("graph") / "a graph, ünïcode"
    return random_graph(7, n_nodes=500, weighted=True).save(folder)


@pytest.fixture(scope="module")
def expected(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> FingerprintStore:
    return compute_fingerprints(graph, tmp_path_factory.mktemp("local") / "out", PARAMS, threads=1)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with local_client(2) as client:
        yield client


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Cluster of two worker processes."""
    with cluster_of(n_workers=2) as cluster:
        yield cluster


def cluster_of(**how: Any) -> Any:
    return distributed.LocalCluster(
        **({"threads_per_worker": 1, "processes": True, "memory_limit": 0} | how),
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )


def compute(client: Any, graph: Graph, out: Path, **how: Any) -> FingerprintStore:
    assert graph.path is not None
    how = {"params": PARAMS, "block_moves": SMALL_BLOCKS} | how
    return compute_fingerprints_dask(client, graph.path, out, **how)


def assert_same_bits(store: FingerprintStore, expected: FingerprintStore) -> None:
    for name in ARRAYS:
        ours, theirs = getattr(store, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes(), name
    assert store.checksum == expected.checksum


@pytest.mark.parametrize("block_moves", [10**9, SMALL_BLOCKS])
def test_same_bits_as_local_engine(
    client: Any, graph: Graph, tmp_path: Path, expected: FingerprintStore, block_moves: int
) -> None:
    seen: list[tuple[int, int]] = []
    store = compute(
        *(client, graph, tmp_path / "out with a space"),
        block_moves=block_moves,
        wave_blocks=7,
        progress=lambda *at: seen.append(at),
    )
    assert_same_bits(store, expected)
    total = seen[0][1]
    assert seen == [(min(done, total), total) for done in range(0, total + 7, 7)]
    assert (total == 1) == (block_moves == 10**9)
    assert not list(tmp_path.glob("*.partial"))


def test_same_bits_from_worker_processes_given_by_address_in_any_order(
    processes: Any, graph: Graph, tmp_path: Path
) -> None:
    sources = np.random.default_rng(1).permutation(np.arange(0, 500, 3, dtype=np.int32))
    local = compute_fingerprints(graph, tmp_path / "local", PARAMS, sources=sources)
    store = compute(processes.scheduler_address, graph, tmp_path / "out", sources=sources)
    assert_same_bits(store, local)


def test_worker_killed_in_the_middle_changes_nothing(
    processes: Any, graph: Graph, tmp_path: Path, expected: FingerprintStore
) -> None:
    with dask_client(processes.scheduler_address) as client:
        killed: list[int] = []

        def progress(done: int, total: int) -> None:
            if 0 < done < total and not killed:  # the next wave is being computed
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

        store = compute(client, graph, tmp_path / "out", progress=progress, wave_blocks=6)
    assert killed
    assert_same_bits(store, expected)


def test_url_is_copied_once(client: Any, graph: Graph, tmp_path: Path, expected: FingerprintStore) -> None:
    cache = tmp_path / "cache"
    store = compute_fingerprints_dask(
        client, f"file://{graph.path}", tmp_path / "out", PARAMS, cache_dir=str(cache)
    )
    assert_same_bits(store, expected)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


class Killed(BaseException):
    """Stands for a kill between two waves."""


def test_killed_run_is_resumed_also_by_another_engine(
    client: Any, graph: Graph, tmp_path: Path, expected: FingerprintStore
) -> None:
    def kill(done: int, total: int) -> None:
        if done >= 8:
            raise Killed

    with pytest.raises(Killed):
        compute(client, graph, tmp_path / "out", progress=kill, wave_blocks=4)
    assert not (tmp_path / "out").exists()
    done = sorted((tmp_path / "out.partial").rglob("_SUCCESS"))
    assert len(done) == 2
    seen: list[int] = []
    store = compute(client, graph, tmp_path / "out", progress=lambda done, total: seen.append(done))
    assert seen[0] == 8
    assert_same_bits(store, expected)

    with pytest.raises(Killed):
        compute(client, graph, tmp_path / "other", progress=kill, wave_blocks=4)
    assert_same_bits(compute_fingerprints(graph, tmp_path / "other", PARAMS), expected)


def test_finished_output_is_left_alone(client: Any, graph: Graph, tmp_path: Path) -> None:
    first = compute(client, graph, tmp_path / "out", sources=np.arange(5, dtype=np.int32))
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    again = compute(client, graph, tmp_path / "out", sources=np.arange(5, dtype=np.int32))
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    assert again.checksum == first.checksum
    with pytest.raises(OutputExistsError, match="sources"):
        compute(client, graph, tmp_path / "out")


def test_nothing_is_left_behind() -> None:
    before = set(psutil.Process().children(recursive=True)), set(threading.enumerate())
    with local_client(1) as client:
        assert client.submit(sum, [1, 2]).result() == 3
    left = {thread for thread in threading.enumerate() if not thread.daemon}
    assert (set(psutil.Process().children(recursive=True)), left - before[1]) == (before[0], set())


def listening() -> set[tuple[str, int]]:
    sockets = psutil.Process().net_connections()
    return {tuple(socket.laddr) for socket in sockets if socket.status == psutil.CONN_LISTEN}


def test_cluster_of_this_process_listens_to_this_machine_only() -> None:
    before = listening()
    with local_client(1):
        opened = listening() - before
    assert {host for host, _ in opened} <= {"127.0.0.1"}
    assert listening() <= before


# What goes wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("", "missing port"),
        ("localhost", "missing port"),
        ("tcp://", "missing port"),
        ("tcp://:8786", "a host and a port"),
        ("tcp://h:0", "a host and a port"),
        ("tcp://h:65536", "a host and a port"),
        ("tcp://h:x", "invalid literal"),
        ("tcp://[::1", "invalid address"),
        ("http://h:1", "unknown address scheme 'http'"),
        ("inproc://h/1/1", "inproc:// cannot be used here"),
        ("tls://127.0.0.1:9", "no certificates, 'distributed.comm.tls'"),
    ],
)
def test_bad_address_is_refused_before_a_client_is_made(
    monkeypatch: pytest.MonkeyPatch, address: str, rule: str
) -> None:
    monkeypatch.setattr(dask, "Client", None)  # one that fails half-way blocks the end of the program
    with pytest.raises(ParameterError) as raised, dask_client(address, SHORT_S):
        raise AssertionError
    assert str(raised.value).startswith("'scheduler' must ")
    assert rule in str(raised.value)
    assert f"got {address!r}" in str(raised.value)


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    tls = ("distributed.comm.tls.ca-file", "distributed.comm.tls.client.cert")
    absent = dict.fromkeys(tls, str(tmp_path / "absent.pem"))
    with (
        dask_config.set(absent),
        pytest.raises(ResourceError, match=r"'distributed.comm.tls' .* No such file"),
        dask_client("tls://127.0.0.1:9", SHORT_S),
    ):
        raise AssertionError


def test_scheduler_that_is_not_there() -> None:
    with (
        pytest.raises(ResourceError, match=r"tcp://127.0.0.1:9: no Dask scheduler answers there"),
        dask_client("tcp://127.0.0.1:9", SHORT_S),
    ):
        raise AssertionError


def test_cluster_without_workers(graph: Graph, tmp_path: Path) -> None:
    with (
        cluster_of(n_workers=0) as cluster,
        pytest.raises(ResourceError, match=r"the Dask cluster has no workers \(waited 0\.2 s\)"),
    ):
        compute(cluster.scheduler_address, graph, tmp_path / "out", timeout_s=SHORT_S)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("place", "package"), [("scheduler", "distributed"), ("tcp://w:1", "dask")])
def test_other_versions_are_refused(place: str, package: str) -> None:
    ours = {"python": "3.12.1.final.0", "dask": "9.1", "distributed": "9.1"}
    alike = {"packages": ours | {"python": "3.12.7.final.0"}}
    other = {"packages": ours | {package: "8.4"}}
    found = {"client": {"packages": ours}, "scheduler": alike, "workers": {"tcp://w:1": alike}}
    dask._check_versions(SimpleNamespace(get_versions=lambda: found))
    if place == "scheduler":
        found["scheduler"] = other
    else:
        found["workers"][place] = other
    with pytest.raises(
        ResourceError, match=rf"{package} at Dask's {place} must be {ours[package]}, .*got 8.4"
    ):
        dask._check_versions(SimpleNamespace(get_versions=lambda: found))


CHANGED = """
import ppr.workers
ppr.workers.code_digest = lambda: "0" * 64
"""
OF_BEFORE = """
import ppr.workers
vars(ppr.workers).pop("code_digest", None)
"""


@pytest.mark.parametrize("code", [CHANGED, OF_BEFORE], ids=["changed", "of before"])
def test_worker_with_other_code_is_refused(graph: Graph, tmp_path: Path, code: str) -> None:
    with (
        cluster_of(n_workers=1, preload=code) as cluster,
        pytest.raises(ResourceError, match=r"the code of fairpath at Dask's tcp://.* must be the same"),
    ):
        compute(cluster.scheduler_address, graph, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (lambda load: "0" * 64, "the code of fairpath at Dask's scheduler must be the same"),
        (lambda load: __import__("absent"), "Dask's scheduler cannot import .*absent.*install fairpath"),
    ],
)
def test_scheduler_with_other_code_is_refused(theirs: Any, message: str) -> None:
    cluster = SimpleNamespace(run_on_scheduler=theirs, run=lambda load, on_error: {"tcp://w:1": load()})
    with pytest.raises(ResourceError, match=message):
        dask._check_code(cluster)
    cluster.run_on_scheduler = lambda load: load()
    dask._check_code(cluster)


def test_code_digest_changes_with_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ppr"
    (package / "kernels").mkdir(parents=True)
    (package / "workers.py").write_text("")
    monkeypatch.setattr(workers, "__file__", str(package / "workers.py"))
    seen = set()
    for name, text in (("kernels/a.py", "x = 1"), ("kernels/a.py", "x = 2"), ("kernels/b.py", "")):
        (package / name).write_text(text)
        seen.add(workers.code_digest.__wrapped__())
    assert len(seen) == 3
    assert workers.code_digest.__wrapped__() in seen


def test_worker_without_this_package(graph: Graph, tmp_path: Path) -> None:
    """As on a cluster where nobody installed it; the module is hidden from the worker."""
    hide = "import sys\nsys.modules['ppr.workers'] = None\n"
    with (
        cluster_of(n_workers=1, preload=hide) as cluster,
        dask_client(cluster.scheduler_address) as client,
        pytest.raises(ResourceError, match=r"Dask's tcp://.* cannot import what it needs .*install fairpath"),
    ):
        compute(client, graph, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"graph_url": "/absent/graph"}, ResourceError, r"/absent/graph: no such store on the worker"),
        ({"checksum": "0" * 64}, StoreError, "the checksum on the worker .* must be 0000"),
        ({"folder": "/absent/wave"}, ResourceError, "/absent/wave: not there on the worker"),
        ({"params": None}, AttributeError, "restart_prob"),  # a defect is not dressed up
    ],
)
def test_errors_of_workers_arrive_as_they_are(
    processes: Any,
    graph: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    def other(*fields: Any) -> WaveTask:
        names = ("graph_url", "checksum", "cache_dir", "params", "folder")
        return WaveTask(**(dict(zip(names, fields, strict=True)) | change))

    monkeypatch.setattr(dask, "WaveTask", other)
    with dask_client(processes.scheduler_address) as client, pytest.raises(error, match=message):
        compute(client, graph, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_that_is_not_shared(
    client: Any, graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(dask, "WaveTask", lambda *fields: WaveTask(*fields[:-1], str(elsewhere)))
    with pytest.raises(ResourceError, match="what the workers wrote is not here"):
        compute(client, graph, tmp_path / "out")


class Deadly(WaveTask):
    """Kills its worker."""

    def write(self, number: int, sources: Any) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


def test_block_that_kills_its_workers_is_given_up(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask, "WaveTask", Deadly)
    with (
        dask_config.set({"distributed.scheduler.allowed-failures": 0}),
        cluster_of(n_workers=1) as cluster,
        dask_client(cluster.scheduler_address) as client,
        pytest.raises(ResourceError, match=r"gave up a block whose workers died .*--memory-limit 0"),
    ):
        compute(client, graph, tmp_path / "out", block_moves=10**9)


@pytest.mark.parametrize(
    ("lose", "message"),
    [
        (lambda cluster: cluster.scale(0), "all workers of the Dask cluster are lost"),
        (lambda cluster: cluster.close(), "the Dask scheduler was lost"),
    ],
    ids=["workers", "scheduler"],
)
def test_lost_cluster(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Any, message: str
) -> None:
    monkeypatch.setattr(dask, "_LOOK_EVERY_S", SHORT_S)
    cluster = cluster_of(n_workers=1, processes=False)
    with cluster, distributed.Client(cluster.scheduler_address, set_as_default=False) as client:

        def progress(done: int, total: int) -> None:
            if done == 4:
                lose(cluster)

        with pytest.raises(ResourceError, match=message):
            compute(client, graph, tmp_path / "out", progress=progress, wave_blocks=2, timeout_s=1)
    assert len(list((tmp_path / "out.partial").rglob("_SUCCESS"))) == 2


def test_dask_logs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    names = ("distributed.client", "distributed.utils", "tornado.application", "asyncio")
    before = [logging.getLogger(name).level for name in names]
    with local_client(1):
        for name in names:
            logging.getLogger(name).critical("a traceback")
    assert [logging.getLogger(name).level for name in names] == before
    assert "a traceback" not in capfd.readouterr().err


# The command ----------------------------------------------------------------------------------------------


def test_command(fairpath: Any, graph: Graph, tmp_path: Path, processes: Any) -> None:
    same = ("--n-walks", 200, "--top-k", 30, "--seed", 5)
    local = fairpath("fingerprints", graph.path, "--out", tmp_path / "local", *same)
    here = fairpath("fingerprints", graph.path, "--out", tmp_path / "a", *same, "--engine", "dask")
    scheduler = ("--scheduler", processes.scheduler_address)
    there = fairpath("fingerprints", graph.path, "--out", tmp_path / "b", *same, *scheduler)
    assert (local.code, here.code, there.code) == (0, 0, 0), here.err + there.err
    results = [json.loads(result.out) for result in (local, here, there)]
    assert len({result["checksum"] for result in results}) == 1
    assert [result["engine"] for result in results] == ["local", "dask", "dask"]
    assert "worker" not in (here.err + there.err).lower()  # Dask's own log


def test_command_without_dask(
    fairpath: Any, graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ppr.dask", None)
    result = fairpath("fingerprints", graph.path, "--out", tmp_path / "out", "--engine", "dask")
    assert (result.code, result.out) == (3, "")
    assert "pip install 'fairpath[dask]'" in result.err


def test_command_without_a_scheduler_there(fairpath: Any, graph: Graph, tmp_path: Path) -> None:
    result = fairpath(
        *("fingerprints", graph.path, "--out", tmp_path / "out", "--scheduler", "tcp://127.0.0.1:9"),
        *("--set", "dask.timeout_s=0.2"),
    )
    assert (result.code, result.out) == (3, "")
    assert "no Dask scheduler answers there" in result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


def test_interrupted_command_says_one_line(graph: Graph, tmp_path: Path) -> None:
    code, err = stopped(graph, tmp_path / "out", "--engine", "dask", end=signal.SIGINT)
    assert code == 130
    assert "interrupted; the same command continues" in err[-1]
    assert [line for line in err if "[info " not in line] == err[-1:]


@pytest.mark.long
def test_command_whose_scheduler_is_killed_says_one_line(graph: Graph, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        [*DASK, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"], **quiet
    ) as scheduler:
        try:
            with subprocess.Popen(
                [*DASK, "worker", address, "--nthreads", "1", "--no-nanny"], **quiet
            ) as worker:
                try:
                    code, err = stopped(
                        *(graph, tmp_path / "out", "--scheduler", address),
                        victim=scheduler,
                        end=signal.SIGKILL,
                    )
                finally:
                    worker.kill()
        finally:
            scheduler.kill()
    assert code == 3
    assert "fairpath: the Dask scheduler was lost" in err[-1]
    assert [line for line in err if "[info " not in line] == err[-1:]


DASK = (sys.executable, "-m", "dask")


def stopped(
    graph: Graph, out: Path, *options: str, end: int, victim: subprocess.Popen[bytes] | None = None
) -> tuple[int, list[str]]:
    """Exit code and log of a run; a signal ends it, or somebody else, once it has written a block."""
    many = ("--n-walks", "1000000", "--set", "fingerprints.threads=1")
    program = [sys.executable, "-m", "jobs.cli", "fingerprints", str(graph.path), "--out", str(out)]
    with subprocess.Popen([*program, *many, *options], stderr=subprocess.PIPE, text=True) as run:
        try:
            while run.poll() is None and not list(out.parent.glob("*.partial/**/*.parquet")):
                time.sleep(0.05)
            (victim or run).send_signal(end)
            err = run.communicate(timeout=60)[1]
        finally:
            run.kill()
    return run.returncode, err.splitlines()
