"""What the workers of a cluster do, whatever runs them: open the graph once, compute a block, write its rows.

A worker opens the graph store once per process, memory-mapped, so that all workers of a machine share one
copy in the page cache, and writes the rows itself: only receipts go back to the driver. The rows have the
same bits as the local engine's, so retries and speculative copies of a task are harmless.
"""

from __future__ import annotations

import hashlib
import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ppr.blocks import compile_kernels, compute_block
from ppr.errors import MissingDataError, ResourceError, StoreError
from ppr.fingerprints import write_block
from ppr.graph import Graph
from ppr.local_copy import is_url, local_store
from ppr.machine import locked, shared_folder
from ppr.manifest import full_disk_is_an_error
from ppr.params import FingerprintParams

_CODE_OF_ROWS = ("kernels/*.py", "fingerprints/*.py", "blocks.py", "graph.py", "params.py", "workers.py")
_BLOCKS_PER_SLOT = 16  # per wave: some seconds of work, so that starting a job and its last tasks cost little
_WAVES = 8  # at least, where each still gives every slot a block: small jobs show progress too


def wave_size(n_blocks: int, slots: int) -> int:
    """Blocks per wave: up to sixteen per slot of the cluster, and about an eighth of all, in whole rounds."""
    per_slot = math.ceil(n_blocks / (_WAVES * slots))  # whole rounds: no slot idles at a wave's end
    return slots * max(1, min(_BLOCKS_PER_SLOT, per_slot))


@dataclass(frozen=True)
class WaveTask:
    """What all blocks of a wave have in common. Pickled by reference to this module.

    Parameters
    ----------
    graph_url
        Absolute path or URL of the graph store.
    checksum
        Checksum of the graph that the driver planned with.
    cache_dir
        Where to keep a copy of a remote graph.
    params
        Parameters of the rows.
    folder
        Folder of the wave, shared with the driver.
    """

    graph_url: str
    checksum: str
    cache_dir: str | None
    params: FingerprintParams
    folder: str

    def graph(self) -> Graph:
        """The graph, opened once per process; checks that the wave's folder is there as well.

        Raises
        ------
        ResourceError
            The graph or the folder is not there on this machine.
        StoreError
            The graph is not the one that the driver planned with.
        """
        graph = worker_graph(self.graph_url, self.checksum, self.cache_dir)
        check_shared_folder(self.folder)
        return graph

    def write(self, number: int, sources: npt.NDArray[np.int32]) -> int:
        """Compute a block and write its rows, in one step; gives how many there are.

        Raises
        ------
        ResourceError
            The disk is full, or as :meth:`graph` does.
        StoreError
            As :meth:`graph` does.
        """
        table = compute_block(self.graph(), sources, self.params)
        folder = Path(self.folder)
        with full_disk_is_an_error(folder):
            write_block(folder, number, table)
        return int(table.num_rows)


def check_receipts(
    folder: str | Path, blocks: Sequence[npt.NDArray[np.int32]], receipts: Mapping[int, int]
) -> None:
    """Check, on the driver, that the blocks of a wave are where it looks for them.

    Parameters
    ----------
    folder
        Folder of the wave.
    blocks
        int32 sources of each block of the wave.
    receipts
        Rows written, by number of the block.

    Raises
    ------
    ResourceError
        A file is missing.
    """
    n_files = len(list(Path(folder).glob("*.parquet")))
    written = {number: block.size for number, block in enumerate(blocks)}
    check_written(folder, receipts == written and n_files == len(blocks))


def check_written(folder: str | Path, is_here: bool) -> None:
    """Check, on the driver, that what the workers wrote into a folder is there; ResourceError if not."""
    if not is_here:
        raise ResourceError(
            f"{folder}: what the workers wrote is not here; the output must lie on storage that they "
            "share with the driver"
        )


def check_shared_folder(folder: str | Path) -> None:
    """Check, on a worker, that the driver's folder is there; ResourceError if not."""
    if not Path(folder).is_dir():
        raise ResourceError(
            f"{folder}: not there on the worker {socket.gethostname()}; the output must lie on storage that "
            "driver and workers share"
        )


def driver_graph(graph_url: str | Path, cache_dir: str | None) -> tuple[str, Graph]:
    """Where workers find a graph, as an absolute path or a URL; and the graph, verified.

    Raises
    ------
    MissingDataError
        There is no store.
    StoreError
        It is damaged.
    """
    location = str(graph_url) if is_url(graph_url) else str(Path(graph_url).resolve())
    return location, Graph.open(local_store(location, cache_dir=cache_dir))


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256, in hex, of the source files that rows depend on: a version's number says nothing of them."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _CODE_OF_ROWS for path in root.glob(pattern)):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def worker_graph(graph_url: str, checksum: str, cache_dir: str | None) -> Graph:
    """Graph of this worker process, opened once; the driver has verified the files of a shared store.

    Raises
    ------
    ResourceError
        The path does not exist on this machine.
    StoreError
        The store is not the one that the driver planned with.
    """
    try:
        graph = Graph.open(local_store(graph_url, cache_dir=cache_dir), verify=False)
    except MissingDataError as error:
        raise ResourceError(
            f"{error} on the worker {socket.gethostname()}; put the graph on storage that driver and workers "
            "share, or give a URL, such as s3://..., that each machine copies once"
        ) from error
    with locked(shared_folder() / "kernels.lock"):  # the first process compiles, the others load
        compile_kernels()
    if graph.checksum != checksum:
        raise StoreError(
            f"{graph_url}: the checksum on the worker {socket.gethostname()} must be {checksum} "
            f"(got {graph.checksum})"
        )
    return graph
