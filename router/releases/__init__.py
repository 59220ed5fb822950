"""Releases: what services serve; on this machine (:mod:`router.releases.local`), and elsewhere.

==============  ====================================================================================
local           a folder of releases: what is on disk, opening, switching
record          ``release.json``, and the files that it stands for
history         switches, what was rolled back from, and the rules of a switch; pure
places          a folder or an object store, asked alike: activating, going back
objects         an object store, by fsspec
pruning         which releases may be removed
push, pull      to an object store, and from it
transfer        what both have in common
backup          all releases at once, with what became of them
follow          pulling again and again
overview, diff  what operators look at
==============  ====================================================================================
"""

from router.releases.local import (
    CURRENT,
    HISTORY,
    Release,
    current_version,
    decisions,
    encoder_of,
    open_release,
    readable_current,
    record_decision,
    record_refusal,
    switch,
    versions,
)

__all__ = [
    "CURRENT",
    "HISTORY",
    "Release",
    "current_version",
    "decisions",
    "encoder_of",
    "open_release",
    "readable_current",
    "record_decision",
    "record_refusal",
    "switch",
    "versions",
]
