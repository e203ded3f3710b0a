"""Which hosts are this machine itself, for servers that answer no other."""

import contextlib
import ipaddress
import re
from collections.abc import Iterable


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches `host`."""
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def names_this_machine(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Tell whether the Host header is a name of this machine alone.

    With any other, a page in a browser here may have made its own name lead here (DNS rebinding).
    """
    hosts = [value for name, value in headers if name == b"host"]
    return len(hosts) == 1 and is_loopback(re.sub(r":\d*$", "", hosts[0].decode("latin-1")))
