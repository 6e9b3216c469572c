"""`sabot state`: prints the state of an app as tables."""

import sys
from dataclasses import asdict
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.csv
import typer

from sabot._cython.text.json import encode_rows
from sabot._cython.text.records import bytes_list
from sabot.base.logs import set_up_logging
from sabot.base.quantities import counted_words
from sabot.cli.app_checkpoints import AppWord, find_checkpoints
from sabot.cli.loading import WrongUse
from sabot.cli.printing import columns, json_line, moment
from sabot.cli.running import guarded
from sabot.engine.checkpoint import ask
from sabot.engine.checkpoint.state_reads import MOST_DIFFERENCES, KeyChange, StateDifference, state_difference
from sabot.engine.operators.reading import operators_of, state_of
from sabot.errors import UserError

_FORMATS = ("table", "json", "csv")
_TABLE_ROWS = 100
_JSON_ROWS = 8192  # the number of rows that are encoded at a time


def _format(value: str) -> str:
    if value not in _FORMATS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(_FORMATS)}")
    return value


def state(
    app: AppWord,
    operator: Annotated[
        str | None,
        typer.Argument(
            metavar="OPERATOR", help="The owner of the state: the id of an operator or agent, or a namespace."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="K", help="The only key to read; a JSON list if the key has several columns.")
    ] = None,
    as_of: Annotated[
        int | None, typer.Option(min=1, metavar="ID", help="The id of the checkpoint; default: the newest.")
    ] = None,
    against: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="ID",
            help=f"An older checkpoint: print the keys whose state differs, at most {MOST_DIFFERENCES:,}.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask the running app for a new checkpoint first.")] = False,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", callback=_format, help=f"The format: {', '.join(_FORMATS)}.")
    ] = "table",
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one object per line; the same as --format json.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most this many rows.")] = None,
) -> None:
    """Read the state of an app, running or not, from its newest checkpoint. Without OPERATOR: list the operators that keep state."""
    wanted = "json" if json else form

    def work() -> None:
        if operator is None and key is not None:
            raise WrongUse("--key needs an OPERATOR", hint="without one the operators are listed")
        if against is not None and (operator is None or key is not None or wanted == "csv"):
            raise WrongUse(
                "--against needs an OPERATOR, and takes neither --key nor csv", hint="name the OPERATOR alone"
            )
        if fresh and as_of is not None:
            raise WrongUse("--fresh makes a new checkpoint, and --as-of names an old one", hint="leave one of them out")
        found = find_checkpoints(app)
        checkpoint_id = as_of
        if fresh:
            if not found.runs():
                raise UserError(f"no app runs on {found.place}", hint="leave --fresh out to read the newest checkpoint")
            checkpoint_id = ask(found.place, {"checkpoint": True})["checkpoint"]
        manifest = found.manifest(checkpoint_id)
        try:
            if operator is None:
                _list(operators_of(manifest), wanted)
                return
            if against is not None:
                older = found.manifest(against)
                _print_difference(state_difference(older, manifest, operator, most=limit or MOST_DIFFERENCES), wanted)
                if wanted == "table":
                    typer.echo(f"from checkpoint {older.checkpoint_id} to {manifest.checkpoint_id}", err=True)
                return
            table = state_of(manifest, operator, key)
            shown = table if limit is None else table.slice(0, limit)
            _print(shown, wanted)
        finally:
            found.storage.release_restored()
        note = f"checkpoint {manifest.checkpoint_id}, {moment(manifest.created_ms)}"
        if wanted == "table":
            cut = min(shown.num_rows, _TABLE_ROWS)
            rest = f" of {table.num_rows:,}" if cut < table.num_rows else ""
            typer.echo(f"{counted_words(cut, 'row')}{rest}; {note}", err=True)

    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


def _list(operators: list[Any], form: str) -> None:
    titles = ["operator", "kind", "rows", "description"]
    rows = [[each.id, each.kind, "-" if each.rows is None else each.rows, each.text] for each in operators]
    if form == "json":
        for each in operators:
            json_line({"operator": each.id, "kind": each.kind, "rows": each.rows, "text": each.text})
    elif form == "csv":
        table = pa.table({title: [str(row[at]) for row in rows] for at, title in enumerate(titles)})
        _csv(table)
    else:
        columns(titles, rows)


def _print(table: pa.Table, form: str) -> None:
    if form == "csv":
        _csv(table)
    elif form == "json":
        sys.stdout.flush()
        for batch in table.to_batches(max_chunksize=_JSON_ROWS):
            sys.stdout.buffer.write(
                b"".join(line + b"\n" for line in bytes_list(encode_rows(batch)) if line is not None)
            )
        sys.stdout.buffer.flush()
    else:
        head = table.slice(0, _TABLE_ROWS)
        columns(table.schema.names, [[_cell(row[name]) for name in table.schema.names] for row in head.to_pylist()])


def _print_difference(found: StateDifference, form: str) -> None:
    if form == "json":
        for change in found.changes:
            json_line(asdict(change))
        return
    columns(["", *found.keys, "before", "after"], [_change_line(each) for each in found.changes])
    if found.more:
        typer.echo(f"there are more than these {len(found.changes):,} keys", err=True)


def _change_line(change: KeyChange) -> list[object]:
    return [change.kind, *map(_cell, change.key.values()), _values(change.before), _values(change.after)]


def _values(rows: list[dict[str, Any]]) -> str:
    """Returns the rows of a key as text."""
    return "; ".join(", ".join(f"{name}={_cell(value)}" for name, value in row.items()) for row in rows) or "-"


def _csv(table: pa.Table) -> None:
    flat = pa.table(
        {
            name: column.cast(pa.string()) if pa.types.is_binary(column.type) else _flat(column)
            for name, column in zip(table.schema.names, table.columns, strict=True)
        }
    )
    sys.stdout.flush()
    pyarrow.csv.write_csv(flat, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _flat(column: Any) -> Any:
    """Returns the column with nested values as text, because CSV has no nested values."""
    return pa.array(map(_cell, column.to_pylist())) if pa.types.is_nested(column.type) else column


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
