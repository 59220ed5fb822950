"""What tests of the router share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch and BLAS on one thread: quickest for small sizes, and the same everywhere."""
    from router.threads import threads

    with threads(1):
        yield
