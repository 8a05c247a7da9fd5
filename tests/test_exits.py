"""However a process ends, and whatever else runs in it: what log() returned for is there, nothing
hangs, and nothing of ours breaks the end of the interpreter.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from eventlog.audit import FAILURES, verify
from eventlog.event import METRIC
from eventlog.reader import WriterReader, listing

ROOT = Path(__file__).resolve().parents[1]

#: Each program logs through `log`, which tells of what is acknowledged on standard output.
BEGIN = """
    import atexit, os, signal, sys, threading, time
    import eventlog
    def log(x, tell=1):
        if run.log({"x": x, "t": str(x)}) is not None:
            os.write(tell, b"%d\\n" % x)
    def init():
        global run
        run = eventlog.init("p", "n", id="x", dir=sys.argv[1], quiet=True)
"""
ENDS = {
    "nothing": ("init(); [log(n) for n in range(9)]", 0),
    "exit": ("init(); [log(n) for n in range(9)]; sys.exit(3)", 3),
    "an error": ("init(); [log(n) for n in range(9)]; 1 / 0", 1),
    "no goodbye": ("init(); [log(n) for n in range(9)]; os._exit(4)", 4),
    "finish": ("init(); [log(n) for n in range(9)]; run.finish()", 0),
    "finish at exit": ("init(); atexit.register(run.finish); [log(n) for n in range(9)]", 0),
    "finish at exit, after ours": (
        "atexit.register(lambda: run.finish()); init(); [log(n) for n in range(9)]",
        0,
    ),
    "log at exit": ("init(); atexit.register(log, 1); log(0)", 0),
    "log at exit, after ours": ("atexit.register(lambda: log(1)); init(); log(0)", 0),
    "a destructor that logs": (
        """
        init()
        class Late:
            def __del__(self):
                log(1)
        late = Late()
        late.me = late
        log(0)
        """,
        0,
    ),
    "daemon threads that log": (
        """
        init()
        begun = threading.Barrier(5)
        def work(k):
            log(k * 10**6)
            begun.wait()
            n = 1
            while True:
                log(k * 10**6 + n)
                n += 1
        for k in range(1, 5):
            threading.Thread(target=work, args=(k,), daemon=True).start()
        begun.wait()
        time.sleep(0.2)
        """,
        0,
    ),
    "threads that outlive the main one": (
        """
        init()
        def work(k):
            for n in range(300):
                log(k * 10**6 + n)
        for k in range(1, 5):
            threading.Thread(target=work, args=(k,)).start()
        """,
        0,
    ),
    "finish under threads that log": (
        """
        init()
        begun = threading.Barrier(5)
        def work(k):
            log(k * 10**6)
            begun.wait()
            for n in range(1, 2000):
                log(k * 10**6 + n)
        threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
        [t.start() for t in threads]
        begun.wait()
        time.sleep(0.02)
        run.finish()
        [t.join() for t in threads]
        """,
        0,
    ),
    "SIGTERM": ("init(); [log(n) for n in range(9)]; os.kill(os.getpid(), signal.SIGTERM)", -15),
    "SIGTERM and a grace": (
        """
        def last(number, frame):
            log(10**6)
            run.finish(1)
            os._exit(9)
        signal.signal(signal.SIGTERM, last)
        init()
        log(0)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        for n in range(1, 10**6):
            log(n)
        """,
        9,
    ),
    "SIGTERM that raises": (
        """
        def last(number, frame):
            raise SystemExit(7)
        signal.signal(signal.SIGTERM, last)
        init()
        log(0)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        for n in range(1, 10**6):
            log(n)
        """,
        7,
    ),
    "Ctrl-C": (
        """
        init()
        log(0)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        for n in range(1, 10**6):
            log(n)
        """,
        -2,
    ),
    "a child that outlives its parent": (
        """
        init()
        log(0)
        if os.fork() == 0:
            time.sleep(0.2)
            [log(10**6 + n) for n in range(9)]
        else:
            log(1)
        """,
        0,
    ),
    "a child that ends first": (
        """
        init()
        log(0)
        if os.fork() == 0:
            [log(10**6 + n) for n in range(9)]
            os._exit(0)
        os.wait()
        log(1)
        """,
        0,
    ),
    "a child of a child, in the middle of commits": (
        """
        init()
        for n in range(3):
            log(n * 10**6)
            if os.fork():
                break
            log(n * 10**6 + 1)
        try:
            os.wait()
        except ChildProcessError:
            pass
        """,
        0,
    ),
    "a pool of workers": (
        """
        import concurrent.futures, multiprocessing
        init()
        log(0)
        with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
            list(pool.map(log, range(10**6, 10**6 + 50)))
        log(1)
        """,
        0,
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_whatever_the_end_nothing_acknowledged_is_lost(name, tmp_path):
    code, expected = ENDS[name]
    program = textwrap.dedent(BEGIN) + textwrap.dedent(code)
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=120)
    assert done.returncode == expected, done.stderr
    assert b"Exception ignored" not in done.stderr, done.stderr
    acknowledged = [int(x) for x in done.stdout.split()]
    folder = str(tmp_path / "project=p" / "run=x")
    found = []
    for writer in listing(folder).writers:
        events = list(WriterReader(folder, writer).events())
        assert [e.seq for e in events] == list(range(len(events)))
        found += [e.rows[0].value for e in events if e.rows[0].kind == METRIC]
    assert len(acknowledged) == len(set(acknowledged)) > 0
    assert set(acknowledged) <= set(found)
    assert len(found) == len(set(found))
    assert verify(folder).verdict not in FAILURES


def test_thousands_of_signals_lose_and_double_nothing(tmp_path, repeats):
    signals = repeats(2_000, 10_000)
    program = textwrap.dedent(BEGIN) + textwrap.dedent(
        """
        handled, over = 0, False
        def handler(number, frame):
            global handled
            if over:  # it came when the timer was stopped, and would start it again
                return
            handled += 1
            run.log({"x": -handled})
            signal.setitimer(signal.ITIMER_REAL, 1e-4)  # the next one: training gets its turn
        signal.signal(signal.SIGALRM, handler)
        init()
        signal.setitimer(signal.ITIMER_REAL, 1e-4)
        n = 0
        while handled < SIGNALS:
            assert run.log({"x": n}) is not None
            n += 1
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        run.finish()
        print(n, handled)
        """
    )
    program = program.replace("SIGNALS", str(signals))
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    logged, handled = map(int, done.stdout.split())
    folder = str(tmp_path / "project=p" / "run=x")
    (writer,) = listing(folder).writers
    events = list(WriterReader(folder, writer).events())
    found = [e.rows[0].value for e in events if e.rows[0].kind == METRIC]
    assert [x for x in found if x >= 0] == list(range(logged))
    assert sorted(-x for x in found if x < 0) == list(range(1, handled + 1))
    assert handled >= signals


#: Fails the N-th allocation of a log() for every N, until it fails no more.
NO_MEMORY = """
    import _testcapi
    init()
    for n in range(3):
        log(n)
    number, well = 0, 0
    while well < 50:
        number += 1
        x, kept = number + 10, None
        data = {"x": x} if number % 2 else {f"never{x}": {"a": 1.0, "t": "text"}, "x": x}
        _testcapi.set_nomemory(number % 1500 + 1, number % 1500 + 2)
        try:
            kept = run.log(data)
        except MemoryError:
            pass
        finally:
            _testcapi.remove_mem_hooks()
        well += kept is not None and number > 1500
        if kept is not None:
            os.write(1, b"%d\\n" % x)
    run.finish()
"""


def test_memory_that_ends_at_any_allocation_costs_that_call_alone(tmp_path):
    pytest.importorskip("_testcapi")
    program = textwrap.dedent(BEGIN) + textwrap.dedent(NO_MEMORY)
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    told = [int(x) for x in done.stdout.split()]
    folder = str(tmp_path / "project=p" / "run=x")
    (writer,) = listing(folder).writers
    events = list(WriterReader(folder, writer).events())
    assert [e.seq for e in events] == list(range(len(events)))
    found = [e.values()["x"] for e in events if "x" in e.values()]  # or what was kept of a call
    assert set(told) <= set(found)
    assert found == sorted(found)
    assert len(set(found)) == len(found)
    assert len(told) > 1000


def test_a_value_too_large_for_memory_costs_that_call_alone(tmp_path):
    program = textwrap.dedent(BEGIN) + textwrap.dedent(
        """
        import resource
        init()
        text = "x" * (300 * 2**20)
        log(0)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, used + 200 * 2**20))
        assert run.log({"x": 1, "big": text}) is None
        log(2)
        log(3)
        run.finish()
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = str(tmp_path / "project=p" / "run=x")
    (writer,) = listing(folder).writers
    events = list(WriterReader(folder, writer).events())
    found = [e.rows[0].value for e in events if e.rows[0].kind == METRIC]
    assert found in ([0, 2, 3], [0, 1, 2, 3])  # the rest of that call may be kept
    assert b"Memory" in done.stderr
