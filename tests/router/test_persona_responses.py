from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router.errors import DataError
from router.loaders import ResponseTable, read_route_profile
from router.persona.responses import (
    FEATURES,
    ROUTE_PROFILE_BILLIONS,
    latency_proxy,
    response_features,
    standardise,
    text_features,
)

_TEXT = dict(enumerate(FEATURES[3:]))


def _features(answer: str) -> dict[str, float]:
    return {_TEXT[i]: value for i, value in enumerate(text_features(answer))}


def test_markdown_and_formulas_are_counted() -> None:
    answer = (
        "# Title\n\n- one **bold** word\n2. two\n\n| a | b |\n\n"
        "So \\(x\\) is $y$, `code`, and:\n\n```\ndef f(x):\n    return x\n```"
    )
    found = _features(answer)
    assert found["structure"] == pytest.approx(np.log1p(5))  # heading, two list items, bold, table row
    assert found["codemath"] == pytest.approx(np.log1p(7))  # \( $ ` ``` def return ```


def test_words_of_a_kind_are_densities() -> None:
    found = _features("However, it may rain. We hope you enjoy it because Paris has 2,000 cafes!")
    n = 15
    for name, count in {"hedge": 2, "warmth": 5, "explain": 1, "specific": 2}.items():
        assert found[name] == pytest.approx(np.log1p(100 * count / (n + 10))), name
    assert found["length"] == pytest.approx(np.log1p(n))
    assert found["direct"] == pytest.approx(-np.log1p(4))


def test_an_empty_answer() -> None:
    found = _features("")
    assert found["direct"] == pytest.approx(-np.log1p(1))
    assert found["formality"] == pytest.approx(4.5)
    assert {found[name] for name in FEATURES[3:] if name not in ("direct", "formality")} == {0.0}


def test_contractions_are_informal() -> None:
    assert _features("I do not know it")["formality"] > _features("I don't know it")["formality"]


def test_latency_grows_with_tokens_and_size() -> None:
    found = latency_proxy([[0.0, 10.0], [100.0, 10.0]], (8.0, 70.0))
    np.testing.assert_allclose(found, np.log([[20, 420], [920, 420]]))


def test_standardised_features_are_centred_clipped_and_scaled() -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, (500, 4, 3))
    x[..., 2] = 7.0  # answers never differ in it
    z = standardise(x)
    np.testing.assert_allclose(z.mean(axis=1), 0.0, atol=1e-6)
    np.testing.assert_allclose(z[..., :2].std(axis=(0, 1)), 1.0, rtol=0.01)
    assert not z[..., 2].any()
    outlier = np.zeros((400, 4, 1))
    outlier[0, 0] = 1.0
    assert np.abs(standardise(outlier)).max() <= 6.0


def test_real_responses_match_the_reference(shared_data: Path) -> None:
    table = _route_profile(shared_data)
    own = response_features(table, ROUTE_PROFILE_BILLIONS)
    with np.load(shared_data / "persona-sim" / "routeprofile_features.npz", allow_pickle=False) as reference:
        raw, expected = reference["raw"], reference["standardised"]
        assert tuple(reference["features"]) == FEATURES
    np.testing.assert_allclose(standardise(raw), expected, atol=2e-6)
    for i, name in enumerate(FEATURES):
        assert np.corrcoef(own[..., i].ravel(), raw[..., i].ravel())[0, 1] > 0.98, name
        z = standardise(own)[..., i]
        assert np.corrcoef(z.ravel(), expected[..., i].ravel())[0, 1] > 0.98, name


def test_bad_tables(shared_data: Path) -> None:
    table = _route_profile(shared_data)
    with pytest.raises(DataError, match="must have responses and tokens"):
        response_features(replace(table, responses=None), ROUTE_PROFILE_BILLIONS)
    with pytest.raises(DataError, match="'active_billions' must have 8 entries"):
        response_features(table, (7.0,))
    with pytest.raises(DataError, match="cost of every answer"):
        response_features(replace(table, cost_usd=table.cost_usd * np.nan), ROUTE_PROFILE_BILLIONS)


def _route_profile(shared_data: Path) -> ResponseTable:
    folder = shared_data / "routeprofile"
    return read_route_profile(folder / "routing_test_data.json.gz", folder / "candidate_models.json")[0]
