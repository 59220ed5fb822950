"""The environment archive: executors that have no package but those in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams

pytestmark = [pytest.mark.packaging, pytest.mark.spark, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "jobs" / "launch" / "fairpath_submit.py"


@pytest.fixture(scope="session")
def archive() -> Path:
    """What 'make package' builds; built here where it is missing or old."""
    path = ROOT / "dist" / "fairpath-environment.tar.gz"
    command = ["make", "--no-print-directory", "--assume-old=.venv/.installed", str(path.relative_to(ROOT))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def test_fingerprints_with_nothing_but_the_archive_on_the_executors(
    archive: Path, wheel: Path, dependencies_only: Path, tmp_path: Path
) -> None:
    pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed")
    from jobs.java import java_home

    rng = np.random.default_rng(5)
    indices = np.concatenate([np.sort(rng.choice(200, 4, replace=False)) for _ in range(200)])
    graph = Graph.from_arrays(np.arange(0, 801, 4), indices).save(tmp_path / "graph")
    code = tmp_path / "fairpath.zip"
    shutil.copy(wheel, code)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": os.environ["HOME"],
        "JAVA_HOME": str(java_home()),
        "PYSPARK_DRIVER_PYTHON": str(dependencies_only / "bin" / "python"),
        "PYSPARK_PYTHON": "environment/bin/python",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    submit = [Path(pyspark.__file__).parent / "bin" / "spark-submit", "--master", "local-cluster[1,2,1024]"]
    packages = ["--py-files", code, "--archives", f"{archive}#environment"]
    properties = ["--properties-file", ROOT / "conf" / "spark" / "standalone.conf"]
    arguments = ["fingerprints", "graph", "--out", "spark", "--engine", "spark", "--n-walks", "100"]
    done = subprocess.run(
        [*submit, *packages, *properties, LAUNCHER, *arguments, "--log-level", "error"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert json.loads(done.stdout)["sources"] == 200
    local = compute_fingerprints(graph, tmp_path / "local", FingerprintParams(n_walks=100), threads=1)
    assert FingerprintStore.open(tmp_path / "spark", graph=graph).checksum == local.checksum


def test_spark_s_properties_are_each_a_name_and_a_value() -> None:
    for path in sorted((ROOT / "conf" / "spark").glob("*.conf")):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        names = [name for name, value in (line.split() for line in lines)]
        assert all(name.startswith("spark.") for name in names)
        assert len(set(names)) == len(names)
