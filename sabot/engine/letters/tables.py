"""Dead letters in a table, as `SqlSink` writes them. The offset of a dead letter is its number, the column `letter`."""

from collections.abc import Iterator

from sabot.connectors.sql.database import quoted
from sabot.connectors.sql.sink import database_of
from sabot.engine.letters.form import LETTER_SCHEMA, DeadLetter, letter_of_row
from sabot.engine.letters.places import Home
from sabot.errors import UserError

_ROWS = 500  # read at once
_LAST = (1 << 63) - 1


class TableHome(Home):
    """A table of dead letters as it is now (`letters.places.Home`). `url` and `table` are those of `SqlSink`.

    Raises UserError for a table that does not exist or has other columns, and TransientError.
    """

    grows_at_its_end = False  # if two processes write, the one with the smaller numbers may write later dead letters

    def __init__(self, url: str, table: str) -> None:
        self._database = database_of(url, table, ())
        self.name = f"{self._database.where}/{table}"
        self.words = f"table {table} of {self._database.where}"
        self._database.connect_to_read()
        try:
            with self._database.explained():
                columns = self._database.columns()
                if columns is None:
                    raise UserError(
                        f"{self.words} does not exist", hint="a SqlSink makes it with its first dead letter"
                    )
                same = self._database.same_column
                missing = {same(name) for name in LETTER_SCHEMA.names} - {same(name) for name in columns}
                if missing:
                    raise UserError(
                        f"{self.words} is no table of dead letters: it has no column {', '.join(sorted(missing))}",
                        hint="give the table of dead_letter=SqlSink(…)",
                    )
                _, found = self._database.run(
                    f"SELECT min({quoted('letter')}), max({quoted('letter')}) FROM {self._database.name}"
                )
        except BaseException:
            self.close()
            raise
        first, last = found[0]
        self.id = self.name
        self.bounds = {0: (0, 0) if first is None else (int(first), min(_LAST, int(last) + 1))}

    def read(self, partition: int, first: int, end: int) -> Iterator[DeadLetter]:
        names = LETTER_SCHEMA.names
        mark = self._database.mark
        statement = (
            f"SELECT {', '.join(map(quoted, names))} FROM {self._database.name} "
            f"WHERE {quoted('letter')} >= {mark} AND {quoted('letter')} < {mark} ORDER BY {quoted('letter')} LIMIT {_ROWS}"
        )
        while True:
            with self._database.explained():
                _, rows = self._database.run(statement, (first, end))
            for row in rows:
                found = dict(zip(names, row, strict=True))
                letter = letter_of_row(found, partition, int(found["letter"]))
                if letter is None:
                    raise UserError(
                        f"{self.words}: row {found['letter']} is no dead letter",
                        hint="only Sabot may write into a table of dead letters",
                    )
                yield letter
            if len(rows) < _ROWS:
                return
            first = int(rows[-1][0]) + 1

    def before(self, partition: int, end: int, count: int) -> int:
        number, table = quoted("letter"), self._database.name
        last = (
            f"SELECT {number} FROM {table} WHERE {number} < {self._database.mark} ORDER BY {number} DESC LIMIT {count}"
        )
        with self._database.explained():
            _, ((first,),) = self._database.run(f"SELECT min({number}) FROM ({last}) AS last_letters", (end,))
        return 0 if first is None else int(first)

    def close(self) -> None:
        self._database.close()
