"""Users who asked to be forgotten, by digests: the record of an erasure must not name whom it is about.

A digest is enough to recognise a user who is named again, in a request or in a delivery of interactions, and
no more. It is no secret: whoever guesses a user's key can tell whether it is among the digests.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256


def user_digest(key: str) -> str:
    """Digest of a user's key as text, 64 hex digits."""
    return sha256(b"fairpath user\0" + key.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Erasure:
    """A user who was erased.

    Attributes
    ----------
    user_digest
        From :func:`user_digest`.
    requested_at
        When, in seconds since 1970; of later erasures it is later, unless clocks differ by more than a
        minute. Of one that was erased again after a readmission, the last time.
    lifted_at
        When the user was readmitted, or None; what is not younger stays erased.
    """

    user_digest: str
    requested_at: float
    lifted_at: float | None = None

    @property
    def active(self) -> bool:
        """Whether nothing of the user is taken at present."""
        return self.lifted_at is None

    def covers(self, at: float | None) -> bool:
        """Whether something of the user is erased that happened at a time; None for an unknown time."""
        return self.lifted_at is None or at is None or at <= self.lifted_at
