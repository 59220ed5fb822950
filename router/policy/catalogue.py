"""The LLMs that can be chosen, with what the constraints ask about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.errors import DataError, ParameterError, UnknownNameError

_TOKENS_PER_PRICE = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Llm:
    """One LLM as its provider describes it.

    Parameters
    ----------
    name
        Unique name.
    description
        Free text.
    input_usd_per_mtok, output_usd_per_mtok
        Prices in USD per million tokens of prompt and answer; None where unknown.
    context_tokens
        Tokens that prompt and answer may have together; None where unknown, which excludes nothing.
    capabilities
        What it can do beyond text, such as ``"tools"`` or ``"vision"``. What is not named, it cannot do.

    Raises
    ------
    DataError
        A value breaks its rule.
    """

    name: str
    description: str = ""
    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None
    context_tokens: int | None = None
    capabilities: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"'name' of an LLM must be a non-empty string (got {self.name!r})")
        for field in ("input_usd_per_mtok", "output_usd_per_mtok"):
            price = getattr(self, field)
            if price is not None and not (math.isfinite(price) and price >= 0):
                raise DataError(f"LLM {self.name!r}: {field!r} must be finite and not negative (got {price})")
        if self.context_tokens is not None and self.context_tokens < 1:
            raise DataError(
                f"LLM {self.name!r}: 'context_tokens' must be positive (got {self.context_tokens})"
            )
        object.__setattr__(self, "capabilities", frozenset(self.capabilities))

    def to_json(self) -> dict[str, Any]:
        """Fields as JSON holds them."""
        return {
            "name": self.name,
            "description": self.description,
            "input_usd_per_mtok": self.input_usd_per_mtok,
            "output_usd_per_mtok": self.output_usd_per_mtok,
            "context_tokens": self.context_tokens,
            "capabilities": sorted(self.capabilities),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Llm:
        """LLM from its JSON fields.

        Raises
        ------
        DataError
            A field is unknown, the name is missing, or a value breaks its rule.
        """
        capabilities = fields.get("capabilities", ())
        if isinstance(capabilities, str):  # which would do as a collection of letters
            raise DataError(
                f"LLM {fields.get('name')!r}: 'capabilities' must be a list (got {capabilities!r})"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise DataError(f"LLM {fields.get('name')!r}: {error}") from None


class Catalogue:
    """LLMs in a fixed order, and their properties as arrays in that order.

    Parameters
    ----------
    llms
        At least one; names are unique.

    Raises
    ------
    DataError
        There is none, or a name appears twice.
    """

    def __init__(self, llms: Iterable[Llm]) -> None:
        self.llms = tuple(llms)
        self.names = tuple(llm.name for llm in self.llms)
        self._positions = {name: position for position, name in enumerate(self.names)}
        if not self.llms:
            raise DataError("a catalogue must have at least one LLM (got 0)")
        if len(self._positions) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise DataError(f"names of LLMs must be unique ({twice!r} appears twice)")

    def __len__(self) -> int:
        return len(self.llms)

    def __repr__(self) -> str:
        return f"<Catalogue of {len(self)} LLMs>"

    def position(self, name: str) -> int:
        """Position of an LLM; UnknownNameError lists those there are."""
        try:
            return self._positions[name]
        except KeyError:
            raise self._unknown(name) from None

    def mask(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Which LLMs are among ``names``, bool [m]; UnknownNameError for a name that is not here."""
        among = np.zeros(len(self), dtype=np.bool_)
        try:
            among[[self._positions[name] for name in names]] = True
        except KeyError as error:
            raise self._unknown(error.args[0]) from None
        return among

    @cached_property
    def context_tokens(self) -> NDArray[np.float64]:
        """Context limit of each LLM in tokens, infinite where unknown, float64 [m]."""
        return _column((llm.context_tokens for llm in self.llms), np.inf)

    @cached_property
    def prices(self) -> NDArray[np.float64]:
        """USD per token of prompt and of answer, NaN where unknown, float64 [m, 2]."""
        columns = (
            _column((llm.input_usd_per_mtok for llm in self.llms), np.nan),
            _column((llm.output_usd_per_mtok for llm in self.llms), np.nan),
        )
        return np.stack(columns, axis=1) / _TOKENS_PER_PRICE

    def cost_usd(self, prompt_tokens: float, answer_tokens: ArrayLike) -> NDArray[np.float64]:
        """Cost of one call to each LLM in USD, NaN where a price is unknown, float64 [m].

        Parameters
        ----------
        prompt_tokens
            Length of the prompt.
        answer_tokens
            Length of the answer: one number, or one per LLM [m].
        """
        cost: NDArray[np.float64] = self.prices[:, 0] * prompt_tokens
        return cost + self.prices[:, 1] * np.asarray(answer_tokens, dtype=np.float64)

    def lacks(self, capability: str) -> NDArray[np.bool_]:
        """Which LLMs do not have a capability, bool [m]."""
        if capability not in self._lacking:
            return np.ones(len(self), dtype=np.bool_)
        return self._lacking[capability]

    @cached_property
    def _lacking(self) -> dict[str, NDArray[np.bool_]]:
        every = frozenset[str]().union(*(llm.capabilities for llm in self.llms))
        return {name: np.array([name not in llm.capabilities for llm in self.llms]) for name in every}

    def _unknown(self, name: str) -> UnknownNameError:
        return UnknownNameError(f"unknown LLM {name!r}; the catalogue has {', '.join(self.names)}")


def per_llm(name: str, values: ArrayLike, n_llms: int) -> NDArray[np.float64]:
    """Array of one number per LLM, float64 [m]; ParameterError for another shape."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (n_llms,):
        raise ParameterError(f"{name!r} must have one entry per LLM, [{n_llms}] (got {list(array.shape)})")
    return array


def _column(values: Iterable[float | None], unknown: float) -> NDArray[np.float64]:
    return np.array([unknown if value is None else value for value in values], dtype=np.float64)
