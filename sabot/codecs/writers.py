"""Payloads whose writers' schemas are in a registry: what a codec has made of each of them."""

from collections.abc import Callable
from typing import Generic, TypeVar

from sabot.errors import UnknownSchema, UserError

_WRITERS = 1000  # how many are kept

T = TypeVar("T")


class ByWriter(Generic[T]):
    """What `make` has made of writers' schemas, by their ids. It belongs to one thread.

    schema_of: the text of a schema; it is called once for each id, and again for those that it raises UnknownSchema for. make: of such a
    text; it raises UserError for one that the reader cannot use. refuse: what stands for a schema that is unknown or cannot be used, of
    the reason.
    """

    def __init__(self, schema_of: Callable[[int], str], make: Callable[[str], T], refuse: Callable[[str], T]) -> None:
        self.schema_of = schema_of
        self._make = make
        self._refuse = refuse
        self._made: dict[int, T] = {}

    def __getitem__(self, id: int) -> T:
        if id not in self._made:
            try:
                text = self.schema_of(id)
            except UnknownSchema as error:
                return self._refuse(str(error))  # not kept, since the id may become known
            if len(self._made) >= _WRITERS:
                self._made.clear()
            try:
                self._made[id] = self._make(text)
            except UserError as error:
                why = f"the schema with id {id} cannot be read as the one that is asked for: {error}"
                self._made[id] = self._refuse(why)
        return self._made[id]
