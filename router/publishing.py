"""Publishing: from stores that belong together to a release that services may switch to.

The release is filled beside its final name, every byte of it is verified, each store is asked one thing, and
it is renamed. See :mod:`router.releases` for what is on disk then.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from ppr import errors as ppr_errors
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.manifest import MANIFEST, file_sha256, new_store
from ppr.verd import Verd
from router.bundle import LLM, Bundle, store_errors
from router.errors import MissingDataError, ParameterError, ReleaseError
from router.releases import (
    Release,
    current_version,
    encoder_of,
    open_release,
    readable_current,
    record_decision,
    switch,
    versions,
)
from router.releases.local import locked
from router.releases.record import (
    FINGERPRINTS,
    FORMAT,
    GRAPH,
    MODEL,
    RECORD,
    VERSION,
    content_digest,
    json_object,
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
    erased_until: datetime | None = None,
    decision: Mapping[str, Any] | None = None,
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
    erased_until
        Time up to which users' erasures were carried out in what the stores were made from; None where
        nobody asked. That of a clock that is ahead counts as now.
    decision
        Why it is published, a JSON object; kept in its record, and among the decisions.
    now
        Time of the release; by default that of the clock.

    Raises
    ------
    ReleaseError
        The stores do not belong together, the model gives no finite scores, or its encoder is another one
        than the current release's.
    ParameterError
        ``feedback_until`` is in the future, or the decision is not a JSON object.
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
    told: dict[str, Any] = {
        "feedback_until": _past("feedback_until", feedback_until, moment),
        "erased_until": _heard(erased_until, moment),
        "decision": None if decision is None else json_object("decision", decision),
    }
    with store_errors():
        if activate and not new_encoder:
            _check_encoder(folder, sources[MODEL])
        digest = content_digest(
            {name: _manifest_sha256(path) for name, path in sources.items()},
            told["feedback_until"],
            told["erased_until"],
        )
        while True:
            version = _version_of(folder, digest) or f"{moment:%Y%m%dT%H%M%SZ}-{digest}"
            made = _made(folder, version, digest, sources, moment, told)
            if not made:  # of two that publish the same at once, one finds the other's
                version = _version_of(folder, digest) or version
            try:
                release = open_release(folder, version, verify=not made)
                if activate and readable_current(folder) != version:
                    switch(folder, version, "activate")
                break
            except ReleaseError:
                if (folder / version).exists():
                    raise
                # There was one of the same content, which was pruned meanwhile: it is made anew.
    if decision is not None:
        record_decision(folder, version, decision)
    return release


def _heard(erased_until: datetime | None, now: datetime) -> str | None:
    """Time of the last erasure as text: one host's wrong clock must not keep a release back."""
    if erased_until is not None and erased_until > now:
        structlog.get_logger().warning(
            "'erased_until' is in the future and taken as now: check the clocks of who erases and publishes",
            erased_until=erased_until.isoformat(),
        )
        erased_until = now
    return _past("erased_until", erased_until, now)


def _past(name: str, given: datetime | None, now: datetime) -> str | None:
    """A time as text, in UTC."""
    if given is None:
        return None
    text = given.astimezone(UTC).isoformat()
    if given > now:
        raise ParameterError(f"'{name}' must not be in the future (got {text})")
    return text


def _made(
    root: Path,
    version: str,
    digest: str,
    sources: dict[str, Path],
    moment: datetime,
    told: dict[str, Any],
) -> bool:
    """Make a release, unless there is one of this content, or there is by the time that it is made."""
    if (root / version).exists():
        return False
    try:
        # The lock is given back after the renaming, which ends the inner one.
        with ExitStack() as held, new_store(root / version) as working:
            _fill(working, sources, moment, told)
            held.enter_context(locked(root))
            if _version_of(root, digest) is not None:
                raise ppr_errors.OutputExistsError(f"{root}: there is a release of digest {digest}")
    except ppr_errors.OutputExistsError:
        return False
    return True


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


def _fill(working: Path, sources: dict[str, Path], moment: datetime, told: dict[str, Any]) -> None:
    """Put the stores and their record into a folder."""
    for name, source in sources.items():
        _copy(source, working / name)
    stores = _open_all(working, sources.keys())
    digests = {name: at["manifest_sha256"] for name, at in stores.items()}
    bundle = Bundle.open(working / MODEL, verify=False)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "digest": content_digest(digests, told["feedback_until"], told["erased_until"]),
        "created": moment.isoformat(timespec="seconds"),
        "encoder": bundle.encoder.to_json(),
        "metrics": {name: value for name, value in bundle.metrics.items() if name != "history"},
        "stores": stores,
        **told,
        "verified": moment.isoformat(timespec="seconds"),
    }
    text = json.dumps(manifest, indent=2, sort_keys=True)
    (working / RECORD).write_text(text + "\n", encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    """Copy a folder by links; ``shutil.copytree`` would gather the errors and lose what kind they are."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            _link(path, target / path.name)


def _link(source: Path, target: Path) -> None:
    """Hard link, or a copy where the file system cannot: stores are never written to once they are there."""
    try:
        os.link(os.path.realpath(source), target)  # not the symbolic link that it may be
    except OSError:
        shutil.copyfile(source, target)


def _open_all(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Open the stores with full verification, check that they fit, ask each one thing, and describe them."""
    bundle = Bundle.open(folder / MODEL)
    parents, opened, counts = bundle.parents, {MODEL: bundle.checksum}, {MODEL: bundle.manifest["counts"]}
    if GRAPH in names:
        graph = Graph.open(folder / GRAPH)
        opened[GRAPH], counts[GRAPH] = graph.checksum, graph.manifest["counts"]
        if FINGERPRINTS in names:
            store = FingerprintStore.open(folder / FINGERPRINTS, graph=graph)
            opened[FINGERPRINTS], counts[FINGERPRINTS] = store.checksum, store.manifest["counts"]
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
            "counts": counts[name],
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
