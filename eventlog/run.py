"""What a user holds: a run to log to.

Nothing here raises into training (``strict=True`` aside): what cannot be kept is left out with one
warning, and a disk that fails is waited for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from eventlog import event as words
from eventlog import resume, runfile
from eventlog.errors import EventlogError, JournalError, ValueRefused
from eventlog.event import METRIC, STEP_MAX, STEP_MIN, Row, make_rows, whole_step
from eventlog.files import LOCAL
from eventlog.journal import Health, Options, Writer
from eventlog.layout import run_folder
from eventlog.listing import listing
from eventlog.recorded import Recorded, plain, readable, short
from eventlog.seal import seal

log = logging.getLogger("eventlog")

_MOST_WARNINGS = 1000
_LONGEST_WARNING = 2000
#: A handler of `logging` that logs to the run may provoke the next warning with each one.
_WARNINGS_AT_ONCE = 10


class Run:
    """One process's access to a run. Made by `init`; safe to use from many threads.

    Attributes
    ----------
    id, project, name:
        The run's identity.
    folder:
        The absolute path of the run's folder; None if disabled.
    attempt:
        Which launch of the run this is, from 1.
    config, summary:
        Mappings whose changes are recorded.
    """

    def __init__(
        self,
        decision: resume.Decision | None,
        journal: str | None,
        *,
        options: Options | None = None,
        strict: bool = False,
        quiet: bool = False,
    ) -> None:
        self._pid = os.getpid()
        self._quiet = quiet
        self._strict = strict
        self._warned: set[str] = set()
        self._untold: deque[str] = deque()
        self._telling = threading.local()
        self._finished = False
        #: Called with the run when it has ended.
        self.at_end: list[Callable[[Run], None]] = []
        self.config = Recorded(words.CONFIG, self._record, self._refuse)
        self.summary = Recorded(words.SUMMARY, self._record, self._refuse)
        self._writer: Writer | None = None
        self.folder: str | None = None
        if decision is None or journal is None:
            self.id, self.project, self.name, self.attempt = "", "", "", 0
            return
        run = decision.run
        self.id, self.project, self.name = run.id, run.project, run.name
        self.attempt = int(decision.header["attempt"]["ordinal"])
        self.folder = run_folder(journal, run.project, run.id)
        try:
            LOCAL.make_folder(self.folder)
            runfile.claim(self.folder, run)
        except OSError as error:
            raise JournalError(
                f"the run's folder cannot be written ({error.strerror})",
                on=self.folder,
                hint="give dir= or EVENTLOG_DIR a folder that this user can write",
            ) from error
        self._writer = Writer(
            self.folder, run.id, decision.header, options=options, warn=self._warn
        )

    # ---------------------------------------------------------------- logging

    def log(self, data: Mapping[str, Any], step: Any = None) -> int | None:
        """Record one event.

        Parameters
        ----------
        data:
            Keys and values: Python, numpy, torch and jax scalars, text, None, lists, tables;
            nested mappings are flattened with ``/``. The types are kept.
        step:
            A whole number, or none. It is data: it may repeat, go back and come late.

        Returns
        -------
        The seq of the event; None if nothing was recorded yet (the run is disabled, or a disk
        that fails makes the event wait in memory).

        Raises
        ------
        ValueRefused
            With ``strict=True`` only: for a value that cannot be kept. The others were kept.
        """
        writer = self._writer
        if writer is None:
            return None
        try:
            plain = step is None or (type(step) is int and STEP_MIN <= step <= STEP_MAX)
            return writer.append(METRIC, data, step if plain else self._step(step))
        except EventlogError as error:
            self._trouble(error)
        except Exception as error:  # a hostile value must not end a training run
            self._trouble(
                ValueRefused(f"log() could not keep {type(data).__name__}: {short(error)}")
            )
        return None

    def define_metric(
        self, name: str, step_metric: str | None = None, summary: str | None = None
    ) -> None:
        """Say how a metric is to be shown.

        `name` may end in ``*``; `step_metric` is the key on its x-axis; `summary` is what of it
        belongs into the summary: ``min``, ``max``, ``mean``, ``last`` or ``none``.
        """
        fields = {"step_metric": step_metric, "summary": summary}
        said = {key: value for key, value in fields.items() if value is not None}
        self._record(words.DEFINITION, {name: said})

    def tag(self, *tags: str) -> None:
        """Give the run tags."""
        self._tag(tags, given=True)

    def untag(self, *tags: str) -> None:
        """Take tags away."""
        self._tag(tags, given=False)

    def _tag(self, tags: tuple[object, ...], *, given: bool) -> None:
        named = {}
        for tag in tags:
            try:
                named[str(tag)] = given
            except Exception as error:
                kinds = f"{type(tag).__name__} ({type(error).__name__})"
                self._refuse(f"what has no text is no tag, and was left out: {kinds}")
        if named:
            self._record(words.TAG, named)

    def rewind(self, step: int) -> None:
        """Say that training starts again at the checkpoint of `step`: what was logged before for
        later steps is superseded. It stays in the journal. A step that is no whole number changes
        nothing, with one warning.

        Raises
        ------
        ValueRefused
            With ``strict=True`` only: if `step` is no whole number of 64 bits.
        """
        try:
            whole = whole_step(step)
        except Exception:
            whole = None
        if whole is None:
            self._refuse(f"rewind({short(step)}): a step is a whole number; nothing was rewound")
            return
        self._record(words.STATE, {"rewind": whole})

    def _record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append rows of another kind than metrics: keys are not flattened."""
        writer = self._writer
        if writer is None:
            return
        try:
            rows, refused = make_rows(kind, ((str(k), plain(v)) for k, v in values.items()))
            if refused:
                again = [(k, readable(plain(v))) for k, v in values.items()]
                rows, _ = make_rows(kind, ((str(k), v) for k, v in again))
                self._warn(f"{kind}: kept as text what has no other form: {'; '.join(refused[:5])}")
            writer.append_rows(rows, None)
        except EventlogError as error:
            self._trouble(error)
        except Exception as error:
            self._trouble(ValueRefused(f"{kind} could not be kept: {short(error)}"))

    def _step(self, step: Any) -> int | None:
        whole = whole_step(step)
        if whole is None:
            self._warn(
                f"step {short(step)} is no whole number of 64 bits; the event was kept without "
                "a step"
            )
        return whole

    # ---------------------------------------------------------------- state

    @property
    def health(self) -> Health:
        """How the journal is: appended, durable, waiting and lost events, the last error."""
        if self._writer is None:
            return Health("disabled", 0, 0, 0, 0, None)
        return self._writer.health()

    def flush(self) -> None:
        """Return when everything logged so far survives a power cut.

        Raises
        ------
        JournalError
            If the system says that it could not.
        """
        if self._writer is not None:
            self._writer.commit()

    def finish(self, exit_code: int | None = 0) -> None:
        """End the run: record how it ended, make it durable, seal it. Idempotent.

        `exit_code` 0 means finished, another number failed, None that the process ends without
        knowing. Sealing is left out inside a signal's handler, where time is short.
        """
        self._end(exit_code, sealing=not _in_signal_handler())

    def _end(self, exit_code: int | None, *, sealing: bool) -> None:
        writer = self._writer
        if writer is None or self._finished:
            return
        self._finished = True
        try:
            if os.getpid() == self._pid:
                # Listed before `close` makes the names in the folder durable.
                known: dict[str, int | None] = {}
                with contextlib.suppress(OSError):  # a disk that is gone ends no training
                    known.update(dict.fromkeys(listing(writer.folder).writers))
                writer.close(
                    lambda seq, named: self._last_words(
                        exit_code, {**known, writer.name: seq + 1 if named else None}
                    )
                )
            else:
                writer.close()
        except MemoryError as error:
            self._warn(f"the run was not closed ({error or 'no memory'})")
        for told in self.at_end:
            told(self)
        if sealing and os.getpid() == self._pid:
            try:
                seal(writer.folder, writer=writer.name)
            except Exception as error:  # Arrow cannot be begun to be used while Python ends, say
                if not writer.lossy:  # else the disk was told of a moment ago
                    self._warn(f"the run was not sealed ({error}); eventlog seal can do it later")
        if os.getpid() == self._pid and not self._quiet:
            print(
                f"eventlog: {self.name} {self._ended_as(exit_code)}, {writer.seq} events in "
                f"{self.folder}",
                file=sys.stderr,
            )

    @staticmethod
    def _last_words(exit_code: int | None, known: Mapping[str, int | None]) -> list[Row]:
        """Return the rows of the event that ends a run: how, and which writers it has."""
        status = {None: "closed", 0: "finished"}.get(exit_code, "failed")
        fields = {"state": status, "exit_code": exit_code, "writers": known}
        return make_rows(words.STATE, fields.items())[0]

    @staticmethod
    def _ended_as(exit_code: int | None) -> str:
        return {None: "closed", 0: "finished"}.get(exit_code, f"failed ({exit_code})")

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish(0 if kind is None else 1)

    def __repr__(self) -> str:
        return f"<Run {self.project}/{self.name} {self.id} attempt {self.attempt}>"

    # ---------------------------------------------------------------- warnings

    def _refuse(self, text: str) -> None:
        self._trouble(ValueRefused(text))

    def _trouble(self, error: EventlogError) -> None:
        if self._strict:
            raise error
        self._warn(str(error))

    def _warn(self, text: str) -> None:
        """Say something once; what it is about may be text of any length. What a handler of
        `logging` makes this say meanwhile is said when that has returned.
        """
        text = text if len(text) <= _LONGEST_WARNING else text[:_LONGEST_WARNING] + "..."
        if text in self._warned or len(self._warned) >= _MOST_WARNINGS:
            return
        self._warned.add(text)
        self._untold.append(text)
        if getattr(self._telling, "now", False):
            return
        self._telling.now = True
        try:
            for _ in range(_WARNINGS_AT_ONCE):
                # Another thread may have said it; a handler that raises must not end training.
                with contextlib.suppress(Exception):
                    log.warning("eventlog: %s", self._untold.popleft())
        finally:
            self._telling.now = False


def _in_signal_handler() -> bool:
    """Return whether this call comes from the handler of a signal that ends a job."""
    codes = []
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        handler = None if number is None else signal.getsignal(number)
        code = getattr(handler, "__code__", None)
        if code is None:
            code = getattr(getattr(handler, "__func__", None), "__code__", None)
        if code is not None:
            codes.append(code)
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
