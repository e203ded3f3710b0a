"""Downloads images from the public internet for callers who are not trusted; on only with `allow_urls=True`.

A URL that a client sends must not reach what only this machine can reach. Its host is resolved once, every address of
the answer has to be public, and one of these very addresses is dialled, so that a second, different answer of the name
server changes nothing (DNS rebinding). Each redirect goes through the same gate.
"""

import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from vlm.errors import VLMError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL_CHARS = 4096
REDIRECTS = (301, 302, 303, 307, 308)
BLOCK_BYTES = 64 * 2**10

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# Printable ASCII alone, without a backslash: other characters mean different hosts to different parsers.
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?"
    r"(?P<target>(?:[/?](?:(?![\\#])[!-~])*)?)(?:#(?:(?!\\)[!-~])*)?",
    re.I,
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.I)

_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
# What `is_global` lets pass in one version of Python or another, and what stands for addresses of another kind.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # carriers' networks, and clouds' metadata services
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",  # Teredo and other tunnels
        "2002::/16",  # 6to4
        "2001:db8::/32",
        "3fff::/20",
    )
)


def is_public(address: Address) -> bool:
    """Tell whether `address` is one of the public internet that stands for no other address."""
    if address.version == 6 and address not in _GLOBAL_IPV6:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses that the name server gives for `host`."""
    return [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True, kw_only=True)
class Fetcher:
    """Call it with an http(s) URL to get the bytes behind it."""

    max_bytes: int = 64 * 2**20
    """Largest body."""
    timeout_s: float = 15.0
    """Most time for everything together: names, redirects and body."""
    max_redirects: int = 3
    resolve: Callable[[str, int], list[str]] = resolve
    """Addresses of a host and port. Asked once a host."""
    allow: Callable[[Address], bool] = is_public
    """Which addresses may be dialled."""

    def __call__(self, url: str) -> bytes:
        """Return the body behind `url`.

        Raises: VLMError with `invalid_request`; `image_too_large` past `max_bytes`.
        """
        deadline = time.monotonic() + self.timeout_s
        for _ in range(self.max_redirects + 1):
            target = _Target.parse(url)
            try:
                with self._connect(target, deadline) as connected:
                    response = _ask(connected, target, deadline)
                    if response.status not in REDIRECTS:
                        return self._body(response)
                    url = urllib.parse.urljoin(url, response.getheader("Location", ""))
            except TimeoutError:
                raise _refusal(f"the image URL did not answer in full within {self.timeout_s:g} s") from None
            except (OSError, http.client.HTTPException, ValueError):
                raise _refusal("the image URL's server could not be reached or gave no proper answer") from None
        raise _refusal(f"the image URL leads on more than {self.max_redirects} times")

    def _connect(self, target: "_Target", deadline: float) -> socket.socket:
        """Return a connection to one of the host's addresses, all of which must be allowed."""
        addresses = self._addresses(target, deadline)
        for place, address in enumerate(addresses):
            try:
                # The first addresses must not use up the time of the last.
                timeout_s = _left(deadline) / (len(addresses) - place)
                connected = socket.create_connection((str(address), target.port), timeout=timeout_s)
                break
            except OSError:
                if place + 1 == len(addresses):
                    raise
        if not target.is_secure:
            return connected
        try:
            connected.settimeout(_left(deadline))
            return ssl.create_default_context().wrap_socket(connected, server_hostname=target.host)
        except BaseException:
            connected.close()
            raise

    def _addresses(self, target: "_Target", deadline: float) -> list[Address]:
        try:
            answer = [target.host] if target.is_address else _in_time(self.resolve, target, deadline)
            addresses = [ipaddress.ip_address(text) for text in dict.fromkeys(answer)]
        except TimeoutError:
            raise
        except (OSError, ValueError):
            addresses = []
        # One answer for both, or the names of an inner network could be found out.
        if not addresses or not all(self.allow(address) for address in addresses):
            raise _refusal("the image URL's host was not found or is not on the public internet")
        return addresses

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        if response.status != 200:
            raise _refusal(f"the image URL answered with status {response.status}, not 200")
        if response.getheader("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
            raise _refusal("the image URL answered with a compressed body; expected the image's own bytes")
        expected = response.length
        body = bytearray()
        while (expected is None or expected <= self.max_bytes) and len(body) <= self.max_bytes:
            block = response.read(BLOCK_BYTES)
            if not block:
                break
            body += block
        if max(len(body), expected or 0) > self.max_bytes:
            raise VLMError(
                "image_too_large",
                f"the image URL holds more than {self.max_bytes} bytes, the limit; give a smaller image",
            )
        if expected is not None and len(body) < expected:
            raise _refusal("the image URL's body ended before its stated length")
        return bytes(body)


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Where a URL leads."""

    host: str
    """Without brackets and without a dot at the end."""
    port: int
    path: str
    is_secure: bool
    is_address: bool

    @classmethod
    def parse(cls, url: str) -> "_Target":
        parts = _URL.fullmatch(url) if isinstance(url, str) and len(url) <= MAX_URL_CHARS else None
        if parts is None:
            raise _refusal(
                "the image URL is not of the form http(s)://host/path in plain ASCII, without a user name, of at most "
                f"{MAX_URL_CHARS} characters"
            )
        host, is_secure = parts["host"].lower().rstrip("."), parts["scheme"].lower() == "https"
        is_address = host.startswith("[") or _NUMBER.fullmatch(host.rpartition(".")[2]) is not None
        host = host.strip("[]")
        port = int(parts["port"] or (443 if is_secure else 80))
        try:
            # Octal, hexadecimal and shortened addresses mean different hosts to different parsers.
            if is_address:
                ipaddress.ip_address(host)
        except ValueError:
            raise _refusal("the image URL's host is a number that is no usual IP address") from None
        if len(host) > 253 or not (port in (80, 443) or 1024 <= port <= 65535):
            raise _refusal("the image URL's host is too long, or its port is none of 80, 443 and 1024 to 65535")
        path = parts["target"] if parts["target"].startswith("/") else "/" + parts["target"]
        return cls(host=host, port=port, path=path, is_secure=is_secure, is_address=is_address)

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_secure else 80) else f"{host}:{self.port}"


class _TimedSocket:
    """The part of a socket that `http.client` needs. Whoever opened the real one closes it."""

    def __init__(self, connected: socket.socket, deadline: float):
        self._socket, self._deadline = connected, deadline

    def sendall(self, content: bytes) -> None:
        self._socket.settimeout(_left(self._deadline))
        self._socket.sendall(content)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._socket, self._deadline))

    def close(self) -> None:
        pass


class _TimedReader(io.RawIOBase):
    """Reads a socket. Each read gets the time that is left for all of them, not a time of its own."""

    def __init__(self, connected: socket.socket, deadline: float):
        self._socket, self._deadline = connected, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self._socket.settimeout(_left(self._deadline))
        return self._socket.recv_into(buffer)


def _ask(connected: socket.socket, target: _Target, deadline: float) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.sock = _TimedSocket(connected, deadline)
    headers = {
        "Host": target.host_header,
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "User-Agent": "sightline",
        "Connection": "close",
    }
    connection.request("GET", target.path, headers=headers)
    return connection.getresponse()


def _in_time(resolve: Callable[[str, int], list[str]], target: _Target, deadline: float) -> list[str]:
    """Return what `resolve` says; the system's resolver knows no limit of time, so it is waited for from outside."""
    outcome: list = []

    def ask() -> None:
        try:
            outcome.append(resolve(target.host, target.port))
        except (OSError, ValueError) as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if not outcome:
        raise TimeoutError
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _left(deadline: float) -> float:
    """Return the seconds left. Raises: TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _refusal(found: str) -> VLMError:
    return VLMError("invalid_request", f"{found}; give a public http(s) URL of an image, or send the image itself")
