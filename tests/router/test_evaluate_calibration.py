from __future__ import annotations

import numpy as np
import pytest

from router.errors import ParameterError
from router.evaluate import best_temperature, calibration


def _events(n: int = 20_000, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and choices drawn from their softmax at another temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 2.0, (n, 5))
    return logits, (logits / temperature + rng.gumbel(size=logits.shape)).argmax(axis=1)


def _slow_error(logits: np.ndarray, chosen: np.ndarray, n_bins: int) -> float:
    by_bin: dict[int, list[tuple[float, bool]]] = {}
    for row, pick in zip(logits, chosen, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        by_bin.setdefault(min(int(p.max() * n_bins), n_bins - 1), []).append((p.max(), p.argmax() == pick))
    gaps = [abs(sum(p for p, _ in events) - sum(hit for _, hit in events)) for events in by_bin.values()]
    return sum(gaps) / len(chosen)


def test_error_is_that_of_the_definition() -> None:
    logits, chosen = _events(500)
    assert calibration(logits, chosen, n_bins=7).expected_error == pytest.approx(
        _slow_error(logits, chosen, 7)
    )


def test_choices_by_the_router_s_own_law_are_calibrated() -> None:
    found = calibration(*_events())
    assert found.expected_error < 0.015  # each of 10 bins has a standard error of about .011
    assert found.temperature == pytest.approx(1.0, abs=0.03)
    assert found.counts.sum() == 20_000


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_is_recovered(temperature: float) -> None:
    logits, chosen = _events(temperature=temperature)
    found = calibration(logits, chosen)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.log_likelihood_at_temperature > found.log_likelihood
    assert found.expected_error > 0.05
    assert best_temperature(logits / temperature, chosen) == pytest.approx(1.0, abs=0.05)


def test_llms_not_on_offer_have_no_probability() -> None:
    logits = np.array([[0.0, 5.0, 1.0]])
    offered = np.array([[True, False, True]])
    found = calibration(logits, [2], offered=offered)
    assert found.log_likelihood == pytest.approx(-np.log1p(np.exp(-1.0)))
    assert np.nansum(found.accuracy) == 1.0


def test_bad_input() -> None:
    with pytest.raises(ParameterError, match="must fit"):
        calibration(np.zeros((2, 3)), [0])
    with pytest.raises(ParameterError, match="must fit"):
        calibration(np.zeros((0, 3)), np.empty(0, dtype=int))
    with pytest.raises(ParameterError, match="'n_bins' must be positive"):
        calibration(np.zeros((1, 3)), [0], n_bins=0)
    with pytest.raises(ParameterError, match="numbers or -inf"):
        calibration(np.array([[np.nan, 0.0]]), [1])
    with pytest.raises(ParameterError, match="excluded"):
        calibration(np.array([[-np.inf, 0.0]]), [0])
