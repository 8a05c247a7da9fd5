"""The HTTP server: who may ask, what is asked, how it may fail.

==========  =========================================  ============================================
kind        request                                    answer
==========  =========================================  ============================================
graphql     POST /graphql                              see ``schema.graphql``
file_stream POST /files/ENTITY/PROJECT/RUN/file_stream see ``stream``
upload      PUT  /storage/OWNER/NAME?sig=…             the bytes are kept; ETag is their MD5
download    GET  /storage/OWNER/NAME?sig=…             the bytes
telemetry   POST /sdk/otel/…                           thrown away; answered so that none complain
admin       GET  /_admin/state?entity=&project=&run=   JSON, see ``report``; run= adds its rows
admin       GET, POST, DELETE /_admin/faults           list, add (object or list), lift (?id=)
==========  =========================================  ============================================

All but storage and telemetry needs HTTP Basic ``api:KEY``; storage links are
signed. An answer of 2xx is sent only after what it acknowledges is on the disk.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qs, unquote, urlsplit

from . import graph, history, mutations, queries, stream
from .faults import Fault, FaultBoard, FaultError, parse
from .lines import HISTORY
from .links import PREFIX, Links
from .report import Tally, run_report
from .store import Store
from .wire import WITHHELD, Answer, BodyError, error_answer, json_answer, read_body, write

RESOLVING = (history, mutations, queries)  # imported for the resolvers they register
EXIT_CODE = 137


@dataclass(frozen=True)
class Request:
    """A request, read to its end. ``kind`` is what faults select it by."""

    method: str
    path: str
    query: str
    body: bytes
    kind: str
    base: str
    run: tuple[str, str, str] | None = None
    operation: graph.Operation | None = None
    variables: Any = None
    post: stream.Post | None = None

    @property
    def counted_as(self) -> str:
        """The kind it is counted under: posts with and without rows are one."""
        return "file_stream" if self.run else self.kind


def with_post(request: Request) -> Request:
    """A file_stream request with its body parsed.

    Raises:
        StreamError: the body is not what the protocol says.
    """
    post = stream.parse(request.body)
    rows = any(chunk.file == HISTORY and chunk.lines for chunk in post.chunks)
    return replace(request, post=post, kind="file_stream:rows" if rows else "file_stream")


def stream_target(path: str) -> tuple[str, str, str] | None:
    """The (entity, project, run) of a file_stream path."""
    parts = [unquote(part) for part in path.split("/")]
    if len(parts) == 6 and parts[1] == "files" and parts[5] == "file_stream":
        return parts[2], parts[3], parts[4]
    return None


def classify(method: str, target: str, body: bytes, base: str) -> Request:
    """What a request is."""
    url = urlsplit(target)
    request = Request(method, url.path, url.query, body, f"other:{method} {url.path[:80]}", base)
    if url.path == "/graphql" and method == "POST":
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        value = value if isinstance(value, dict) else {}
        operation = graph.prepare(value.get("query"))
        return replace(
            request,
            kind=f"graphql:{operation.name}",
            operation=operation,
            variables=value.get("variables"),
        )
    if (run := stream_target(url.path)) is not None and method == "POST":
        return replace(request, kind="file_stream", run=run)
    if url.path.startswith(PREFIX) and method in ("PUT", "GET"):
        return replace(request, kind="upload" if method == "PUT" else "download")
    if url.path.startswith("/_admin/"):
        return replace(request, kind="admin")
    if url.path.startswith("/sdk/otel/"):
        return replace(request, kind="telemetry")
    return request


class App:
    """What is behind the handlers: the same for all connections."""

    def __init__(self, store: Store, key: str, entity: str) -> None:
        self.store = store
        self.key = key
        self.entity = entity
        self.board = FaultBoard()
        self.tally = Tally()
        self._expected = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()

    def answer(self, request: Request, authorization: str) -> Answer:
        """Check the key, let a fault strike, act. Never raises."""
        self.tally.request(request.counted_as)
        try:
            answer = self._checked(request, authorization)
        except Exception:
            trace = traceback.format_exc()
            self.tally.internal_error(trace)
            sys.stderr.write(trace)
            answer = error_answer(500, "internal error; see /_admin/state")
        self.tally.answer(answer.status, answer.sent)
        return answer

    def _checked(self, request: Request, authorization: str) -> Answer:
        if request.kind == "telemetry":
            return Answer(200, b"")
        signed = request.kind in ("upload", "download")
        if not signed and not hmac.compare_digest(authorization.encode(), self._expected.encode()):
            return error_answer(401, "wrong or missing API key")
        if request.kind == "admin":
            return self._admin(request)
        if request.run is not None:
            try:
                request = with_post(request)
            except stream.StreamError as error:
                return error_answer(400, str(error))
        fault = self.board.strike(request.kind, request.run[2] if request.run else None)
        return self._act(request) if fault is None else self._fail(fault, request)

    def _fail(self, fault: Fault, request: Request) -> Answer:
        if fault.kind in ("drop", "exit", "stall"):
            return self._interrupted(fault, request)
        if fault.kind == "cut":
            return replace(self._act(request), sent="cut")
        if fault.kind == "store_status":
            self._act(request)
        elif fault.kind == "half_status" and request.post is not None:
            self._stream(request, request.post.half())
        answer = error_answer(fault.status, "a fault that was asked for")
        if fault.retry_after is not None:
            answer.headers["Retry-After"] = f"{fault.retry_after:g}"
        return answer

    def _interrupted(self, fault: Fault, request: Request) -> Answer:
        answer = self._act(request) if fault.when == "after" else None
        if fault.kind == "exit":
            os._exit(EXIT_CODE)
        if fault.kind == "drop":
            return WITHHELD
        time.sleep(fault.seconds)
        return self._act(request) if answer is None else answer

    def _act(self, request: Request) -> Answer:
        if request.operation is not None:
            return self._graphql(request, request.operation)
        if request.post is not None:
            return self._stream(request, request.post)
        if request.kind == "upload":
            return self._upload(request)
        if request.kind == "download":
            return self._download(request)
        return error_answer(404, "not found")

    def _graphql(self, request: Request, operation: graph.Operation) -> Answer:
        if operation.errors:
            self.tally.unknown_operation(operation.name, operation.errors[0].message)
        context = graph.Context(
            self.store, Links(request.base, self.key), self.entity, self.board, request.kind
        )
        answer = graph.execute(operation, request.variables, context)
        if not operation.errors:
            for error in answer.get("errors", []):
                self.tally.graphql_error(operation.name, error["message"])
        return json_answer(answer)

    def _stream(self, request: Request, post: stream.Post) -> Answer:
        path = request.run or ("", "", "")
        run = self.store.runs.find(*path)
        if run is None:
            return error_answer(404, f"run {'/'.join(path)} not found")
        try:
            stream.apply(self.store, run.id, post)
        except LookupError as error:
            return error_answer(404, str(error))
        return json_answer({"exitcode": None, "limits": {}})

    def _upload(self, request: Request) -> Answer:
        place = Links("", self.key).opened(request.path, request.query)
        if place is None:
            return error_answer(403, "the link is not signed")
        md5 = self.store.blobs.put(*place, request.body)
        return Answer(200, b"", headers={"ETag": f'"{md5}"'})

    def _download(self, request: Request) -> Answer:
        place = Links("", self.key).opened(request.path, request.query)
        if place is None:
            return error_answer(403, "the link is not signed")
        data = self.store.blobs.data(*place)
        if data is None:
            return error_answer(404, "not uploaded")
        return Answer(200, data, content_type="application/octet-stream")

    def _admin(self, request: Request) -> Answer:
        given = {name: values[0] for name, values in parse_qs(request.query).items()}
        if request.path == "/_admin/state" and request.method == "GET":
            return self._state(given)
        if request.path == "/_admin/faults":
            return self._faults(request, given)
        return error_answer(404, "not found")

    def _state(self, given: dict[str, str]) -> Answer:
        name = given.get("run")
        runs = self.store.runs.select(given.get("entity"), given.get("project"), name)
        with_rows = name is not None and given.get("rows") != "0"
        reports = [run_report(self.store, run, with_rows=with_rows) for run in runs]
        text = json.dumps({**self.tally.listed(), "faults": self.board.listed(), "runs": reports})
        return Answer(200, text.encode())  # summaries and configs may hold NaN

    def _faults(self, request: Request, given: dict[str, str]) -> Answer:
        if request.method == "DELETE":
            number = given.get("id")
            if number is not None and not number.isdecimal():
                return error_answer(400, "id is not a number")
            return json_answer({"lifted": self.board.clear(int(number) if number else None)})
        if request.method == "GET":
            return json_answer(self.board.listed())
        try:
            value = json.loads(request.body)
            wanted = [parse(one) for one in (value if isinstance(value, list) else [value])]
        except (FaultError, ValueError, TypeError) as error:
            return error_answer(400, str(error))
        return json_answer({"ids": [self.board.add(fault) for fault in wanted]})


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "eventlog-wandb-loopback"
    disable_nagle_algorithm = True
    server: Server

    def serve(self) -> None:
        """Read a request, answer it."""
        try:
            body = read_body(self.headers, cast(BinaryIO, self.rfile))
        except BodyError as error:
            self.close_connection = True
            write(self, error_answer(error.status, str(error)))
            return
        base = f"http://{self.headers.get('Host') or self.server.host}"
        request = classify(self.command, self.path, body, base)
        answer = self.server.app.answer(request, self.headers.get("Authorization", ""))
        try:
            write(self, answer)
        except OSError:
            self.close_connection = True  # the client has gone; what was stored stays stored

    def log_message(self, *_: object) -> None:
        """Silent: the state report counts every request."""


for _method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
    setattr(Handler, f"do_{_method}", Handler.serve)  # where http.server looks


class Server(ThreadingHTTPServer):
    """Listens on the loopback only."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, app: App) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.app = app
        self.host = f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A connection that breaks is a client's matter; anything else is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            self.app.tally.internal_error(traceback.format_exc())
            traceback.print_exc()
