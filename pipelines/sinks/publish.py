"""The end of a run: its files go to their places, and `_SUCCESS.json`, which lists all of the sink, is written last.

A run over a span of event time replaces the partitions of that span, each as a whole, and leaves those of other runs as
they are. What is foreign (pipelines.sinks.listed) stays.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.sinks.folder import Folder, SinkError, check_unclaimed, claim, staging_of
from pipelines.sinks.listed import (
    COMMON,
    DEAD_LETTERS,
    EVERYTHING,
    INPUTS,
    KINDS,
    MANIFEST,
    SCORES,
    SPANS,
    SPEC,
    SUCCESS,
    TABLE_FORMAT,
    UNKNOWN,
    Former,
    Scope,
    Written,
    former_of,
    place_of,
    read_former,
)

if TYPE_CHECKING:
    from pipelines.sinks.tables import Table


def check_sink(
    folder: Folder,
    facts: Mapping[str, Any] | None,
    replace: bool,
    scope: Scope = EVERYTHING,
    verify: bool = True,
    kinds: Iterable[str] = (),
) -> Former:
    """SinkError if a sink holds foreign files in the way, or without `replace` another run's output.

    Without `facts` a run's output passes. A run over a span replaces what other runs left of it. With `verify`, files
    of this machine that are to be replaced must have the bytes they are listed with; a store's are known by their
    names alone. `kinds` are folders of the run beside those of every run.
    """
    if folder.is_local and os.path.lexists(folder.path) and not os.path.isdir(folder.path):
        raise SinkError(f"{folder.path}: is a file; a sink is a folder")
    former = read_former(folder)
    if facts is not None:
        former.check_table(folder, facts)
    if facts is not None and not scope.span.is_all:
        former.check_common(folder, facts)
        former.kept(folder, scope)
    for kind in (*KINDS, *sorted({*kinds, *former.kinds}.difference(KINDS))):
        if folder.is_local and os.path.lexists(folder.join(kind)) and not os.path.isdir(folder.join(kind)):
            raise _foreign(folder, kind)
        for name in () if kind == SCORES and former.is_table else folder.names(kind):
            place = f"{kind}/{name}"
            digests = former.files.get(place)
            if digests is None or not folder.is_file(place):
                raise _foreign(folder, place)
            looked_at = verify and folder.is_local and UNKNOWN not in digests and place in scope
            if looked_at and folder.sha256(place) not in digests:
                raise SinkError(
                    f"{folder.join(place)}: was changed since a run wrote it, and is not replaced: move it away, "
                    "or name another sink"
                )
    if facts is not None and not replace and scope.span.is_all:
        former.check_same(folder, facts)
    return former


def look_at(directory: str, replace: bool, kinds: Iterable[str] = ()) -> None:
    """SinkError for what can be known of a sink that can't be used before anything else is: a look at names only.

    `replace`, if what other runs left may be replaced.
    """
    folder = Folder(directory)
    if not folder.is_local:
        return
    check_unclaimed(folder)
    former = check_sink(folder, None, replace, verify=False, kinds=kinds)
    if not replace and any(None in run for run in former.runs):
        former.check_same(folder, {})


def _foreign(folder: Folder, place: str) -> SinkError:
    return SinkError(
        f"{folder.join(place)}: was not written by a run that is known, and is in the way: move it away, "
        "or name another sink"
    )


def sweep(folder: Folder, run_id: str) -> None:
    """Remove what runs left that were cut off, whose lock this run has now; never what still tells files of theirs.

    In a store it can't be known that a run is over, so all stays there.
    """
    if not folder.is_local:
        return
    done = folder.is_file(SUCCESS) or folder.is_file(f"{staging_of(run_id)}/{MANIFEST}")
    for staging in folder.stagings():
        if staging != staging_of(run_id) and (done or not folder.is_file(f"{staging}/{MANIFEST}")):
            folder.remove_staging(staging)


def publish(
    folder: Folder,
    run_id: str,
    written: Sequence[Written],
    facts: Mapping[str, Any],
    text: str,
    replace: bool,
    scope: Scope = EVERYTHING,
    tables: Sequence[Table] = (),
) -> None:
    """Move a run's staged files to their places, remove others of the scope, and write `text` last.

    Before it is written, `tables` take the score rows. It may be cut off anywhere and done again, by the same run or by
    the next. SinkError if the sink is held by another run, or holds what is foreign.
    """
    staging = staging_of(run_id)
    with claim(folder, run_id):
        if folder.read(SUCCESS) == text.encode() and _all_there(folder, staging, written):
            folder.remove_staging(staging)  # this step was done before
            return
        with folder.create(f"{staging}/{SUCCESS}") as file:
            file.write(text.encode())
        before = _write_manifest(folder, staging, written, facts, replace, scope)
        sweep(folder, run_id)
        folder.remove([SUCCESS])
        _place(folder, staging, written)
        for table in tables:
            table.commit(folder, written, facts, scope)
        gone = {place for place in before if place in scope} - {file.place for file in written}
        # A table's earlier versions stay.
        folder.remove(sorted(place for place in gone if not (TABLE_FORMAT in facts and place.startswith(f"{SCORES}/"))))
        folder.move([(f"{staging}/{SUCCESS}", SUCCESS)])
        folder.remove_staging(staging)


def _all_there(folder: Folder, staging: str, written: Sequence[Written]) -> bool:
    return not any(folder.is_file(f"{staging}/{file.place}") for file in written) and all(
        folder.is_file(file.place) for file in written
    )


def _write_manifest(
    folder: Folder,
    staging: str,
    written: Sequence[Written],
    facts: Mapping[str, Any],
    replace: bool,
    scope: Scope,
) -> set[str]:
    """Note whose files those of the sink are before one of them is touched; the places of the former run's."""
    place = f"{staging}/{MANIFEST}"
    noted = folder.read(place)
    if noted is None:
        former = check_sink(folder, facts, replace, scope, kinds={file.kind for file in written})
        entries = [*former.entries, *map(dataclasses.asdict, written)]
        listed = {place_of(entry) for entry in entries}
        entries += [
            {"kind": kind, "name": name, "sha256": digest}
            for kind, name, digest in sorted(
                (*place.split("/", 1), digest)
                for place, digests in former.files.items()
                for digest in digests
                if place not in listed
            )
        ]
        common = {key: facts[key] for key in (SPEC, INPUTS, *COMMON) if key in facts}
        manifest = {**common, SPANS: [span.facts() for span in former.spans], "files": entries}
        noted = json.dumps(manifest).encode()
        folder.write(place, noted, staging)
    return set(former_of(folder.join(place), [noted]).files)


def _place(folder: Folder, staging: str, written: Sequence[Written]) -> None:
    """Move the staged files to their places; those of a kind in one go where no folder of it is there yet."""
    for kind in (*KINDS, *sorted({file.kind for file in written}.difference(KINDS))):
        files = [file for file in written if file.kind == kind]
        staged, target = folder.join(staging, kind), folder.join(kind)
        if (
            folder.is_local
            and not os.path.lexists(target)
            and folder.names(f"{staging}/{kind}") == sorted(file.name for file in files)
        ):
            if files or kind in (SCORES, DEAD_LETTERS):
                os.makedirs(staged, exist_ok=True)
                os.rename(staged, target)
            continue
        moves = []
        for file in files:
            if folder.is_file(f"{staging}/{file.place}"):
                moves.append((f"{staging}/{file.place}", file.place))
            elif not folder.is_file(file.place) or folder.sha256(file.place) != file.sha256:
                raise SinkError(
                    f"{folder.join(file.place)}: is not there, nor what was staged for it: start the run again"
                )
        folder.move(moves)
