"""Addresses of the network."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Returns True if only processes of this machine reach the host. `host`: an address without a port, or a name."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
