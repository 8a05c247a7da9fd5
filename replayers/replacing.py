"""What is done for points that a target holds and that are superseded: the choices of
`replayers.superseding`, carried out. Killed anywhere, the next call goes on with it.
"""

from __future__ import annotations

import dataclasses
import functools

from eventlog.event import NOTE
from eventlog.views import Effective
from replayers.about import run_info
from replayers.compare import Comparer
from replayers.passage import Passage
from replayers.superseding import (
    APPEND,
    NEW_RUN,
    REBUILD,
    anew,
    decided,
    generations,
    next_generation,
    refuse_loss,
    signature,
)
from replayers.target import Absent


def find_generation(way: Passage) -> None:
    """Without a cursor: find the newest run of the target that replaced another one."""
    if way.settings.superseded != NEW_RUN or way.known or way.cursor.superseded:
        return
    there = []
    for generation in [*generations(way.view), ""] if isinstance(way.view, Effective) else []:
        info = run_info(way.found, None, create=False, generation=generation)
        try:
            session = way.sender.again(functools.partial(way.target.open, info))
            if getattr(session, "found_by", None) or len(way.sender.again(session.held)):
                there.append((session.known_as, generation))
        except Absent:
            continue
    if there and there[0][1]:
        former = there[1:2]
        way.cursor = dataclasses.replace(
            way.cursor,
            generation=there[0][1],
            replaced=former,
            unmarked=bool(former),
        )


def supersede(way: Passage, *, ended: bool) -> bool:
    """Do what was chosen for points that the target holds and that are superseded by now; return
    whether everything is to be sent again.

    Raises
    ------
    IntegrityError
        If a run is not deleted because this journal has not all that it holds.
    """
    choice = way.settings.superseded
    if (way.cursor.superseded or APPEND) != choice:
        way.delivery.record(NOTE, {"superseded": choice})
        way.save(dataclasses.replace(way.cursor, superseded=choice))
    if choice == APPEND or not isinstance(view := way.view, Effective):
        return False
    if not _anything_held(way):
        return False
    looked = signature(choice, view, ended=ended)
    if way.cursor.looked == looked or not (ended or decided(view)):
        return False
    session, label = way.session(), way.outcome.target
    compare = functools.partial(
        Comparer, way.folder, way.target, session, way.chosen, cursor=way.cursor
    )
    held = compare(settings=False).run(details=False).superseded
    generation = generations(view)[0]
    if not held or (choice == NEW_RUN and way.cursor.generation == generation):
        way.save(dataclasses.replace(way.cursor, looked=looked))
        return False
    told = {"superseded": choice, "points": held, "known_as": session.known_as}
    if choice == REBUILD:
        if way.outcome.missing:
            return False
        for writer in way.parts:
            way.durable.make(writer)  # soon it is the only copy
        refuse_loss(compare().run(details=False), label)
        name = getattr(session, "shown_as", "")
        way.start_again(dataclasses.replace(anew(way.cursor, ""), shown_as=name), told)
        way.sender.again(session.discard)  # type: ignore[attr-defined]
        way.save(dataclasses.replace(way.cursor, looked=looked))
        way.outcome.notes.append(f"rebuilt: {held} of its points were superseded")
    else:
        told["generation"] = generation
        way.start_again(next_generation(way.cursor, generation, looked), told)
        way.outcome.notes.append(
            f"a new run replaces {session.known_as}, of which {held} points were superseded"
        )
    return True


def _anything_held(way: Passage) -> bool:
    """Return whether anything was sent; without a cursor only the target knows."""
    attempted = any(mark.attempted for mark in way.cursor.writers.values())
    if attempted or way.known:
        return attempted
    way.session()
    return len(way.held) > 0


def mark_former(way: Passage) -> None:
    """Have the run that is replaced say so, now that the new one is complete."""
    if not (way.cursor.unmarked and way.cursor.replaced):
        return
    known_as, generation = way.cursor.replaced[-1]
    by = way.session().known_as
    info = run_info(way.found, known_as or None, create=False, generation=generation)
    try:
        former = way.sender.again(lambda: way.target.open(info))
        way.sender.again(lambda: former.mark_replaced(by))  # type: ignore[attr-defined]
    except Absent:  # somebody deleted it
        by = ""
    way.let_go()
    way.tell({"replaced": known_as, "by": by})
    way.save(dataclasses.replace(way.cursor, unmarked=False))
