"""The protocol of a target, and the errors a target may raise.

A *target* is one configured backend. Opening a run in it gives a *session*, through which the
replay loop (`replayers.replay`) sends batches of events and asks what is held. A target never
reads a cursor and never decides what to send: it knows identity, mapping and read-back.

Rules every target keeps (`replayers/conformance.py` tests them):

* ``open`` finds the run by an identity that the target itself stores, or creates it; it refuses a
  run that it did not make. Opening twice gives one run.
* ``send`` is idempotent: the same batch sent again, whole, in part or after a lost answer, leaves
  the target as if it had been sent once.
* ``confirm`` and ``held`` ask the target anew; an exit code, an HTTP 200 or a call that returned
  is no acknowledgement.
* ``image`` is pure: the same rows give the same image in every version that has the same ``rules``.

A batch is a `pyarrow.Table` of the columns ``seq, time, step, key, kind, type, num, data`` (see
``eventlog/FORMAT.md``) of whole events of ONE writer, in the order of ``seq``; `writer_of` tells
which, from the metadata of its schema.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from eventlog.errors import AuthenticationError as Unauthorised
from eventlog.errors import EventlogError, IntegrityError, TemporaryError, UsageError
from replayers.positions import Positions

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Absent",
    "Change",
    "Down",
    "Foreign",
    "Rejected",
    "Retry",
    "RunInfo",
    "RunState",
    "Session",
    "Target",
    "Unauthorised",
    "image_schema",
    "with_writer",
    "writer_of",
]


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a target is told of a run.

    Attributes
    ----------
    id, project, name, owner:
        The run's identity in the journal (``owner`` may be empty).
    created:
        When its first attempt started, in nanoseconds since 1970 UTC.
    elsewhere:
        Names that ``init`` recorded for other places: ``MLFLOW_RUN_ID``, ``WANDB_PROJECT``, ...
    known_as:
        The target's own id of the run, as the state remembers it from an earlier ``open``; a
        hint to be checked against the identity that the target stores.
    adopt_by_name:
        The user allows to take over the one run of this project and name that no journal made.
    create:
        Make the run if the target has none; otherwise `Absent` is raised (or the session holds
        nothing), and nothing is written.
    generation, replaces:
        Beside the id what tells this run from the runs that it replaces (`replayers.superseding`),
        "" for the first; the target's own id of the one it replaces, to be shown.
    shown_as:
        What people called the run in the target before it was rebuilt; "" for its own name.
    """

    id: str
    project: str
    name: str
    created: int
    owner: str = ""
    elsewhere: dict[str, str] = dataclasses.field(default_factory=dict)
    known_as: str | None = None
    adopt_by_name: bool = False
    create: bool = True
    generation: str = ""
    replaces: str = ""
    shown_as: str = ""


@dataclasses.dataclass(frozen=True)
class RunState:
    """How a run stands: ``running``, ``finished``, ``failed``, ``closed`` (its process ended and
    said no more) or ``unknown`` (it ended without a word). Times in nanoseconds since 1970 UTC.
    """

    status: str
    ended: int | None = None
    exit_code: int | None = None


@dataclasses.dataclass(frozen=True)
class Change:
    """What a mapping rule did to values of one key on their way: a line of the ledger, never one
    a point. ``rule`` is a name from the target's documentation, such as ``inf-clamped``.
    """

    rule: str
    key: str
    first_seq: int
    last_seq: int
    count: int
    detail: str = ""


class Retry(TemporaryError):
    """The target could not take the batch now. ``after`` seconds is its own wish, if it has one.

    Nothing is known of what it stored.
    """

    def __init__(
        self, what: str, *, on: object = None, hint: str | None = None, after: float | None = None
    ) -> None:
        super().__init__(what, on=on, hint=hint)
        self.after = after


class Down(TemporaryError):
    """The target cannot be reached; other targets go on."""


class Foreign(IntegrityError):
    """The target holds something under this run's identity that this journal did not send."""


class Absent(IntegrityError):
    """The target has no such run, and was not asked to make one."""


class Rejected(EventlogError):
    """The target will never take these rows; the loop puts the events into quarantine.

    ``seqs`` are the events of the batch that are to blame; the others can be sent again.
    """

    def __init__(self, what: str, *, seqs: Iterable[int], on: object = None) -> None:
        super().__init__(what, on=on)
        self.seqs = frozenset(seqs)


class Session(Protocol):
    """One run in one target."""

    #: The target's own id of the run, kept in the state and shown to the user.
    known_as: str
    # A session may have `found_by`: in words, how its run was found in the target ("its tag ..."),
    # None if it was made; it is said once for each attempt which run is gone on with.
    # A session may have `shown_as`: what people call the run in the target, "" if that is its own
    # name; a target that rebuilds a run is told so (`RunInfo.shown_as`).
    # A session may have `notices_loss = True`: `open` and `send` themselves find out that a target
    # has lost what it held. Otherwise the loop confirms the last event it knows to be held.

    def held(self) -> Positions:
        """Return the positions that the target provably holds, asked of the target itself.

        It may leave out what it cannot prove (the loop sends that again), and never has a
        position that is not held.
        """

    def send(self, batch: pa.Table) -> list[Change]:
        """Send whole events of one writer; return what the mapping changed.

        Raises
        ------
        Retry, Down, Rejected, Unauthorised, Foreign
        """

    def confirm(self, batch: pa.Table) -> bool:
        """Return whether the target, asked anew, holds everything that this batch maps to."""

    def read_back(self) -> Iterator[pa.Table]:
        """Yield everything the target holds of this run as tables of `image_schema`."""

    def close(self, state: RunState) -> None:
        """Tell the target how the run stands and let go of it. Idempotent."""


class Target(Protocol):
    """One configured backend."""

    #: ``mlflow``, ``trackio``, ...
    kind: str
    #: What a state folder is named after and messages show: address without credentials.
    address: str
    #: Version of the mapping rules; part of the ledger.
    rules: str
    #: Whether equal points of the image become one point in the target (MLflow's SQL store).
    folds: bool
    # A target may have `superseded`, those of `replayers.superseding.CHOICES` that it can do. For
    # ``new-run`` it tells runs of one id apart by their generation, and its sessions have
    # `mark_replaced(by: str)`, which has the run show what replaces it. For ``rebuild`` its sessions
    # have `discard()`: delete what we made of this run, so that `open` finds none; refuse (Foreign)
    # where somebody else has added to it. Both are idempotent and safe to be killed in. `never` may
    # say, by choice, why a target cannot do the others.
    # A target may have `shares_tags = True`: people add tags of their own to its runs, and the
    # read-back shows them. Elsewhere a tag that was not sent has no explanation.
    # A target may have `one_run = True`: one object of it can have one run open at a time. A sync
    # that sends several at once makes an object for each then. Otherwise threads share one.

    def open(self, run: RunInfo) -> Session:
        """Find the run by its identity, or create it."""

    def image(self, batch: pa.Table) -> pa.Table:
        """Return what these rows of one writer become in the target, as `image_schema`.

        For metrics: a row per point. For ``config``, ``summary``, ``tag``: the caller passes only
        the last row of each key. Kinds that the target does not hold give no rows.
        """

    def close(self) -> None:
        """Let go of connections and child processes."""


_WRITER = b"eventlog.writer"


def with_writer(table: pa.Table, writer: str) -> pa.Table:
    """Return `table` as a batch of this writer."""
    return table.replace_schema_metadata({_WRITER: writer})


def writer_of(batch: pa.Table) -> str:
    """Return the writer of a batch: of its schema's metadata, or of a column ``writer``.

    Raises
    ------
    UsageError
        If it names none.
    """
    named: bytes | None = (batch.schema.metadata or {}).get(_WRITER)
    if named is not None:
        return named.decode()
    if "writer" in batch.column_names and batch.num_rows:
        return str(batch.column("writer")[0].as_py())
    raise UsageError("a batch does not name its writer", hint="replayers.target.with_writer")


def image_schema() -> pa.Schema:
    """Return the schema in which the journal's image and a target's read-back are compared.

    ``kind`` and ``key`` (the key as the target has it), ``step``, ``time`` in nanoseconds (null
    where the target keeps none), and the value: ``bits``, the float64's bits as an int64, where
    the target holds a number, else ``text``. Two rows are the same point if all columns are.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("kind", pa.utf8()),
            ("key", pa.utf8()),
            ("step", pa.int64()),
            ("time", pa.int64()),
            ("bits", pa.int64()),
            ("text", pa.utf8()),
        ]
    )
