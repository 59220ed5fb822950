"""spark-submit with the zip: the program and its workers have nothing of this project but that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams

pytestmark = [pytest.mark.packaging, pytest.mark.spark]
LAUNCHER = Path(__file__).resolve().parents[2] / "jobs" / "launch" / "fairpath_submit.py"


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    rng = np.random.default_rng(3)
    indices = np.concatenate([np.sort(rng.choice(300, 5, replace=False)) for _ in range(300)])
    return Graph.from_arrays(np.arange(0, 1501, 5), indices, rng.random(1500) + 0.1).save(tmp_path / "graph")


@pytest.mark.long
def test_fingerprints_on_a_cluster_have_the_bits_of_the_local_engine(
    graph: Graph, wheel: Path, dependencies_only: Path, tmp_path: Path
) -> None:
    pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed")
    from jobs.java import java_home

    code = tmp_path / "fairpath.zip"
    shutil.copy(wheel, code)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": os.environ["HOME"],
        "JAVA_HOME": str(java_home()),
        "PYSPARK_PYTHON": str(dependencies_only / "bin" / "python"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    submit = [Path(pyspark.__file__).parent / "bin" / "spark-submit", "--master", "local-cluster[2,1,1024]"]
    arguments = ["fingerprints", "../graph", "--out", "../spark", "--engine", "spark", "--n-walks", "100"]
    quiet = ["--log-level", "error"]  # spark-submit merges the program's stderr into its stdout
    done = subprocess.run(
        [*submit, "--py-files", code, LAUNCHER, *arguments, *quiet],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert json.loads(done.stdout)["sources"] == 300
    local = compute_fingerprints(graph, tmp_path / "local", FingerprintParams(n_walks=100), threads=1)
    assert FingerprintStore.open(tmp_path / "spark", graph=graph).checksum == local.checksum
    assert list((tmp_path / "cache").rglob("*.nbc")), "compiled kernels were not cached"
    assert list(folder.iterdir()) == []


def test_java_home_can_be_asked_for(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.java"],
        cwd=LAUNCHER.parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (Path(done.stdout.strip()) / "bin" / "java").is_file()
