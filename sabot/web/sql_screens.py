"""The screen on which SQL asks the tables of an app, as its newest checkpoint has them."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from sabot.base.redaction import kept_forms, scrubbed, visible
from sabot.errors import UserError
from sabot.web.commands import said_by
from sabot.web.payloads import Payloads, ShownPayload
from sabot.web.reader import LESS_MEMORY, MEMORY_BYTES
from sabot.web.screen import Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp
from sabot.web.sql_questions import SqlAnswer, SqlQuestion

_MOST_SHOWN = 200
_MOST_ROWS = 20_000  # of CSV and JSON
_MOST_CHARS = 2_000  # of what a process that failed has printed
_AT_ONCE = 2
_ERRORS = "surrogatepass"
# The columns that may not be shown are not there for a question: what it computes may be shown.
_ANSWERS = Payloads("all")


class QuestionScreens:
    """The facts of the screen of SQL. Each question is answered by a process of its own. Used by the thread of the server."""

    def __init__(self, app: ShownApp) -> None:
        self._app = app
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def group(self) -> ScreenGroup:
        """Returns the screen; none if the app keeps no checkpoints."""
        if self._app.checkpoints is None:
            return ScreenGroup()
        return ScreenGroup({"sql": Screen("SQL", "/sql", more=self._facts, rows=self._rows, role="act")})

    async def _facts(self, query: Query) -> Mapping[str, Any]:
        text = query.get("q", "").strip()
        try:
            # Only who asks loads the program: what it does when it is loaded (writes its own input, say) is done again.
            answer = await self._answer(text, _MOST_SHOWN) if text else SqlAnswer()
        except UserError as error:
            answer = SqlAnswer(problem=error.message, hint=error.hint)
        return {
            "text": text,
            "answer": answer,
            "problem": visible(scrubbed(answer.problem)),
            "hint": visible(scrubbed(answer.hint)),
            "lines": [[_cell(row.get(name), name) for name in answer.columns] for row in answer.rows],
            "most": _MOST_ROWS,
        }

    async def _rows(self, query: Query) -> Rows:
        """Returns the rows of the answer for CSV and JSON. Raises UserError."""
        text = query.get("q", "").strip()
        if not text:
            raise UserError("there is no question", hint="?q=SHOW+TABLES lists the tables")
        answer = await self._answer(text, _MOST_ROWS)
        if answer.problem:
            raise UserError(answer.problem, hint=answer.hint)
        if not answer.columns:
            return [{"table": name, "columns": ", ".join(columns)} for name, columns in answer.tables.items()]
        return [{name: _text(_cell(row.get(name), name)) for name in answer.columns} for row in answer.rows]

    async def _answer(self, text: str, most: int) -> SqlAnswer:
        """Asks a process. Raises UserError if it takes too long, or fails."""
        app = self._app
        assert app.checkpoints is not None  # else there is no such screen
        *functions, program = app.program or [""]
        location = app.checkpoints.location
        place = "" if isinstance(location, tuple) else str(location)
        if not place and not program:
            raise UserError("the checkpoints are in a file system that only the program can open")
        question = SqlQuestion(
            text,
            [word for word in functions if word != "--functions"],
            program,
            place,
            app.payloads.mode,
            sorted(app.payloads.names),
            [each.encode(errors=_ERRORS) for each in kept_forms()],
            most,
            MEMORY_BYTES,
        )
        async with self._turns:
            code, out, err = await said_by(
                module="sabot.cli.console_answers", input=msgspec.json.encode(question), environment=LESS_MEMORY
            )
        for line in reversed(out.splitlines()):
            try:
                return msgspec.json.decode(line, type=SqlAnswer)
            except msgspec.DecodeError:  # a line of the program's own
                continue
        said = err.strip()[-_MOST_CHARS:]
        raise UserError(f"the question was not answered, its process ended with {code}: {said}")


def _cell(value: Any, name: str) -> ShownPayload:
    return ShownPayload() if value is None else _ANSWERS.shown(value, name)


def _text(cell: ShownPayload) -> str:
    return ", ".join(f"{name}: {text}" if name else text for name, text in cell.fields)
