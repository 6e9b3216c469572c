"""The storage of checkpoint files: in a directory, or in an object store (`base` is the contract of both)."""

from sabot.engine.checkpoint.places.base import Place, StoredFile, check_files, each, this_worker
from sabot.engine.checkpoint.places.local import LocalPlace, is_local_place
from sabot.engine.checkpoint.places.location import Location, place_of
from sabot.engine.checkpoint.places.remote import RemotePlace

__all__ = [
    "LocalPlace",
    "Location",
    "Place",
    "RemotePlace",
    "StoredFile",
    "check_files",
    "each",
    "is_local_place",
    "place_of",
    "this_worker",
]
