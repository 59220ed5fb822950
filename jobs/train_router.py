"""Job: a router of LLMs and items, trained on what users chose, as a bundle."""

from __future__ import annotations

import glob
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from jobs.errors import ConfigurationError
from jobs.progress import show_progress
from jobs.settings import RouterSettings
from ppr.errors import OutputExistsError
from ppr.manifest import difference, finished
from router.bundle import FORMAT, VERSION, Bundle
from router.dataset import Reading, RouterFiles, encoder_name, read_router_data
from router.errors import ResourceError

if TYPE_CHECKING:
    from router.dataset import RouterData
    from router.train import Progress

_HOW = ("n_factors", "n_tastes", "n_steps", "learning_rate", "seed", "threads")


def run(
    files: RouterFiles,
    out: Path,
    settings: RouterSettings,
    *,
    report: Path | None = None,
    lines: bool = True,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train a router and write its bundle; does nothing where the same one is there.

    A training that was killed goes on from its checkpoint, which lies beside ``out`` until the end.

    Parameters
    ----------
    files
        Tables and stores to train on.
    out
        Folder of the bundle.
    settings
        How to read and train.
    report
        HTML page with the course of the training; by default beside ``out``.
    lines
        Whether to log the course of the training; warnings are logged in any case.
    tell
        Is told what the tables lack, and what of them is left out; by default that is a warning.

    Raises
    ------
    OutputExistsError
        ``out`` is there, made from other input or with other settings, or the page is a file of another kind.
    ParameterError
        There is no such device.
    """
    from jobs.report import check_page

    started = time.monotonic()
    log = structlog.get_logger()
    training = _what_matters(settings)
    parents = files.checksums()
    page = report or out.with_name(f"{out.name}.html")
    if page == out:
        raise ConfigurationError(f"'--report' must be another place than '--out' (got {page})")
    kept = _finished(out, parents, training)
    check_page(page)
    if not kept:
        device = _device(settings)
        if lines:
            log.info("train-router", events=str(files.events), out=str(out), device=device)
        reading = Reading(
            settings.encoder, settings.top_k, settings.stream_bytes, settings.seed, tell=tell or log.warning
        )
        data = read_router_data(files, reading)
        _warn(data)
        try:
            _train(data, out, settings, device, training, parents, lines)
        except OutputExistsError:
            kept = _finished(out, parents, training)
            if not kept:
                raise
            log.info("an equal training was faster", out=str(out))
        _clear_away(out)
    bundle = Bundle.open(out)
    if not (kept and page.exists()):
        _write_report(page, bundle)
    parameters = bundle.parameters
    return {
        "bundle": str(out),
        "checksum": bundle.checksum,
        **bundle.manifest["counts"],
        "tasks": parameters["tasks"],
        "choices": parameters["choices"],
        "encoder": bundle.encoder.to_json(),
        "metrics": {name: value for name, value in bundle.metrics.items() if name != "history"},
        "parents": parents,
        "kept": kept,
        "report": str(page),
        "seconds": round(time.monotonic() - started, 3),
    }


def _what_matters(settings: RouterSettings) -> dict[str, Any]:
    """Settings that the result depends on."""
    unimportant = {"device", "checkpoint_every", "stream_bytes"}
    values = settings.model_dump(mode="json", exclude=unimportant)
    return values | {"encoder": encoder_name(settings.encoder)}


def _finished(out: Path, parents: dict[str, str], training: dict[str, Any]) -> bool:
    manifest = finished(out, {"format": FORMAT, "version": VERSION, "parents": parents})
    if manifest is None:
        return False
    there = manifest["parameters"].get("training")
    if there != training:
        made = difference("parameters", there, training)
        raise OutputExistsError(f"{out}: exists, made {made}; choose another output or remove it")
    return True


def _warn(data: RouterData) -> None:
    log = structlog.get_logger()
    choices = data.data.choices
    if (choices.llms == choices.llms[0]).all():
        log.warning("all choices are the same LLM: nothing can be learned of the others")
    unknown = [
        name for name, known in zip(data.catalogue.names, data.data.known_llms(), strict=True) if not known
    ]
    if unknown:
        log.warning("LLMs that were never on offer or measured get no scores", llms=unknown)


def _device(settings: RouterSettings) -> str:
    from router.train import choose_device

    return choose_device(settings.device).type


def _clear_away(out: Path) -> None:
    """Remove the checkpoints of a finished bundle, those of other settings too."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.checkpoint*"):
        left.unlink(missing_ok=True)


def _train(
    data: RouterData,
    out: Path,
    settings: RouterSettings,
    device: str,
    training: dict[str, Any],
    parents: dict[str, str],
    lines: bool,
) -> None:
    from router.bundle_training import train_bundle
    from router.items.network import NetworkSettings
    from router.joint import JointSettings
    from router.train import Settings

    digest = hashlib.sha256(json.dumps([training, parents], sort_keys=True).encode()).hexdigest()
    checkpoint = out.with_name(f".{out.name}.{digest[:12]}.checkpoint")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    how = Settings(**{field: getattr(settings, field) for field in _HOW})
    joint = JointSettings(NetworkSettings(seed=settings.seed)) if settings.items == "joint" else None
    n_steps = how.steps(data.data)
    with show_progress(lines=lines) as update:

        def progress(state: Progress) -> None:
            note = f"log-likelihood {state.log_likelihood:.3f}"
            update("train", state.step, n_steps, note)

        def train_on(name: str) -> None:
            train_bundle(
                data,
                out,
                how,
                joint=joint,
                held_out=settings.held_out,
                device=name,
                checkpoint=checkpoint,
                checkpoint_every=settings.checkpoint_every,
                parameters={"training": training, "choices": len(data.data.choices)},
                parents=parents,
                progress=progress,
                tell=structlog.get_logger().warning,
                tell_items=structlog.get_logger().info if lines else None,
            )

        try:
            train_on(device)
        except ResourceError as error:
            if device == "cpu":
                raise
            structlog.get_logger().warning("training goes on on the CPU", reason=str(error))
            train_on("cpu")


def _write_report(path: Path, bundle: Bundle) -> None:
    from jobs.report import Fact, ReportData, TrainingCurve, write_report

    validation = bundle.metrics.get("validation")
    facts = [Fact(kind, f"{n:,}") for kind, n in bundle.manifest["counts"].items()]
    if validation is not None:
        simple = validation["baselines"]["user_task"]
        facts += [
            Fact(
                "held-out choices foreseen",
                f"{100 * validation['accuracy']:.1f} %",
                f"{100 * simple['accuracy']:.1f} % by counts of user and task",
            ),
            Fact(
                "log-likelihood",
                f"{validation['log_likelihood']:.3f}",
                f"nats per held-out choice; {simple['log_likelihood']:.3f} by counts of user and task",
            ),
        ]
    items = bundle.metrics.get("items")
    if items is not None and items["chosen"]:
        facts.append(
            Fact(
                "held-out items found",
                f"{100 * items['recall']:.1f} %",
                f"among {items['k']} recommended; {100 * items['alone'][0]['recall']:.1f} % by RP3beta",
            )
        )
    training = {name: str(value) for name, value in bundle.parameters["training"].items()}
    data = ReportData(
        title="Training of the router",
        summary=f"Bundle {bundle.checksum[:12]}, {bundle.parameters['choices']:,} choices.",
        facts=tuple(facts),
        training=TrainingCurve.of(bundle.metrics),
        parameters={"Settings": training, "Made from": {k: v[:12] for k, v in bundle.parents.items()}},
    )
    write_report(path, data)
