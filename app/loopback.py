"""Whether a name means this machine itself."""

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether this host, a name or an address without brackets, is reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
