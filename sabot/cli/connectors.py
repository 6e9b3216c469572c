"""`sabot connectors`: lists the connectors that SQL knows, with their guarantees and what has to be installed for them."""

from sabot.cli.journal import Json, quietly
from sabot.cli.printing import columns, json_line
from sabot.connectors.installed import COLUMNS, summary


def connectors(json: Json = False) -> None:
    """List the connectors of Sabot and of other packages: what a crash does to the rows that each reads and writes."""

    def work() -> None:
        rows = summary()
        if not json:
            columns(list(COLUMNS), [list(row) for row in rows])
            return
        for row in rows:
            json_line(dict(zip(COLUMNS, row, strict=True)))

    quietly(work)
