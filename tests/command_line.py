"""The program ``fairpath`` called from a test."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Result(NamedTuple):
    """Exit code and output of a run."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)
