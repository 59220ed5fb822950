"""Job: a release of stores that belong together, for services to serve."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.errors import ConfigurationError
from router.publishing import publish
from router.releases import readable_current


def run(
    root: Path,
    *,
    model: Path,
    graph: Path | None = None,
    fingerprints: Path | None = None,
    activate: bool = True,
    new_encoder: bool = False,
    feedback_until: datetime | None = None,
    erased_until: datetime | None = None,
) -> dict[str, Any]:
    """Publish a release; the same stores again change nothing.

    Raises
    ------
    ConfigurationError
        Fingerprints are given without a graph.
    ReleaseError
        The stores do not belong together, or the encoder is another one than the current release's.
    ParameterError
        ``feedback_until`` is in the future.
    BundleError, MissingDataError
        A store is damaged or not there.
    """
    if fingerprints is not None and graph is None:
        raise ConfigurationError("'--fingerprints' goes with --graph, the graph that they were made from")
    started = time.monotonic()
    release = publish(
        root,
        model=model,
        graph=graph,
        fingerprints=fingerprints,
        activate=activate,
        new_encoder=new_encoder,
        feedback_until=feedback_until,
        erased_until=erased_until,
    )
    stores = release.manifest["stores"]
    return {
        "release": release.version,
        "path": str(release.path),
        "current": readable_current(root),
        "encoder": release.manifest["encoder"],
        "stores": {
            name: {key: store[key] for key in ("checksum", "bytes")} for name, store in stores.items()
        },
        "feedback_until": release.manifest["feedback_until"],
        "erased_until": release.manifest["erased_until"],
        "seconds": round(time.monotonic() - started, 3),
    }
