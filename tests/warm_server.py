"""The process that `tests/warm.py` forks from; run by its text (``python -c``), so that this folder
does not lie on the path of its children.

usage: SOCKET SESSION MODULE ...

It listens at SOCKET, imports the modules (``module!``: imports them and forgets that package
again, with what it needs left loaded, for one that reads the environment when it is imported), and
forks a child for each order, a line of JSON with which come the files to be its standard input,
output and error output. Whoever gave the order is told the child's number and, when it has ended,
its exit code. It ends with the process SESSION.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
import types
import weakref
from typing import Any


def load(names: list[str]) -> None:
    """Import what children shall find imported; what is not installed is theirs to miss."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name.rstrip("!"))
    for top in {name.partition(".")[0] for name in names if name.endswith("!")}:
        for module in [m for m in sys.modules if m.partition(".")[0] == top]:
            del sys.modules[module]


def program(code: str) -> int:
    """Run code as ``python -c`` does, to the end of the interpreter; return the exit code."""
    # Temporary folders of modules that the server imported are not this process's to remove; wandb
    # removes its one when a run ends, and so gets another.
    for inherited in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        inherited.atexit = False
    if media := sys.modules.get("wandb.sdk.data_types._private"):
        media.MEDIA_TMP.__init__("wandb-media")
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    result = 0
    try:
        exec(code, main.__dict__)
    except SystemExit as end:
        result = end.code if isinstance(end.code, int) else int(end.code is not None)
        if result and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        result = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return result


def child(order: dict[str, Any], files: list[int], ours: list[Any]) -> None:
    """Do what was ordered, in the fork, and end."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for one in ours:
        one.close()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    code = 1
    try:
        sys.argv = ["eventlog" if order["call"] else "-c", *order["arguments"]]
        if order["call"]:
            module, name = order["call"].split(":")
            code = getattr(importlib.import_module(module), name)(order["arguments"])
        else:
            code = program(order["code"])
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


class Client:
    """One who gives orders."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.text = b""
        self.files: list[int] = []

    def tell(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self.connection.sendall(text.encode())

    def read(self) -> bool:
        """Read on; return whether the client is still there."""
        size = array.array("i").itemsize
        data, ancillary, _, _ = self.connection.recvmsg(1 << 16, socket.CMSG_LEN(3 * size))
        for _, _, sent in ancillary:
            files = array.array("i")
            files.frombytes(sent[: len(sent) - len(sent) % size])
            self.files += files
        self.text += data
        return bool(data)


def serve(path: str, session: int, names: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(16)
    sys.path[0] = os.getcwd()
    load(names)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ended, wake = os.pipe()
    for end in (ended, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    clients: dict[int, Client] = {}
    owners: dict[int, Client] = {}
    while os.path.exists(f"/proc/{session}") and os.path.exists(path):
        ready, _, _ = select.select([listener, ended, *clients], [], [], 1.0)
        if ended in ready:
            os.read(ended, 4096)
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if not pid:
                    break
                owners.pop(pid).tell(f"{pid} {os.waitstatus_to_exitcode(status)}\n")
        if listener in ready:
            connection, _ = listener.accept()
            clients[connection.fileno()] = Client(connection)
        for number in [n for n in ready if n in clients]:
            client = clients[number]
            if not client.read():
                clients.pop(number).connection.close()
            elif client.text.endswith(b"\n"):
                order, files = json.loads(client.text), client.files
                client.text, client.files = b"", []
                pid = os.fork()
                if not pid:
                    child(order, files, [listener, *(c.connection for c in clients.values())])
                os.setpgid(pid, pid)
                owners[pid] = client
                for file in files:
                    os.close(file)
                client.tell(f"started {pid}\n")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
