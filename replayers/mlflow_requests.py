"""Events packed into requests: whole events together, up to what MLflow takes at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from replayers.mlflow_map import Mapped, Point, Sheet, Text

#: MLflow takes 1000 metrics, 100 params and 100 tags, 1000 of all together, in a request; 1 MB is
#: documented. One tag more says how far the target holds the writer.
POINTS = 900
TEXTS = 90
BYTES = 900_000
_POINT_OVERHEAD = 100


@dataclasses.dataclass
class Request:
    """What one call of ``log-batch`` carries of one writer.

    `upto` is the seq that is held once this is stored; None if it ends within an event. Of the
    values of one param or tag it carries the newest, with the position and time it comes from.
    """

    points: list[Point] = dataclasses.field(default_factory=list)
    texts: dict[tuple[str, str], tuple[int, int, Text]] = dataclasses.field(default_factory=dict)
    sheets: list[tuple[int, Sheet]] = dataclasses.field(default_factory=list)
    events: list[Mapped] = dataclasses.field(default_factory=list)
    upto: int | None = None
    size: int = 0

    def add(self, event: Mapped) -> None:
        """Add a whole event, or a part of one."""
        self.points += event.points
        for text in event.texts:
            self.texts[text.group, text.name] = (event.seq, event.time, text)
        self.sheets += [(event.seq, sheet) for sheet in event.sheets]
        self.events.append(event)
        self.size += _size(event)

    def takes(self, event: Mapped) -> bool:
        """Return whether an event fits in beside what is there."""
        return (
            len(self.points) + len(event.points) <= POINTS
            and len(self.texts) + len(event.texts) <= TEXTS
            and self.size + _size(event) <= BYTES
        )

    def halves(self) -> tuple[Request, Request]:
        """Return two requests with half of the events each, neither of which moves `upto`."""
        middle = len(self.events) // 2
        return _of(self.events[:middle]), _of(self.events[middle:])


def pack(events: Iterable[Mapped]) -> Iterator[Request]:
    """Yield the requests for the events of one writer, in order."""
    request = Request()
    for event in events:
        for part in _parts(event):
            if not request.takes(part):
                if request.events:
                    yield request
                request = Request()
            request.add(part)
        request.upto = event.seq
    if request.events:
        yield request


def _of(events: list[Mapped]) -> Request:
    request = Request()
    for event in events:
        request.add(event)
    return request


def _parts(event: Mapped) -> Iterator[Mapped]:
    """Yield an event whole if a request can take it, else in parts that one can."""
    if Request().takes(event):
        yield event
        return
    part = event._replace(points=[], texts=[])
    size = 0
    items: list[Point | Text] = [*event.points, *event.texts]
    for item in items:
        cost = _point_size(item) if isinstance(item, Point) else _text_size(item)
        if len(part.points) == POINTS or len(part.texts) == TEXTS or size + cost > BYTES:
            yield part
            part, size = event._replace(points=[], texts=[], sheets=[]), 0
        if isinstance(item, Point):
            part.points.append(item)
        else:
            part.texts.append(item)
        size += cost
    yield part


def _size(event: Mapped) -> int:
    return sum(map(_point_size, event.points)) + sum(map(_text_size, event.texts))


def _point_size(point: Point) -> int:
    return len(point.name) * (1 if point.name.isascii() else 4) + _POINT_OVERHEAD


def _text_size(text: Text) -> int:
    # Escaped as JSON, a character takes at most six bytes.
    return 6 * len(text.text) + 4 * len(text.name) + _POINT_OVERHEAD
