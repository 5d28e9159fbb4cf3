"""Pictures from URLs that strangers give, from real servers on this machine; nothing else is ever connected to."""

import errno
import gzip
import ipaddress
import logging
import os
import re
import shlex
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from traceback import format_exception

import psutil
import pytest

from abo_pipeline.errors import QueryError
from abo_pipeline.settings import Settings
from abo_pipeline.web_pictures import fetch_picture
from abo_pipeline_tests.archives import jpeg

PICTURE = jpeg("red", (64, 48))
PUBLIC = "93.184.216.34"
ALSO_PUBLIC = "8.8.8.8"
SECRET = "s3cr3t"  # noqa: S105 - it is looked for in messages

NUMERIC = socket.getaddrinfo
CONNECT = socket.socket.connect


class Handler(BaseHTTPRequestHandler):
    """Answers as the page says that was asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.pages[self.path.partition("?")[0]](self)

    def send(self, body=b"", status=200, **headers):
        headers = {"Content-Length": len(body)} | {name.replace("_", "-"): text for name, text in headers.items()}
        self.send_response(status)
        for name, text in headers.items():
            if text is not None:
                self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, *parts: bytes, seconds: float = 0.02):
        """The parts one after another, the last of them until the other side has had enough."""
        try:
            for part in parts[:-1]:
                self.wfile.write(part)
            while not self.server.over.wait(seconds):
                self.wfile.write(parts[-1])
        except OSError:
            self.server.cut.set()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """A web server on a port of its own; what it was asked is kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Callable[[Handler], object]] = {"/red.jpg": lambda page: page.send(PICTURE)}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.over = threading.Event()
        self.cut = threading.Event()
        self.names: list[str | None] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def handle_error(self, *_):
        """Whoever is cut off, or refuses a certificate, is no error of the server's."""


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


@pytest.fixture
def other() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


@dataclass
class Network:
    """The internet as this machine sees it: names, and what lies at public addresses; whatever is done is kept.

    Attributes:
        names: to each name what the resolver answers, one list a question; the last one from then on.
        places: to a public address the port of this machine that answers for it.
    """

    names: dict[str, list[list[str]]] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    resolved: list[str] = field(default_factory=list)
    connected: list[tuple[str, int]] = field(default_factory=list)
    late: threading.Event | None = None

    def resolve(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002 - as in socket
        self.resolved.append(host)
        if self.late:
            self.late.wait(10)
        answers = self.names.get(host, [[host]])
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        # As the machine's own resolver reads numbers; it is kept from asking anybody for a name.
        flags |= socket.AI_NUMERICHOST
        return [found for each in addresses for found in NUMERIC(each, port, family, type, proto, flags)]

    def connect(self, sock, address):
        self.connected.append(address[:2])
        if address[0] in self.places:
            return CONNECT(sock, ("127.0.0.1", self.places[address[0]]))
        if sock.family == socket.AF_INET and ipaddress.ip_address(address[0]).is_loopback:
            return CONNECT(sock, address)
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))


@pytest.fixture(autouse=True)
def network(monkeypatch) -> Network:
    network = Network()
    monkeypatch.setattr(socket, "getaddrinfo", network.resolve)
    monkeypatch.setattr(socket.socket, "connect", lambda sock, address: network.connect(sock, address))
    return network


def allowing(*servers: Server, **options) -> Settings:
    return Settings.read(url_hosts=[server.host for server in servers], **options)


def refusal(url: str, settings: Settings | None = None) -> str:
    """Why a picture is not fetched, without the beginning and the end that all reasons share."""
    with pytest.raises(QueryError) as caught:
        fetch_picture(url, settings or Settings.read())
    message = str(caught.value)
    assert message.startswith("The picture")
    assert message.endswith((" Write it like https://host/folder/name.jpg.", " search by the file."))
    return message.partition(" cannot be ")[2].rpartition(". ")[0].partition(": ")[2]


# --- What is fetched ---


def test_a_picture_comes_from_a_host_that_is_allowed(server):
    assert fetch_picture(f"{server.url}/red.jpg", allowing(server)) == PICTURE


def test_a_picture_comes_from_a_public_address(server, network):
    network.names["pictures.example"] = [[PUBLIC]]
    network.places[PUBLIC] = server.server_port

    content = fetch_picture("http://pictures.example/red.jpg?size=10#top", Settings.read())

    assert content == PICTURE
    assert server.asked == [
        (
            "/red.jpg?size=10",
            {
                "Host": "pictures.example",
                "User-Agent": "abo_pipeline",
                "Accept-Encoding": "identity",
                "Connection": "close",
            },
        )
    ]
    assert (network.resolved, network.connected) == (["pictures.example"], [(PUBLIC, 80)])


def test_a_host_may_be_allowed_on_all_its_ports(server):
    settings = Settings.read(url_hosts="pictures.intranet, 127.0.0.1")

    assert fetch_picture(f"{server.url}/red.jpg", settings) == PICTURE


@pytest.mark.parametrize(
    "host", ["pictures.intranet", "PICTURES.intranet.", "pictures.intranet:80", "pictures.intranet.:0080"]
)
@pytest.mark.parametrize("allowed", ["pictures.intranet", "Pictures.Intranet:80"])
def test_an_allowed_name_may_have_a_private_address(server, network, host, allowed):
    network.names |= {"pictures.intranet": [["10.1.2.3"]], "pictures.intranet.": [["10.1.2.3"]]}
    network.places["10.1.2.3"] = server.server_port

    assert fetch_picture(f"http://{host}/red.jpg", Settings.read(url_hosts=allowed)) == PICTURE


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("/a b/é.jpg", "/a%20b/%C3%A9.jpg"),
        ("/a%20b/%c3%a9.jpg", "/a%20b/%C3%A9.jpg"),
        ("/a/../red.jpg?q=é", "/red.jpg?q=%C3%A9"),
        ("?only=query", "/?only=query"),
        ("", "/"),
        ("/a\r\nX-Injected: 1", "/a%0D%0AX-Injected:%201"),
    ],
)
def test_a_path_is_asked_for_as_it_would_be_by_a_browser(server, given, asked):
    server.pages = {asked.partition("?")[0]: lambda page: page.send(PICTURE)}

    assert fetch_picture(server.url + given, allowing(server)) == PICTURE
    assert server.paths == [asked]


def test_a_name_beyond_ascii_is_asked_for_in_its_ascii_form(server, network):
    network.names["xn--bcher-kva.example"] = [[PUBLIC]]
    network.places[PUBLIC] = server.server_port

    assert fetch_picture("http://Bücher.example/red.jpg", Settings.read()) == PICTURE
    assert server.asked[0][1]["Host"] == "xn--bcher-kva.example"


@pytest.mark.parametrize("length", [str(len(PICTURE)), None])
def test_a_picture_of_just_the_largest_size_is_fetched(server, length):
    server.pages["/"] = lambda page: page.send(PICTURE, Content_Length=length)

    assert fetch_picture(server.url, allowing(server, max_file_bytes=len(PICTURE))) == PICTURE


def test_a_picture_in_chunks_is_fetched_whole(server):
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in (PICTURE[:10], PICTURE[10:], b""))
    server.pages["/"] = lambda page: page.send(chunks, Content_Length=None, Transfer_Encoding="chunked")

    assert fetch_picture(server.url, allowing(server)) == PICTURE


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(PICTURE)),
        ("deflate", zlib.compress(PICTURE)),
        ("gzip, gzip", gzip.compress(gzip.compress(PICTURE))),
    ],
)
def test_what_is_compressed_though_nobody_asked_for_that_is_decompressed(server, encoding, body):
    server.pages["/"] = lambda page: page.send(body, Content_Encoding=encoding)

    assert fetch_picture(server.url, allowing(server)) == PICTURE


def test_what_is_no_picture_is_fetched_all_the_same(server):
    server.pages["/"] = lambda page: page.send(b"<html>")
    server.pages["/empty"] = lambda page: page.send()

    assert fetch_picture(server.url, allowing(server)) == b"<html>"
    assert fetch_picture(f"{server.url}/empty", allowing(server)) == b""


def test_neither_proxies_nor_cookies_nor_stored_passwords_are_used(server, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login somebody password {SECRET}\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.pages["/"] = lambda page: page.send(status=302, Location="/red.jpg", Set_Cookie="a=b")

    assert fetch_picture(server.url, allowing(server)) == PICTURE
    assert [sorted(headers) for _, headers in server.asked] == 2 * [
        ["Accept-Encoding", "Connection", "Host", "User-Agent"]
    ]


# --- Which addresses ---

PRIVATE_HOSTS = {
    "this machine": "127.0.0.1 127.255.255.254 127.0.0.1:22 127.0.0.1:443 0.0.0.0 0.1.2.3",
    "fewer numbers": "127.1 127.0.1 192.168.257 169.254.43518 0",
    "one number": "2130706433 167772161 3232235521 2852039166 4294967295",
    "hexadecimal": "0x7f000001 0x7f.0x0.0x0.0x1 0X7F.1 0xa.1 0xa9fea9fe 0x0 127.0.0.0x1",
    "octal": "0177.0.0.1 0177.1 017700000001 012.0.0.1 0251.0376.0251.0376",
    "escapes": "%31%32%37.0.0.1 127%2e0%2E0.1",
    "private": "10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.255.255",
    "clouds": "169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192",
    "carriers": "100.64.0.1 100.127.255.254",
    "special": "192.0.0.1 192.0.2.1 192.88.99.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1",
    "many": "224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 [ff02::1] [ff0e::1]",
    "this machine, IPv6": "[::1] [::1]:8080 [0:0:0:0:0:0:0:1] [0000:0:0:0:0:0:0:0001] [::] [::0.0.0.1]",
    "private, IPv6": "[fc00::1] [fdff::1] [fd00:ec2::254] [fd20:ce::254] [fec0::1]",
    "link, IPv6": "[fe80::1] [fe80::a9fe:a9fe] [fe80::1%25lo] [fe80::1%25]",
    "mapped": "[::ffff:127.0.0.1] [::ffff:7f00:1] [::FFFF:10.0.0.1] [::ffff:169.254.169.254] [::ffff:8.8.8.8]",
    "compatible": "[::127.0.0.1] [::8.8.8.8] [::ffff:0:127.0.0.1]",
    "NAT64": "[64:ff9b::127.0.0.1] [64:ff9b::a9fe:a9fe] [64:ff9b::10.0.0.1] [64:ff9b::100.64.0.1] [64:ff9b::a83f:8110]",
    "NAT64 of a network": "[64:ff9b:1::1] [64:ff9b:1::8.8.8.8]",
    "6to4": "[2002:7f00:1::] [2002:a00:1::1] [2002:c0a8:1::1] [2002:a9fe:a9fe::]",
    "Teredo": "[2001::1] [2001:0:7f00:1::1]",
    "special, IPv6": "[100::1] [2001:db8::1] [3fff::1] [4000::1] [5f00::1]",
}
PRIVATE = [host for hosts in PRIVATE_HOSTS.values() for host in hosts.split()]


def test_the_addresses_to_be_refused_are_many():
    assert len(set(PRIVATE)) >= 60


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", PRIVATE)
def test_an_address_that_is_not_public_is_not_connected_to(network, scheme, host):
    reason = refusal(f"{scheme}://{host}/red.jpg?key={SECRET}")

    assert reason.startswith("its address is not a public one, and ")
    assert reason.endswith(" is not in ABO_URL_HOSTS")
    assert network.connected == []


@pytest.mark.parametrize("address", [host.strip("[]") for host in PRIVATE if re.fullmatch(r"\[[^%]*\]|[1-9.]+", host)])
def test_a_name_of_an_address_that_is_not_public_is_not_connected_to(network, address):
    network.names["innocent.example"] = [[address]]

    assert refusal("http://innocent.example/") == (
        "its address is not a public one, and innocent.example:80 is not in ABO_URL_HOSTS"
    )
    assert network.connected == []


@pytest.mark.parametrize(
    "host",
    [
        "１２７.０.０.１",  # noqa: RUF001
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "ⓛocalhost",
        "loc\u00adalhost",
        "localhost\u2024example",
        "127.0.0.1%00",
        "127.0.0.1%0d%0a",
        "127.0.0.1\x00.example",
        "[127.0.0.1]",
        "[::1",
        "::1",
        "[::1]extra",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:８０",  # noqa: RUF001
        "\udcff",
    ],
)
def test_a_host_in_no_spelling_of_the_web_is_not_even_looked_up(network, host):
    assert refusal(f"http://{host}/red.jpg") == "it is no URL"
    assert (network.resolved, network.connected) == ([], [])


@pytest.mark.parametrize(
    "host", ["nowhere.example", "127.0.0.1.", "2130706433.", "a..b", ".", "x" * 64, "%2e%2e", "256.256.256.256", "1e3"]
)
def test_a_host_that_the_resolver_does_not_know_is_not_connected_to(network, host):
    assert refusal(f"http://{host}/") == "its host is not known"
    assert network.connected == []


def test_where_two_readers_of_a_url_could_differ_the_host_that_is_checked_is_the_one_that_is_asked(network):
    network.names |= {"good.example": [[PUBLIC]], "evil.example": [["10.0.0.1"]]}
    urls = {
        r"http://good.example\@evil.example/": "good.example",
        "http://good.example#@evil.example/": "good.example",
        "http://good.example?@evil.example/": "good.example",
        "http://evil.example/@good.example": "evil.example",
        "http:////evil.example/": None,
        "http:/evil.example/": None,
        "http:evil.example": None,
    }

    reasons = {url: refusal(url) for url in urls}

    assert network.resolved == [host for host in urls.values() if host]
    assert {host for host, _ in network.connected} == {PUBLIC}
    assert [url for url, reason in reasons.items() if "http" in reason] == [url for url in urls if not urls[url]]


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost.", "metadata.google.internal"])
def test_a_name_is_judged_by_its_addresses(network, name):
    network.names |= {"localhost": [["::1", "127.0.0.1"]], "localhost.": [["127.0.0.1"]]}
    network.names["metadata.google.internal"] = [["169.254.169.254"]]

    assert refusal(f"http://{name}/").startswith("its address is not a public one")
    assert network.connected == []


@pytest.mark.parametrize("addresses", [[PUBLIC, "10.0.0.1"], ["10.0.0.1", PUBLIC], [PUBLIC, ALSO_PUBLIC, "::1"]])
def test_a_name_of_which_one_address_is_not_public_is_refused(network, addresses):
    network.names["mixed.example"] = [addresses]

    assert refusal("http://mixed.example/") == (
        "its address is not a public one, and mixed.example:80 is not in ABO_URL_HOSTS"
    )
    assert network.connected == []


@pytest.mark.parametrize(
    ("host", "address"),
    [
        (PUBLIC, PUBLIC),
        ("134744072", "8.8.8.8"),
        ("0x08080808", "8.8.8.8"),
        ("9.255.255.255", "9.255.255.255"),
        ("11.0.0.0", "11.0.0.0"),
        ("100.63.255.255", "100.63.255.255"),
        ("100.128.0.0", "100.128.0.0"),
        ("172.15.255.255", "172.15.255.255"),
        ("172.32.0.0", "172.32.0.0"),
        ("168.63.129.17", "168.63.129.17"),
        ("223.255.255.255", "223.255.255.255"),
        ("[2606:4700::1111]", "2606:4700::1111"),
        ("[2a00:1450::1]", "2a00:1450::1"),
        ("[64:ff9b::8.8.8.8]", "64:ff9b::808:808"),
    ],
)
def test_a_public_address_is_connected_to(network, host, address):
    assert refusal(f"http://{host}:81/") == f"the connection failed ({os.strerror(errno.ENETUNREACH)})"
    assert network.connected == [(address, 81)]


def test_a_name_that_changes_its_address_after_the_check_is_connected_to_where_it_was_checked(server, network):
    network.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    network.places[PUBLIC] = server.server_port

    content = fetch_picture(f"http://rebinding.example:{server.server_port}/red.jpg", Settings.read())

    assert content == PICTURE
    assert network.resolved == ["rebinding.example"]
    assert network.connected == [(PUBLIC, server.server_port)]


def test_a_name_that_changes_its_address_before_a_redirect_is_checked_again(server, network):
    network.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    network.places[PUBLIC] = server.server_port
    server.pages["/"] = lambda page: page.send(status=302, Location="/red.jpg")

    assert refusal("http://rebinding.example/").startswith("its address is not a public one")
    assert server.paths == ["/"]


def test_where_one_address_does_not_answer_another_is_tried(server, network):
    network.names["pictures.example"] = [["2606:4700::1111", ALSO_PUBLIC, PUBLIC]]
    network.places[PUBLIC] = server.server_port

    assert fetch_picture("http://pictures.example/red.jpg", Settings.read()) == PICTURE
    assert network.connected == [("2606:4700::1111", 80), (ALSO_PUBLIC, 80), (PUBLIC, 80)]


def test_a_host_is_allowed_by_exactly_its_name_and_port(server, other, network):
    network.names["127.0.0.1.example"] = [["127.0.0.1"]]
    settings = allowing(server)
    hosts = [other.host, f"2130706433:{server.server_port}", "127.0.0.1", f"127.0.0.1.example:{server.server_port}"]

    reasons = [refusal(f"http://{host}/red.jpg", settings) for host in hosts]

    assert all(reason.startswith("its address is not a public one") for reason in reasons)
    assert network.connected == []


# --- Redirects ---


def test_redirects_are_followed(server, other):
    server.pages["/a"] = lambda page: page.send(status=301, Location="/b?c")
    server.pages["/b"] = lambda page: page.send(b"moved", status=302, Location="d/../e#there")
    server.pages["/e"] = lambda page: page.send(status=303, Location=f"//{other.host}/f")
    other.pages["/f"] = lambda page: page.send(status=307, Location="é".encode().decode("latin-1"))
    other.pages["/%C3%A9"] = lambda page: page.send(status=308, Location=f"{server.url}/red.jpg")

    assert fetch_picture(f"{server.url}/a", allowing(server, other)) == PICTURE
    assert server.paths == ["/a", "/b?c", "/e", "/red.jpg"]
    assert other.paths == ["/f", "/%C3%A9"]


def test_more_than_five_redirects_are_too_many(server):
    server.pages["/"] = lambda page: page.send(status=302, Location="/")

    assert refusal(server.url, allowing(server)) == "it redirects more than 5 times"
    assert server.paths == 6 * ["/"]


def test_a_redirect_from_an_allowed_host_to_one_that_is_not_is_not_followed(server, other, network):
    server.pages["/"] = lambda page: page.send(status=302, Location=f"{other.url}/red.jpg?key={SECRET}")

    with pytest.raises(QueryError) as caught:
        fetch_picture(f"{server.url}/?key={SECRET}", allowing(server))

    assert str(caught.value) == (
        f"The picture {server.url}/ (redirected to {other.url}/red.jpg) cannot be fetched: its address is not a public"
        f" one, and {other.host} is not in ABO_URL_HOSTS. Check the URL, or download the picture and search by the"
        " file."
    )
    assert network.connected == [("127.0.0.1", server.server_port)]
    assert other.asked == []


@pytest.mark.parametrize(
    "location", ["http://10.0.0.1/", "//169.254.169.254/latest/meta-data", "http://[::1]/", "https://2130706433/"]
)
def test_a_redirect_from_a_public_host_to_a_private_address_is_not_followed(server, network, location):
    network.names["pictures.example"] = [[PUBLIC]]
    network.places[PUBLIC] = server.server_port
    server.pages["/"] = lambda page: page.send(status=302, Location=location)

    assert refusal("http://pictures.example/").startswith("its address is not a public one")
    assert network.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("file:///etc/passwd", "it redirects to no http:// or https:// URL"),
        ("ftp://127.0.0.1/red.jpg", "it redirects to no http:// or https:// URL"),
        ("gopher://127.0.0.1:6379/_FLUSHALL", "it redirects to no http:// or https:// URL"),
        ("data:image/png;base64,AAAA", "it redirects to no http:// or https:// URL"),
        ("http://[::1", "it redirects to no URL"),
        (f"http://user:{SECRET}@127.0.0.1/", "user names and passwords in a URL are not used"),
    ],
)
def test_a_redirect_to_what_would_not_be_fetched_is_not_followed(server, network, location, reason):
    server.pages["/"] = lambda page: page.send(status=302, Location=location)

    with pytest.raises(QueryError) as caught:
        fetch_picture(server.url, allowing(server))

    assert f": {reason}. " in str(caught.value)
    assert SECRET not in str(caught.value)
    assert set(network.connected) == {("127.0.0.1", server.server_port)}


# --- What is refused before anybody is asked ---


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "ftp://example.org/red.jpg",
        f"ftp://user:{SECRET}@example.org/red.jpg",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        f"data:image/png;base64,{SECRET}",
        "javascript:alert(1)",
        "s3://bucket/red.jpg",
        "dict://127.0.0.1:11211/stats",
        "unix:///var/run/docker.sock",
        "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
        f"somebody:{SECRET}@example.org/red.jpg",
        "example.org/red.jpg",
        "localhost:8080/red.jpg",
        "//example.org/red.jpg",
        "/etc/passwd",
        "http:///red.jpg",
        "http://",
        "https:",
        "",
    ],
)
def test_what_is_no_url_of_the_web_is_not_fetched(network, url):
    with pytest.raises(QueryError) as caught:
        fetch_picture(url, Settings.read())

    assert str(caught.value) == (
        "The picture's URL cannot be used: it is no http:// or https:// URL."
        " Write it like https://host/folder/name.jpg."
    )
    assert (network.resolved, network.connected) == ([], [])


@pytest.mark.parametrize("user", [f"user:{SECRET}", f"{SECRET}", f":{SECRET}", f"a@b:{SECRET}", f"user:{SECRET}%40"])
def test_a_url_with_credentials_is_not_fetched(server, network, user):
    with pytest.raises(QueryError) as caught:
        fetch_picture(f"http://{user}@{server.host}/red.jpg?key={SECRET}#{SECRET}", allowing(server))

    assert str(caught.value) == (
        f"The picture {server.url}/red.jpg cannot be fetched: user names and passwords in a URL are not used."
        " Check the URL, or download the picture and search by the file."
    )
    assert SECRET not in "".join(format_exception(caught.value))
    assert (network.resolved, network.connected) == ([], [])


# --- What servers answer ---


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (204, "204 No Content"),
        (206, "206 Partial Content"),
        (300, "300 Multiple Choices"),
        (302, "302 Found"),
        (304, "304 Not Modified"),
        (401, "401 Unauthorized"),
        (404, "404 Not Found"),
        (429, "429 Too Many Requests"),
        (500, "500 Internal Server Error"),
        (599, "599"),
    ],
)
def test_an_answer_that_is_no_file_is_named(server, status, words):
    server.pages["/"] = lambda page: page.send(PICTURE, status=status)

    assert refusal(server.url, allowing(server)) == f"the server answered {words}"


def test_an_answer_is_told_without_what_may_be_secret(server):
    server.pages["/private"] = lambda page: page.send(status=403)

    with pytest.raises(QueryError) as caught:
        fetch_picture(f"{server.url}/private?signature={SECRET}#{SECRET}", allowing(server))

    assert str(caught.value) == (
        f"The picture {server.url}/private cannot be fetched: the server answered 403 Forbidden."
        " Check the URL, or download the picture and search by the file."
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 20\r\n\r\n0123456789",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 70_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 200 + b"\r\n",
    ],
)
def test_an_answer_that_breaks_off_or_is_no_http_is_refused(server, answer):
    server.pages["/"] = lambda page: page.wfile.write(answer)

    reason = refusal(server.url, allowing(server))

    assert reason in (
        "the server broke off, or does not speak HTTP",
        "the connection failed (Connection reset by peer)",
    )


def test_headers_that_cannot_be_read_are_not_logged_with_the_url(server, caplog):
    caplog.set_level(logging.DEBUG)
    headers = b"HTTP/1.1 200 OK\r\nno header\r\nContent-Length: %d\r\n\r\n" % len(PICTURE)
    server.pages["/"] = lambda page: page.wfile.write(headers + PICTURE)

    fetch_picture(f"{server.url}/?key={SECRET}", allowing(server))

    assert SECRET not in caplog.text


def test_a_port_where_nobody_listens_is_told():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"

        assert refusal(f"http://{host}/", Settings.read(url_hosts=host)) == "the connection failed (Connection refused)"


def test_broken_compression_is_told(server):
    server.pages["/"] = lambda page: page.send(b"not gzip at all", Content_Encoding="gzip")

    assert refusal(server.url, allowing(server)) == "it is sent compressed, and the compression is broken"


# --- Size ---


def test_a_file_that_announces_too_many_bytes_is_not_read(server):
    server.pages["/"] = lambda page: page.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", b"x")

    started = time.monotonic()
    reason = refusal(server.url, allowing(server, max_file_bytes=1000))

    assert reason == "it has 1,001 bytes, and the limit is 1,000 (ABO_MAX_FILE_BYTES)"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("length", [None, "many", "-5", "9" * 5000])
def test_a_file_that_goes_on_beyond_the_limit_is_cut(server, length):
    lines = b"" if length is None else b"Content-Length: %s\r\n" % length.encode()
    server.pages["/"] = lambda page: page.drip(b"HTTP/1.1 200 OK\r\n%s\r\n" % lines, bytes(100_000), seconds=0)

    reason = refusal(server.url, allowing(server, max_file_bytes=1_000_000))

    assert reason == "it has more bytes than the limit of 1,000,000 (ABO_MAX_FILE_BYTES)"
    assert server.cut.wait(5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_bomb_is_cut_before_it_fills_the_memory(server, layers):
    bomb = bytes(100_000_000)
    for _ in range(layers):
        bomb = gzip.compress(bomb, compresslevel=1 if layers == 1 else 9)
    server.pages["/"] = lambda page: page.send(bomb, Content_Encoding=", ".join(layers * ["gzip"]))
    settings = allowing(server, max_file_bytes=2_000_000)

    tracemalloc.start()
    reason = refusal(server.url, settings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(bomb) < settings.max_file_bytes
    assert reason == "it has more bytes than the limit of 2,000,000 (ABO_MAX_FILE_BYTES)"
    assert peak < 10_000_000


# --- Time ---


def slow_redirect(page: Handler) -> None:
    page.server.over.wait(0.15)
    page.send(status=302, Location="/slow-redirect")


DRIPS: dict[str, Callable[[Handler], object]] = {
    "silence": lambda page: page.server.over.wait(10),
    "status": lambda page: page.drip(b"HTTP/1.1 2", b"0"),
    "headers": lambda page: page.drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "continue": lambda page: page.drip(b"HTTP/1.1 100 Continue\r\n\r\n", seconds=0),
    "length": lambda page: page.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
    "no-length": lambda page: page.drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "chunks": lambda page: page.drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "chunk-length": lambda page: page.drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers": lambda page: page.drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: x\r\n"),
    "gzip": lambda page: page.drip(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", gzip.compress(b"")),
    "slow-redirect": slow_redirect,
}


@contextmanager
def promptly(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert seconds <= time.monotonic() - started < seconds + 2


@pytest.mark.parametrize("name", DRIPS)
def test_a_server_that_keeps_one_waiting_is_cut_at_the_limit_of_the_whole(server, name):
    server.pages[f"/{name}"] = DRIPS[name]

    with promptly(0.4):
        reason = refusal(f"{server.url}/{name}", allowing(server, url_timeout=0.4))

    assert reason == "it took longer than 0.4 seconds (ABO_URL_TIMEOUT)"


def test_a_resolver_that_is_late_is_left_behind(network):
    network.late = threading.Event()

    with promptly(0.3):
        reason = refusal("http://slow.example/", Settings.read(url_timeout=0.3))
    network.late.set()

    assert reason == "it took longer than 0.3 seconds (ABO_URL_TIMEOUT)"
    assert network.connected == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_takes_a_connection_and_says_nothing_is_cut(scheme):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        with promptly(0.3):
            reason = refusal(f"{scheme}://{host}/", Settings.read(url_hosts=host, url_timeout=0.3))

    assert reason == "it took longer than 0.3 seconds (ABO_URL_TIMEOUT)"


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate for pictures.example, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        shlex.split(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out certificate.pem"
            " -subj /CN=pictures.example -addext subjectAltName=DNS:pictures.example,IP:127.0.0.1"
        ),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture
def secure(certificate, network) -> Iterator[Server]:
    """pictures.example at a public address, over TLS."""
    server = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.sni_callback = lambda _, name, __: server.names.append(name)
    # The handshake is the handler's: in the accepting thread a client that gives up would stop the server.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    network.names |= {name: [[PUBLIC]] for name in ("pictures.example", "pictures.example.", "another.example")}
    network.places[PUBLIC] = server.server_port
    with serving(server):
        yield server


def test_a_certificate_signed_by_itself_is_not_trusted(secure):
    reason = refusal("https://pictures.example/red.jpg")

    assert reason.startswith("the server's certificate is not trusted (self")
    assert secure.asked == []


@pytest.mark.parametrize("host", ["pictures.example", "pictures.example.", "PICTURES.example:443"])
def test_a_certificate_is_checked_for_the_name_though_the_address_is_what_is_connected_to(
    secure, network, certificate, monkeypatch, host
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))

    assert fetch_picture(f"https://{host}/red.jpg", Settings.read()) == PICTURE
    assert secure.names == ["pictures.example"]
    assert secure.asked[0][1]["Host"] == host.lower()
    assert network.connected == [(PUBLIC, 443)]


def test_a_certificate_of_another_name_is_not_trusted(secure, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))

    reason = refusal("https://another.example/red.jpg")

    assert reason == (
        "the server's certificate is not trusted (Hostname mismatch, certificate is not valid for 'another.example')"
    )
    assert secure.asked == []


def test_a_certificate_may_be_of_an_address(secure, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))

    assert fetch_picture(f"https://{secure.host}/red.jpg", allowing(secure)) == PICTURE
    assert secure.names == [None]


def test_an_allowed_host_is_trusted_no_more_than_others(secure):
    assert refusal(f"https://{secure.host}/", allowing(secure)).startswith("the server's certificate is not trusted")


@pytest.mark.parametrize("name", ["silence", "headers", "length", "no-length"])
def test_a_server_that_keeps_one_waiting_is_cut_over_tls_too(secure, certificate, monkeypatch, name):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    secure.pages["/"] = DRIPS[name]

    with promptly(0.5):
        reason = refusal("https://pictures.example/", Settings.read(url_timeout=0.5))

    assert reason == "it took longer than 0.5 seconds (ABO_URL_TIMEOUT)"


def test_a_server_without_tls_is_told(server):
    reason = refusal(f"https://{server.host}/", allowing(server))

    assert reason.startswith("no secure connection came about (")


# --- What is left behind ---


def what_is_open() -> tuple[int, int]:
    """How many threads and files this process has."""
    return threading.active_count(), psutil.Process().num_fds()


def test_no_thread_and_no_connection_is_left(server):
    server.pages["/drip"] = DRIPS["length"]
    server.pages["/"] = lambda page: page.send(status=302, Location="/red.jpg")
    before = what_is_open()

    fetch_picture(server.url, allowing(server))
    refusal(f"{server.url}/drip", allowing(server, url_timeout=0.3))
    refusal("http://10.0.0.1/")
    assert server.cut.wait(5)
    deadline = time.monotonic() + 5
    # The server's own threads end a moment later.
    while (now := what_is_open()) != before:
        assert time.monotonic() < deadline, (before, now)
        time.sleep(0.01)
