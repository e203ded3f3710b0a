"""Fetching images: what may be reached, and how long anything may take. No name server and no network are asked."""

import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.image_files import encode, noise_picture
from vlm import VLM, GenerationConfig, Tokenizer, VLMError
from vlm.images.fetch import Fetcher, is_public, resolve

LEAK = re.compile(r"0x[0-9a-f]{4,}|Traceback|object at|\.py\b|\d+\.\d+\.\d+\.\d+|::")
PICTURE = encode(noise_picture(), "PNG")
PUBLIC, INNER = "127.0.0.1", "127.0.0.2"
"""Addresses of this machine; the first stands for a public one in these tests."""


class Server:
    """Answers each connection with `answer(path)`: bytes at once, or an iterator of what to send."""

    def __init__(self, address: str, answer: Callable[[str], bytes | Iterator[bytes]]):
        self.requests: list[str] = []
        self._answer = answer
        self._listener = socket.create_server((address, 0))
        self.port = self._listener.getsockname()[1]
        self.num_open = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._reply, args=(connection,), daemon=True).start()

    def _reply(self, connection: socket.socket) -> None:
        self.num_open += 1
        with connection:
            request = b""
            while not request.endswith(b"\r\n\r\n") and (block := connection.recv(4096)):
                request += block
            self.requests.append(request.decode("latin-1"))
            answer = self._answer(request.split(b" ")[1].decode()) if request else b""
            try:
                for block in [answer] if isinstance(answer, bytes) else answer:
                    connection.sendall(block)
            except OSError:
                pass
        self.num_open -= 1


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
def serve():
    servers = []

    def start(answer, address: str = PUBLIC) -> Server:
        servers.append(Server(address, answer if callable(answer) else lambda path: answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def fetcher(hosts: dict[str, list[str]] | None = None, **options) -> Fetcher:
    """Return a fetcher for which PUBLIC is public, and with names of its own."""
    names = {"ok.test": [PUBLIC], "inner.test": [INNER]} | (hosts or {})

    def look_up(host: str, port: int) -> list[str]:
        if host not in names:
            raise socket.gaierror("no such name")
        return names[host]

    options = {"resolve": look_up, "allow": lambda address: str(address) == PUBLIC, "timeout_s": 5.0} | options
    return Fetcher(**options)


def refusal(fetch: Fetcher, url: str) -> str:
    with pytest.raises(VLMError) as caught:
        fetch(url)
    assert caught.value.code == "invalid_request"
    assert len(str(caught.value)) < 300
    assert not LEAK.search(str(caught.value))
    return str(caught.value)


# What comes back


def test_the_body_of_a_public_host_comes_back(serve):
    server = serve(http(PICTURE, "Content-Type: text/html"))
    assert fetcher()(f"HTTP://OK.test.:{server.port}/a%20b?c=d#e") == PICTURE
    request = server.requests[0].lower()
    assert request.startswith("get /a%20b?c=d http/1.1\r\n")
    assert f"\r\nhost: ok.test:{server.port}\r\n" in request
    assert "\r\naccept-encoding: identity\r\n" in request
    assert "cookie" not in request
    assert "authorization" not in request


@pytest.mark.parametrize("address", [PUBLIC, "ok.test"])
def test_a_query_alone_and_no_path_are_paths(serve, address):
    server = serve(http(b"x"))
    assert fetcher()(f"http://{address}:{server.port}?a") == b"x"
    assert fetcher()(f"http://{address}:{server.port}") == b"x"
    assert [request.split()[1] for request in server.requests] == ["/?a", "/"]


def test_bodies_in_chunks_and_without_a_length_come_back(serve):
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert fetcher()(f"http://ok.test:{serve(chunked).port}/") == b"abcde"
    until_closed = b"HTTP/1.0 200 OK\r\n\r\nabcde"
    assert fetcher()(f"http://ok.test:{serve(until_closed).port}/") == b"abcde"


def test_a_model_reads_the_picture_and_only_when_it_may(serve, tiny, tiny_model):
    server = serve(http(PICTURE))
    url, config = f"http://ok.test:{server.port}/", GenerationConfig(max_new_tokens=4)
    with pytest.raises(VLMError, match="not fetched by default"):
        tiny.answer(url, "?", config=config)
    assert server.requests == []
    open_minded = VLM(tiny_model, Tokenizer.bytes_only(), allow_urls=True)
    with pytest.raises(VLMError, match="public internet") as caught:
        open_minded.answer(f"http://127.0.0.1:{server.port}/", "?", config=config)
    assert caught.value.code == "invalid_request"
    assert server.requests == []
    open_minded.images._fetch = fetcher()
    assert open_minded.answer(url, "?", config=config).token_ids == tiny.answer(PICTURE, "?", config=config).token_ids
    part = {"type": "image_url", "image_url": {"url": url}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
    assert open_minded.chat(messages, config=config).token_ids == tiny.answer(PICTURE, "?", config=config).token_ids
    assert len(server.requests) == 2


# What may be reached


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
        *("192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "100.127.255.255", "192.0.0.8"),
        *("192.0.0.170", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
        *("239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:8.8.8.8", "::ffff:169.254.169.254"),
        *("::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:10::1"),
        *("2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254"),
        *("fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "4000::1"),
    ],
)
def test_addresses_that_are_not_of_the_public_internet(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "99.255.255.255", "192.0.1.1", "2606:4700::1", "2a00::1"])
def test_addresses_of_the_public_internet(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://LOCALHOST.:{port}/", "http://[::1]:{port}/"),
        *("http://[::ffff:127.0.0.2]:{port}/", "http://[::ffff:169.254.169.254]/", "http://2130706433:{port}/"),
        *(
            "http://0x7f000001:{port}/",
            "http://0x7f.0.0.1:{port}/",
            "http://0177.0.0.1:{port}/",
            "http://127.1:{port}/",
        ),
        *("http://017700000001:{port}/", "http://127.0.0.1.:{port}/", "http://0.0.0.0:{port}/", "http://0:{port}/"),
        *("http://100.100.100.200/", "http://[64:ff9b::7f00:1]:{port}/", "http://[2002:7f00:1::]:{port}/"),
        *("http://[fec0::1]:{port}/", "http://[fe80::1%25lo]:{port}/", "http://ok.test\\@127.0.0.1:{port}/"),
        *("http://ok.test@127.0.0.1:{port}/", "http://user:pass@127.0.0.1:{port}/", "http://127。0。0。1:{port}/"),
        *(
            "http://127．0．0．1:{port}/",
            "http://①②⑦.0.0.1:{port}/",
            "http://loc%61lhost:{port}/",
            "file:///etc/passwd",
        ),
        *("gopher://127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/", "http:127.0.0.1:{port}/", "//127.0.0.1:{port}/"),
        *("http:///127.0.0.1:{port}/", "http://127.0.0.1:{port}\r\nX: y/", "http://127.0.0.1 :{port}/", "http://"),
        *("http://127.0.0.1\t:{port}/", "http://mixed.test:{port}/", "http://inner.test:{port}/", "http://empty.test/"),
        *("http://odd.test:{port}/", "http://127.0.0.1:{port}/\r\nHost: x", "http://ok.test:22/", "http://ok.test:0/"),
        *("http://ok.test:99999/", "http://-ok.test/", "http://ok..test/", "http://" + "a" * 64 + ".test/", ""),
        *("http://" + "a." * 127 + "test/", "http://ok.test/" + "a" * 5000, "https://127.0.0.1:{port}/", " http://x/"),
    ],
)
def test_no_inner_server_is_ever_reached(serve, url):
    inner = serve(http(PICTURE), "0.0.0.0")
    names = {
        "localhost": ["127.0.0.1", "::1"],
        "ok.test": ["8.8.8.8"],
        "mixed.test": ["8.8.8.8", "127.0.0.1"],
        "inner.test": [INNER],
        "empty.test": [],
        "odd.test": ["nonsense"],
    }

    def look_up(host: str, port: int) -> list[str]:
        if host not in names:
            raise socket.gaierror("no such name")
        return names[host]

    refusal(Fetcher(resolve=look_up, timeout_s=2), url.replace("{port}", str(inner.port)))
    assert inner.requests == []
    assert inner.num_open == 0


@pytest.mark.parametrize(
    "location",
    [
        *("http://inner.test:{inner}/", "http://127.0.0.2:{inner}/", "//inner.test:{inner}/", "file:///etc/passwd"),
        *("http://ok.test@127.0.0.2:{inner}/", "http://[::ffff:127.0.0.2]:{inner}/", "http://0x7f.2:{inner}/"),
        *("HTTP://INNER.test.:{inner}/", "http://ok.test\\@127.0.0.2:{inner}/", "gopher://127.0.0.2:{inner}/"),
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_goes_through_the_same_gate(serve, location, status):
    inner = serve(http(PICTURE), INNER)
    header = "Location: " + location.replace("{inner}", str(inner.port))
    public = serve(http(b"", header, status=f"{status} Moved"))
    refusal(fetcher(), f"http://ok.test:{public.port}/")
    assert len(public.requests) == 1
    assert inner.requests == []


def test_redirects_are_followed_three_times(serve):
    def answer(path: str) -> bytes:
        steps = int(path[1:])
        return http(b"", f"Location: /{steps - 1}", status="302 Found") if steps else http(b"there")

    server = serve(answer)
    assert fetcher()(f"http://ok.test:{server.port}/3") == b"there"
    assert "more than 3 times" in refusal(fetcher(), f"http://ok.test:{server.port}/4")


def test_a_name_is_resolved_once_so_that_a_second_answer_changes_nothing(serve):
    """DNS rebinding: public for the check, inner for the connection."""
    answers, asked = [[PUBLIC], [INNER]], []

    def look_up(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return answers[min(len(asked), 2) - 1]

    public = serve(http(b"public"))
    inner = Server(INNER, lambda path: http(b"inner"))
    assert fetcher(resolve=look_up)(f"http://rebind.test:{public.port}/") == b"public"
    assert asked == [("rebind.test", public.port)]
    assert inner.requests == []
    inner.close()


def test_another_address_is_tried_when_the_first_is_dead(serve):
    server = serve(http(b"x"))
    fetch = fetcher({"two.test": ["127.0.0.3", PUBLIC]}, allow=lambda address: address.is_loopback)
    assert fetch(f"http://two.test:{server.port}/") == b"x"


def test_https_is_spoken_to_the_name_and_checked(serve):
    """What the server sees first is a TLS greeting with the name; a server without a certificate is refused."""
    seen = []
    listener = socket.create_server((PUBLIC, 0))

    def answer() -> None:
        connection, _ = listener.accept()
        seen.append(connection.recv(4096))
        connection.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    refusal(fetcher(), f"https://ok.test:{listener.getsockname()[1]}/")
    thread.join(5)
    assert seen[0][0] == 0x16
    assert b"ok.test" in seen[0]
    listener.close()


def test_the_system_resolver_gives_addresses():
    assert set(resolve("localhost", 80)) <= {"127.0.0.1", "::1"}


# How much, how long


def endless(head: bytes, block: bytes) -> Iterator[bytes]:
    yield head
    while True:
        yield block


@pytest.mark.parametrize(
    ("head", "block"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", bytes(2**16)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + bytes(2**16) + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", bytes(2**16)),
    ],
)
def test_an_endless_body_is_cut(serve, head, block):
    sent = []

    def answer(path: str) -> Iterator[bytes]:
        for block_sent in endless(head, block):
            yield block_sent
            sent.append(len(block_sent))

    server = serve(answer)
    with pytest.raises(VLMError, match="more than 100000 bytes") as caught:
        fetcher(max_bytes=100_000)(f"http://ok.test:{server.port}/")
    assert caught.value.code == "image_too_large"
    # What the sockets of this machine hold besides.
    assert sum(sent) < 30_000_000


def test_a_body_of_the_limit_comes_back(serve):
    server = serve(http(bytes(1000)))
    assert len(fetcher(max_bytes=1000)(f"http://ok.test:{server.port}/")) == 1000
    with pytest.raises(VLMError):
        fetcher(max_bytes=999)(f"http://ok.test:{server.port}/")


@pytest.mark.parametrize(
    "head",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n"],
    ids=["status", "header", "body", "stated"],
)
def test_a_trickle_is_cut_when_the_time_is_over(serve, head):
    """Each byte comes in time, all together do not."""
    stopped = threading.Event()

    def trickle(path: str) -> Iterator[bytes]:
        yield head
        for _ in range(100):
            yield b"" if stopped.wait(0.02) else b"H"

    server = serve(trickle)
    assert "did not answer in full within 0.3 s" in refusal(fetcher(timeout_s=0.3), f"http://ok.test:{server.port}/")
    stopped.set()


def test_a_silent_name_server_is_not_waited_for_longer():
    released = threading.Event()
    fetch = fetcher(resolve=lambda host, port: released.wait(30) and [], timeout_s=0.2)
    assert "within 0.2 s" in refusal(fetch, "http://ok.test/")
    released.set()


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (http(b"x", "Content-Encoding: gzip"), "compressed"),
        (http(b"x", "Content-Encoding: identity, br"), "compressed"),
        (http(b"x", status="404 Not Found"), "status 404"),
        (http(b"x", status="206 Partial Content"), "status 206"),
        (http(b"x", status="500 127.0.0.1"), "status 500"),
        (http(b"x", length=5), "ended before"),
        (b"", "no proper answer"),
        (b"nonsense\r\n\r\n", "no proper answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "no proper answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10**5 + b"\r\n\r\n", "no proper answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc", "no proper answer"),
        (http(b"", status="302 Found"), "more than 3 times"),
        (http(b"", "Location: http://[", status="302 Found"), "no proper answer"),
    ],
)
def test_answers_that_are_no_image_are_refused(serve, answer, part):
    assert part in refusal(fetcher(), f"http://ok.test:{serve(answer).port}/")


def test_a_dead_server_is_a_refusal():
    listener = socket.create_server((PUBLIC, 0))
    port = listener.getsockname()[1]
    listener.close()
    assert "could not be reached" in refusal(fetcher(), f"http://ok.test:{port}/")


@pytest.mark.parametrize("url", [None, 5, b"http://ok.test/", ["http://ok.test/"]])
def test_what_is_no_text_is_refused(url):
    refusal(fetcher(), url)
