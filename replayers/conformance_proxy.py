"""A proxy that is a bad network: it refuses, stalls, and loses requests and answers as told."""

from __future__ import annotations

import dataclasses
import http.client
import http.server
import threading
import time
from typing import Any


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to one request.

    Attributes
    ----------
    status:
        The server never sees it; this is the answer.
    after:
        Seconds in a header ``Retry-After`` beside the status.
    lost:
        ``request``: the connection ends before the server has it; ``answer``: behind what the
        server has done; ``half``: in the middle of the answer.
    stall:
        Seconds to wait before it is passed on.
    """

    status: int = 0
    after: float | None = None
    lost: str = ""
    stall: float = 0.0


class Proxy:
    """Passes HTTP requests on to a server on ``127.0.0.1``, but for those that `faults` names.

    Attributes
    ----------
    port:
        The server's port.
    faults:
        By the number of the request since the proxy began, from 1.
    url:
        The proxy's own address.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.faults: dict[int, Fault] = {}
        self.requests = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                proxy._answer(self)

            def log_message(self, *_: Any) -> None:
                """Nobody wants to read it."""

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"):
            setattr(Handler, f"do_{method}", Handler._any)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = _body(handler)
        with self._lock:
            self.requests += 1
            fault = self.faults.get(self.requests, Fault())
        time.sleep(fault.stall)
        if fault.lost == "request":
            handler.close_connection = True
            return
        if fault.status:
            more = [] if fault.after is None else [("Retry-After", str(fault.after))]
            _send(handler, fault.status, [*more, ("Content-Type", "application/json")], b"{}")
            return
        try:
            status, headers, content = self._passed_on(handler, body)
        except OSError:
            handler.close_connection = True
            return
        if fault.lost == "answer":
            handler.close_connection = True
            return
        _send(handler, status, headers, content, half=fault.lost == "half")

    def _passed_on(
        self, handler: http.server.BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        onward = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        leave = ("host", "connection", "transfer-encoding", "content-length", "accept-encoding")
        headers = {k: v for k, v in handler.headers.items() if k.lower() not in leave}
        try:
            onward.request(handler.command, handler.path, body, headers)
            answer = onward.getresponse()
            content = answer.read()
            drop = ("connection", "transfer-encoding", "content-length")
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in drop]
            return answer.status, kept, content
        finally:
            onward.close()


def _body(handler: http.server.BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    parts = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(parts)


def _send(
    handler: http.server.BaseHTTPRequestHandler,
    status: int,
    headers: list[tuple[str, str]],
    content: bytes,
    *,
    half: bool = False,
) -> None:
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content[: len(content) // 2] if half else content)
    handler.close_connection = half or handler.close_connection
