"""The model bundle: everything a trained router needs to answer, in a folder that is memory-mapped.

On disk, a folder with

==========================  =====================================================================
``weights.safetensors``     named arrays of the light part that runs per query
``embeddings/<name>.npy``   float32 or float16 [n, d], one row per user, item or LLM
``arrays/<name>.npy``       further arrays, of any length, such as compressed rows of a matrix
``nodes.parquet``           keys of users, items, queries and other kinds, in the order of their rows
``keys.npy`` ...            the same as arrays that are mapped; see :mod:`ppr.nodes`
``llms.json``               the LLMs: names, descriptions, prices, context limits, capabilities
``manifest.json``           format, version, parameters, parents, encoder, metrics, files, checksum
==========================  =====================================================================

Nothing in it is executed when it is read: no pickle, no code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ppr import errors as ppr_errors
from ppr.manifest import check_files, describe_files, new_store, read_manifest, write_manifest
from ppr.nodes import NODE_FILE, NodeTable
from router.encoders import EncoderIdentity, check_identity
from router.errors import BundleError, DataError, MissingDataError, ResourceError, UnknownNameError
from router.policy import Catalogue, Llm

FORMAT = "fairpath-router"
VERSION = 2
USER, ITEM, QUERY, LLM = "user", "item", "query", "llm"
"""Kinds that a trained router has."""
_WEIGHTS = "weights.safetensors"
_LLMS = "llms.json"
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)?")
_DESCRIBED = ("format", "version", "parameters", "parents", "encoder", "metrics")
_SHAPES = ("counts", "embeddings", "arrays", "keys")


@dataclass(frozen=True, eq=False, repr=False)
class Bundle:
    """A bundle, opened read-only; safe to share between threads.

    Make one with :func:`write_bundle`, open it with :meth:`open`.

    Attributes
    ----------
    path
        Its folder.
    manifest
        Its manifest.
    weights
        Arrays of the light part of the model, by name; read-only.
    embeddings
        Memory-mapped arrays [n, d] by name; read-only. ``user`` and ``user.items`` both have a row per user.
    arrays
        Further memory-mapped arrays by name; read-only.
    llms
        The LLMs, in the order of the rows of ``llm`` embeddings.
    encoder
        The encoder that query vectors have to come from.
    """

    path: Path
    manifest: dict[str, Any]
    weights: dict[str, NDArray[Any]]
    embeddings: dict[str, NDArray[np.floating]]
    arrays: dict[str, NDArray[Any]]
    llms: Catalogue
    encoder: EncoderIdentity

    @classmethod
    def open(cls, path: str | Path, *, encoder: EncoderIdentity | None = None, verify: bool = True) -> Bundle:
        """Open a bundle.

        Parameters
        ----------
        path
            Its folder.
        encoder
            Encoder that queries will be encoded with, or None to compare it later with
            :meth:`check_encoder`.
        verify
            Compare every file with its SHA-256, which reads all of them. Without, manifest, sizes, types
            and shapes are checked.

        Raises
        ------
        MissingDataError
            There is no bundle.
        BundleError
            It is damaged, truncated or of another version, or made with another encoder.
        """
        folder = Path(path)
        with store_errors():
            manifest = read_manifest(folder, format_name=FORMAT, version=VERSION)
            try:
                if _checksum(manifest) != manifest["checksum"]:
                    raise BundleError(f"{folder}: the manifest does not match its checksum")
                check_files(folder, manifest, verify=verify)
            except (AttributeError, KeyError, TypeError) as error:
                raise BundleError(f"{folder}: the manifest is damaged ({error!r})") from None
        bundle = cls(
            path=folder,
            manifest=manifest,
            weights=_load_weights(folder / _WEIGHTS),
            embeddings={
                name: _map(_embedding_file(folder, name), shape, ("float32", "float16"))
                for name, shape in manifest["embeddings"].items()
            },
            arrays={
                name: _map(_array_file(folder, name), about["shape"], (about["dtype"],))
                for name, about in manifest["arrays"].items()
            },
            llms=_read_llms(folder / _LLMS),
            encoder=EncoderIdentity.from_json(manifest["encoder"]),
        )
        if encoder is not None:
            bundle.check_encoder(encoder)
        return bundle

    def __repr__(self) -> str:
        counts = ", ".join(f"{kind}: {n}" for kind, n in self.manifest["counts"].items())
        return f"<Bundle {self.checksum[:12]} ({counts}) at {self.path}>"

    @property
    def checksum(self) -> str:
        """Digest of the content, hex: identity of the bundle."""
        return str(self.manifest["checksum"])

    @property
    def parameters(self) -> dict[str, Any]:
        """What the model was made with: its form, hyper-parameters, seed."""
        return dict(self.manifest["parameters"])

    @property
    def metrics(self) -> dict[str, Any]:
        """Figures of its evaluation."""
        return dict(self.manifest["metrics"])

    @property
    def parents(self) -> dict[str, str]:
        """Checksums of the stores it was made from, by their role."""
        return dict(self.manifest["parents"])

    @cached_property
    def _nodes(self) -> NodeTable:
        """Keys of all kinds, mapped at the first look-up."""
        with store_errors():
            kinds = tuple(self.manifest["keys"]["kinds"])
            kind_ids = np.repeat(np.arange(len(kinds), dtype=np.uint8), [self._count(k) for k in kinds])
            return NodeTable.read(self.path, kind_ids, kinds)

    def _count(self, kind: str) -> int:
        return int(self.manifest["counts"][kind])

    @cached_property
    def _first_rows(self) -> dict[str, int]:
        """Position of each kind's first key among the keys of all kinds."""
        kinds = self.manifest["keys"]["kinds"]
        ends = accumulate((self._count(kind) for kind in kinds), initial=0)
        return dict(zip(kinds, ends, strict=False))

    def _first_row(self, kind: str) -> int:
        try:
            return self._first_rows[kind]
        except KeyError:
            raise UnknownNameError(
                f"unknown kind {kind!r}; the bundle has keys of {', '.join(self._first_rows)}"
            ) from None

    def rows(self, kind: str, keys: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
        """Rows of users, items, queries or LLMs in the embeddings of their kind, int64 [b].

        Raises
        ------
        UnknownNameError
            A key or the kind is not in the bundle; names the first.
        """
        if kind == LLM:
            return np.array([self.llms.position(key) for key in keys], dtype=np.int64)
        first = self._first_row(kind)
        if self._as_text(kind):
            keys = [_text(key, kind) for key in keys]
        try:
            return self._nodes.ids_of(keys, kind).astype(np.int64) - first
        except ppr_errors.UnknownNodeError as error:
            raise UnknownNameError(str(error)) from None

    def row(self, kind: str, key: Any) -> int:
        """Row of one user, item or query in microseconds; -1 where the key is not in the bundle.

        Parameters
        ----------
        kind
            Kind other than ``llm``; one without keys has no rows.
        key
            An integer or a string, as :meth:`has_integers` says.
        """
        first = self._first_rows.get(kind)
        if first is None:
            return -1
        found = self._nodes.id_of(str(key) if self._as_text(kind) else key, kind)
        return found - first if found >= 0 else -1

    def has_integers(self, kind: str) -> bool:
        """Whether the keys of a kind are integers, else they are strings."""
        return self._nodes.is_integer or self._as_text(kind)

    def keys(self, kind: str, rows: ArrayLike) -> NDArray[Any]:
        """Keys of rows of a kind other than ``llm``: int64, or objects of str."""
        first = self._first_row(kind)
        wanted = np.asarray(rows, dtype=np.int64)
        outside = np.flatnonzero((wanted < 0) | (wanted >= self._count(kind)))
        if outside.size:
            raise UnknownNameError(
                f"unknown row {wanted[outside[0]]}; rows of {kind!r} go to {self._count(kind) - 1}"
            )
        found = self._nodes.keys_of(wanted + first)
        return found.astype(np.int64) if self._as_text(kind) else found

    def _as_text(self, kind: str) -> bool:
        """Whether integer keys of a kind are stored as text, because those of another kind are text."""
        return kind in self.manifest["keys"]["as_text"]

    def check_encoder(self, encoder: EncoderIdentity) -> None:
        """Check that queries come from the encoder that the model was trained with.

        Raises
        ------
        BundleError
            They do not.
        """
        check_identity(encoder, self.encoder, str(self.path))


def write_bundle(
    path: str | Path,
    *,
    weights: Mapping[str, NDArray[Any]],
    embeddings: Mapping[str, NDArray[np.floating]],
    keys: Mapping[str, Sequence[Any] | NDArray[Any] | pa.Array],
    llms: Catalogue,
    encoder: EncoderIdentity,
    parameters: Mapping[str, Any],
    parents: Mapping[str, str],
    metrics: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]] | None = None,
) -> Bundle:
    """Write a bundle beside its final name, rename it, and open it.

    Parameters
    ----------
    path
        Folder to make.
    weights
        Named arrays of the light part of the model.
    embeddings
        float32 or float16 [n, d]. A name is a kind (``user``), or a kind and a part (``user.items``); there
        is a row per key of the kind, or per LLM.
    keys
        Keys of each kind in the order of its rows: within a kind all integers or all strings, and unique.
    llms
        The LLMs.
    encoder
        Encoder of the query vectors that the model was trained with.
    parameters, parents, metrics
        JSON values for the manifest: what the model was made with, checksums of the stores it was made from
        by role, and figures of its evaluation.
    arrays
        Further arrays that are to be memory-mapped; numbers of any type and shape.

    Raises
    ------
    DataError
        A name, key, shape or type breaks its rule, or a number is not finite: a training that diverged.
    ppr.errors.OutputExistsError
        There is something at ``path``.
    ResourceError
        The disk is full or the folder cannot be written.
    """
    folder = Path(path)
    nodes, as_text = _node_table(keys)
    counts = {kind: len(keys[kind]) for kind in nodes.kinds} | {LLM: len(llms)}
    for name, array in weights.items():
        _check_finite(f"weights {name!r}", array)
    for name, array in embeddings.items():
        _check_embedding(name, array, counts)
    further = {} if arrays is None else dict(arrays)
    for name, array in further.items():
        if not _NAME.fullmatch(name):
            raise DataError(f"the name of an array must be in lower case (got {name!r})")
        _check_finite(f"array {name!r}", array)
    digest = hashlib.sha256()
    nodes.update_checksum(digest)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": dict(parameters),
        "parents": dict(parents),
        "encoder": encoder.to_json(),
        "metrics": dict(metrics),
        "counts": counts,
        "embeddings": {name: list(array.shape) for name, array in embeddings.items()},
        "arrays": {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in further.items()},
        "keys": {"kinds": list(nodes.kinds), "as_text": as_text, "sha256": digest.hexdigest()},
    }
    try:
        json.dumps(manifest, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"'parameters', 'parents' and 'metrics' must be JSON values ({error})") from None
    with store_errors(), new_store(folder) as working:
        light = {name: np.ascontiguousarray(array) for name, array in weights.items()}
        (working / _WEIGHTS).write_bytes(save(light))  # its own save_file lets the owner alone read
        (working / "embeddings").mkdir()
        for name, array in embeddings.items():
            np.save(_embedding_file(working, name), np.ascontiguousarray(array))
        if further:
            (working / "arrays").mkdir()
        for name, array in further.items():
            np.save(_array_file(working, name), np.ascontiguousarray(array))
        nodes.write(working)
        text = json.dumps([llm.to_json() for llm in llms.llms], indent=2, ensure_ascii=False)
        (working / _LLMS).write_text(text + "\n", encoding="utf-8")
        manifest["files"] = describe_files(working)
        manifest["checksum"] = _checksum(manifest)
        write_manifest(working, manifest)
    return Bundle.open(folder, verify=False)


def _checksum(manifest: dict[str, Any]) -> str:
    """Digest of the content; of the keys themselves, not of the Parquet file that frames them."""
    content = {name: manifest[name] for name in (*_DESCRIBED, *_SHAPES)}
    content["files"] = {
        name: entry["sha256"] for name, entry in manifest["files"].items() if name != NODE_FILE
    }
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _node_table(keys: Mapping[str, Sequence[Any] | NDArray[Any] | pa.Array]) -> tuple[NodeTable, list[str]]:
    """Keys of all kinds in one type, and the kinds whose integers became text for it."""
    for kind in keys:
        if not _NAME.fullmatch(kind) or "." in kind or kind == LLM:
            raise DataError(f"a kind must be a lower-case name other than {LLM!r} (got {kind!r})")
    try:
        arrays = [pa.array(keys[kind]) for kind in keys]
        types = {kind: array.type for kind, array in zip(keys, arrays, strict=True) if len(array)}
        integers = [kind for kind, key_type in types.items() if pa.types.is_integer(key_type)]
        for kind in types.keys() - integers:
            if not _is_string(types[kind]):
                raise DataError(f"keys of a kind must be all integers or all strings (got {types[kind]})")
        key_type = pa.int64() if len(integers) == len(types) else pa.large_string()
        nodes = NodeTable(
            keys=pa.concat_arrays([pa.array([], key_type), *(array.cast(key_type) for array in arrays)]),
            kind_ids=np.repeat(np.arange(len(arrays), dtype=np.uint8), [len(array) for array in arrays]),
            kinds=tuple(keys),
        )
        if nodes.keys.null_count:
            raise DataError("'keys' must not be null")
        nodes.check()
    except (pa.ArrowException, ppr_errors.DataError) as error:
        raise DataError(f"keys: {error}") from None
    return nodes, [] if nodes.is_integer else integers


def _text(key: Any, kind: str) -> str:
    if isinstance(key, bool) or not isinstance(key, (int, np.integer)):
        raise UnknownNameError(f"unknown {kind} {key!r}: keys of {kind}s are integers")
    return str(int(key))


def _is_string(key_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(key_type) or pa.types.is_large_string(key_type))


def _check_embedding(name: str, array: NDArray[np.floating], counts: Mapping[str, int]) -> None:
    kind = name.partition(".")[0]
    if not _NAME.fullmatch(name) or kind not in counts:
        raise DataError(
            f"embeddings {name!r}: the name must be a kind ({', '.join(counts)}), or a kind and a part"
        )
    if array.dtype not in (np.float32, np.float16) or array.ndim != 2 or len(array) != counts[kind]:
        raise DataError(
            f"embeddings {name!r} must be float32 or float16 [{counts[kind]}, d] "
            f"(got {array.dtype} {list(array.shape)})"
        )
    _check_finite(f"embeddings {name!r}", array)


def _check_finite(what: str, array: NDArray[Any]) -> None:
    if array.dtype.hasobject:
        raise DataError(f"{what} must be numbers (got {array.dtype})")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        raise DataError(f"{what} must be finite (got {array[tuple(wrong[0])]} at {wrong[0].tolist()})")


def _embedding_file(folder: Path, name: str) -> Path:
    return folder / "embeddings" / f"{name}.npy"


def _array_file(folder: Path, name: str) -> Path:
    return folder / "arrays" / f"{name}.npy"


def _map(path: Path, shape: Sequence[int], dtypes: Sequence[str]) -> NDArray[Any]:
    """Memory-map an array and check its type and shape."""
    try:
        # An array without entries cannot be mapped.
        array: NDArray[Any] = np.load(path, mmap_mode="r" if min(shape) else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BundleError(f"{path}: not a readable array ({error})") from None
    if str(array.dtype) not in dtypes or list(array.shape) != list(shape):
        raise BundleError(
            f"{path}: must be {' or '.join(dtypes)} {list(shape)} (got {array.dtype} {list(array.shape)})"
        )
    array.flags.writeable = False
    # A plain view of the map: indexing np.memmap builds a subclass each time.
    return array.view(np.ndarray)


def _load_weights(path: Path) -> dict[str, NDArray[Any]]:
    try:
        weights: dict[str, NDArray[Any]] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not a readable safetensors file ({error})") from None
    for array in weights.values():
        array.flags.writeable = False
    return weights


def _read_llms(path: Path) -> Catalogue:
    try:
        return Catalogue(Llm.from_json(fields) for fields in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:  # a DataError is a ValueError
        raise BundleError(f"{path}: not a catalogue of LLMs ({error})") from None


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of the stores and their machinery into those of this package."""
    try:
        yield
    except ppr_errors.MissingDataError as error:
        raise MissingDataError(str(error)) from None
    except ppr_errors.StoreError as error:
        raise BundleError(str(error)) from None
    except ppr_errors.ResourceError as error:
        raise ResourceError(str(error)) from error
