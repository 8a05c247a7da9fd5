"""The writer: acked <= recovered <= appended, whatever the disk, the signals and the forks do."""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from eventlog.backlog import Pending
from eventlog.errors import JournalError, ValueRefused
from eventlog.event import make_rows
from eventlog.journal import LEVELS, Health, Options, Writer
from eventlog.reader import WriterReader, listing
from eventlog.segment import SegmentReader
from tests.helpers import Failing, read, values_of, writer

ROOT = Path(__file__).resolve().parents[1]
ENOSPC = OSError(errno.ENOSPC, "No space left on device")
EIO = OSError(errno.EIO, "Input/output error")


def log(one, *numbers):
    return [one.append("metric", {"x": n, "t": f"t{n}"}, n) for n in numbers]


def verdicts(folder):
    words = {}
    for path in sorted(Path(folder).glob("*.arrows")):
        with SegmentReader(str(path)) as reader:
            list(reader.spans())
            words[path.name.partition("-")[2]] = reader.verdict.word
    return words


def child(code, *arguments, **options):
    """Start Python with this code."""
    program = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(program, cwd=ROOT, **options)


# ------------------------------------------------------------------------------ good days


@pytest.mark.parametrize("level", LEVELS)
def test_what_was_logged_is_read_in_order(level, tmp_path):
    one = writer(tmp_path, durability=level)
    seqs = log(one, *range(50))
    for n in range(50, 100):  # the short way, which has no text
        one.append("metric", {"x": n, "y": n / 3}, None)
    one.close()
    assert seqs == list(range(50))
    assert values_of(read(tmp_path)) == list(range(100))
    assert set(verdicts(tmp_path).values()) == {"whole"}
    assert one.health().state == "ok"
    assert one.health().durable == 100


def test_one_event_is_one_write(tmp_path):
    files = Failing(operations=["write"])
    one = writer(tmp_path, files=files)
    log(one, 0)
    before = len(files.calls)
    log(one, *range(1, 11))
    for n in range(10):
        one.append("metric", {"x": n}, n)
    assert len(files.calls) - before == 20


def test_an_event_is_with_the_system_when_append_returns(tmp_path):
    one = writer(tmp_path, durability="os")
    for n in range(5):
        log(one, n)
        assert values_of(read(tmp_path)) == list(range(n + 1))


def test_level_sync_has_synced_when_append_returns(tmp_path):
    files = Failing(operations=["write", "sync", "sync_folder"])
    one = writer(tmp_path, files=files, durability="sync")
    for n in range(3):
        log(one, n)
        assert files.calls[-1].startswith("sync")
        assert one.health().durable == n + 1


def test_level_os_never_syncs_until_it_is_asked(tmp_path):
    files = Failing(operations=["sync"])
    one = writer(tmp_path, files=files, durability="os", segment_bytes=5000)
    log(one, *range(40))
    assert not files.calls
    one.commit()
    assert len(files.calls) == len(listing(str(tmp_path)).segments[one.name])
    assert one.health().durable == 40


def test_level_group_syncs_soon_by_itself(tmp_path):
    one = writer(tmp_path, group_seconds=0.02)
    log(one, *range(3))
    deadline = time.monotonic() + 120
    while one.health().durable < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert one.health().durable == 3


def test_level_group_syncs_at_once_when_much_is_not_durable(tmp_path):
    one = writer(tmp_path, group_seconds=3600.0)
    log(one, 0)
    for n in range(1, 12):
        one.append("metric", {"x": n, "t": "x" * 900_000}, n)
    deadline = time.monotonic() + 120
    while one.health().durable < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert one.health().durable >= 9


def test_level_memory_writes_when_its_buffer_is_full_and_when_asked(tmp_path):
    one = writer(tmp_path, durability="memory")
    log(one, 0)
    assert read(tmp_path) == []
    one.commit()
    assert values_of(read(tmp_path)) == [0]
    one.append("metric", {"x": 1, "big": b"z" * 2**20}, 1)
    assert values_of(read(tmp_path)) == [0, 1]


def test_frames_carry_the_durable_mark_of_their_time(tmp_path):
    one = writer(tmp_path)
    log(one, *range(3))
    one.commit()
    log(one, 3)
    with SegmentReader(str(tmp_path / f"{one.name}-0.arrows")) as reader:
        list(reader.spans())
    assert reader.verdict.durable == 3


@pytest.mark.parametrize("level", LEVELS)
def test_a_full_segment_is_ended_and_followed(level, tmp_path):
    one = writer(tmp_path, durability=level, segment_bytes=20_000)
    log(one, *range(2000))
    one.close()
    words = verdicts(tmp_path)
    assert len(words) >= 2
    assert set(words.values()) == {"whole"}
    assert values_of(read(tmp_path)) == list(range(2000))


def test_close_is_idempotent_and_nothing_is_appended_after_it(tmp_path):
    one = writer(tmp_path)
    log(one, 0)
    one.append("metric", {"y": 1.0}, 0)
    one.close()
    one.close()
    for values in ({"x": 1, "t": "a"}, {"y": 1.0}):
        with pytest.raises(JournalError, match="finished"):
            one.append("metric", values, 0)
    assert len(read(tmp_path)) == 2


def test_an_event_that_no_frame_can_hold_is_refused_and_the_next_one_is_kept(tmp_path):
    one = writer(tmp_path)
    rows, _ = make_rows("metric", [(f"k{n}", b"z" * 2**20) for n in range(17)])
    with pytest.raises(ValueRefused, match="larger than"):
        one.append_rows(rows, 0)
    assert log(one, 1) == [0]


def test_a_large_value_becomes_a_blob_that_is_durable_before_its_event(tmp_path):
    files = Failing(operations=["sync", "replace"])
    one = writer(tmp_path, files=files)
    one.append("metric", {"x": "a" * (2**20 + 1)}, 0)
    one.commit()
    assert files.calls == ["replace", "sync", "sync"]  # the blob, then the segment
    (row,) = read(tmp_path)[0].rows
    assert row.type == "blob"
    assert row.value["type"] == "str"


def test_an_integer_that_outgrows_a_float64_leaves_the_short_way(tmp_path):
    one = writer(tmp_path)
    numbers = [1, 2, 2**53, 2**53 + 1, 2**64 + 1, 3]
    for n in numbers:
        one.append("metric", {"x": n}, None)
    one.close()
    assert values_of(read(tmp_path)) == numbers


# ------------------------------------------------------------------------------ bad days


def recovered(folder, one):
    """Return what is read of one writer, and check that seqs have no gap and no double."""
    events = read(folder, one.name) if one.name in listing(str(folder)).writers else []
    assert [e.seq for e in events] == list(range(len(events)))
    return values_of(events)


@pytest.mark.parametrize("level", ["os", "group", "sync"])
@pytest.mark.parametrize("error", [ENOSPC, EIO])
@pytest.mark.parametrize("short", [None, 100, pytest.param(0, marks=pytest.mark.long)])
def test_a_write_that_fails_at_any_index_loses_nothing(level, error, short, tmp_path):
    """Short first, then the error, as a disk does that fills up."""
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        state = {"short": short}

        def fails(call, name, n=n, state=state):
            if call == n and state["short"] is not None:
                return state["short"]
            return error if call == n + (state["short"] is not None) else None

        files = Failing(fails, ["write"])
        one = writer(folder, files=files, durability=level)
        acked = []
        for x in range(8):
            seq = one.append("metric", {"x": x, "t": str(x)}, x)
            if seq is not None:
                acked.append(x)
            found = recovered(folder, one)
            assert set(acked) <= set(found) <= set(range(x + 1)), n
            assert found == sorted(found), n
        one.close()
        assert recovered(folder, one) == list(range(8)), n
        assert one.health().waiting == one.health().dropped == 0
        if len(files.calls) < n:
            return


@pytest.mark.parametrize("level", ["group", "sync"])
def test_a_sync_that_fails_at_any_index_poisons_its_segment_and_the_tail_is_written_again(
    level, tmp_path
):
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        files = Failing(lambda call, name, n=n: EIO if call == n else None, ["sync", "sync_folder"])
        one = writer(folder, files=files, durability=level)
        failed = 0
        for x in range(6):
            log(one, x)
            if x % 2 and level == "group":
                try:
                    one.commit()
                except JournalError as error:
                    failed += 1
                    assert "durable" in str(error)
                    assert one.health().state == "degraded"
                    assert one.health().durable < x + 1
                else:
                    assert one.health().durable == x + 1
            assert recovered(folder, one) == list(range(x + 1))
        try:
            one.commit()
        except JournalError:
            one.commit()
        assert one.health().durable == 6
        assert one.health().state == "ok"
        one.close()
        assert recovered(folder, one) == list(range(6))
        segments = listing(str(folder)).segments[one.name]
        if len(files.calls) < n:
            assert not failed
            assert len(segments) == 1
            return
        fell_in_close = "sync" in files.calls and len(segments) == 1
        assert len(segments) == 2 or fell_in_close


def test_a_disk_that_never_syncs_is_not_filled_with_copies(tmp_path):
    files = Failing(lambda call, name: EIO, ["sync"])
    one = writer(tmp_path, files=files, durability="sync")
    log(one, *range(30))
    for _ in range(5):
        with pytest.raises(JournalError):
            one.commit()
    assert one.health().durable == 0
    assert one.health().state == "degraded"
    assert len(files.calls) < 12  # it waits longer and longer before it tries again
    assert len(listing(str(tmp_path)).segments[one.name]) <= 2
    assert recovered(tmp_path, one) == list(range(30))


def test_a_tail_too_large_for_memory_is_never_called_durable(tmp_path):
    files = Failing(lambda call, name: EIO if call == 1 else None, ["sync"])
    one = writer(tmp_path, files=files, memory_bytes=5000)
    log(one, *range(50))
    for _ in range(3):
        with pytest.raises(JournalError, match="durable"):
            one.commit()
    assert one.health().durable == 0
    assert recovered(tmp_path, one) == list(range(50))


def test_events_in_a_segment_that_broke_are_not_called_durable_before_it_is_synced(tmp_path):
    synced = []

    class Watching(Failing):
        def sync(self, fd):
            synced.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("-")[2])
            super().sync(fd)

    files = Watching(lambda call, name: EIO if call == 4 else None, ["write"])
    one = writer(tmp_path, files=files)
    log(one, *range(6))
    one.commit()
    assert synced == ["0.arrows", "1.arrows"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "ESTALE", "EIO"])
def test_a_full_or_failing_disk_is_waited_for_and_nothing_is_lost_or_reordered(
    level, error, tmp_path
):
    full = False
    number = getattr(errno, error)
    failure = OSError(number, os.strerror(number))
    files = Failing(lambda call, name: failure if full else None, ["write", "create"])
    said = []
    one = Writer(
        str(tmp_path),
        "r",
        {},
        options=Options(level, group_seconds=60),
        files=files,
        warn=said.append,
    )
    log(one, 0, 1)
    full = True
    big = {"x": 2, "big": b"z" * 2**20}
    one.append("metric", big, 2)
    log(one, *range(3, 20))
    health = one.health()
    assert health.state == "degraded"
    assert os.strerror(number) in health.error
    with pytest.raises(JournalError):
        one.commit()
    assert one.health().durable <= 2
    assert len([text for text in said if "training goes on" in text]) == 1
    full = False
    one.commit()
    assert one.health() == type(health)("ok", 20, 20, 0, 0, None)
    log(one, 20)
    one.close()
    assert recovered(tmp_path, one) == list(range(21))


def test_the_backlog_is_bounded_and_what_it_drops_is_recorded_as_a_gap(tmp_path):
    full = True
    files = Failing(lambda call, name: ENOSPC if full else None, ["write"])
    one = writer(tmp_path, files=files, memory_bytes=4000)
    log(one, *range(100))
    health = one.health()
    assert 0 < health.waiting <= 10
    assert health.dropped == 100 - health.waiting
    full = False
    one.commit()
    log(one, 100)
    one.close()
    events = read(tmp_path)
    assert values_of(events) == [*range(health.waiting), 100]
    (gap,) = [e for e in events if e.rows[0].kind == "gap"]
    fields = gap.values("gap")
    assert (fields["events"], fields["first_step"], fields["last_step"]) == (
        health.dropped,
        health.waiting,
        99,
    )


def test_keys_count_for_the_bound_of_the_backlog(tmp_path):
    files = Failing(lambda call, name: ENOSPC, ["write"])
    one = writer(tmp_path, files=files, memory_bytes=100_000)
    for n in range(50):
        one.append("metric", {f"{n}" + "k" * 10_000: 1.0}, n)
    assert one.health().waiting < 10
    assert one.health().dropped > 40


def test_a_loss_is_recorded_even_if_nothing_waits(tmp_path):
    full = True
    files = Failing(lambda call, name: ENOSPC if full else None, ["write"])
    one = writer(tmp_path, files=files, memory_bytes=10)
    log(one, 0)
    full = False
    one.commit()
    assert [e.rows[0].kind for e in read(tmp_path)] == ["gap"]


def test_a_full_disk_is_not_littered_with_empty_segments(tmp_path, monkeypatch):
    monkeypatch.setattr("eventlog.chain.RETRY_SECONDS", 0.0)
    files = Failing(lambda call, name: ENOSPC, ["write"])
    one = writer(tmp_path, files=files)
    log(one, *range(50))
    assert not list(tmp_path.iterdir())


def test_a_full_inode_table_does_not_stop_the_segment_that_is_there(tmp_path):
    full = False
    files = Failing(lambda call, name: ENOSPC if full else None, ["create"])
    one = writer(tmp_path, files=files, segment_bytes=3000)
    log(one, 0)
    full = True
    assert log(one, *range(1, 30)) == list(range(1, 30))
    assert one.health().state == "ok"
    assert len(listing(str(tmp_path)).segments[one.name]) == 1
    full = False
    one.commit()
    log(one, *range(30, 40))
    one.close()
    assert recovered(tmp_path, one) == list(range(40))
    assert set(verdicts(tmp_path).values()) == {"whole"}
    assert len(verdicts(tmp_path)) > 1


def test_a_successor_that_was_seen_ends_a_segment_even_if_it_could_not_be_begun(tmp_path):
    """Who seals may have seen the new file and taken the old segment for closed."""
    full = False
    files = Failing(lambda call, name: ENOSPC if full else None, ["write"])
    one = writer(tmp_path, files=files, segment_bytes=2000)
    log(one, 0, 1)
    full = True
    log(one, 2)
    size = (tmp_path / f"{one.name}-0.arrows").stat().st_size
    full = False
    one.commit()
    log(one, 3)
    one.close()
    assert (tmp_path / f"{one.name}-0.arrows").stat().st_size in (size, size + 8)
    assert recovered(tmp_path, one) == list(range(4))


def test_a_blob_whose_sync_failed_is_written_anew(tmp_path):
    bad = {"n": 1}
    files = Failing(lambda call, name: EIO if call == bad["n"] else None, ["sync"])
    one = writer(tmp_path, files=files)
    one.append("metric", {"x": "a" * (2**20 + 1)}, 0)
    (blob,) = (tmp_path / "blobs").iterdir()
    before = blob.stat().st_ino
    with pytest.raises(JournalError):
        one.commit()
    assert one.health().durable == 0
    one.commit()
    assert one.health().durable == 1
    assert blob.stat().st_ino != before


def test_a_blob_that_a_power_cut_emptied_is_written_anew(tmp_path):
    one = writer(tmp_path)
    data = b"a" * 100
    digest = one.put_blob(data)
    (tmp_path / "blobs" / digest).write_bytes(b"\0" * 100)
    one.put_blob(data)
    assert (tmp_path / "blobs" / digest).read_bytes() == data


def test_memory_level_survives_a_sync_that_fails_while_more_is_logged(tmp_path):
    one = None

    def fails(call, name):
        if call == 1:
            log(one, 5, 6)  # another thread, in the middle of the sync
            return EIO
        return None

    one = writer(tmp_path, files=Failing(fails, ["sync"]), durability="memory")
    log(one, *range(5))
    with pytest.raises(JournalError):
        one.commit()
    log(one, 7)
    one.close()
    assert recovered(tmp_path, one) == list(range(8))


def test_what_waited_is_written_in_small_parts_while_more_is_logged(tmp_path, monkeypatch):
    monkeypatch.setattr("eventlog.journal.DRAIN_BYTES", 4_000)
    full = True
    files = Failing(lambda call, name: ENOSPC if full else None, ["write"])
    one = writer(tmp_path, files=files)
    log(one, *range(200))
    full = False
    one._chain.try_now()
    most = 0
    for n in range(200, 240):
        before = len(files.calls)
        log(one, n)
        most = max(most, len(files.calls) - before)
    assert 1 < most < 20
    assert one.health().waiting < 150
    one.commit()
    assert one.health() == Health("ok", 240, 240, 0, 0, None)
    one.close()
    assert recovered(tmp_path, one) == list(range(240))


class Blocked(Failing):
    """A disk whose syncs take until `go` is set."""

    def __init__(self):
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def sync(self, fd):
        self.begun.set()
        assert self.go.wait(60)
        super().sync(fd)


@pytest.mark.parametrize("level", ["memory", "group"])
def test_log_does_not_wait_for_the_sync_of_a_commit(level, tmp_path):
    files = Blocked()
    one = writer(tmp_path, files=files, durability=level, group_seconds=0.01, segment_bytes=50_000)
    log(one, 0)
    assert files.begun.wait(60)  # the commit is in the middle of its sync, and stays there
    done = threading.Event()

    def work():
        for n in range(1, 200):  # more than a segment
            log(one, n)
            one.append("metric", {"y": n}, n)
            one.append("metric", {f"never{n}": n}, n)
        assert one.health().durable == 0
        done.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        assert done.wait(60)
        assert not files.go.is_set()
        if level == "group":
            assert len(listing(str(tmp_path)).segments[one.name]) > 1
            assert values_of(read(tmp_path)) == list(range(200))
    finally:
        files.go.set()
    thread.join(60)
    one.close()
    assert one.health().durable == one.seq == 598


@pytest.mark.parametrize("level", ["memory", "group", "sync"])
def test_health_is_well_again_when_all_is_durable_after_any_three_failing_calls(level, tmp_path):
    for n in itertools.count(1):
        files = Failing(lambda call, name, n=n: EIO if n <= call < n + 3 else None)
        one = writer(tmp_path / str(n), files=files, durability=level, segment_bytes=3_000)
        for x in range(6):
            log(one, x)
            if x % 2:
                with contextlib.suppress(JournalError):
                    one.commit()
        for _ in range(4):
            with contextlib.suppress(JournalError):
                one.commit()
                break
        assert one.health() == Health("ok", 6, 6, 0, 0, None), n
        one.close()
        assert recovered(tmp_path / str(n), one) == list(range(6)), n
        if len(files.calls) < n:
            return


@pytest.mark.parametrize("big", [False, True])
def test_memory_level_is_durable_again_after_a_failed_sync(big, tmp_path):
    files = Failing(lambda call, name: EIO if call == 2 else None, ["sync"])
    one = writer(tmp_path, files=files, durability="memory")
    size = 2**20 if big else 1
    one.append("metric", {"x": 0}, 0)
    one.commit()
    for n in range(1, 4):
        one.append("metric", {"x": n, "big": b"z" * size}, n)
    with pytest.raises(JournalError):
        one.commit()
    assert one.health().durable == 1
    log(one, 4)
    one.commit()
    assert one.health().durable == 5
    one.close()
    assert recovered(tmp_path, one) == list(range(5))


# ------------------------------------------------------------------------------ interruptions


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("level", ["os", "group", "sync"])
@pytest.mark.parametrize("short", [False, True])
def test_ctrl_c_in_the_middle_of_a_write_makes_no_fork(when, level, short, tmp_path):
    class Interrupted(Failing):
        def write(self, fd, data):
            if self.armed and when == "before":
                self.armed = False
                raise KeyboardInterrupt
            done = super().write(fd, data)
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt
            return done

    files = Interrupted(operations=[])
    files.armed = False
    one = writer(tmp_path, files=files, durability=level)
    values = (lambda n: {"x": n}) if short else (lambda n: {"x": n, "t": str(n)})
    for n in range(3):
        one.append("metric", values(n), n)
    files.armed = True
    with pytest.raises(KeyboardInterrupt):
        one.append("metric", values(3), 3)
    one.append("metric", values(4), 4)
    one.close()
    expected = [0, 1, 2, 4] if when == "before" else [0, 1, 2, 3, 4]
    assert recovered(tmp_path, one) == expected
    assert verdicts(tmp_path) == {"0.arrows": "whole"}


def in_the_middle(tmp_path, action, level="group"):
    """Return a writer whose 4th write is interrupted by `action`, as by a signal's handler."""
    made = []

    def fails(call, name):
        if call == 4:
            action(made[0])

    files = Failing(fails, ["write"])
    made.append(writer(tmp_path, files=files, durability=level))
    log(made[0], *range(6))
    return made[0]


@pytest.mark.parametrize("level", ["os", "group", "sync"])
def test_a_log_in_a_signal_handler_inside_a_log_is_kept(level, tmp_path):
    one = in_the_middle(tmp_path, lambda w: log(w, 100, 101), level)
    one.close()
    assert recovered(tmp_path, one) == [0, 1, 2, 100, 101, 3, 4, 5]


def test_a_flush_in_a_signal_handler_inside_a_log_says_no_instead_of_waiting_for_ever(tmp_path):
    def flush(one):
        with pytest.raises(JournalError, match="in the middle"):
            one.commit()

    one = in_the_middle(tmp_path, flush)
    one.commit()
    assert one.health().durable == 6


def test_a_close_in_a_signal_handler_inside_a_log_waits_for_that_log(tmp_path):
    files = Failing(operations=["write"])
    one = writer(tmp_path, files=files)

    def last_words(call, name):
        if call == 4:
            log(one, 100)
            one.close()

    files.fails = last_words
    with pytest.raises(JournalError, match="finished"):
        log(one, *range(6))
    assert recovered(tmp_path, one) == [0, 1, 2, 100]
    assert verdicts(tmp_path) == {"0.arrows": "whole"}


def test_a_handler_that_comes_when_deferred_events_are_taken_takes_them_itself(tmp_path):
    one = writer(tmp_path)

    class Interrupted(collections.deque):
        """As if the handler came between a look at it and the next step."""

        looks = 0

        def __bool__(self):
            found = len(self) > 0
            if found and not one._inside:
                self.looks += 1
                if self.looks == 2:
                    log(one, 7)
            return found

    log(one, 0)
    one._deferred = Interrupted(
        Pending(1, n, tuple(make_rows("metric", [("x", n)])[0])) for n in (1, 2)
    )
    log(one, 3)
    one.close()
    found = recovered(tmp_path, one)
    assert sorted(found) == [0, 1, 2, 3, 7]


def test_real_signals_lose_and_double_nothing(tmp_path):
    one = writer(tmp_path, group_seconds=0.001)
    numbers, handled, over = itertools.count(1), [], []

    def handler(number, frame):
        if over:  # it came when the timer was stopped, and would start it again
            return
        n = next(numbers)
        one.append("metric", {"x": -n}, None)
        handled.append(-n)
        # The next one: timers that go on by themselves leave a slow machine no time but for this.
        signal.setitimer(signal.ITIMER_REAL, 0.0005)

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    try:
        seqs = [one.append("metric", {"x": n}, n) for n in range(3000)]
    finally:
        over.append(True)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    one.close()
    found = recovered(tmp_path, one)
    assert [x for x in found if x >= 0] == list(range(3000))
    assert sorted(x for x in found if x < 0) == sorted(handled)
    assert handled
    assert None not in seqs


def test_threads_lose_and_double_nothing(tmp_path):
    one = writer(tmp_path, group_seconds=0.01, segment_bytes=500_000)
    seqs: list[list[int]] = [[], [], [], []]

    def work(k):
        for n in range(2000):
            seqs[k].append(one.append("metric", {"x": k * 10_000 + n}, n))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.close()
    found = recovered(tmp_path, one)
    assert sorted(s for mine in seqs for s in mine) == list(range(8000))
    for k, mine in enumerate(seqs):
        assert [found[s] for s in mine] == list(range(k * 10_000, k * 10_000 + 2000))


# ------------------------------------------------------------------------------ forks


def test_a_forked_child_writes_to_its_own_file(tmp_path):
    one = writer(tmp_path)
    log(one, 0, 1)
    before = (tmp_path / f"{one.name}-0.arrows").read_bytes()
    pid = os.fork()
    if pid == 0:
        try:
            log(one, 100, 101)
            one.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert (tmp_path / f"{one.name}-0.arrows").read_bytes() == before
    log(one, 2)
    one.close()
    (other,) = set(listing(str(tmp_path)).writers) - {one.name}
    assert values_of(read(tmp_path, one.name)) == [0, 1, 2]
    assert values_of(read(tmp_path, other)) == [100, 101]
    with SegmentReader(str(tmp_path / f"{other}-0.arrows")) as reader:
        assert reader.header.identity["parent_writer"] == one.name
        assert reader.header.identity["pid"] == pid


SPAWNED: Writer | None = None


def work_in_child(folder):
    one = SPAWNED or writer(folder)
    log(one, 7, 8)
    one.close()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_write_to_files_of_their_own(method, tmp_path):
    global SPAWNED
    one = SPAWNED = writer(tmp_path)
    try:
        log(one, 0)
        process = multiprocessing.get_context(method).Process(
            target=work_in_child, args=(str(tmp_path),)
        )
        process.start()
        process.join(60)
        assert process.exitcode == 0
    finally:
        SPAWNED = None
    log(one, 1)
    one.close()
    (other,) = set(listing(str(tmp_path)).writers) - {one.name}
    assert values_of(read(tmp_path, one.name)) == [0, 1]
    assert values_of(read(tmp_path, other)) == [7, 8]


# ------------------------------------------------------------------------------ kills


def test_sigkill_loses_nothing_that_append_returned_for(tmp_path):
    code = """
        import os, sys
        from eventlog.journal import Options, Writer
        one = Writer(sys.argv[1], "r", {}, options=Options(segment_bytes=200_000))
        n = 0
        while True:
            one.append("metric", {"x": n}, n)
            os.write(1, b".")
            n += 1
    """
    for kill in range(5):
        folder = tmp_path / str(kill)
        folder.mkdir()
        process = child(code, folder, stdout=subprocess.PIPE)
        acked = len(process.stdout.read(500 * (kill + 1)))
        process.kill()
        acked += len(process.stdout.read())
        process.wait()
        process.stdout.close()
        found = values_of(read(folder))
        assert found == list(range(len(found)))
        assert acked <= len(found) <= acked + 1


def test_a_limit_on_the_size_of_files_is_a_short_write_and_no_loss(tmp_path):
    code = """
        import resource, signal, sys
        from eventlog.journal import Options, Writer
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        one = Writer(sys.argv[1], "r", {}, options=Options(durability="os"))
        limit = 12_345
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for n in range(100):
            assert one.append("metric", {"x": n}, n) == n
        one.close()
    """
    assert child(code, tmp_path).wait(60) == 0
    assert values_of(read(tmp_path)) == list(range(100))
    assert "torn" in verdicts(tmp_path).values()
    assert max(p.stat().st_size for p in tmp_path.iterdir()) == 12_345


def test_a_process_that_ends_without_closing_loses_nothing(tmp_path):
    code = """
        import sys
        from eventlog.journal import Writer
        one = Writer(sys.argv[1], "r", {})
        for n in range(10):
            one.append("metric", {"x": n}, n)
        sys.exit(3)
    """
    assert child(code, tmp_path).wait(60) == 3
    assert values_of(read(tmp_path)) == list(range(10))


def test_a_writer_that_nobody_holds_any_more_ends_its_thread(tmp_path):
    one = writer(tmp_path, group_seconds=0.01)
    log(one, 0)
    thread = one._background.thread
    del one
    thread.join(120)
    assert not thread.is_alive()


def test_a_reader_of_a_live_writer_sees_a_prefix_at_any_moment(tmp_path):
    one = writer(tmp_path, segment_bytes=100_000)
    log(one, 0)
    stop = threading.Event()

    def work():
        for n in range(1, 3000):
            log(one, n)
        stop.set()

    thread = threading.Thread(target=work)
    thread.start()
    reader, seen = WriterReader(str(tmp_path), one.name), []
    while True:
        last = stop.is_set()
        seen += values_of(reader.events())
        if last:
            break
    thread.join()
    assert seen == list(range(3000))
    assert not reader.missing
