"""One release, open: everything that a request needs of it. Immutable; threads share it.

Keys of users and items are strings here; a release whose keys are integers is asked with integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppr import errors as ppr_errors
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from router.bundle import ITEM, USER, Bundle
from router.errors import (
    DataError,
    NotInReleaseError,
    ParameterError,
    ReleaseError,
    RouterError,
    UnknownNameError,
)
from router.policy import Catalogue
from router.recommender import Recommender
from router.releases import Release
from router.scorer import Event, Scorer, User
from router.surroundings import Surroundings

if TYPE_CHECKING:
    from router.service.profile import Profile

Source = Literal[
    "trained",
    "trained+feedback",
    "feedback",
    "interactions",
    "interactions+feedback",
    "attributes",
    "population",
]
Ranked = list[tuple[str, float]]
Hides = Callable[[str, float | None], bool]
_TOP_K = 50  # near users and items, as training takes them unless told otherwise


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of a user, and what that rests on.

    Attributes
    ----------
    user
        The belief.
    source
        ``trained``: stored in the release; ``feedback``: choices since; ``interactions``: with items, by what
        is near to them; ``attributes``: of a profile; ``population``: nothing is known.
    n_events
        Choices that were taken in; of the release itself not counted.
    in_release
        Whether the release knows the user.
    unknown_items
        Items, of the request or of feedback, that the release does not know.
    """

    user: User
    source: Source
    n_events: int = 0
    in_release: bool = False
    unknown_items: int = 0


class Serving:
    """Answers from one release.

    Make one with :meth:`open`.

    Parameters
    ----------
    release
        The release.
    scorer
        Its model.
    surroundings
        Its graph and fingerprints, or None.
    hides
        Whether it must not tell that it knows a user; see :meth:`hides`.
    """

    def __init__(
        self, release: Release, scorer: Scorer, surroundings: Surroundings | None, hides: Hides
    ) -> None:
        self.release = release
        until = release.erased_until
        self._hides = hides
        self._erased_until = None if until is None else until.timestamp()
        self.version = release.version
        self.scorer = scorer
        self.surroundings = surroundings
        self.recommender = Recommender(scorer.bundle)
        self.catalogue: Catalogue = scorer.llms
        of_population = scorer.scores(scorer.population, None).preference
        self.best_single = self.catalogue.names[int(np.nanargmax(of_population))]
        """LLM that the population prefers on average."""

    @classmethod
    def open(cls, release: Release, *, verify: bool, hides: Hides = lambda *_: False) -> Serving:
        """Open a release.

        Parameters
        ----------
        release
            From :func:`router.releases.open_release`.
        verify
            Compare every byte with the record of the release, not only sizes.
        hides
            Whether it must not tell that it knows a user, from the key and :attr:`Release.erased_until`, Unix
            seconds.

        Raises
        ------
        ReleaseError
            It is damaged, or cannot be served.
        """
        if verify:
            release.check(verify=True)
        try:
            bundle = Bundle.open(release.model, verify=False)
            surroundings = None
            if release.graph is not None:
                graph, store = Graph.open(release.graph, verify=False), None
                if release.fingerprints is not None:
                    store = FingerprintStore.open(release.fingerprints, graph=graph, verify=False)
                top_k = int(bundle.parameters.get("training", {}).get("top_k", _TOP_K))
                surroundings = Surroundings(graph, store, top_k)
            return cls(release, Scorer(bundle), surroundings, hides)
        except (RouterError, ppr_errors.PprError, ValueError, OSError) as error:
            raise ReleaseError(f"{release.path}: cannot be served ({error})") from error

    def warm_up(self) -> None:
        """Ask one thing of each kind: what is read or compiled at its first use is there afterwards.

        Raises
        ------
        ReleaseError
            There is no answer, or a score is not finite.
        """
        try:
            belief = self.belief(self._first(USER), [Event(self.best_single)])
            newcomer = self.belief(None, (), None if (item := self._first(ITEM)) is None else {item: 1.0})
            preference = [self.scorer.scores(b.user, None).preference for b in (belief, newcomer)]
            if not np.isfinite(np.array(preference)[:, self._known_llms]).all():
                raise ReleaseError(f"{self.release.path}: scores are not finite")
            if self.has_items:
                self.recommend(self._first(USER), None, 1)
                self.recommend(None, {item: 1.0} if item is not None else None, 1)
            if self.surroundings is not None and self.surroundings.answers_queries:
                users = self.surroundings.graph.nodes_of_kind(USER)[:1]
                self.surroundings.near_all(users.tolist(), 1, leave_out=True)
        except (RouterError, ppr_errors.PprError) as error:
            if isinstance(error, ReleaseError):
                raise
            raise ReleaseError(f"{self.release.path}: cannot be served ({error})") from error

    @property
    def has_items(self) -> bool:
        """Whether the release ranks items."""
        return self.recommender.has_items

    @property
    def feedback_until(self) -> float | None:
        """Time up to which feedback is in the stored vectors, Unix seconds; None where none is.

        Only what came later goes on top of them. All feedback counts for users whom the release does not
        know.
        """
        return self.release.feedback_until

    def knows(self, user: str) -> bool:
        """Whether the release knows a user, who is not hidden."""
        return self._key(USER, user) is not None

    def hides(self, user: str) -> bool:
        """Whether to answer as if the release did not know a user, and to name it to nobody.

        Of those who were erased after it was made, readmitted or not.
        """
        return self._hides(user, self._erased_until)

    def holds(self, user: str) -> bool:
        """Whether the model or the graph has a user, hidden or not."""
        key, node = self.bundle_key(USER, user), self.graph_key(user)
        in_model = key is not None and self.scorer.bundle.row(USER, key) >= 0
        graph = self.surroundings
        return in_model or (graph is not None and node is not None and graph.node(USER, node) is not None)

    # Users

    def stored(self, user: str) -> Belief | None:
        """What the release itself says of a user, looked up once; None where it does not know one."""
        key = None if self.hides(user) else self.bundle_key(USER, user)
        row = -1 if key is None else self.scorer.bundle.row(USER, key)
        return None if row < 0 else Belief(self.scorer.user_at(row), "trained", in_release=True)

    def belief(
        self,
        user: str | None,
        events: Sequence[Event] = (),
        interactions: Mapping[str, float] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Belief:
        """What is believed of a user.

        Parameters
        ----------
        user
            Key, or None for someone unknown.
        events
            Choices that the release does not know. Those of LLMs that it does not know are left out.
        interactions
            Positive weights of items of a user whom the release does not know, who is then placed in the
            graph by them and by those that it has of the user; items that it does not know are left out and
            counted.
        attributes
            Profile of a user whom the release does not know.

        Raises
        ------
        UnknownNameError
            An attribute is unknown.
        DataError
            A weight or value breaks its rule.
        """
        if user is None and not (events or interactions or attributes):
            return Belief(self.scorer.population, "population")
        usable = self._usable(events) if events else []
        stored = None if user is None else self.stored(user)
        if stored is not None:
            if not usable:
                return stored
            updated = self.scorer.updated_user(stored.user, usable)
            return Belief(updated, "trained+feedback", len(usable), in_release=True)
        around, unknown = self._around(user, interactions)
        attributes = attributes if self.scorer.takes_attributes else None
        heard = self.scorer.heard(attributes, **around)
        believed = self.scorer.user_from_heard(usable, heard)
        source: Source = "population"
        if around and self.scorer.takes_surroundings:
            source = "interactions+feedback" if usable else "interactions"
        elif usable:
            source = "feedback"
        elif attributes:
            source = "attributes"
        return Belief(believed, source, len(usable), unknown_items=unknown)

    def _around(
        self, user: str | None, interactions: Mapping[str, float] | None
    ) -> tuple[dict[str, dict[Any, float]], int]:
        """What is around a user whom the model does not know, by the bundle's keys; and unknown items."""
        graph = self.surroundings
        found: dict[str, dict[Any, float]] = {}
        unknown = 0
        if interactions:
            items, unknown = self._known_items(interactions)
            if graph is not None:
                given = {self.graph_key(str(key)): w for key, w in items.items()}
                own = {} if user is None else self.in_graph(user).get("items", {})
                found = graph.of_new({**own, **{key: w for key, w in given.items() if key is not None}})
            if not found and items:
                return {"items": items}, unknown
        elif user is not None:
            found = self.in_graph(user)
        kinds = {"items": ITEM, "near": USER, "near_items": ITEM}
        return {name: self._by_key(kinds[name], weights) for name, weights in found.items()}, unknown

    def in_graph(self, user: str) -> dict[str, dict[Any, float]]:
        """What is around a user, by the graph's keys; empty for one who is not in the graph, or hidden."""
        key = None if self.hides(user) else self.graph_key(user)
        return {} if key is None or self.surroundings is None else self.surroundings.of(key)

    def _known_items(self, interactions: Mapping[str, float]) -> tuple[dict[Any, float], int]:
        """Weights by the bundle's keys, and how many items it does not know."""
        for text, weight in interactions.items():
            if not 0.0 < weight < math.inf:
                raise DataError(f"the weight of item {text!r} must be positive and finite (got {weight})")
        known = {}
        for text, weight in interactions.items():
            key = self._key(ITEM, text)
            if key is not None:
                known[key] = weight
        return known, len(interactions) - len(known)

    def _by_key(self, kind: str, weights: Mapping[Any, float]) -> dict[Any, float]:
        """Weights by keys of the graph as weights by keys of the bundle, which may lack some."""
        keys = ((self._key(kind, str(key)), weight) for key, weight in weights.items())
        return {key: weight for key, weight in keys if key is not None and weight > 0}

    def _usable(self, events: Sequence[Event]) -> list[Event]:
        """Events that the model can take: LLMs that it knows, vectors of its length."""
        names, shape = self._known_names, (self.scorer.encoder.dimension,)
        usable = []
        for event in events:
            if event.llm not in names:
                continue
            vector, offered = event.query_embedding, event.offered
            if vector is not None and vector.shape != shape:
                vector = None
            if offered is not None:
                offered = [name for name in dict.fromkeys((*offered, event.llm)) if name in names]
            usable.append(replace(event, query_embedding=vector, offered=offered))
        return usable

    # Items

    def recommend(
        self,
        user: str | None,
        interactions: Mapping[str, float] | None,
        k: int,
        *,
        exclude: Collection[str] = (),
        allowed: Collection[str] | None = None,
        exclude_seen: bool = True,
    ) -> Ranked:
        """Items for a user, best first; the most frequent ones for someone of whom nothing is known.

        Parameters
        ----------
        user
            Key, or None.
        interactions
            Positive weights of items, beside those that the release knows of the user.
        k
            Length of the answer; it is shorter where there are no more.
        exclude, allowed
            Items not to recommend; the only ones to recommend. Unknown ones are not there to recommend.
        exclude_seen
            Leave out what the user has, interactions included.

        Raises
        ------
        NotInReleaseError
            The release ranks no items.
        DataError
            A weight is not positive and finite.
        ParameterError
            ``k`` is not positive.
        """
        if not self.has_items:
            raise NotInReleaseError(f"release {self.version} ranks no items")
        items, _ = self._known_items(interactions or {})
        key = None if user is None else self._key(USER, user)
        found, scores = self.recommender.rank(
            key, items, k, among=self._among(exclude, allowed), exclude_seen=exclude_seen
        )
        return list(zip(map(str, found), scores.tolist(), strict=True))

    def listed(self, user: str | None, k: int) -> Ranked | None:
        """:meth:`recommend` for a user whose first items the release lists: a look-up; else None."""
        key = None if user is None or self.hides(user) else self.bundle_key(USER, user)
        found = None if key is None else self.recommender.listed(key, k)
        return None if found is None else list(zip(map(str, found[0]), found[1].tolist(), strict=True))

    def _among(self, exclude: Collection[str], allowed: Collection[str] | None) -> NDArray[np.bool_] | None:
        """Items that may be recommended, bool [i]; None for all."""
        if not exclude and allowed is None:
            return None
        among = np.full(len(self.scorer.bundle.embeddings["item.source"]), allowed is None)
        for names, value in ((allowed or (), True), (exclude, False)):
            keys = (self._key(ITEM, name) for name in names)
            among[self.scorer.bundle.rows(ITEM, [key for key in keys if key is not None])] = value
        return among

    def lookalike(self, users: Sequence[str], k: int, *, exclude_given: bool = True) -> Ranked:
        """Users nearest to a set of users: the mean of their personalised PageRank, best first.

        Hidden users are not among them.

        Raises
        ------
        NotInReleaseError
            The release has no complete fingerprints.
        UnknownNameError
            A user is not in its graph; names all of them.
        ParameterError
            No user is given, or ``k`` is not positive.
        """
        graph = self.surroundings
        if graph is None or not graph.answers_queries:
            raise NotInReleaseError(f"release {self.version} has no complete fingerprints to find users by")
        if not users:
            raise ParameterError("'users' must name at least one user (got none)")
        if k < 1:
            raise ParameterError(f"'k' must be positive (got {k})")
        keys = {user: None if self.hides(user) else self.graph_key(user) for user in users}
        nodes = {user: None if key is None else graph.node(USER, key) for user, key in keys.items()}
        unknown = [user for user, node in nodes.items() if node is None]
        if unknown:
            raise UnknownNameError(f"unknown users: {', '.join(map(repr, unknown))}")
        given = [node for node in nodes.values() if node is not None]
        n_asked = k
        while True:  # once, unless there are hidden ones
            near = graph.near_all(given, n_asked, leave_out=exclude_given)
            found = [(str(key), score) for key, score in near.items() if not self.hides(str(key))]
            if len(found) >= k or len(near) < n_asked:
                return found[:k]
            n_asked *= 4

    # Explanation

    def profile(self, user: str, belief: Belief) -> Profile:
        """What is believed of a user and why, readable; see :mod:`router.service.profile`."""
        from router.service.profile import describe

        return describe(self, user, belief)

    # Keys

    @property
    def _known_llms(self) -> NDArray[np.bool_]:
        known: NDArray[np.bool_] = self.scorer.bundle.weights["llm.known"]
        return known

    @property
    def _known_names(self) -> set[str]:
        return {name for name, known in zip(self.catalogue.names, self._known_llms, strict=True) if known}

    def graph_key(self, text: str) -> str | int | None:
        """A key as the graph has it; None where it cannot have such a one, or there is no graph."""
        graph = self.surroundings
        return None if graph is None else _of_type(text, graph.graph.nodes.is_integer)

    def bundle_key(self, kind: str, text: str) -> str | int | None:
        """A key as the bundle has it; None where it cannot have such a one."""
        return _of_type(text, self.scorer.bundle.has_integers(kind))

    def _key(self, kind: str, text: str) -> str | int | None:
        """A key that the bundle knows, as it has it; else None, as for a hidden user."""
        key = None if kind == USER and self.hides(text) else self.bundle_key(kind, text)
        return None if key is None or self.scorer.bundle.row(kind, key) < 0 else key

    def _first(self, kind: str) -> str | None:
        bundle = self.scorer.bundle
        return str(bundle.keys(kind, [0])[0]) if bundle.manifest["counts"].get(kind) else None


def _of_type(text: str, integers: bool) -> str | int | None:
    """A key as text, or as the integer that it writes in decimal; None where it writes none."""
    if not integers:
        return text
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 19 or str(int(text)) != text:
        return None
    return int(text)
