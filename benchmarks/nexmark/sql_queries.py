"""The queries in SQL: texts of a folder (`qN.sql`), over the same streams as those in Python."""

import re
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot import App, Expr, Stream, UserError, col, lit, struct
from sabot.api.nodes.changes import Changelog
from sabot.api.nodes.read import Write
from sabot.sql.catalog import CONNECTORS, Options, TableConnector

from .generator import SCHEMAS
from .streams import Nexmark, write_side

TEXTS = Path(__file__).parent / "sql"
TABLES = ("bid", "auction", "person", "side")
_VARIABLE = re.compile(r"\$\{([A-Z_]+)\}")
_RATES = [f"{kind}.rate" for kind in ("first-event", "next-event")]
_SHARES = ["events.num", *(f"{kind}.proportion" for kind in SCHEMAS)]


def count_char(text: pa.Array, character: pa.Array) -> pa.Array:
    """Counts a character, which is the same for all rows, in each text: the function of the user's in q14."""
    return pc.count_substring(text, character[0].as_py()).cast("int64") if len(text) else pa.array([], pa.int64())


def query_of(name: str, app: App, nexmark: Nexmark, folder: Path = TEXTS) -> Stream:
    """Returns the rows that the text of a query inserts, with the names and types of the columns of its table.

    The text reads the tables bid, auction, person and side. `${FOLDER}` in it is the current folder. Other files of the
    folder, in the order of their names, are run before it: they declare tables and views. Of Flink's own folders these are
    `ddl_gen.sql`, whose connector `nexmark` gives the events of all kinds in one table, and `ddl_views.sql`.
    """
    app.register("count_char", count_char, batch=True, returns="int64")
    text = filled((folder / f"{name}.sql").read_text())
    others = [each for each in sorted(folder.glob("*.sql")) if not re.fullmatch(r"[qp]\d+", each.stem)]
    flinks = [each for each in others if each.stem in ("ddl_gen", "ddl_views")]
    before = [filled(each.read_text()) for each in (flinks if len(flinks) == 2 else others)]
    whole = " ".join([text, *before])
    for table in TABLES:
        if re.search(rf"\b{table}\b", whole) and not re.search(rf"CREATE (TABLE|VIEW) {table}\b", whole):
            app.register(table, getattr(nexmark, table))
    if "side_input.txt" in whole:
        Path("data").mkdir(exist_ok=True)
        write_side(Path("data/side_input.txt"))
    CONNECTORS["nexmark"] = TableConnector(lambda options, _: _events(options, nexmark), None)
    try:
        for each in before:
            app.sql(each)
        with app.captured() as ends:
            app.sql(text)
    finally:
        del CONNECTORS["nexmark"]
    if len(ends) != 1 or not isinstance(ends[0], Write):
        raise UserError(f"{name}.sql has {len(ends)} INSERTs", hint="a query has one")
    node = ends[0].input
    return Stream(app, node.input if isinstance(node, Changelog) else node)


def _events(options: Options, nexmark: Nexmark) -> Any:
    """The connector `nexmark` of Flink's suite: rows with event_type, and a ROW for the event of each kind. How many there
    are, and how fast, is said to the benchmark and not in the text.
    """
    for option in (*_RATES, *_SHARES):
        options.take(option)

    def open_rows(app: App, given: dict[str, Any]) -> Stream:
        types = given["schema"]
        kinds = list(SCHEMAS)

        def of_kind(kind: str) -> Stream:
            columns = {"event_type": lit(kinds.index(kind)).cast(types.field("event_type").type)}
            for each in kinds:
                columns[each] = (
                    _row(each, types.field(each).type) if each == kind else lit(None, types.field(each).type)
                )
            return getattr(nexmark, kind).select(**columns)  # type: ignore[no-any-return]

        return reduce(lambda one, other: one.union(other), map(of_kind, kinds))

    return open_rows


def _row(kind: str, type: pa.DataType) -> Expr:
    """An event as a ROW of this type. A time that the events do not have by this name is their own."""
    names = SCHEMAS[kind].names
    return struct(
        **{field.name: col(field.name if field.name in names else "dateTime").cast(field.type) for field in type}
    )


def filled(text: str) -> str:
    """Returns a text with the values of its variables, as Flink's runner has them."""
    return _VARIABLE.sub(lambda found: _VALUES.get(found[1], found[0]), text)


_VALUES = {
    "FOLDER": ".",
    "NEXMARK_DIR": ".",
    "FLINK_HOME": ".",
    "NEXMARK_TABLE": "datagen",
    "TPS": "10000",
    "EVENTS_NUM": "0",
    "PERSON_PROPORTION": "1",
    "AUCTION_PROPORTION": "3",
    "BID_PROPORTION": "46",
}
