"""Errors of the batch commands, and the exit code of every error.

::

    JobError
    └── ConfigurationError(ValueError)  a setting, an option or an argument breaks its rule

====  =====================================================================================
exit  meaning
====  =====================================================================================
0     done, or nothing to do
1     a defect of this program, with its traceback
2     usage or configuration: what was asked for breaks a rule
3     data or resources: a file, a store, the disk or a peer
130   interrupted; a resumable job goes on from there when started again
====  =====================================================================================
"""

from __future__ import annotations

from ppr.errors import DataError, ParameterError
from router import errors as router_errors


class JobError(Exception):
    """Base of every error that the commands raise on purpose."""


class ConfigurationError(JobError, ValueError):
    """A setting, an option or an argument breaks its rule."""


_EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (ConfigurationError, 2),
    (ParameterError, 2),
    (router_errors.ParameterError, 2),
    (router_errors.NoCandidateError, 2),
    (DataError, 3),
    (router_errors.DataError, 3),
    (OSError, 3),  # ResourceError is one
    (MemoryError, 3),
)


def exit_code(error: Exception) -> int:
    """Exit code of an error: 2 usage or configuration, 3 data or resources, else 1."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)
