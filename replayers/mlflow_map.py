r"""What the rows of a journal become in MLflow: rules ``mlflow-1``. Pure; knows no server.

=============================  ====================================================================
in the journal                 in MLflow
=============================  ====================================================================
metric, a number               a point of the metric of that name (`replayers.mlflow_names`), with
                               its own step and time
system, a number               the same, as ``system/<key>``, where MLflow's pages look for it; a
                               metric whose key begins so has that ``/`` escaped
time                           whole milliseconds, rounded down (``time-to-ms``); 0 if it lies
                               before 1970 (``time-clamped``)
no step                        the event's seq (``step-from-seq``)
float64, finite                the same bits, but -0.0 is 0.0 (``negative-zero``)
NaN                            NaN; which one is lost (``nan-payload``)
+Inf, -Inf                     the largest and smallest finite float64 (``inf-clamped``), and the
                               tag ``eventlog.inf.<name>`` says that they mean infinity there
float32, float16, bfloat16,    the float64 that equals it: exact, no change
bool, integers to 2^53
larger integers                the nearest float64 (``int-rounded``), or, where there is none, as
                               other values (``int-out-of-range``)
other values of a metric       no point; the newest is the tag ``eventlog.text.<name>``, typed JSON
                               (``not-a-number``)
table, logged as a metric      an artifact ``eventlog/tables/<file>/step=<step>-<sha256>.json`` as
                               ``mlflow.log_table`` writes it; without access to the blobs of the
                               journal nothing (``table-not-held``)
config                         a param per leaf, nested keys joined with ``/``: a text is itself,
                               True False None as Python writes them, other values typed JSON. A
                               param never changes in MLflow: a later value becomes the tag
                               ``eventlog.config.<name>`` (``param-immutable``)
summary                        tag ``eventlog.summary.<name>``: typed JSON, the newest value
tag                            tag ``eventlog.tag.<name>``: typed JSON, the newest value
definition, state              tags ``eventlog.definition.<name>``, ``eventlog.state.<name>``
other kinds                    nothing (``kind-not-held``, counted by kind)
a value kept as a blob         its reference (``blob-reference``)
text longer than 6000 (param)  its beginning and its SHA-256 (``value-cut``); whole in the artifact
or 8000 (tag) characters       ``eventlog/values/<kind>/<file>.txt``
NUL, lone surrogates in texts  left out (``nul-stripped``); as ``\\udXXX`` (``surrogate-escaped``)
equal points                   one point, if name, step, millisecond and value are the same
                               (``folded``, as far as one batch shows it)
a name that differs            ``key-renamed``, with the new name
=============================  ====================================================================

In tags NaN, Infinity and -Infinity are written so; every other number is JSON, and reads back to
the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from eventlog.event import CONFIG, DEFINITION, METRIC, STATE, SUMMARY, SYSTEM, TAG, Row
from eventlog.value import loads
from replayers.mlflow_names import LIMIT, file_of, name_of
from replayers.mlflow_values import (
    INVALID,
    LARGEST,
    as_held,
    bits_of,
    clean,
    cut,
    json_text,
    leaves,
)
from replayers.target import Change

if TYPE_CHECKING:
    import pyarrow as pa

RULES = "mlflow-1"
PARAM_LIMIT = 6000
TAG_LIMIT = 8000
TABLES = "eventlog/tables"
VALUES = "eventlog/values"
#: Groups of texts beside the kinds of the journal.
TEXT, INF = "text", "inf"
#: Kinds of which MLflow holds the newest value, and those of them that are compared.
TAGGED = (SUMMARY, TAG, DEFINITION, STATE)
IMAGED = (CONFIG, SUMMARY, TAG)

_INF_TEXT = f"+-{LARGEST!r} stands for +-Infinity"


class Point(NamedTuple):
    """A point of a metric as MLflow holds it; `bits` are those of the float64 `value`."""

    name: str
    step: int
    ms: int
    value: float
    bits: int


class Text(NamedTuple):
    """A value for a param or a tag; `group` is the kind, ``text`` or ``inf``. `whole` is what it
    was cut from, if it was.
    """

    group: str
    name: str
    text: str
    whole: str | None

    @property
    def tag(self) -> str:
        """The key of its tag (of a config: of the tag for values that its param cannot take)."""
        return prefix_of(self.group) + self.name

    @property
    def folder(self) -> str:
        """The folder of artifacts in which the whole value lies if it was cut."""
        return f"{VALUES}/{self.group}"

    @property
    def file(self) -> str:
        """The artifact's name in its folder."""
        return file_of(self.name) + ".txt"


class Sheet(NamedTuple):
    """A table that becomes an artifact; `sha256` names its blob, `name` stands for its key."""

    name: str
    step: int
    sha256: str

    @property
    def folder(self) -> str:
        """The folder of artifacts in which the tables of its key lie."""
        return f"{TABLES}/{self.name}"

    @property
    def file(self) -> str:
        """The artifact's name in its folder."""
        return f"step={self.step}-{self.sha256}.json"


class Mapped(NamedTuple):
    """What one event becomes."""

    seq: int
    time: int
    points: list[Point]
    texts: list[Text]
    sheets: list[Sheet]


class Changes:
    """Counts what was changed: one `Change` per rule, key and detail."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str, str], list[int]] = {}

    def add(self, rule: str, key: str, seq: int, detail: str = "") -> None:
        """Count one change; seqs come in ascending order."""
        seen = self._seen.setdefault((rule, key, detail), [seq, seq, 0])
        seen[1] = seq
        seen[2] += 1

    def listed(self) -> list[Change]:
        """Return what was counted, in the order of first occurrence."""
        return [
            Change(rule, key, first, last, count, detail)
            for (rule, key, detail), (first, last, count) in self._seen.items()
        ]


class Mapping:
    """What the rows of one batch become.

    Attributes
    ----------
    events:
        Every event of the batch, in its order; one that MLflow holds nothing of is empty.
    changes:
        What the rules changed.
    refused:
        Events with rows that are no valid rows of format 1: seq to reason.
    """

    def __init__(self, batch: pa.Table, *, tables: bool, fold: bool = True) -> None:
        self.events: list[Mapped] = []
        self.changes = Changes()
        self.refused: dict[int, str] = {}
        self._tables = tables
        self._fold = fold
        self._points: set[tuple[str, int, int, int]] = set()
        self._infinite: set[str] = set()
        self._read(batch)

    def _read(self, batch: pa.Table) -> None:
        event: Mapped | None = None
        ms, stepless = 0, False
        for seq, time, step, row in _rows(batch):
            if event is None or event.seq != seq:
                event = Mapped(seq, time, [], [], [])
                self.events.append(event)
                ms = self._ms(seq, time)
                stepless = step is None
            if stepless and row.kind in (METRIC, SYSTEM):
                self.changes.add("step-from-seq", "", seq)
                stepless = False
            try:
                self._row(event, row, ms, seq if step is None else step)
            except INVALID as error:
                self.refused[seq] = f"{row.key!r} is no valid {row.type} ({error})"

    def _ms(self, seq: int, time: int) -> int:
        if time < 0:
            self.changes.add("time-clamped", "", seq)
            return 0
        if time % 1_000_000:
            self.changes.add("time-to-ms", "", seq)
        return time // 1_000_000

    def _row(self, event: Mapped, row: Row, ms: int, step: int) -> None:
        if row.type == "table" and row.kind == METRIC:
            self._sheet(event, row, step)
        elif row.kind in (METRIC, SYSTEM):
            self._metric(event, row, ms, step)
        elif row.kind == CONFIG:
            for key, value in leaves(row):
                self._text(event, CONFIG, key, name_of(key, room(CONFIG)), value)
        elif row.kind in TAGGED:
            name = name_of(row.key, room(row.kind))
            self._text(event, row.kind, row.key, name, json_text(row))
        else:
            self.changes.add("kind-not-held", row.kind, event.seq)
            return
        if row.type == "blob" or (row.type == "table" and row.kind != METRIC):
            self.changes.add("blob-reference", row.key, event.seq)

    def _metric(self, event: Mapped, row: Row, ms: int, step: int) -> None:
        number = row.num
        if number is None:
            number = self._rounded(event, row)
        if number is None:
            name = metric_name(row.kind, row.key, room(TEXT))
            self._text(event, TEXT, row.key, name, json_text(row))
            return
        name = metric_name(row.kind, row.key)
        self._renamed(event, row.key, name)
        value, rule = as_held(number, row.data)
        if rule:
            self.changes.add(rule, row.key, event.seq)
            if rule == "inf-clamped" and name not in self._infinite:
                self._infinite.add(name)
                short = metric_name(row.kind, row.key, room(INF))
                event.texts.append(Text(INF, short, _INF_TEXT, None))
        self._point(event, row.key, Point(name, step, ms, value, bits_of(value)))

    def _point(self, event: Mapped, key: str, point: Point) -> None:
        if self._fold:
            same = (point.name, point.step, point.ms, point.bits)
            if same in self._points:
                self.changes.add("folded", key, event.seq)
                return
            self._points.add(same)
        event.points.append(point)

    def _rounded(self, event: Mapped, row: Row) -> float | None:
        """Return the float64 nearest to an integer that none equals; None if it is no such one."""
        rule, number = "not-a-number", None
        if row.type.startswith(("int", "uint")):
            try:
                rule, number = "int-rounded", float(int(row.data or b"", 0))
            except OverflowError:
                rule = "int-out-of-range"
        self.changes.add(rule, row.key, event.seq, row.type if rule == "not-a-number" else "")
        return number

    def _text(self, event: Mapped, group: str, key: str, name: str, value: str) -> None:
        self._renamed(event, key, name)
        limit = PARAM_LIMIT if group == CONFIG else TAG_LIMIT
        text, rules = clean(value)
        whole = None
        if len(text) > limit:
            text, whole = cut(text, limit), text
            rules.append("value-cut")
        for rule in rules:
            self.changes.add(rule, key, event.seq)
        event.texts.append(Text(group, name, text, whole))

    def _renamed(self, event: Mapped, key: str, name: str) -> None:
        if name not in (key, f"system/{key}"):
            self.changes.add("key-renamed", key, event.seq, name)

    def _sheet(self, event: Mapped, row: Row, step: int) -> None:
        if not self._tables:
            self.changes.add("table-not-held", row.key, event.seq)
            return
        sha256 = str(loads(row.data or b"")["sha256"])
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise ValueError("its sha256 is none")
        name = file_of(row.key)
        self._renamed(event, row.key, name)
        event.sheets.append(Sheet(name, step, sha256))


def metric_name(kind: str, key: str, limit: int = LIMIT) -> str:
    """Return the name of a metric. ``system/`` is kept for the kind ``system``."""
    if kind == SYSTEM:
        return "system/" + name_of(key, limit - len("system/"))
    if not key.startswith("system/"):
        return name_of(key, limit)
    name = name_of(key, limit - len("_x2f"))
    return "system_x2f_" + name[7:] if name.startswith("system/") else name


def prefix_of(group: str) -> str:
    """Return what the tags of a group begin with."""
    return f"eventlog.{group}."


def room(group: str) -> int:
    """Return how long a name may be so that a tag of this group can hold it."""
    return LIMIT - len(prefix_of(group))


def _rows(batch: pa.Table) -> Iterator[tuple[int, int, int | None, Row]]:
    import pyarrow as pa

    columns = [batch.column(c).to_pylist() for c in ("key", "kind", "type", "num", "data")]
    times = batch.column("time").cast(pa.int64()).to_pylist()
    seqs, steps = batch.column("seq").to_pylist(), batch.column("step").to_pylist()
    for seq, time, step, *row in zip(seqs, times, steps, *columns, strict=True):
        yield seq, time, step, Row(*row)
