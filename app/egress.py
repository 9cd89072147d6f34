"""One HTTP request to an address that a stranger chose, which must not reach anything of our own.

What is checked is what is connected to: the name is resolved once, every address found is checked, and the socket
goes to one of these addresses, so that a name server that answers differently the next time changes nothing. TLS
still verifies the name. There is no proxy, no redirect, no kept connection, no credential of ours; the time is for
everything together, and of the answer only the head is read.

No library fits as it is: Advocate is given up, requests-hardened looks at the first address only and bounds
neither the whole time nor the answer, the others are bound to httpx. Requests itself brings the very things
(proxies from the environment, .netrc, redirects) that have no place here.
"""

import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from app.errors import AddressRefused, EgressError

MAX_URL = 2000
MAX_HEAD_BYTES = 16 * 1024
MOST_ADDRESSES = 4
# Answers before the answer, but for 100, which http.client skips, and 101, which nobody has asked for.
INTERIM = range(102, 200)

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], list[tuple[Any, ...]]]

# What no setting opens. ipaddress calls several of these global: the ones that answer machines of a cloud (the
# last ones), that stand for IPv4 addresses, or that lead nowhere.
_NEVER = [
    ip_network(text)
    for text in (
        "0.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
        "::/128", "::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
        "5f00::/16", "fe80::/10", "fec0::/10", "ff00::/8",
        "168.63.129.16/32", "fd00:ec2::254/128", "fd20:ce::254/128",
    )
]  # fmt: skip
_LOOPBACK = IPv6Address("::1")
_PUBLIC_IPV6 = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")

_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
# Its last label is no number in any spelling: `127.1`, `2130706433` and `0x7f000001` are addresses, not names.
_NAME = re.compile(rf"(?:{_LABEL}\.)*(?!(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?$){_LABEL}\.?")


@dataclass(frozen=True)
class Target:
    """A URL, taken apart once for all. Its path may hold a secret."""

    tls: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What the `Host` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def parse(url: str, *, allow_private: bool = False) -> Target:
    """Take a URL apart; raises ValueError that says what is wrong with it, without repeating it."""
    if len(url) > MAX_URL or not re.fullmatch(r"[!-~]+", url) or re.search(r'[\\<>"{}|^`]', url):
        raise ValueError(f"is no URL of at most {MAX_URL} plain characters; percent-encode all others")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is no URL") from None
    if parts.scheme not in ({"https", "http"} if allow_private else {"https"}):
        raise ValueError("must start with https://")
    if "@" in parts.netloc or parts.fragment or port == 0:
        raise ValueError("must hold no user, password or fragment, and no port 0")
    if parts.netloc.startswith("[") and ":" not in (parts.hostname or ""):
        # The form for addresses of a time to come, `[v1.x]`, which without its brackets would be a name.
        raise ValueError("names no host")
    tls = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(tls, _host(parts.hostname or "", allow_private), port or (443 if tls else 80), path)


def without_query(url: str) -> str:
    """The URL as it may be shown: its query can hold a secret."""
    return url.partition("#")[0].partition("?")[0]


def is_allowed(address: Address, *, allow_private: bool = False) -> bool:
    """Whether a stranger may send us to this address; with `allow_private` this machine and its networks too."""
    address = _meant(address)
    if any(address in network for network in _NEVER if network.version == address.version and address != _LOOPBACK):
        return False
    if address.is_private:
        return allow_private
    return address.is_global and not address.is_multicast and not address.is_reserved and _is_unicast(address)


def _is_unicast(address: Address) -> bool:
    return address.version == 4 or address in _PUBLIC_IPV6


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, mapped or by the translation prefix of IPv6-only networks."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _host(host: str, allow_private: bool) -> str:
    """A host name or a literal address, as the socket library takes it."""
    try:
        address = ip_address(host)
    except ValueError:
        if len(host) > 253 or not _NAME.fullmatch(host):
            raise ValueError("names no host") from None
        return host
    if "%" in host or not is_allowed(address, allow_private=allow_private):
        raise ValueError("leads to an address that is not public")
    return host


@dataclass(frozen=True)
class Answer:
    """The receiver's status, and its `Retry-After` as it wrote it."""

    status: int
    retry_after: str = ""


class Egress:
    """Sends such requests. `resolve` is getaddrinfo; `tls` says whom to trust, the system's authorities by default."""

    def __init__(
        self, *, allow_private: bool = False, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._allow_private = allow_private
        self._resolve = resolve or _resolve
        self._tls = tls or ssl.create_default_context()
        self._tls.set_alpn_protocols(["http/1.1"])

    def post(self, url: str, body: bytes, headers: dict[str, str], seconds: float) -> Answer:
        """POST and give the answer; raises EgressError, AddressRefused, with a reason that names no URL."""
        deadline = time.monotonic() + seconds
        target = self._target(url)
        try:
            with closing(self._connect(target, deadline)) as sock:
                return _exchange(sock, target, body, headers, deadline)
        except TimeoutError:
            raise EgressError(f"no answer within {seconds:.3g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise EgressError(f"its certificate was refused: {error.verify_message}") from None
        except (OSError, http.client.HTTPException) as error:
            raise EgressError(_reason(error)) from None

    def _target(self, url: str) -> Target:
        try:
            return parse(url, allow_private=self._allow_private)
        except ValueError as error:
            raise AddressRefused(f"the URL {error}") from None

    def _connect(self, target: Target, deadline: float) -> socket.socket:
        """A socket to the first of the checked addresses that answers, with TLS where the URL says so."""
        sock = _first_of(self._checked(target, deadline), deadline)
        if not target.tls:
            return sock
        try:
            name = target.host.rstrip(".")
            wrapped = self._tls.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
        except BaseException:
            sock.close()
            raise
        try:
            wrapped.settimeout(_left(deadline))
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped

    def _checked(self, target: Target, deadline: float) -> list[tuple[Any, ...]]:
        """What the name resolves to; raises AddressRefused when any of it is not for strangers."""
        found = _within(lambda: self._resolve(target.host, target.port), _left(deadline))
        for *_, place in found:
            if not is_allowed(ip_address(place[0]), allow_private=self._allow_private):
                raise AddressRefused("the host resolves to an address that is not public")
        return found[:MOST_ADDRESSES]


def _resolve(host: str, port: int) -> list[tuple[Any, ...]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _within(ask: Callable[[], list[tuple[Any, ...]]], seconds: float) -> list[tuple[Any, ...]]:
    """The answer; raises TimeoutError after `seconds`. The system's resolver itself knows no time limit."""
    answer: Future[list[tuple[Any, ...]]] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:  # noqa: BLE001, whoever waits gets it
            answer.set_exception(error)

    Thread(target=run, daemon=True, name="resolve").start()
    return answer.result(seconds)


def _first_of(found: list[tuple[Any, ...]], deadline: float) -> socket.socket:
    """Try the addresses in turn. None may use up the time of those behind it."""
    failure: OSError = OSError("the host has no address")
    for tried, (family, kind, protocol, _, place) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(deadline) / (len(found) - tried))
            sock.connect(place)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _exchange(sock: socket.socket, target: Target, body: bytes, headers: dict[str, str], deadline: float) -> Answer:
    connection = http.client.HTTPConnection(target.host, target.port)
    # With a socket of its own it opens none.
    connection.sock = _Bounded(sock, deadline)
    connection.request("POST", target.path, body, {"Host": target.authority, "Connection": "close", **headers})
    with closing(connection.getresponse()) as response:
        while response.status in INTERIM:
            # It reads no second head by itself, but after 100.
            response.headers = None  # type: ignore[assignment]
            response.begin()
        return Answer(response.status, response.headers.get("Retry-After", ""))


class _Bounded:
    """As much of a socket as http.client uses, which ends at a time and after so many bytes."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_left(self._deadline))
        self._sock.sendall(data)

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._deadline))

    def close(self) -> None:
        """Whoever opened the socket closes it."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._budget = MAX_HEAD_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._budget <= 0:
            raise EgressError("the head of its answer is too long")
        self._sock.settimeout(_left(self._deadline))
        count = self._sock.recv_into(memoryview(buffer)[: self._budget])
        self._budget -= count
        return count


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _reason(error: Exception) -> str:
    """In words of our own: a library's may repeat what the receiver sent."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return "the connection failed"


_REASONS: list[tuple[type[Exception], str]] = [
    (socket.gaierror, "the host's name was not found"),
    (ConnectionRefusedError, "the connection was refused"),
    (ssl.SSLError, "the TLS handshake failed"),
    (http.client.RemoteDisconnected, "the connection was closed without an answer"),
    (http.client.HTTPException, "the answer is no HTTP"),
    (ConnectionError, "the connection broke"),
]
