"""Answers a question of SQL that a page of the console asks: `python -m sabot.cli.console_answers` reads the question from stdin, and
writes the answer as the last line of stdout. The code of the app is loaded here, and not by the console.
"""

import os
import re
import resource
import sys
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr import lit
from sabot.api.nodes.read import Write
from sabot.api.stream import Stream
from sabot.app import App
from sabot.base.quantities import bytes_words
from sabot.base.redaction import clean_value, keep_forms, scrubbed, scrubbed_values
from sabot.cli.asked_keys import read_asked_keys
from sabot.cli.attached import AttachedApp
from sabot.cli.loading import use_functions
from sabot.cli.sql_program import kept_rows, plain_rows
from sabot.errors import SabotError, UserError
from sabot.sql.scope import node_of
from sabot.sql.syntax.parser import parse
from sabot.sql.syntax.text import Fault, SqlError, SqlText
from sabot.sql.syntax.tree import Query, Show
from sabot.web.payloads import Payloads
from sabot.web.sql_questions import SqlAnswer, SqlQuestion

_NICENESS = 10
_NO_COLUMN = re.compile(r'\bno column "([^"]+)"$')


def main() -> None:
    """Reads a question from stdin, and writes its answer."""
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=SqlQuestion)
    keep_forms(each.decode(errors="surrogatepass") for each in question.secrets)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = question.memory_bytes if hard == resource.RLIM_INFINITY else min(question.memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    os.nice(_NICENESS)
    pa.set_cpu_count(1)
    answer = SqlAnswer()
    try:
        fill(answer, question)
    except (MemoryError, SabotError) as error:
        if isinstance(error, SabotError) and not _lacks_memory(error):
            answer.problem, answer.hint = error.message, error.hint
        else:
            answer.problem = f"this needs more than {bytes_words(most)} of memory"
            answer.hint = "ask for fewer rows or keys"
    sys.stdout.write(f"\n{msgspec.json.encode(answer).decode()}\n")


def _lacks_memory(error: BaseException | None) -> bool:
    """Returns True if an error, or the one that it comes from, is a lack of memory. A step of the query names itself around it."""
    return error is not None and (isinstance(error, MemoryError) or _lacks_memory(error.__cause__))


def fill(answer: SqlAnswer, question: SqlQuestion) -> None:
    """Fills in the answer, the names of the tables first. Raises SabotError, and SqlError for a text that is not one SELECT over them."""
    use_functions(question.functions)
    text = SqlText(question.sql, "SQL")
    statements = parse(text)
    if len(statements) != 1 or not (isinstance(statement := statements[0], Query) or _shows_tables(statement)):
        raise UserError(
            "a page answers one SELECT or SHOW TABLES, and no other statement",
            hint="sabot sql --attach APP runs the others",
        )
    attached = AttachedApp(question.program or question.place, question.place or None, clean=_clean)
    app = App("question", restart="none")
    try:
        found = attached.streams(app, question.sql)
        payloads = Payloads(question.mode, frozenset(question.names))
        place = attached.manifest
        answer.checkpoint, answer.written = place.checkpoint_id, place.created_ms
        given, hidden = {}, set[str]()
        for name, stream in found.items():
            given[name], shown, dropped = _allowed(stream, payloads)
            answer.tables[name] = shown
            hidden |= dropped
        answer.hidden = sorted(hidden)
        if not isinstance(statement, Query):
            answer.tables |= {name.strip('"'): [] for name in attached.names if name.strip('"') not in answer.tables}
            return
        try:
            result = app.sql_session.execute(text, statements, given)
        except SqlError as error:
            raise _explained(attached.explained(error), hidden) from None
        assert isinstance(result, Stream)  # of a Query
        read_asked_keys([Write(node_of(result), "", None)])
        rows = kept_rows(app, result, question.most + 1)
    finally:
        attached.release()
    answer.columns, answer.more = rows.column_names, rows.num_rows > question.most
    answer.rows = plain_rows(rows.slice(0, question.most))


def _shows_tables(statement: object) -> bool:
    return isinstance(statement, Show) and (statement.what, statement.name, statement.like) == ("TABLES", (), None)


def _allowed(stream: Stream, payloads: Payloads) -> tuple[Stream, list[str], set[str]]:
    """Returns a table with the columns that may be used, their names, and those of the others. The column `hidden` stands for the rows of
    a table all of whose columns are hidden: they can be counted.
    """
    names = node_of(stream).column_names or tuple(stream.schema.names)
    shown = [name for name in names if payloads.shows(name)]
    dropped = set(names) - set(shown)
    if not shown:
        return stream.select(lit(True).alias("hidden")), [], dropped
    return stream.select(*shown) if dropped else stream, shown, dropped


def _explained(error: SqlError, hidden: set[str]) -> SqlError:
    faults = []
    for fault in error.faults:
        if (named := _NO_COLUMN.search(fault.message)) is not None and (name := named[1]) in hidden:
            fault = Fault(fault.span, f"the column {name} is hidden", f"--web-show {name} lets pages show its values")
        faults.append(fault)
    return SqlError(error.text, faults)


def _clean(data: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the rows without known secrets, so that no function of SQL gives a part of one."""
    return pa.RecordBatch.from_arrays(list(map(_cleaned, data.columns)), schema=data.schema)


def _cleaned(values: "pa.Array[Any]") -> "pa.Array[Any]":
    type = values.type
    if pa.types.is_dictionary(type):
        return pa.DictionaryArray.from_arrays(values.indices, _cleaned(values.dictionary))
    if pa.types.is_string(type) or pa.types.is_large_string(type):
        texts = values.dictionary_encode()
        before = texts.dictionary.to_pylist()
        after = list(map(scrubbed, before))
        return values if after == before else pc.take(pa.array(after, type), texts.indices)
    if pa.types.is_nested(type):
        rows = values.to_pylist()
        after = [scrubbed_values(clean_value(row, fields=True)) for row in rows]
        return values if after == rows else pa.array(after, type)
    return values


if __name__ == "__main__":
    main()
