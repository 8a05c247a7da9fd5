"""HTTP bodies in and out, honest and broken.

Request bodies come with a length or in chunks, plain or gzipped. Answers are written whole, cut in
the middle of their body, or not at all: the last two end the connection, the last by a reset.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import zlib
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any, BinaryIO

MAX_BODY = 2**30


class BodyError(ValueError):
    """A body that cannot be read; ``status`` is the answer to give."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """What goes back. ``sent`` is ``whole``, ``cut`` or ``none``."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    sent: str = "whole"


WITHHELD = Answer(0, b"", sent="none")


def json_answer(value: Any, status: int = 200) -> Answer:
    """An answer in strict JSON."""
    return Answer(status, json.dumps(value, allow_nan=False).encode())


def error_answer(status: int, message: str) -> Answer:
    """An answer that says what went wrong, in the form the client looks for."""
    return json_answer({"errors": [{"message": message}]}, status)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise BodyError(400, "the body ended early")
    return data


def _chunked(stream: BinaryIO) -> bytes:
    parts: list[bytes] = []
    total = 0
    while True:
        head = stream.readline(1024).split(b";")[0].strip()
        try:
            size = int(head, 16)
        except ValueError as error:
            raise BodyError(400, "a chunk has no size") from error
        if size < 0 or (total := total + size) > MAX_BODY:
            raise BodyError(413, "the body is too large")
        if size == 0:
            break
        parts.append(_exactly(stream, size))
        _exactly(stream, 2)
    while stream.readline(65536).strip():  # trailers
        pass
    return b"".join(parts)


def _gunzip(data: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        plain = inflater.decompress(data, MAX_BODY)
    except zlib.error as error:
        raise BodyError(400, f"the body is not gzip: {error}") from error
    if not inflater.eof:
        raise BodyError(400, "the gzipped body ended early, or is too large")
    return plain


def read_body(headers: Message, stream: BinaryIO) -> bytes:
    """The body of a request, decoded.

    Raises:
        BodyError: broken, too large, or in an encoding that is not known.
    """
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        data = _chunked(stream)
    else:
        length = headers.get("Content-Length", "0")
        if not length.isdecimal():
            raise BodyError(400, "Content-Length is not a number")
        if int(length) > MAX_BODY:
            raise BodyError(413, "the body is too large")
        data = _exactly(stream, int(length))
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding == "gzip":
        return _gunzip(data)
    if encoding != "identity":
        raise BodyError(415, f"content encoding {encoding} is not known")
    return data


def reset(connection: socket.socket) -> None:
    """End a connection so that its peer sees a reset, not an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())  # detached: whoever closes it later would say goodbye first


def write(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    """Send an answer the way it says."""
    if answer.sent == "none":
        handler.close_connection = True
        reset(handler.connection)
        return
    handler.send_response(answer.status)
    handler.send_header("Content-Type", answer.content_type)
    handler.send_header("Content-Length", str(len(answer.body)))
    for name, value in answer.headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    body = answer.body
    if answer.sent == "cut":
        handler.close_connection = True
        body = body[: len(body) // 2]
    if handler.command != "HEAD":
        handler.wfile.write(body)
