"""GraphFrames' parallelPersonalizedPageRank, timed; run by the Python of .venv-graphframes, prints JSON.

``python tests/bench/peers_graphframes.py GRAPH.npz SOURCES.npy OUT.npz --max-iter 4 6 8``

``GRAPH.npz`` has the arrays ``indptr`` and ``indices`` of a graph whose weights are 1, ``SOURCES.npy`` has
node ids. For each number of iterations, ``OUT.npz`` gets an array ``scores-N``, float32 [sources, nodes].

It scales each source's scores to a sum of 1, and ignores weights. All sources go into one call: that is its
cheapest way. Timed is that call and the writing of the result as Parquet, not the start of Spark, the loading
of the graph, or a first call on the same graph, which compiles and warms the JVM. CPU time is that of all
processes, the JVM's compiler and collector with them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
JAR_NAME = "graphframes-0.8.2-spark3.1-s_2.12.jar"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time GraphFrames' personalized PageRank.")
    parser.add_argument("graph", type=Path)
    parser.add_argument("sources", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-iter", type=int, nargs="+", required=True)
    parser.add_argument("--restart-prob", type=float, default=0.15)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--memory", default="6g", help="heap of the JVM")
    parser.add_argument("--turns", type=int, default=1, help="the best of so many")
    args = parser.parse_args()
    sources = np.load(args.sources)
    with np.load(args.graph) as arrays, tempfile.TemporaryDirectory() as folder:
        n_nodes = len(arrays["indptr"]) - 1
        frame, session = graph_frame(
            arrays["indptr"], arrays["indices"], Path(folder), args.cores, args.memory
        )
        timings, scores = [], {}
        rank(frame, sources[:1], 2, args.restart_prob, Path(folder) / "warm-up")
        for n_iterations in args.max_iter:
            turns = []
            for turn in range(args.turns):
                result = Path(folder) / f"{n_iterations}-{turn}"
                turns.append(rank(frame, sources, n_iterations, args.restart_prob, result))
            timings.append({"max_iter": n_iterations, "sources": len(sources)} | min(turns, key=core_seconds))
            scores[f"scores-{n_iterations}"] = read_scores(result, len(sources), n_nodes)
        version = session.version
        session.stop()
    np.savez(args.out, **scores)
    print(json.dumps({"graphframes": JAR_NAME, "spark": version, "timings": timings}, indent=1))


def graph_frame(indptr: Any, indices: Any, folder: Path, cores: int, memory: str) -> tuple[Any, Any]:
    """The graph in Spark's memory, as many partitions as cores; and the session."""
    jars = (Path(entry) / "jars" / JAR_NAME for entry in sys.path)
    jar = str(next(jar for jar in jars if jar.is_file()))
    sys.path[:0] = [str(ROOT), jar]  # the jar has its own half in Python
    from jobs.spark_session import spark_session

    session = spark_session(
        master=f"local[{cores}]",
        app_name="graphframes",
        conf={
            "spark.jars": jar,
            "spark.driver.memory": memory,
            "spark.sql.shuffle.partitions": str(cores),
            "spark.local.dir": str(folder / "spark"),
        },
    )
    from graphframes import GraphFrame

    n_nodes = len(indptr) - 1
    tables = {
        "vertices": pa.table({"id": np.arange(n_nodes)}),
        "edges": pa.table(
            {"src": np.repeat(np.arange(n_nodes), np.diff(indptr)), "dst": indices.astype("i8")}
        ),
    }
    frames = []
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
        frame = session.read.parquet(f"file://{folder / name}.parquet").repartition(cores).cache()
        frame.count()
        frames.append(frame)
    return GraphFrame(*frames), session


def rank(frame: Any, sources: Any, n_iterations: int, restart_prob: float, folder: Path) -> dict[str, float]:
    """Rank from all sources, write the vertices; gives what it took."""
    cpu_s, started = cpu_seconds(), time.perf_counter()
    ranked = frame.parallelPersonalizedPageRank(
        resetProbability=restart_prob, sourceIds=sources.tolist(), maxIter=n_iterations
    )
    ranked.vertices.write.parquet(f"file://{folder}")
    return {"core_seconds": cpu_seconds() - cpu_s, "seconds": time.perf_counter() - started}


def core_seconds(timing: dict[str, float]) -> float:
    return timing["core_seconds"]


def cpu_seconds() -> float:
    """CPU time of this process and all that it started, living or waited for."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def read_scores(folder: Path, n_sources: int, n_nodes: int) -> Any:
    """The sparse vectors, one a vertex, as float32 [sources, nodes]."""
    scores = np.zeros((n_sources, n_nodes), dtype=np.float32)
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(columns=["id", "pageranks"]):
            vectors = batch.column("pageranks")
            nodes = batch.column("id").to_numpy()
            sparse = vectors.field("type").to_numpy() == 0
            if not sparse.all():  # a dense vector has values only
                dense = pa.RecordBatch.from_arrays([batch.column("id"), vectors], ["id", "v"]).filter(
                    pa.array(~sparse)
                )
                values = dense.column("v").field("values")
                scores[:, dense.column("id").to_numpy()] = np.vstack(values.to_pylist()).T
            positions = vectors.field("indices").filter(pa.array(sparse))
            lengths = positions.value_lengths().to_numpy()
            values = vectors.field("values").filter(pa.array(sparse))
            scores[positions.flatten().to_numpy(), np.repeat(nodes[sparse], lengths)] = values.flatten()
    return scores


if __name__ == "__main__":
    main()
