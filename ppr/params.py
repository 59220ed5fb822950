"""Parameters of a fingerprint run, with their rules."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

from ppr.errors import ParameterError

MIN_RESTART_PROB = 0.001  # kernels round it to 2**-20
MAX_WALKS = 1 << 24
MAX_SEED = (1 << 63) - 1
MAX_LIMIT = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FingerprintParams:
    """What a fingerprint row contains. Two runs with equal parameters and graph give equal bits.

    Parameters
    ----------
    restart_prob
        Probability c, from 0.001 to 0.999, that a walk stops at each step. Mean walk length is (1 - c) / c
        moves.
    n_walks
        Walks R per source: the unit of mass that is still moved at random is 1 / R.
    top_k
        Entries kept per row, best first, or None for all of them. The total mass is kept either way.
    seed
        Seed of all draws.
    max_steps
        Longest walk in moves, or None for no limit. Rows of a limited walk answer recommendations
        directly but cannot be composed (VERD refuses them).
    target_kinds
        Node kinds that a row may contain; empty for all.
    exclude_neighbors
        Leave the source's own out-neighbours (what a user has already seen) and the source out of the row.
    """

    restart_prob: float = 0.15
    n_walks: int = 3000
    top_k: int | None = 200
    seed: int = 0
    max_steps: int | None = None
    target_kinds: tuple[str, ...] = ()
    exclude_neighbors: bool = False

    def __post_init__(self) -> None:
        for name in ("n_walks", "seed", "top_k", "max_steps"):
            value = getattr(self, name)
            if value is None and name in ("top_k", "max_steps"):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ParameterError(f"'{name}' must be an integer (got {value!r})")
            object.__setattr__(self, name, int(value))  # NumPy's integers are not JSON
        object.__setattr__(self, "restart_prob", float(self.restart_prob))
        low, high = MIN_RESTART_PROB, 1.0 - MIN_RESTART_PROB
        if not low <= self.restart_prob <= high:  # also refuses NaN
            raise ParameterError(f"'restart_prob' must be between {low} and {high} (got {self.restart_prob})")
        if not 1 <= self.n_walks <= MAX_WALKS:
            raise ParameterError(f"'n_walks' must be between 1 and {MAX_WALKS} (got {self.n_walks})")
        for name, limit in (("top_k", self.top_k), ("max_steps", self.max_steps)):
            if limit is not None and limit < 1:
                raise ParameterError(f"'{name}' must be positive (got {limit})")
            if limit is not None and limit > MAX_LIMIT:
                raise ParameterError(f"'{name}' must be at most {MAX_LIMIT} (got {limit})")
        if not 0 <= self.seed <= MAX_SEED:
            raise ParameterError(f"'seed' must be between 0 and 2**63 - 1 (got {self.seed})")
        object.__setattr__(self, "target_kinds", tuple(sorted(set(self.target_kinds))))

    def to_json(self) -> dict[str, Any]:
        """Parameters as the manifest stores them."""
        return {**asdict(self), "target_kinds": list(self.target_kinds)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FingerprintParams:
        """Parameters from a manifest."""
        return cls(**{**values, "target_kinds": tuple(values["target_kinds"])})
