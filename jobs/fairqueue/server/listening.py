"""Sockets of the application's two addresses."""

from __future__ import annotations

import os
import socket

from jobs.errors import ConfigurationError
from ppr.errors import ResourceError


def listen(host: str, port: int, setting: str) -> socket.socket:
    """Socket that listens on an address, which is found taken or unknown before Spark starts.

    Parameters
    ----------
    host, port
        Address; port 0 takes any free one.
    setting
        What messages call the port: the name of its setting.

    Raises
    ------
    ConfigurationError
        The host is unknown.
    ResourceError
        The port is in use, needs privileges, or the host is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise ConfigurationError(
            f"[server] the host of '{setting}' must be known (got {host!r}: {error.strerror})"
        ) from None
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ResourceError(f"[server] '{setting}': cannot listen on {host}:{port} ({reason})") from None
