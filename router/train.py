"""Training of factors and tastes from choices.

One full-batch Adam run of fixed length with a falling learning rate. Random numbers are keyed by seed and
step, so a training that was killed and resumed from its checkpoint gives the same result as one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from router.baselines.telemetry import complete_features
from router.errors import DataError, ParameterError, ResourceError
from router.model import TasteModel
from router.persona.data import ChoiceData
from router.variational import PADDING, Asked, Descriptors, VariationalModel

_BETAS = (0.9, 0.99)
_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train.

    Attributes
    ----------
    n_factors, n_tastes
        Size of the model; there are never more tastes than users.
    n_steps
        Steps of Adam; the learning rate falls to 0 over the second half.
    learning_rate
        In the first half.
    warmup
        Share of the steps over which the prior gains its full weight.
    gaussian
        Share of the steps before the users' prior becomes the mixture of tastes.
    n_neighbors
        Users alike in their features that a user gets messages from.
    seed
        Of everything drawn.
    """

    n_factors: int = 12
    n_tastes: int = 16
    n_steps: int = 500
    learning_rate: float = 0.03
    warmup: float = 0.3
    gaussian: float = 0.4
    n_neighbors: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_factors", "n_tastes", "n_steps", "learning_rate", "n_neighbors"):
            if getattr(self, name) <= 0:
                raise ParameterError(f"'{name}' must be positive (got {getattr(self, name)})")
        for name in ("warmup", "gaussian"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ParameterError(f"'{name}' must lie in 0..1 (got {getattr(self, name)})")


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a training after a step: both numbers are per choice, in nats."""

    step: int
    log_likelihood: float
    divergence: float


def choose_device(name: str = "auto") -> torch.device:
    """Device to train on; ``auto`` is the GPU where there is one.

    Raises
    ------
    ResourceError
        There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(f"'device' must name a device of this machine (got {name!r}: {error})") from None


def train(
    data: ChoiceData,
    settings: Settings | None = None,
    *,
    device: str = "auto",
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    progress: Callable[[Progress], None] | None = None,
) -> TasteModel:
    """Learn factors and tastes from choices; the result is on the CPU.

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
    progress
        Called after every step.

    Raises
    ------
    DataError
        There are no choices, or the checkpoint is damaged or of another training.
    ResourceError
        There is no such device, or its memory does not suffice.
    """
    settings = settings or Settings()
    if not len(data.choices):
        raise DataError("'choices' must not be empty")
    where = choose_device(device)
    try:
        run = _Training(data, settings, where)
        key = _identity(data, settings)
        if checkpoint is not None and checkpoint.exists():
            run.restore(checkpoint, key)
        while run.step < settings.n_steps:
            state = run.advance()
            if checkpoint is not None and (run.step % checkpoint_every == 0 or run.step == settings.n_steps):
                run.save(checkpoint, key)
            if progress is not None:
                progress(state)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"the memory of {where} does not suffice; train on 'cpu' ({error})") from None
    return run.model.taste_model().without_unknown(data.known_llms())


class _Training:
    """Model, optimiser and the step that they are at."""

    def __init__(self, data: ChoiceData, settings: Settings, device: torch.device) -> None:
        self.settings, self.device, self.step = settings, device, 0
        features = None if data.features is None else complete_features(data).astype(np.float32)
        self.model = VariationalModel(
            Descriptors.of(data, features, device),
            n_users=data.n_users,
            n_factors=settings.n_factors,
            n_tastes=min(settings.n_tastes, data.n_users),
            generator=torch.Generator().manual_seed(settings.seed),
        ).to(device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=settings.learning_rate, betas=_BETAS)
        self.asked = Asked.of(data.choices, device)
        self.n_choices = len(data.choices)

    def advance(self) -> Progress:
        """Make one step."""
        settings, n = self.settings, self.n_choices
        entropy = np.random.SeedSequence([settings.seed, self.step])
        generator = torch.Generator(self.device).manual_seed(int(entropy.generate_state(1)[0]))
        switch = round(settings.gaussian * settings.n_steps)
        if self.step == switch:
            self.model.start_tastes(np.random.default_rng(entropy))
        left = 1.0 - self.step / settings.n_steps
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, 2.0 * left)
        z = self.model.sample_users(generator)
        logits = self.model.sample_logits(z, self.asked, generator).flatten(0, 1)
        surprise = nn.functional.cross_entropy(
            logits, self.asked.llms.flatten(), ignore_index=PADDING, reduction="sum"
        )
        divergence = self.model.divergence(z, mixed=self.step >= switch)
        weight = min(1.0, (self.step + 1) / max(1.0, settings.warmup * settings.n_steps))
        self.optimiser.zero_grad()
        (surprise + weight * divergence).backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.step += 1
        return Progress(self.step, -float(surprise.detach()) / n, float(divergence.detach()) / n)

    def save(self, path: Path, key: str) -> None:
        """Write a checkpoint beside its final name, and rename it."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for part, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{part}"] = value
        beside = path.with_name(path.name + ".part")
        save_file(tensors, beside, metadata={"step": str(self.step), "key": key})
        beside.replace(path)

    def restore(self, path: Path, key: str) -> None:
        """Continue from a checkpoint."""
        try:
            with safe_open(path, framework="pt", device=str(self.device)) as file:
                metadata = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: not a readable checkpoint ({error})") from None
        if metadata.get("key") != key:
            raise DataError(f"{path}: a checkpoint of other data or settings; delete it to train anew")
        self.model.load_state_dict(
            {name.removeprefix("model."): value for name, value in tensors.items() if name[:6] == "model."}
        )
        for name, parameter in self.model.named_parameters():
            if f"adam.{name}.step" in tensors:
                state = {part: tensors[f"adam.{name}.{part}"] for part in _ADAM_STATE}
                self.optimiser.state[parameter] = state | {"step": state["step"].cpu()}
        self.step = int(metadata["step"])


def _identity(data: ChoiceData, settings: Settings) -> str:
    """Digest of what a training depends on, hex."""
    digest = sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    choices = data.choices
    for array in (choices.users, choices.queries, choices.llms, choices.offered, data.tasks, data.features):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
