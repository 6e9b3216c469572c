"""`sabot connectors`: lists the connectors that SQL knows, with their guarantees and what has to be installed for them."""

from typing import Annotated

import typer

from sabot.base.logs import set_up_logging
from sabot.cli.printing import columns, json_line
from sabot.cli.running import guarded
from sabot.connectors.installed import COLUMNS, summary


def connectors(json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")] = False) -> None:
    """List the connectors of Sabot and of other packages: what a crash does to the rows that each reads and writes."""

    def work() -> None:
        rows = summary()
        if not json:
            columns(list(COLUMNS), [list(row) for row in rows])
            return
        for row in rows:
            json_line(dict(zip(COLUMNS, row, strict=True)))

    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))
