"""The errors that end a script or a command: a line on stderr in place of a traceback."""

import logging
import sys
import traceback
from types import TracebackType

from sabot.base.logs import as_json
from sabot.base.redaction import scrubbed, visible
from sabot.errors import DeliveryConflict, SabotError


def print_error(error: BaseException, *, with_traceback: bool = False) -> None:
    """Prints the error as one line on stderr, or as several if the user has a choice to make, or if a SQL text is shown.
    If the log has JSON lines, prints one of them.
    """
    from sabot.sql.syntax.text import SqlError  # here, so that an app without SQL does not load its parser

    trace = scrubbed("".join(traceback.format_exception(error))) if with_traceback else ""
    said = scrubbed(str(error) if isinstance(error, SabotError) else f"{type(error).__name__}: {error}")
    if (line := as_json(said, logging.CRITICAL, trace)) is not None:
        print(line, file=sys.stderr)
        return
    if trace:
        print(visible(trace), end="", file=sys.stderr)
    if isinstance(error, SqlError) or isinstance(getattr(error, "cause", None), SqlError):
        print(visible(said), file=sys.stderr)  # begins with file:line:column, and has lines of its own
        return
    said = visible(said if isinstance(error, SabotError) else f"{said} (--loglevel debug shows where)")
    lines = said.splitlines() if isinstance(error, DeliveryConflict) else [said]  # one line for each choice
    print("sabot: " + "\n  ".join(" ".join(each.split()) for each in lines), file=sys.stderr)


def print_without_traceback(error: BaseException, *, with_traceback: bool = False) -> None:
    """Makes Python print this error as `sabot run` does, if the script does not catch it. If the program has set a
    `sys.excepthook`, that function gets the error as before. `with_traceback`: as for `print_error`.
    """
    if sys.excepthook is not sys.__excepthook__:
        return

    def print_last(kind: type[BaseException], raised: BaseException, trace: TracebackType | None) -> None:
        if raised is error:
            print_error(raised, with_traceback=with_traceback)
        else:
            sys.__excepthook__(kind, raised, trace)

    sys.excepthook = print_last
