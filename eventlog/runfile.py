"""``run.json``: a run's identity, the same bytes on every node, so that copies fall into one.

That of a run with events in an archive (`eventlog.archive`) names the archives too, and says format
2.0: who knows no archives must not take the run for one that has lost events.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from eventlog.errors import FormatError, IntegrityError, UsageError
from eventlog.files import LOCAL, Files, Store
from eventlog.formats import FORMAT, check_format
from eventlog.layout import RUN_FILE, is_archive

if TYPE_CHECKING:
    from eventlog.segment import Header

_USUAL, _LARGEST = 2**14, 2**20
#: What a reader must know to read a run whose file says format 2.0.
_NEEDS = {"format": "2.0", "needs": ["archives"]}


@dataclasses.dataclass(frozen=True)
class RunFile:
    """What a run is called. `id` is the one identity; names may repeat."""

    id: str
    project: str
    name: str

    def to_bytes(self, archives: Collection[str] = ()) -> bytes:
        """Return the file's content, always the same for the same run and `archives`."""
        fields: dict[str, object] = {"format": FORMAT, **dataclasses.asdict(self)}
        if archives:
            fields |= {**_NEEDS, "archives": sorted(archives)}
        return (json.dumps(fields, ensure_ascii=True, indent=1, sort_keys=True) + "\n").encode()

    def check(self, folder: str, parts: Mapping[str, Sequence[Header]]) -> None:
        """See that the segments in a run's folder are this run's.

        Parameters
        ----------
        parts:
            What `eventlog.reader.headers` returns for it.

        Raises
        ------
        IntegrityError
            If one names another run, or another project.
        """
        for headers in parts.values():
            for header in headers:
                if header.run != self.id:
                    raise IntegrityError(
                        f"run.json says that this is the run {self.id!r}, and {header.name} is of "
                        f"the run {header.run!r}",
                        on=folder,
                        hint="bring back the run.json of this folder, or the files of this run",
                    )
                project = header.identity.get("project", self.project)
                if project != self.project:
                    raise IntegrityError(
                        f"run.json says that this run is of the project {self.project!r}, and "
                        f"{header.name} of {project!r}",
                        on=folder,
                        hint="bring back the run.json of this folder, or the files of this run",
                    )


def read(folder: str, store: Store = LOCAL) -> RunFile:
    """Read a run's identity.

    Raises
    ------
    UsageError
        If the folder has no ``run.json``.
    FormatError
        If it has one that is not ours or of a newer major version.
    """
    return read_all(folder, store)[0]


def read_all(folder: str, store: Store = LOCAL) -> tuple[RunFile, tuple[str, ...]]:
    """Read a run's identity, and which archives hold events of it; see `read`."""
    path = os.path.join(folder, RUN_FILE)
    try:
        with store.open(path) as file:
            text = file.read(_USUAL)
            if len(text) == _USUAL:
                text += file.read(_LARGEST)
        if len(text) > _LARGEST:
            raise FormatError("a run.json larger than 1 MiB is none of ours", on=path)
        fields = json.loads(text)
        archives: tuple[str, ...] = ()
        if {key: fields.get(key) for key in _NEEDS} == _NEEDS:
            archives = tuple(map(str, fields["archives"]))
        else:
            check_format(str(fields["format"]))
        run = RunFile(*(fields[key] for key in ("id", "project", "name")))
    except FileNotFoundError:
        raise UsageError("there is no run here (no run.json)", on=folder) from None
    except FormatError as error:
        raise FormatError(error.what, on=path, hint=error.hint) from None
    except OSError as error:
        raise UsageError(f"a run cannot be read ({error.strerror})", on=path) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"this run.json is damaged or none of ours ({error})", on=path) from error
    if not all(isinstance(text, str) and text for text in (run.id, run.project, run.name)):
        raise FormatError("this run.json has an id, project or name that is no text", on=path)
    if not all(map(is_archive, archives)):
        raise FormatError("this run.json names an archive that cannot be one", on=path)
    return run, archives


def add_archive(folder: str, archive: str, files: Files = LOCAL) -> None:
    """Have a run's file name an archive, durable.

    Raises
    ------
    EventlogError
        If it cannot be read.
    OSError
        If it cannot be written.
    """
    run, archives = read_all(folder, files)
    # Written again if it is named already: that may not be durable yet.
    files.write_whole(os.path.join(folder, RUN_FILE), run.to_bytes({*archives, archive}))


def claim(folder: str, run: RunFile, files: Files = LOCAL) -> None:
    """Write a run's identity, or check that the one that is there is the same.

    Raises
    ------
    IntegrityError
        If the folder belongs to a run of another project or name.
    OSError
        If it cannot be written.
    """
    path = os.path.join(folder, RUN_FILE)
    if files.exists(path):
        there = read(folder, files)
        if there != run:
            raise IntegrityError(
                f"the run id {run.id!r} is taken by {there.project}/{there.name}, and nothing was "
                f"merged; this one is {run.project}/{run.name}",
                on=folder,
                hint="choose another id, project or name",
            )
        return
    # Two ranks may do this at once: both put the same bytes in place.
    files.write_whole(path, run.to_bytes())
