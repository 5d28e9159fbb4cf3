"""A picture that somebody asks to search by: a URL → its bytes, or a reason why not.

Whoever asks chooses the URL, and it is this machine that connects: to nothing but web servers with public addresses,
and to hosts that a setting names. A host is resolved once, each of its addresses is checked, and one of the very
addresses that were checked is connected to; each redirect begins anew. Proxies, cookies and credentials are not used.
Whether the bytes are a picture is for ``decoding``; archives are fetched by ``download``, from wherever they lie.
"""

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, responses
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from threading import Event, Thread, Timer
from typing import Any
from urllib.parse import urljoin

import certifi
import urllib3
from urllib3.exceptions import DecodeError, HTTPError
from urllib3.util import parse_url

from abo_pipeline.errors import QueryError
from abo_pipeline.settings import Settings
from abo_pipeline.storage import HTTP

_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CHUNK_BYTES = 1 << 16
_HEADERS = {"User-Agent": "abo_pipeline", "Accept-Encoding": "identity", "Connection": "close"}

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_NOT_PUBLIC = tuple(
    ip_network(network)
    for network in (
        # Public by its number, and answered by the machine's own host in Azure.
        "168.63.129.16/32",
        # What Python says of these differs from version to version: protocol assignments (Oracle's clouds have
        # metadata there), 6to4 and its relays, documentation.
        "192.0.0.0/24",
        "192.88.99.0/24",
        "2002::/16",
        "3fff::/20",
    )
)

_Addresses = Sequence[tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]]
"""As ``getaddrinfo`` gives them: family, kind, protocol, canonical name, and what ``connect`` takes."""


class _NotFetchedError(Exception):
    """Why a picture is not fetched: part of a sentence, with no URL in it."""


@dataclass(frozen=True)
class _Place:
    """What one request goes to, read from its URL once, so that no two readers of it can differ.

    Attributes:
        url: the whole, secrets included.
        shown: the same without user, password and query.
        scheme: http or https.
        host: a name or an address, IPv6 ones in brackets.
        port: as written, or the scheme's own.
        netloc: host and, where it is written, port, for the server to read.
        target: path and query.
        credentials: whether it has a user or a password.
    """

    url: str = field(repr=False)
    shown: str
    scheme: str
    host: str
    port: int
    netloc: str
    target: str = field(repr=False)
    credentials: bool

    @property
    def name(self) -> str:
        """The host as certificates and settings write it: without the dot that may end it."""
        return self.host.rstrip(".")


def fetch_picture(url: str, settings: Settings) -> bytes:
    """The file at a URL, which its caller decodes.

    Args:
        url: http or https, of a host whose addresses are public or that the settings allow.
        settings: the limits of bytes and seconds, and the hosts that are allowed.

    Raises:
        QueryError: the URL is none, or not to be fetched; the server does not answer, not with a file, not in time,
            or with one that is too large. Neither credentials nor query string of the URL are in the message.
    """
    deadline = time.monotonic() + settings.url_timeout
    try:
        start = here = _parsed(url)
    except _NotFetchedError as refused:
        raise QueryError(
            f"The picture's URL cannot be used: {refused}. Write it like https://host/folder/name.jpg."
        ) from None
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            answer = _ask(here, settings, deadline)
            if isinstance(answer, bytes):
                return answer
            here = _parsed(answer, here.url)
        raise _NotFetchedError(f"it redirects more than {_MOST_REDIRECTS} times")
    except (_NotFetchedError, OSError, HTTPException, HTTPError) as error:
        redirected = "" if here is start else f" (redirected to {here.shown})"
        raise QueryError(
            f"The picture {start.shown}{redirected} cannot be fetched: {_reason(error, settings)}."
            " Check the URL, or download the picture and search by the file."
        ) from None


def _parsed(url: str, base: str = "") -> _Place:
    """What a URL, or a redirect from another one, leads to."""
    leads = "it redirects to" if base else "it is"
    try:
        parts = parse_url(urljoin(base, url))
    except ValueError:
        raise _NotFetchedError(f"{leads} no URL") from None
    if parts.scheme not in HTTP or not parts.host:
        raise _NotFetchedError(f"{leads} no http:// or https:// URL")
    return _Place(
        url=parts.url,
        shown=parts._replace(auth=None, query=None, fragment=None).url,
        scheme=parts.scheme,
        host=parts.host,
        port=parts.port or _DEFAULT_PORTS[parts.scheme],
        netloc=parts.netloc or parts.host,
        target=parts.request_uri,
        credentials=parts.auth is not None,
    )


def _ask(place: _Place, settings: Settings, deadline: float) -> bytes | str:
    """One request: the file, or the place that the server redirects to."""
    if place.credentials:
        raise _NotFetchedError("user names and passwords in a URL are not used")
    with _connected(place, settings, deadline) as sock, _cut_off(sock, deadline):
        # urllib3's own connection would log the URL with its query when a server's headers are malformed.
        connection = HTTPConnection(place.host, place.port)
        connection.sock = sock
        connection.request("GET", place.target, headers={"Host": place.netloc, **_HEADERS})
        with connection.getresponse() as response:
            location = response.headers["Location"]
            if response.status in _REDIRECTS and location:
                # Headers are read as Latin-1, and places beyond ASCII are written in UTF-8.
                return location.encode("latin-1").decode(errors="replace")
            if response.status != 200:
                raise _NotFetchedError(
                    f"the server answered {response.status} {responses.get(response.status, '')}".rstrip()
                )
            return _read(response, settings.max_file_bytes)


def _read(response: HTTPResponse, limit: int) -> bytes:
    """The body, decompressed: that may be many times what arrives, so it is counted too."""
    decoded = urllib3.HTTPResponse(
        response, urllib3.HTTPHeaderDict(response.headers.items()), response.status, preload_content=False
    )
    if (decoded.length_remaining or 0) > limit:
        raise _NotFetchedError(
            f"it has {decoded.length_remaining:,} bytes, and the limit is {limit:,} (ABO_MAX_FILE_BYTES)"
        )
    content = bytearray()
    while chunk := decoded.read(_CHUNK_BYTES):
        content += chunk
        if len(content) > limit:
            raise _NotFetchedError(f"it has more bytes than the limit of {limit:,} (ABO_MAX_FILE_BYTES)")
    return bytes(content)


# --- Which addresses are connected to ---


def _connected(place: _Place, settings: Settings, deadline: float) -> socket.socket:
    """A connection to one of the addresses that were checked, over TLS where the URL says so."""
    addresses = _resolved(place, deadline)
    allowed = not {place.name, f"{place.name}:{place.port}"}.isdisjoint(settings.url_hosts)
    if not allowed and not all(_is_public(ip_address(address[0])) for *_, address in addresses):
        raise _NotFetchedError(
            f"its address is not a public one, and {place.name}:{place.port} is not in ABO_URL_HOSTS"
        )
    sock = _first_to_answer(addresses, deadline)
    if place.scheme == "http":
        return sock
    # What this machine trusts, an intranet's own authority perhaps, and what archives are fetched with.
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context.wrap_socket(sock, server_hostname=place.name.strip("[]"))


def _resolved(place: _Place, deadline: float) -> _Addresses:
    """All addresses of a host. A resolver knows no limit of time, so that one that is late is left behind."""
    answer: Future[_Addresses] = Future()

    def resolve() -> None:
        try:
            host = place.host.strip("[]")
            answer.set_result(socket.getaddrinfo(host, place.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP))
        except ValueError:
            # Too long a label, or an empty one.
            answer.set_exception(_NotFetchedError("its host is not known"))
        except Exception as error:  # noqa: BLE001 - raised where the answer is waited for
            answer.set_exception(error)

    Thread(target=resolve, daemon=True).start()
    return answer.result(_left(deadline))


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of the internet at large: no network, machine or cloud keeps it for itself."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return _is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        # Mapped and compatible IPv4 addresses, among much else, are outside.
        if address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _NOT_PUBLIC)


def _first_to_answer(addresses: _Addresses, deadline: float) -> socket.socket:
    """A connection to the first address that takes one; each may use its share of the time that is left."""
    failure: OSError | None = None
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(deadline) / (len(addresses) - tried))
            sock.connect(address)
            sock.settimeout(_left(deadline))
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure or OSError


# --- Time, and what went wrong ---


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@contextmanager
def _cut_off(sock: socket.socket, deadline: float) -> Iterator[None]:
    """End the connection at the deadline. A socket's own limit begins again with each byte that arrives."""
    late = Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = Timer(_left(deadline), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if late.is_set():
            # Whatever came of it, also what looks like the end of a file.
            raise TimeoutError from None


def _reason(error: Exception, settings: Settings) -> str:
    """In words that hold no URL."""
    match error:
        case _NotFetchedError():
            return str(error)
        case TimeoutError(errno=None):
            return f"it took longer than {settings.url_timeout:g} seconds (ABO_URL_TIMEOUT)"
        case socket.gaierror():
            return "its host is not known"
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not trusted ({error.verify_message.rstrip('.')})"
        case ssl.SSLError():
            return f"no secure connection came about ({str(error.reason).lower().replace('_', ' ')})"
        case OSError(strerror=str(why)):
            return f"the connection failed ({why})"
        case DecodeError():
            return "it is sent compressed, and the compression is broken"
        case _:
            return "the server broke off, or does not speak HTTP"
