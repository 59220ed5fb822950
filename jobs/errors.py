"""Errors of the batch commands, and the exit code of every error.

::

    JobError
    ├── ConfigurationError(ValueError)  a setting, an option or an argument breaks its rule
    └── NotYetError                     what the job needs is not there yet: try again later

====  =====================================================================================
exit  meaning
====  =====================================================================================
0     done, or nothing to do
1     a defect of this program, with its traceback
2     usage or configuration: what was asked for breaks a rule
3     data or resources: a file, a store, the disk or a peer
75    not yet: a delivery is missing, or another run is at work; try again later
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


class NotYetError(JobError):
    """What the job needs is not there yet; the same command may succeed later."""


_EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (ConfigurationError, 2),
    (ParameterError, 2),
    (router_errors.ParameterError, 2),
    (router_errors.NoCandidateError, 2),
    (DataError, 3),
    (router_errors.DataError, 3),
    (OSError, 3),  # ResourceError is one
    (MemoryError, 3),
    (NotYetError, 75),
)


def exit_code(error: Exception) -> int:
    """Exit code of an error: 2 usage or configuration, 3 data or resources, 75 not yet, else 1."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)
