"""The command line: ``python tools/wandb_server --port 0 --data DIR --key KEY --port-file F``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from .app import App, Server
from .store import Store

SHORTEST_KEY = 40


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """End with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = Parser(
        prog="wandb_server", description="A W&B server on the loopback, for tests and demos."
    )
    made.add_argument("--port", type=_port, default=0, help="0 (default) takes a free one")
    made.add_argument("--data", type=Path, required=True, help="folder that keeps everything")
    made.add_argument(
        "--key", default=os.environ.get("WANDB_API_KEY"),
        help=f"the API key, {SHORTEST_KEY} characters or more (default: $WANDB_API_KEY)",
    )  # fmt: skip
    made.add_argument("--entity", default="lab", help="entity of whoever names none")
    made.add_argument("--port-file", type=Path, help="written with the port once it listens")
    return made


def _write_whole(path: Path, text: str) -> None:
    """Write so that a reader sees all or nothing."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(text, encoding="ascii")
    draft.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    made = parser()
    options = made.parse_args(arguments)
    if not options.key or len(options.key) < SHORTEST_KEY:
        made.error(f"--key needs {SHORTEST_KEY} characters or more, as the client demands")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        store = Store(options.data)
    except OSError as error:
        made.error(f"--data {options.data}: {error}")
    try:
        server = Server(options.port, App(store, options.key, options.entity))
    except OSError as error:
        made.error(f"--port {options.port}: {error}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    if options.port_file is not None:
        _write_whole(options.port_file, str(server.server_address[1]))
    sys.stdout.write(f"http://{server.host}\n")
    sys.stdout.flush()
    stop.wait()
    server.shutdown()
    server.server_close()
    store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
