"""Savepoints: copies of checkpoints. An app keeps a note of each savepoint that needs its journal, because the journal then
keeps the entries that the savepoint needs.

    copies/<hash of the location>.json     in the place of the app's checkpoints, written before the savepoint

A savepoint without a journal has no note: it needs only its own files. The note of a missing savepoint is removed a day
after it was made, so that a savepoint which is still being copied does not count as missing. `sabot savepoint drop`
removes the note at once.
"""

import logging
import os
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from sabot.base.os_errors import hint_of
from sabot.base.redaction import has_password, redacted_url
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.checkpoint.encoding import encode_manifest
from sabot.engine.checkpoint.manifest import Manifest
from sabot.engine.checkpoint.places import LocalPlace, Location, Place, each, place_of
from sabot.engine.checkpoint.protocol import manifest_name, read_manifest_name
from sabot.errors import CheckpointFailed, CorruptCheckpoint, UserError

_log = logging.getLogger(__name__)

_FOLDER = "copies"
_GONE_AFTER_MS = 86_400_000
_OWN_PLACE = "give each savepoint an empty directory, or a new path in the object store"


class SavepointNote(msgspec.Struct, frozen=True):
    """A note of a savepoint. `location`: for messages, without secrets. `readable`: True if the location is complete,
    so that the savepoint can be found by it. `journal`: the journal's entry in the savepoint's manifest.
    """

    location: str
    readable: bool
    checkpoint_id: int
    made_ms: int
    journal: dict[str, Any]


def _text(location: Location) -> str:
    where = place_of(location).where
    return str(where) if isinstance(where, Path) or isinstance(location, tuple) else os.fspath(location)


def _name(location: Location) -> str:
    return f"{_FOLDER}/{blake2b(_text(location).encode(), digest_size=16).hexdigest()}.json"


def make_savepoint(of: Place, manifest: Manifest, location: Location) -> Path | str:
    """Makes a savepoint, see `CheckpointStorage.copy_to`. `of`: the place of the app's checkpoints. `manifest`: the
    checkpoint to copy. `location`: that of the new savepoint.
    """
    source, target = manifest.home(), place_of(location)
    try:
        if _manifests(target):
            raise UserError(f"{target.where} holds a checkpoint already", hint=_OWN_PLACE)
        if isinstance(target.where, Path) and target.where.is_dir():
            others = sorted(set(os.listdir(target.where)) - {"checkpoints", "files"})
            if others:
                raise UserError(
                    f"{target.where} cannot be used for a savepoint: it contains {others[0]}", hint=_OWN_PLACE
                )
        noted = note_savepoint(of, manifest, location)
        try:
            _copy(manifest, source, target)
        except BaseException:
            if noted:
                forget_savepoint(of, location)
            raise
    except OSError as error:
        raise CheckpointFailed(
            f"checkpoint {manifest.checkpoint_id} could not be copied from {source.where} to {target.where}: "
            f"{error.strerror or error}",
            hint=hint_of(error),
        ) from error
    return target.where


def _copy(manifest: Manifest, source: Place, target: Place) -> None:
    distinct = {file.name: file for file in manifest.contents.values()}
    safe = isinstance(source, LocalPlace)
    each(target.parallel, lambda file: target.add(source.fetch(file), file.name, safe=safe), distinct.values())
    target.sync()
    target.create(f"checkpoints/{manifest_name(manifest.mark)}", encode_manifest(manifest), "manifest")


def note_savepoint(place: Place, manifest: Manifest, location: Location) -> bool:
    """Writes a note of a savepoint of this checkpoint that is about to be made. Returns False, without a note, if the
    savepoint needs no journal. Blocks. Raises OSError.
    """
    facts = [stored.meta["journal"] for stored in manifest.tasks.values() if "journal" in stored.meta]
    if not facts:
        return False
    text = _text(location)
    readable = not isinstance(location, tuple) and not has_password(text)
    shown = text if readable else redacted_url(text)
    note = SavepointNote(shown, readable, manifest.checkpoint_id, round(SYSTEM_CLOCK.time() * 1000), facts[0])
    name = _name(location)
    # A note may be left of an earlier savepoint at this location, which does not exist any more; `create` would refuse the name.
    place.remove([name])
    place.create(name, msgspec.json.encode(note), "savepoint")
    return True


def forget_savepoint(place: Place, location: Location) -> None:
    """Removes the note of the savepoint at `location` from `place`, where the app keeps its checkpoints. The
    savepoint itself stays. Blocks. Raises OSError.
    """
    place.remove([_name(location)])


def savepoints_of(place: Place, *, tidy: bool) -> list[SavepointNote]:
    """Returns the notes of an app's savepoints. `tidy`: True to remove the notes of missing savepoints. Blocks.
    Raises OSError; CorruptCheckpoint for a note that cannot be read.
    """
    found = []
    for file in place.names(_FOLDER):
        name = f"{_FOLDER}/{file}"
        try:
            note = msgspec.json.decode(place.read(name), type=SavepointNote)
        except FileNotFoundError:
            continue  # removed meanwhile
        except msgspec.MsgspecError as error:
            raise CorruptCheckpoint(
                f"{place.locate(name)} is damaged: it is the note that makes the journal keep the entries of a savepoint",
                hint="remove the file; the journal then drops the entries of that savepoint, so make savepoints of this app anew",
            ) from error
        if tidy and _is_gone(note):
            _log.warning(
                "savepoint %s does not exist any more: the journal no longer keeps entries for it", note.location
            )
            place.remove([name])
        else:
            found.append(note)
    return found


def _is_gone(note: SavepointNote) -> bool:
    if not note.readable or SYSTEM_CLOCK.time() * 1000 - note.made_ms < _GONE_AFTER_MS:
        return False
    try:
        return not _manifests(place_of(note.location))
    except (OSError, UserError):  # unknown: the place cannot be read
        return False


def is_savepoint(location: Location) -> bool:
    """Returns True if the location has a savepoint, False if it has nothing or an app's own checkpoints. Blocks.
    Raises OSError.
    """
    place = place_of(location)
    return bool(_manifests(place)) and not place.names("claims")


def _manifests(place: Place) -> list[str]:
    return [f"checkpoints/{name}" for name in place.names("checkpoints") if read_manifest_name(name)]


def drop_savepoint(location: Location) -> None:
    """Removes the savepoint at a location, its manifest first. Blocks. Raises UserError if there is none, and for the
    place where an app keeps its checkpoints.
    """
    place = place_of(location)
    try:
        manifests = _manifests(place)
        if place.names("claims"):
            raise UserError(
                f"{place.where} has the checkpoints of an app, and is not a savepoint", hint="give its own place"
            )
        if not manifests:
            raise UserError(f"{place.where} holds no savepoint", hint="give the place that `savepoint create` named")
        place.remove(manifests)
        place.remove(place.all_files())
        if isinstance(place, LocalPlace):
            for folder in [*(place.where / "files").glob("??"), place.where / "files", place.where / "checkpoints"]:
                with suppress(OSError):  # other files are in it
                    folder.rmdir()
            with suppress(OSError):
                place.where.rmdir()
    except OSError as error:
        raise UserError(f"{place.where} cannot be removed: {error.strerror or error}") from error
