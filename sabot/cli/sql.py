"""`sabot sql`: a shell for SQL, and the same for files and for `-c`."""

import atexit
import contextlib
import os
import readline
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sabot.base.logs import set_up_logging
from sabot.cli.attached import AttachedApp
from sabot.cli.loading import WrongUse, use_functions
from sabot.cli.options import Functions
from sabot.cli.running import guarded, print_error
from sabot.cli.sql_program import FORMATS, SqlProgram
from sabot.sql.functions import AGGREGATES, FUNCTIONS
from sabot.sql.syntax.text import SqlFault, SqlText
from sabot.sql.syntax.tokens import tokens_of

_HELP = """\
\\d          the tables and views            \\d NAME   the columns of one
\\c          changes of results as they come, or again the table that they make
\\timing     the time that each statement took, on or off
\\q          the end of the shell, as Ctrl-D
A statement ends with ; and may have several lines. Ctrl-C ends a running query, or forgets what was typed."""
_HISTORY_LINES = 2000
_KEYWORDS = """
    SELECT FROM WHERE GROUP BY HAVING QUALIFY ORDER LIMIT DISTINCT AS JOIN LEFT RIGHT FULL INNER ON USING UNION ALL
    BETWEEN AND OR NOT NULL IS IN LIKE CASE WHEN THEN ELSE END CAST OVER PARTITION ROWS RANGE PRECEDING CURRENT ROW
    INTERVAL SECOND MINUTE HOUR DAY TABLE DESCRIPTOR TUMBLE HOP CUMULATE SESSION FOR SYSTEM_TIME OF WITH VALUES
    CREATE VIEW INSERT INTO DROP SHOW TABLES VIEWS FUNCTIONS MODELS CONNECTORS COLUMNS DESCRIBE EXPLAIN CHANGELOG JSON AGAINST SET RESET
    EXECUTE STATEMENT BEGIN PRIMARY KEY ENFORCED WATERMARK METADATA STRING BIGINT INT DOUBLE BOOLEAN TIMESTAMP DECIMAL
"""


def sql(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The file of SQL to run; without it, a shell.")
    ] = None,
    command: Annotated[str | None, typer.Option("-c", metavar="SQL", help="The statements to run.")] = None,
    format: Annotated[
        str, typer.Option(metavar="FORMAT", help=f"The form of results: {', '.join(FORMATS)}.")
    ] = "table",
    functions: Functions = None,
    changes: Annotated[bool, typer.Option("--changes", help="Print each change of a result as it comes.")] = False,
    attach: Annotated[
        str | None,
        typer.Option(
            metavar="APP", help="Ask the tables of this app, running or not, as its newest checkpoint has them."
        ),
    ] = None,
    state: Annotated[
        str | None, typer.Option(metavar="DIR", help="The state directory of the app of --attach.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask the app of --attach for a checkpoint before each statement.")
    ] = False,
) -> None:
    """Run SQL: in a shell, from a file, or with -c. A query runs until its input ends, or Ctrl-C.

    --attach takes an APP as other commands do: module:app, a file of SQL, or the place of its checkpoints; APP@ID is an older one.

    With --changes, rows have the column `op`: insert, update_before, update_after or delete. Exit code 1 if a statement fails, 2 for
    wrong options.
    """

    def work() -> None:
        use_functions(functions)
        if format not in FORMATS:
            raise WrongUse(f"--format {format}: there is no such form", hint=f"one of {', '.join(FORMATS)}")
        if file is not None and command is not None:
            raise WrongUse("give a file or -c, and not both")
        if attach is None and (state is not None or fresh):
            raise WrongUse(f"--{'fresh' if fresh else 'state'} is about the app of --attach", hint="--attach APP")
        attached = None if attach is None else AttachedApp(attach, state, fresh=fresh)
        program = SqlProgram("json" if changes and format == "table" else format, changes=changes, attached=attached)
        if command is not None:
            program.run(command, "-c")
        elif file is not None:
            program.run(_text(file), str(file))
        elif not sys.stdin.isatty():
            program.run(sys.stdin.read(), "stdin")
        else:
            _Shell(program).run()

    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUse(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def is_complete(text: str) -> bool:
    """Returns True if a text of SQL ends with a semicolon that is not a part of a string or a comment."""
    try:
        tokens = tokens_of(SqlText(text))
    except SqlFault as error:
        unfinished = error.fault.message.endswith(("has no closing quote", "has no closing backtick", "has no end"))
        return text.rstrip().endswith(";") and not unfinished
    return len(tokens) > 1 and tokens[-2].value == ";"


class _Shell:
    """The shell on a terminal: lines, history, completion, and the commands that begin with a backslash."""

    def __init__(self, program: SqlProgram) -> None:
        self._program = program
        self._timing = False
        self._found: list[str] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "\\d": self._describe,
            "\\c": self._switch_changes,
            "\\timing": self._switch_timing,
            "\\?": lambda word: typer.echo(_HELP),
        }

    def run(self) -> None:
        """Reads and runs statements until \\q or Ctrl-D."""
        _use_history()
        readline.set_completer(self._complete)
        readline.set_completer_delims(" \t\n,()=<>+-*/;.")
        readline.parse_and_bind("tab: complete")
        typer.echo("SQL of Sabot. A statement ends with ; and \\? shows the commands.")
        typed, begun = "", 0
        while True:
            try:
                line = input("  ...> " if typed else "sabot> ")
            except KeyboardInterrupt:
                typer.echo()
                typed = ""
                continue
            except EOFError:
                typer.echo()
                return
            if not typed:
                begun = readline.get_current_history_length()
            word = line.strip().rstrip(";").strip()
            if not typed and word.lower() in ("\\q", "quit", "exit"):
                return
            word = "\\?" if word.lower() == "help" else word
            if not typed and word.startswith("\\"):
                self._command(word)
                continue
            typed = f"{typed}\n{line}" if typed else line
            if not typed.strip():
                typed = ""
            elif is_complete(typed):
                _remember(typed, begun)
                self._guarded(lambda text=typed: self._program.run(text))  # type: ignore[misc]
                typed = ""

    def _command(self, line: str) -> None:
        name, _, word = line.partition(" ")
        command = self._commands.get(name)
        if command is None:
            typer.echo(f"there is no command {name}; \\? shows them")
        else:
            self._guarded(lambda: command(word.strip()))

    def _guarded(self, work: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            work()
        except KeyboardInterrupt:
            typer.echo()
        except Exception as error:
            print_error(error, 1, False)
        if self._timing:
            typer.echo(f"{time.monotonic() - began:.3f} s")

    def _describe(self, name: str) -> None:
        self._program.run(f"DESCRIBE {name}" if name else "SHOW TABLES")

    def _switch_changes(self, word: str) -> None:
        program = self._program
        program.changes = not program.changes
        typer.echo("each change of a result is printed" if program.changes else "results are tables")

    def _switch_timing(self, word: str) -> None:
        self._timing = not self._timing
        typer.echo(f"timing is {'on' if self._timing else 'off'}")

    def _complete(self, begun: str, number: int) -> str | None:
        if number == 0:
            words = {*self._program.words(), *_KEYWORDS.split(), *FUNCTIONS, *AGGREGATES}
            found = sorted(word for word in words if word.lower().startswith(begun.lower()))
            small = begun == begun.lower() and begun != ""
            names = self._program.words()
            self._found = [word.lower() if small and word not in names else word for word in found]
        return self._found[number] if number < len(self._found) else None


def _remember(statement: str, begun: int) -> None:
    """Makes one entry of the history of a statement of several lines, so that it comes back whole. A comment ends with its line,
    so lines with comments stay as they are. `begun`: the number of entries when its first line had been read.
    """
    lines = statement.split("\n")
    if len(lines) > 1 and "--" not in statement:
        for place in range(readline.get_current_history_length() - 1, begun - 2, -1):
            readline.remove_history_item(place)
        readline.add_history(" ".join(line.strip() for line in lines))


def _use_history() -> None:
    """Reads the history of earlier shells from `~/.sabot_history`, and writes it there at the end."""
    path = os.environ.get("SABOT_HISTORY") or str(Path.home() / ".sabot_history")
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)

    def write() -> None:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)

    atexit.register(write)
