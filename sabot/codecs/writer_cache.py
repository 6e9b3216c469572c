"""A cache of values made from writers' schemas, for payloads whose writers' schemas are in a registry."""

from collections.abc import Callable
from typing import Generic, TypeVar

from sabot.errors import UnknownSchema, UserError

_WRITERS = 1000  # the most values that are kept

T = TypeVar("T")


class WriterCache(Generic[T]):
    """The values that `make` made from writers' schemas, by schema id. It belongs to one thread.

    `schema_of`: returns the text of a schema. It is called once for each id; if it raises UnknownSchema, it is called
    for that id again. `make`: returns the value for such a text, or raises UserError if the reader cannot use it.
    `refuse`: returns the value for a schema that is unknown or cannot be used, given the reason.
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
                return self._refuse(str(error))  # not cached, because the id may become known
            if len(self._made) >= _WRITERS:
                self._made.clear()
            try:
                self._made[id] = self._make(text)
            except UserError as error:
                why = f"the schema with id {id} cannot be read with the reader's schema: {error}"
                self._made[id] = self._refuse(why)
        return self._made[id]
