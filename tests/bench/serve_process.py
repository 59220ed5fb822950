"""A running ``fairpath serve``, seen from outside."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from harness import RESULTS, ROOT

from router.service.store import open_store

FAIRPATH = (sys.executable, "-m", "jobs.cli")
BESIDE = (sys.executable, str(Path(__file__).with_name("serve_beside.py")))
LOG = RESULTS / "serve.log"
_LOOK_S = 0.01
_START_S = 60.0
_STOP_S = 60.0
_SCOPES = ("route", "read", "feedback", "admin")


@dataclass(frozen=True)
class Served:
    """A service that answers.

    Attributes
    ----------
    process
        The one that was started: the only one, or the parent of the workers.
    port
        Where it listens.
    token
        An API key with all scopes.
    started_s
        Seconds from its start until it was ready.
    """

    process: psutil.Process
    port: int
    token: str
    started_s: float

    def workers(self) -> list[psutil.Process]:
        """Processes that answer."""
        children = [
            one for one in self.process.children() if "resource_tracker" not in " ".join(_cmdline(one))
        ]
        return children or [self.process]


@contextmanager
def served(
    releases: Path, store: str, *options: str, workers: int = 1, program: tuple[str, ...] = FAIRPATH
) -> Iterator[Served]:
    """Serve releases in a process of its own, with further options of the command."""
    with open_store(store) as opened:
        _, token = opened.create_key("benchmark", _SCOPES)
    port = free_port()
    arguments = [str(releases), "--store", store, "--port", str(port), "--workers", str(workers)]
    with LOG.open("ab") as log:
        begin = time.perf_counter()
        command = [*program, *([] if program is BESIDE else ["serve"]), *arguments, *options]
        popen = subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=log, stderr=log)
    try:
        _wait_until_ready(popen, port)
        yield Served(psutil.Process(popen.pid), port, token, time.perf_counter() - begin)
    finally:
        popen.send_signal(signal.SIGTERM)
        try:
            popen.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def ask(served: Served, path: str, body: object = None, method: str | None = None) -> dict[str, object]:
    """Answer of a service to one request.

    Raises
    ------
    SystemExit
        It is not one of success.
    """
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    content = None if body is None else json.dumps(body)
    headers = {"authorization": f"Bearer {served.token}", "content-type": "application/json"}
    connection.request(method or ("GET" if body is None else "POST"), path, content, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status >= 300:
        raise SystemExit(f"{path}: answered {answer.status}, nothing was measured: {text[:500]!r}")
    found: dict[str, object] = json.loads(text)
    return found


def private_mib(process: psutil.Process) -> float:
    """Memory of a process that it shares with no other and no file, in MiB: what only its end frees.

    Clean pages of a mapped file are the file's: the kernel drops them where memory is short, and a page of
    the release that only one worker has read so far is not that worker's.
    """
    fields = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    kib = [int(line.split()[1]) for line in fields if line.startswith("Private_Dirty:")]
    return sum(kib) / 1024


def _wait_until_ready(popen: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _START_S
    while not _is_ready(port):
        if popen.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"the service has not started; see {LOG}")
        time.sleep(_LOOK_S)


def _is_ready(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return os.environ | own


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
