"""A web server on 127.0.0.1 that fails as it is told to, one behaviour a request."""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: "Server"
    timeout = 20  # s: a client that neither reads nor hangs up must not stop the tests

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.requests.append((self.path, self.headers.get("Range")))
            self.server.passwords.append(self.headers.get("Authorization"))
            todo = self.server.behaviours
            behaviour = todo.pop(0) if len(todo) > 1 else todo[0]
        behaviour(self)

    @property
    def content(self) -> bytes | None:
        """Of the file asked for; None if there is none."""
        source = self.server.source
        if isinstance(source, bytes):
            return source
        path = source / self.path.partition("?")[0].lstrip("/")
        return path.read_bytes() if path.is_file() else None

    def start(self, status: int, length: int | None, span: str | None = None) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Plays its behaviours in turn, the last one for ever, and notes (path, Range) of requests."""

    daemon_threads = False  # server_close waits for them
    request_queue_size = 16

    def __init__(self, source: bytes | Path, behaviours: tuple[Behaviour, ...]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.source, self.behaviours = source, list(behaviours)
        self.lock = threading.Lock()
        self.requests: list[tuple[str, str | None]] = []
        self.passwords: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is part of the tests


@contextlib.contextmanager
def serve(source: bytes | Path, *behaviours: Behaviour) -> Iterator[Server]:
    """A server of one file, whatever is asked for, or of a folder's files."""
    server = Server(source, behaviours or (whole,))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def whole(handler: Handler) -> None:
    """The file, or the range asked for."""
    content = handler.content
    if content is None:
        status(404)(handler)
        return
    span = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if span is None:
        handler.start(200, len(content))
        handler.wfile.write(content)
        return
    first = int(span[1])
    handler.start(206, len(content) - first, f"bytes {first}-{len(content) - 1}/{len(content)}")
    handler.wfile.write(content[first:])


def without_ranges(handler: Handler) -> None:
    """The file from its first byte, whatever is asked for."""
    handler.start(200, len(handler.content))
    handler.wfile.write(handler.content)


def wrong(handler: Handler) -> None:
    """Another file of the same length."""
    handler.start(200, len(handler.content))
    handler.wfile.write(bytes(len(handler.content)))


def status(code: int) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.start(code, 5)
        handler.wfile.write(b"sorry")

    return behave


def truncated(sent: int, say_length: bool = True) -> Behaviour:
    """The first bytes and an orderly end, with or without a Content-Length that promised more."""

    def behave(handler: Handler) -> None:
        content = handler.content
        handler.start(200, len(content) if say_length else None)
        handler.wfile.write(content[:sent])

    return behave


def reset(sent: int | None) -> Behaviour:
    """The first bytes, then a TCP reset; None: not even an answer."""

    def behave(handler: Handler) -> None:
        if sent is not None:
            handler.start(200, len(handler.content))
            handler.wfile.write(handler.content[:sent])
            handler.wfile.flush()
        linger = struct.pack("ii", 1, 0)  # on, 0 s: close sends RST
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        # The handler's two file objects hold the socket open.
        handler.rfile.close()
        handler.wfile.close()
        handler.connection.close()
        handler.close_connection = True

    return behave


def stalled(sent: int) -> Behaviour:
    """The first bytes, then silence until the client hangs up."""

    def behave(handler: Handler) -> None:
        if sent:
            handler.start(200, len(handler.content))
            handler.wfile.write(handler.content[:sent])
        with contextlib.suppress(OSError):
            handler.connection.recv(1)
        handler.close_connection = True

    return behave


def endless(handler: Handler) -> None:
    """Bytes until the client hangs up."""
    handler.start(200, None)
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(bytes(2**16))


def misplaced(handler: Handler) -> None:
    """206 with another range than the one asked for."""
    content = handler.content
    handler.start(206, len(content) - 7, f"bytes 7-{len(content) - 1}/{len(content)}")
    handler.wfile.write(content[7:])


def redirect(base: str) -> Behaviour:
    """To the same path under another base URL, with a signature."""

    def behave(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{base}{handler.path}?X-Signature=sealed")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return behave
