"""Sockets that listen."""

from __future__ import annotations

import os
import socket

from jobs.errors import ConfigurationError
from ppr.errors import ResourceError


def listen(host: str, port: int, setting: str, section: str = "server") -> socket.socket:
    """Socket that listens on an address, which is found taken or unknown before anything else starts.

    Parameters
    ----------
    host, port
        Address; port 0 takes any free one.
    setting
        What messages call the port: the name of its setting.
    section
        Section of the settings that it stands in.

    Raises
    ------
    ConfigurationError
        The host is unknown.
    ResourceError
        The port is in use, needs privileges, or the host is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family)
        # Accepted connections inherit it. Without, an answer in two parts waits 40 ms for the caller's TCP.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except socket.gaierror as error:
        raise ConfigurationError(
            f"[{section}] the host of '{setting}' must be known (got {host!r}: {error.strerror})"
        ) from None
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ResourceError(f"[{section}] '{setting}': cannot listen on {host}:{port} ({reason})") from None
