"""A question of SQL about the tables of an app, and its answer, as the console and the process that answers it send them."""

from typing import Any

import msgspec

from sabot.web.payloads import PayloadMode


class SqlQuestion(msgspec.Struct):
    """A question about the tables of an app.

    `sql`: one SELECT, or SHOW TABLES for the names of the tables alone. `functions`, `program`: the modules of --functions and
    the program, "" if it is not known; then only states can be asked. `place`: that of the checkpoints. `mode`, `names`: the columns
    that may be used, as of `Payloads`. `secrets`: what `scrubbed` hides, as bytes, because one of the environment need not be UTF-8.
    `most`: the most rows of the answer. `memory_bytes`: the most memory.
    """

    sql: str
    functions: list[str]
    program: str
    place: str
    mode: PayloadMode
    names: list[str]
    secrets: list[bytes]
    most: int
    memory_bytes: int


class SqlAnswer(msgspec.Struct):
    """An answer to a question.

    `rows`: values that JSON can say, by column. `more`: True if there are more rows. `checkpoint`, `written`: the
    checkpoint, and its time in ms since 1970. `tables`: the columns that may be used, by the name of the table. `hidden`: the columns
    of these tables that may not be used. `problem`, `hint`: why there are no rows, or "".
    """

    columns: list[str] = []
    rows: list[dict[str, Any]] = []
    more: bool = False
    checkpoint: int = 0
    written: int = 0
    tables: dict[str, list[str]] = {}
    hidden: list[str] = []
    problem: str = ""
    hint: str = ""
