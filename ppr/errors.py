"""Errors of the personalised PageRank package.

::

    PprError
    ├── ParameterError(ValueError)         the caller's fault: a value outside its rule        exit 2
    │   ├── UnknownNodeError(KeyError)     a key or kind that the graph does not hold          exit 2
    │   └── OutputExistsError(FileExistsError)  the output is there, made with other parameters  exit 2
    ├── DataError(ValueError)              the data's fault: a malformed row, an empty file    exit 3
    │   ├── MissingDataError(FileNotFoundError)  a file, folder or column that is not there    exit 3
    │   └── StoreError                     a store that is damaged, truncated or mismatched    exit 3
    │       └── MessagesError              a file between two rounds of walks is damaged       exit 3
    └── ResourceError(OSError)             the machine's or a peer's fault: disk full, no Spark  exit 3

Messages name the field or the place, the rule, and the value: ``'n_walks' must be positive (got 0)``.
"""

from __future__ import annotations


class PprError(Exception):
    """Base of every error that this package raises on purpose."""


class ParameterError(PprError, ValueError):
    """A parameter breaks its rule."""


class UnknownNodeError(ParameterError, KeyError):
    """A node key, node id or node kind is not in the graph."""

    # KeyError prints the repr of its argument; the message is meant to be read.
    __str__ = Exception.__str__


class OutputExistsError(ParameterError, FileExistsError):
    """The output already exists and was made from other input or with other parameters."""

    __str__ = Exception.__str__


class DataError(PprError, ValueError):
    """The data breaks a rule of its format."""


class MissingDataError(DataError, FileNotFoundError):
    """A file, folder or column is missing."""

    __str__ = Exception.__str__


class StoreError(DataError):
    """A store is damaged, truncated, of another version, or belongs to another parent."""


class MessagesError(StoreError):
    """A file of messages between two rounds of partitioned walks is damaged or missing."""


class ResourceError(PprError, OSError):
    """The machine or a peer cannot do it: disk full, no Java, Spark failed."""

    __str__ = Exception.__str__
