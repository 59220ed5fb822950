"""Publishing: from stores that belong together to a release that services may switch to.

The release is filled beside its final name, every byte of it is verified, each store is asked one thing, and
it is renamed. See :mod:`router.releases` for what is on disk then.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ppr import errors as ppr_errors
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.manifest import MANIFEST, file_sha256, new_store
from ppr.verd import Verd
from router.bundle import LLM, Bundle, store_errors
from router.errors import MissingDataError, ParameterError, ReleaseError
from router.releases import (
    FINGERPRINTS,
    FORMAT,
    GRAPH,
    MODEL,
    RECORD,
    VERSION,
    Release,
    content_digest,
    current_version,
    encoder_of,
    open_release,
    switch,
    versions,
)
from router.scorer import Scorer
from router.surroundings import Surroundings


def publish(
    root: str | Path,
    *,
    model: str | Path,
    graph: str | Path | None = None,
    fingerprints: str | Path | None = None,
    activate: bool = True,
    new_encoder: bool = False,
    feedback_until: datetime | None = None,
    now: datetime | None = None,
) -> Release:
    """Make a release of stores that belong together; the same stores again give the release there is.

    Parameters
    ----------
    root
        Folder of all releases; made where it is not there.
    model, graph, fingerprints
        Stores. Files are hard-linked where that is possible, copied else.
    activate
        Switch to it.
    new_encoder
        Switch to it even if its encoder is not that of the current release: services that run refuse it until
        they are started again.
    feedback_until
        Time up to which the model has learned from the feedback of its services, not in the future; None
        where from none. A service applies what came later on top of it.
    now
        Time of the release; by default that of the clock.

    Raises
    ------
    ReleaseError
        The stores do not belong together, the model gives no finite scores, or its encoder is another one
        than the current release's.
    ParameterError
        ``feedback_until`` is in the future.
    MissingDataError
        A store is not there.
    BundleError
        A store is damaged.
    ResourceError
        The disk is full or the folder cannot be written.
    """
    folder = Path(root)
    if fingerprints is not None and graph is None:
        raise ReleaseError("'fingerprints' must come with the 'graph' that they were made from")
    given = {MODEL: model, GRAPH: graph, FINGERPRINTS: fingerprints}
    sources = {name: Path(path) for name, path in given.items() if path is not None}
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    until = None if feedback_until is None else feedback_until.astimezone(UTC).isoformat()
    if feedback_until is not None and feedback_until > moment:
        raise ParameterError(f"'feedback_until' must not be in the future (got {until})")
    with store_errors():
        digest = content_digest({name: _manifest_sha256(path) for name, path in sources.items()}, until)
        if activate and not new_encoder:
            _check_encoder(folder, sources[MODEL])
        version = _version_of(folder, digest) or f"{moment:%Y%m%dT%H%M%SZ}-{digest}"
        made = False
        if not (folder / version).exists():
            # Of two that publish the same at once, one finds the other's.
            with suppress(ppr_errors.OutputExistsError):
                _write(folder, version, sources, moment, until)
                made = True
        release = open_release(folder, version, verify=not made)
    if activate and current_version(folder) != version:
        switch(folder, version, "activate")
    return release


def _check_encoder(root: Path, model: Path) -> None:
    """Refuse a model that no service of the current release could use; a damaged release says nothing."""
    try:
        version = current_version(root)
    except ReleaseError:
        return
    old = None if version is None else encoder_of(root, version)
    new = Bundle.open(model, verify=False).encoder
    if old is not None and new != old:
        raise ReleaseError(
            f"{model}: made with encoder {new}, but services of the current release {version} use {old} "
            "and would refuse it; train with that one, or publish with --new-encoder and restart the services"
        )


def _manifest_sha256(path: Path) -> str:
    try:
        return file_sha256(path / MANIFEST)
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such store") from None


def _version_of(root: Path, digest: str) -> str | None:
    return next((version for version in versions(root) if version.endswith(f"-{digest}")), None)


def _write(
    root: Path, version: str, sources: dict[str, Path], moment: datetime, feedback_until: str | None
) -> None:
    with new_store(root / version) as working:
        for name, source in sources.items():
            shutil.copytree(source, working / name, copy_function=_link)
        stores = _open_all(working, sources.keys())
        digests = {name: at["manifest_sha256"] for name, at in stores.items()}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "digest": content_digest(digests, feedback_until),
            "created": moment.isoformat(timespec="seconds"),
            "encoder": Bundle.open(working / MODEL, verify=False).encoder.to_json(),
            "feedback_until": feedback_until,
            "stores": stores,
            "verified": moment.isoformat(timespec="seconds"),
        }
        text = json.dumps(manifest, indent=2, sort_keys=True)
        (working / RECORD).write_text(text + "\n", encoding="utf-8")


def _link(source: str, target: str) -> None:
    """Hard link, or a copy where the file system cannot: stores are never written to once they are there."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _open_all(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Open the stores with full verification, check that they fit, ask each one thing, and describe them."""
    bundle = Bundle.open(folder / MODEL)
    parents, opened = bundle.parents, {MODEL: bundle.checksum}
    if GRAPH in names:
        graph = Graph.open(folder / GRAPH)
        opened[GRAPH] = graph.checksum
        if FINGERPRINTS in names:
            store = FingerprintStore.open(folder / FINGERPRINTS, graph=graph)
            opened[FINGERPRINTS] = store.checksum
            _ask_fingerprints(graph, store)
    for name in (GRAPH, FINGERPRINTS):
        if name in opened and parents.get(name, opened[name]) != opened[name]:
            raise ReleaseError(
                f"the model was trained with other {name} than those given (checksum {parents[name][:12]}, "
                f"these have {opened[name][:12]})"
            )
    _ask_model(bundle)
    return {
        name: {
            "checksum": checksum,
            "manifest_sha256": file_sha256(folder / name / MANIFEST),
            "bytes": sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()),
        }
        for name, checksum in opened.items()
    }


def _ask_model(bundle: Bundle) -> None:
    scorer = Scorer(bundle)
    known = bundle.weights["llm.known"]
    preference = scorer.scores(scorer.population, None).preference
    if not known.any() or not np.isfinite(preference[known]).all():
        raise ReleaseError(f"the model gives no finite scores for the {LLM}s {bundle.llms.names}")


def _ask_fingerprints(graph: Graph, store: FingerprintStore) -> None:
    if Surroundings(graph, store, 1).answers_queries:
        Verd(graph, store).answer(int(store.sources[0]))
