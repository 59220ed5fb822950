"""Training of factors and tastes from choices.

One full-batch Adam run with a falling learning rate. Choices held out, where there are any, say which state
is the best and end a run that gets no better. Random numbers are keyed by seed and step, so a training that
was killed and resumed from its checkpoint gives the same result as one that was not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from router.answers import fit_answers
from router.errors import DataError, ParameterError, ResourceError
from router.model import TasteModel
from router.optimism import with_optimism
from router.persona.data import ChoiceData, Choices
from router.threads import threads
from router.variational import PADDING, Asked, Descriptors, VariationalModel

_BETAS = (0.9, 0.99)
_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
_MEASUREMENTS = 20  # of a whole run, less those before the tastes are there
_MOST_MEASURED = 20_000  # choices


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train.

    Attributes
    ----------
    n_factors
        Size of users' vectors; None: 12, with telemetry 16.
    n_tastes
        Components of the users' prior; there are never more than users.
    n_steps
        Steps of Adam; the learning rate falls to 0 over the second half. None: 800, with telemetry 500.
    learning_rate
        In the first half.
    warmup
        Share of the steps over which the prior gains its full weight.
    gaussian
        Share of the steps before the users' prior becomes the mixture of tastes.
    patience
        Choices held out are measured at each twentieth of the steps once the tastes are there; after so many
        measurements without improvement the training ends.
    optimism
        Standard deviations of what is not known that the logit of an LLM gains whose answers were measured,
        but that nobody was offered (:mod:`router.optimism`). On persona-sim (real responses, simulated
        users), with known LLMs played as new ones, held-out choices are likeliest at 0.2: it foresees 13 % of
        those of such an LLM and 32.2 % of all; 0 foresees 7 % and 32.3 %, 0.5 31 % and 31.2 %.
    seed
        Of everything drawn.
    threads
        Of PyTorch on the CPU. Results are equal bit for bit where it is; more threads are worth it only
        with large data on a machine that does nothing else.
    """

    n_factors: int | None = None
    n_tastes: int = 16
    n_steps: int | None = None
    learning_rate: float = 0.03
    warmup: float = 0.3
    gaussian: float = 0.4
    patience: int = 8
    optimism: float = 0.2
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("n_factors", "n_tastes", "n_steps", "learning_rate", "patience", "threads"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ParameterError(f"'{name}' must be positive (got {value})")
        for name in ("warmup", "gaussian"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ParameterError(f"'{name}' must lie in 0..1 (got {getattr(self, name)})")
        if not 0.0 <= self.optimism < math.inf:
            raise ParameterError(f"'optimism' must be finite and at least 0 (got {self.optimism})")

    def factors(self, data: ChoiceData) -> int:
        """Size of users' vectors for data of a track."""
        return self.n_factors or (12 if data.features is None else 16)

    def steps(self, data: ChoiceData) -> int:
        """Steps of Adam for data of a track."""
        return self.n_steps or (800 if data.features is None else 500)

    def resolved(self, data: ChoiceData) -> Settings:
        """The same settings with the defaults of the data's track filled in."""
        return replace(self, n_factors=self.factors(data), n_steps=self.steps(data))


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a training after a step; numbers are per choice, in nats.

    Attributes
    ----------
    step
        From 1.
    log_likelihood, divergence
        Of the training choices, and of the posterior from the prior.
    held_out
        Log-likelihood of (up to 20,000 of) the choices held out, as of queries never asked before; NaN where
        not measured.
    """

    step: int
    log_likelihood: float
    divergence: float
    held_out: float = math.nan


def choose_device(name: str = "auto") -> torch.device:
    """Device to train on; ``auto`` is the GPU where there is one.

    Raises
    ------
    ParameterError
        It is neither the CPU nor a GPU of this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = None
    with suppress(RuntimeError, AssertionError):
        device = torch.empty(0, device=name).device
    if device is None or device.type not in ("cpu", "cuda"):
        raise ParameterError(f"'device' must be auto, cpu, or cuda where there is such a GPU (got {name!r})")
    return device


def train(
    data: ChoiceData,
    settings: Settings | None = None,
    *,
    device: str = "auto",
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    held_out: Choices | None = None,
    progress: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> TasteModel:
    """Learn factors and tastes from choices; the result is on the CPU.

    Where the memory of the GPU does not suffice for all choices at once, they are taken in parts, as few as
    do. That changes what is drawn, not what is learned.

    Parameters
    ----------
    data
        With features of answers, they are used (telemetry track).
    settings
        How.
    device
        ``auto``, ``cpu``, ``cuda``.
    checkpoint
        File to resume from where it exists, and to save the state to.
    checkpoint_every
        Steps between two checkpoints.
    held_out
        Choices to measure the training by: the state that foresees them best is returned. Without any, it
        is the last one.
    progress
        Called after every step, and at a resumption for the steps that were made before.
    tell
        Called with what the user should know: that the memory is short.

    Raises
    ------
    DataError
        There are no choices, or the checkpoint is damaged or of another training.
    ParameterError
        There is no such device.
    ResourceError
        Its memory does not suffice for the smallest part.
    """
    settings = (settings or Settings()).resolved(data)
    if not len(data.choices):
        raise DataError("'choices' must not be empty")
    where = choose_device(device)
    with _short_memory_is_an_error(where), threads(settings.threads):
        run = _Training(data, settings, where, held_out, tell)
        key = _identity(data, settings, held_out)
        if checkpoint is not None:
            run.restore(checkpoint, key)
        if progress is not None:
            for state in run.history:
                progress(state)
        while not run.finished:
            state = run.advance()
            if checkpoint is not None and (run.step % checkpoint_every == 0 or run.finished):
                run.save(checkpoint, key)
            if progress is not None:
                progress(state)
        return run.result()


@contextmanager
def _short_memory_is_an_error(device: torch.device) -> Iterator[None]:
    """Turn PyTorch's errors of memory into a :class:`ResourceError`; the CPU's has no class of its own."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise ResourceError(
                f"the memory of {device} does not suffice; train on 'cpu' ({error})"
            ) from None
        if "DefaultCPUAllocator" in str(error):
            raise ResourceError(f"the memory does not suffice; train with fewer factors ({error})") from None
        raise


class _Training:
    """Model, optimiser and the step that they are at."""

    def __init__(
        self,
        data: ChoiceData,
        settings: Settings,
        device: torch.device,
        held_out: Choices | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.settings, self.device, self.step = settings, device, 0
        self.n_steps = settings.steps(data)
        self.switch = round(settings.gaussian * self.n_steps)
        self.history: list[Progress] = []
        self.best: dict[str, Tensor] | None = None
        self.data, self.tell = data, tell
        self.held_out = _some(held_out, settings.seed)
        self.features = features = None if data.features is None else fit_answers(data).complete(data)
        self.model = VariationalModel(
            Descriptors.of(data, features, device),
            n_users=data.n_users,
            n_factors=settings.factors(data),
            n_tastes=min(settings.n_tastes, data.n_users),
            generator=torch.Generator().manual_seed(settings.seed),
        ).to(device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=settings.learning_rate, betas=_BETAS)
        self.asked = Asked.of(data.choices, device)
        self.n_parts = 1

    @property
    def finished(self) -> bool:
        """Whether the schedule has ended, or nothing has improved for long."""
        measured = [state.held_out for state in self.history if not math.isnan(state.held_out)]
        stale = len(measured) - 1 - int(np.argmax(measured)) if measured else 0
        return self.step >= self.n_steps or stale >= self.settings.patience

    def result(self) -> TasteModel:
        """The best state, or the last one where nothing was measured."""
        if self.best is not None:
            self.model.load_state_dict(self.best)
        model = self.model.taste_model()
        if self.features is not None:
            model = with_optimism(model, self.data, self.features, self.settings.optimism)
        return model.without_unknown(self.data.known_llms())

    def advance(self) -> Progress:
        """Make one step."""
        entropy = np.random.SeedSequence([self.settings.seed, self.step])
        if self.step == self.switch:
            self.model.start_tastes(np.random.default_rng(entropy))
        left = 1.0 - self.step / self.n_steps
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * min(1.0, 2.0 * left)
        seed = int(entropy.generate_state(1)[0])
        while (found := self._gradients(seed)) is None:
            self._take_smaller_parts()
        self.optimiser.step()
        self.step += 1
        surprise, divergence = (value / len(self.data.choices) for value in found)
        state = Progress(self.step, -surprise, divergence, self._held_out_likelihood())
        self._keep_best(state)
        self.history.append(state)
        return state

    def _gradients(self, seed: int) -> tuple[float, float] | None:
        """Surprise and divergence, after their gradients; None where a part does not fit into the memory."""
        generator = torch.Generator(self.device).manual_seed(seed)
        self.optimiser.zero_grad()
        try:
            z = self.model.sample_users(generator)
            parts = self.asked.parts(self.n_parts)
            surprise = sum(self._surprise(z, part, generator) for part in parts)
            divergence = self.model.divergence(z, mixed=self.step >= self.switch)
            weight = min(1.0, (self.step + 1) / max(1.0, self.settings.warmup * self.n_steps))
            (weight * divergence).backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            if self.n_parts >= len(self.asked):
                raise
            return None
        return surprise, float(divergence.detach())

    def _surprise(self, z: Tensor, part: Asked, generator: torch.Generator) -> float:
        """Surprise of some choices, after its gradients. Its tensors are freed before the next part."""
        logits = self.model.sample_logits(z, part, generator).flatten(0, 1)
        surprise = nn.functional.cross_entropy(
            logits, part.llms.flatten(), ignore_index=PADDING, reduction="sum"
        )
        surprise.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # for z: other parts follow
        return float(surprise.detach())

    def _take_smaller_parts(self) -> None:
        """Take fewer rows at a time, once the failed step has given its memory back."""
        self.n_parts = min(2 * self.n_parts, len(self.asked))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.tell is not None:
            self.tell(f"the memory of {self.device} is short: choices are taken in {self.n_parts} parts")

    def _keep_best(self, state: Progress) -> None:
        measured = [past.held_out for past in self.history if not math.isnan(past.held_out)]
        if state.held_out > max(measured, default=-math.inf):  # not where it is NaN
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}

    @torch.no_grad()
    def _held_out_likelihood(self) -> float:
        """Mean log-likelihood of the choices held out, now and then.

        Users are where the training has them: inferring their vectors anew would take longer than it does.
        """
        due = self.step % max(1, self.n_steps // _MEASUREMENTS) == 0 or self.step == self.n_steps
        held = self.held_out
        if held is None or not due or self.step <= self.switch:
            return math.nan
        model = self.model.taste_model()
        z = self.model.user_mean[torch.from_numpy(held.users).to(self.device)].cpu()
        features = None if self.features is None else self.features[held.queries]
        pairs = model.pairs_of(self.data.tasks[held.queries], features)
        logits = (pairs[..., :-1] @ z[:, :, None])[..., 0] + pairs[..., -1]
        if held.offered is not None:
            logits = logits.masked_fill(~torch.from_numpy(held.offered), -torch.inf)
        return -float(nn.functional.cross_entropy(logits, torch.from_numpy(held.llms)))

    def save(self, path: Path, key: str) -> None:
        """Write a checkpoint beside its final name, and rename it."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for part, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{part}"] = value
        rows = [(s.step, s.log_likelihood, s.divergence, s.held_out) for s in self.history]
        tensors["history"] = torch.tensor(rows, dtype=torch.float64)
        if self.best is not None:
            tensors |= {f"best.{name}": value for name, value in self.best.items()}
        beside = path.with_name(f"{path.name}.{os.getpid()}.part")  # equal trainings may run at once
        save_file(tensors, beside, metadata={"step": str(self.step), "key": key, "parts": str(self.n_parts)})
        with suppress(FileNotFoundError):  # the other one has ended and cleared away
            beside.replace(path)

    def restore(self, path: Path, key: str) -> None:
        """Continue from a checkpoint, where there is one."""
        if (found := _read_checkpoint(path, self.device)) is None:
            return
        metadata, tensors = found
        if metadata.get("key") != key:
            raise DataError(f"{path}: a checkpoint of other data or settings; delete it to train anew")
        self.model.load_state_dict(_below("model.", tensors))
        self.best = _below("best.", tensors) or None
        for name, parameter in self.model.named_parameters():
            if f"adam.{name}.step" in tensors:
                state = {part: tensors[f"adam.{name}.{part}"] for part in _ADAM_STATE}
                self.optimiser.state[parameter] = state | {"step": state["step"].cpu()}
        self.step, self.n_parts = int(metadata["step"]), int(metadata["parts"])
        rows = tensors["history"].tolist()
        self.history = [Progress(int(step), *numbers) for step, *numbers in rows]


def _read_checkpoint(path: Path, device: torch.device) -> tuple[dict[str, str], dict[str, Tensor]] | None:
    """Metadata and tensors, None where there is no file.

    The file is opened once: an equal training may replace it between two openings, or clear it away.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: not a readable checkpoint ({error})") from None
    try:
        tensors = {name: tensor.to(device) for name, tensor in load(content).items()}
    except SafetensorError as error:
        raise DataError(f"{path}: not a readable checkpoint ({error})") from None
    header_bytes = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + header_bytes]).get("__metadata__", {}), tensors


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _some(choices: Choices | None, seed: int) -> Choices | None:
    """As many choices as are worth measuring, None where there are none."""
    if choices is None or not len(choices):
        return None
    order = np.random.default_rng(seed).permutation(len(choices))
    return choices.take(np.sort(order[:_MOST_MEASURED]))


def _identity(data: ChoiceData, settings: Settings, held_out: Choices | None) -> str:
    """Digest of what a training depends on, hex."""
    digest = sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    arrays = [data.tasks, data.query_embeddings, data.features]
    for choices in (data.choices, held_out):
        if choices is not None:
            arrays += [choices.users, choices.queries, choices.llms, choices.offered]
    for array in arrays:
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
