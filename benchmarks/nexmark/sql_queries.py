"""The queries in SQL: texts of a folder (`qN.sql`), over the same streams as those in Python."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sabot import App, Stream, UserError
from sabot.api.nodes.changes import Changelog
from sabot.api.nodes.read import Write

from .streams import Nexmark

TEXTS = Path(__file__).parent / "sql"
_VARIABLE = re.compile(r"\$\{([A-Z_]+)\}")


def count_char(text: pa.Array, character: pa.Array) -> pa.Array:
    """Counts a character, which is the same for all rows, in each text: the function of the user's in q14."""
    return pc.count_substring(text, character[0].as_py()).cast("int64") if len(text) else pa.array([], pa.int64())


def query_of(name: str, app: App, nexmark: Nexmark, folder: Path = TEXTS) -> Stream:
    """Returns the rows that the text of a query inserts, with the names and types of the columns of its table.

    The text reads the tables bid, auction, person and side. `${FOLDER}` in it is the current folder. Other files of the
    folder, in the order of their names, are run before it: they declare tables and views.
    """
    app.register("count_char", count_char, batch=True, returns="int64")
    text = filled((folder / f"{name}.sql").read_text())
    before = [filled(each.read_text()) for each in sorted(folder.glob("*.sql")) if not re.fullmatch(r"q\d+", each.stem)]
    for table in ("bid", "auction", "person", "side"):
        if re.search(rf"\b{table}\b", " ".join([text, *before])):
            app.register(table, getattr(nexmark, table))
    for each in before:
        app.sql(each)
    with app.captured() as ends:
        app.sql(text)
    if len(ends) != 1 or not isinstance(ends[0], Write):
        raise UserError(f"{name}.sql has {len(ends)} INSERTs", hint="a query has one")
    node = ends[0].input
    return Stream(app, node.input if isinstance(node, Changelog) else node)


def filled(text: str) -> str:
    """Returns a text with the values of its variables, as Flink's runner has them."""
    return _VARIABLE.sub(lambda found: _VALUES.get(found[1], found[0]), text)


_VALUES = {"FOLDER": ".", "NEXMARK_DIR": ".", "TPS": "10000"}
