"""Profile attributes of users as numbers: standardised where they are numbers, one place per word else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from router.errors import DataError, UnknownNameError
from router.persona.data import Floats

_NOTHING = 1e-5  # of a standard deviation


@dataclass(frozen=True, slots=True)
class Number:
    """An attribute that is a number.

    Attributes
    ----------
    name
        Its name.
    center, scale
        Mean and standard deviation over the users who have it.
    """

    name: str
    center: float
    scale: float

    @property
    def width(self) -> int:
        """Places in a user's features."""
        return 1

    def encode(self, value: Any, into: Floats) -> None:
        """Write a value's features; nothing is known of a user whose value is None or empty."""
        if value in (None, ""):
            return
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = np.nan
        if not np.isfinite(number):
            raise DataError(f"attribute {self.name!r} must be a finite number (got {value!r})")
        into[0] = (number - self.center) / self.scale

    def decode(self, features: Floats) -> float | None:
        """Value that features were made of; the mean says nothing."""
        return (
            None if abs(features[0]) < _NOTHING else round(float(features[0] * self.scale + self.center), 4)
        )


@dataclass(frozen=True, slots=True)
class Category:
    """An attribute that is one of some words.

    Attributes
    ----------
    name
        Its name.
    values
        The words, ascending.
    """

    name: str
    values: tuple[str, ...]

    @property
    def width(self) -> int:
        """Places in a user's features."""
        return len(self.values)

    def encode(self, value: Any, into: Floats) -> None:
        """Write a value's features; a word that was not there in training says nothing."""
        if str(value) in self.values:
            into[self.values.index(str(value))] = 1.0

    def decode(self, features: Floats) -> str | None:
        """Value that features were made of, or None where they say nothing."""
        return self.values[int(features.argmax())] if features.max(initial=0.0) > 0.5 else None


Attribute = Number | Category


@dataclass(frozen=True, slots=True)
class AttributeCoding:
    """Attributes in the order of their places.

    Attributes
    ----------
    attributes
        At least one.
    """

    attributes: tuple[Attribute, ...]

    @property
    def width(self) -> int:
        """Length of a user's features."""
        return sum(attribute.width for attribute in self.attributes)

    def encode(self, profile: Mapping[str, Any]) -> Floats:
        """Features of one user, float32 [p].

        Raises
        ------
        UnknownNameError
            An attribute is unknown.
        DataError
            A value is no number where one is asked for.
        """
        unknown = profile.keys() - {attribute.name for attribute in self.attributes}
        if unknown:
            names = ", ".join(attribute.name for attribute in self.attributes)
            raise UnknownNameError(f"unknown attribute {min(unknown)!r}; there are {names}")
        features, start = np.zeros(self.width, dtype=np.float32), 0
        for attribute in self.attributes:
            attribute.encode(profile.get(attribute.name), features[start : start + attribute.width])
            start += attribute.width
        return features

    def decode(self, features: Floats) -> dict[str, float | str]:
        """Values that a user's features were made of, without those of which nothing is known."""
        values, start = {}, 0
        for attribute in self.attributes:
            value = attribute.decode(features[start : start + attribute.width])
            start += attribute.width
            if value is not None:
                values[attribute.name] = value
        return values

    def encode_columns(self, columns: Mapping[str, Sequence[Any]]) -> Floats:
        """Features of several users, float32 [u, p], from a column of values for each attribute."""
        names = [attribute.name for attribute in self.attributes]
        rows = zip(*(columns[name] for name in names), strict=True)
        return np.stack([self.encode(dict(zip(names, row, strict=True))) for row in rows])

    def to_json(self) -> list[dict[str, Any]]:
        """Attributes as JSON holds them."""
        return [
            {"name": a.name, "center": a.center, "scale": a.scale}
            if isinstance(a, Number)
            else {"name": a.name, "values": list(a.values)}
            for a in self.attributes
        ]

    @classmethod
    def from_json(cls, entries: Sequence[Mapping[str, Any]]) -> AttributeCoding:
        """Coding of :meth:`to_json`."""
        return cls(
            tuple(
                Category(entry["name"], tuple(entry["values"]))
                if "values" in entry
                else Number(entry["name"], float(entry["center"]), float(entry["scale"]))
                for entry in entries
            )
        )
