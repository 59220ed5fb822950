"""Texts to vectors for a service: off the event loop, kept in memory, of the encoder that a release names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from cachetools import LRUCache

from router.encoders import Encoder, EncoderIdentity, check_identity, open_encoder, unit_vectors
from router.errors import MissingDataError, ParameterError, ResourceError
from router.persona.data import Floats

if TYPE_CHECKING:
    from router.service.settings import EncoderSettings

_PROBE = "a"
_TIMEOUT_S = 10.0
_IDENTITY_VERSION = 1


class QueryEncoder:
    """Encodes one text at a time on worker threads; a text that is being encoded is not encoded twice.

    Parameters
    ----------
    encoder
        What encodes; called from several threads where ``threads`` is above 1.
    threads
        Threads that encode.
    cache_entries
        Vectors kept; the least recently used goes first.
    """

    def __init__(self, encoder: Encoder, *, threads: int = 1, cache_entries: int = 10_000) -> None:
        self.identity = encoder.identity
        self._encoder = encoder
        self._kept: LRUCache[bytes, Floats] = LRUCache(cache_entries)
        self._underway: dict[bytes, Future[Floats]] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fairpath-encoder")

    async def encode(self, text: str) -> Floats:
        """Vector of unit length, float32 [e], read-only.

        Raises
        ------
        ResourceError
            The encoder is elsewhere and does not answer as it should.
        """
        name = sha256(text.encode(errors="surrogatepass")).digest()  # texts may be long: none is kept
        with self._lock:
            if (vector := self._kept.get(name)) is not None:
                return vector
            future = self._underway.get(name)
            if future is None:
                future = self._underway[name] = self._pool.submit(self._encode, name, text)
        # Shielded: a request that is given up does not take the vector from others who wait for it.
        return await asyncio.shield(asyncio.wrap_future(future))

    def close(self) -> None:
        """End the threads; texts that wait are not encoded."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode(self, name: bytes, text: str) -> Floats:
        vector: Floats | None = None
        try:
            vector = self._encoder.encode([text])[0]
            vector.flags.writeable = False
            return vector
        finally:
            with self._lock:
                del self._underway[name]
                if vector is not None:
                    self._kept[name] = vector


class EndpointEncoder:
    """An OpenAI-compatible ``/v1/embeddings``.

    Parameters
    ----------
    url
        Its base, with the ``/v1``.
    name
        Model to ask for.
    api_key
        Key to show, or None.
    transport
        What carries the requests, instead of the network.

    Raises
    ------
    ResourceError
        It does not answer, or not with vectors.
    """

    def __init__(
        self, url: str, name: str, api_key: str | None = None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._client = httpx.Client(headers=headers, timeout=_TIMEOUT_S, transport=transport)
        self._url, self._name = f"{url.rstrip('/')}/embeddings", name
        self.identity = EncoderIdentity(name, _IDENTITY_VERSION, self._ask([_PROBE]).shape[1])

    def encode(self, texts: Sequence[str]) -> Floats:
        """Vectors of unit length, float32 [b, d]."""
        vectors = self._ask(texts)
        if vectors.shape[1] != self.identity.dimension:
            raise self._nonsense(f"{vectors.shape[1]} dimensions instead of {self.identity.dimension}")
        return vectors

    def _ask(self, texts: Sequence[str]) -> Floats:
        try:
            answer = self._client.post(self._url, json={"model": self._name, "input": list(texts)})
            answer.raise_for_status()
            entries = sorted(answer.json()["data"], key=lambda entry: entry["index"])
            vectors = np.array([entry["embedding"] for entry in entries], dtype=np.float64)
        except httpx.HTTPStatusError as error:
            raise ResourceError(f"{self._url}: answered {error.response.status_code}") from None
        except httpx.HTTPError as error:
            raise ResourceError(f"{self._url}: no answer ({type(error).__name__})") from None
        except (ValueError, TypeError, KeyError):
            raise self._nonsense("something else than embeddings") from None
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise self._nonsense(
                f"vectors of shape {list(vectors.shape)} to {len(texts)} texts, or not finite"
            )
        return unit_vectors(vectors)

    def _nonsense(self, what: str) -> ResourceError:
        return ResourceError(f"{self._url}: answered {what}")


class SentenceTransformersEncoder:
    """A model of the package sentence-transformers, which brings its own dependencies.

    Parameters
    ----------
    name
        Name or folder of the model.

    Raises
    ------
    MissingDataError
        The package is not installed, or there is no such model.
    """

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise MissingDataError(
                f"encoder {name!r} needs the package {error.name!r}: pip install sentence-transformers"
            ) from None
        try:
            self._model: Any = SentenceTransformer(name)
        except (OSError, ValueError) as error:
            raise MissingDataError(f"encoder {name!r} cannot be opened ({error})") from None
        self.identity = EncoderIdentity(name, _IDENTITY_VERSION, self.encode([_PROBE]).shape[1])

    def encode(self, texts: Sequence[str]) -> Floats:
        """Vectors of unit length, float32 [b, d]."""
        return unit_vectors(np.asarray(self._model.encode(list(texts)), dtype=np.float64))


def open_query_encoder(settings: EncoderSettings, wanted: EncoderIdentity) -> QueryEncoder:
    """Open the encoder of a service.

    Parameters
    ----------
    settings
        Which one, and how.
    wanted
        The one that the release was made with.

    Raises
    ------
    BundleError
        It is another one.
    ParameterError
        A setting that the kind needs is missing, or the kind is ``none``.
    MissingDataError
        Its packages are not installed.
    ResourceError
        It is elsewhere and does not answer.
    """
    makers: dict[str, Callable[[], Encoder]] = {
        "release": lambda: open_encoder(wanted),
        "endpoint": lambda: EndpointEncoder(
            _given(settings, "url"),
            _given(settings, "name"),
            None if settings.api_key is None else settings.api_key.get_secret_value(),
        ),
        "sentence-transformers": lambda: SentenceTransformersEncoder(_given(settings, "name")),
    }
    if settings.kind not in makers:
        raise ParameterError(f"'encoder.kind' must be one of {', '.join(makers)} (got {settings.kind!r})")
    encoder = makers[settings.kind]()
    check_identity(encoder.identity, wanted, "the release")
    return QueryEncoder(encoder, threads=settings.threads, cache_entries=settings.cache_entries)


def _given(settings: EncoderSettings, name: str) -> str:
    value: str | None = getattr(settings, name)
    if not value:
        raise ParameterError(f"'encoder.{name}' must be given for the kind {settings.kind!r} (got {value!r})")
    return value
