"""The errors that end a script or a command: a line on stderr in place of a traceback."""

import sys
import traceback
from types import TracebackType

from sabot.base.redaction import scrubbed, visible
from sabot.errors import DeliveryConflict, SabotError


def print_error(error: BaseException, *, with_traceback: bool = False) -> None:
    """Prints the error as one line on stderr, or as several if the user has a choice to make, or if a SQL text is shown."""
    from sabot.sql.syntax.text import SqlError  # here, so that an app without SQL does not load its parser

    if with_traceback:
        print(visible(scrubbed("".join(traceback.format_exception(error)))), end="", file=sys.stderr)
    if isinstance(error, SqlError) or isinstance(getattr(error, "cause", None), SqlError):
        print(visible(scrubbed(str(error))), file=sys.stderr)  # begins with file:line:column, and has lines of its own
        return
    known = isinstance(error, SabotError)
    line = str(error) if known else f"{type(error).__name__}: {error} (--loglevel debug shows where)"
    said = visible(scrubbed(line))
    lines = said.splitlines() if isinstance(error, DeliveryConflict) else [said]  # one line for each choice
    print("sabot: " + "\n  ".join(" ".join(each.split()) for each in lines), file=sys.stderr)


def print_without_traceback(error: SabotError) -> None:
    """Makes Python print this error as `sabot run` does, if the script does not catch it. If the program has set a
    `sys.excepthook`, that function gets the error as before.
    """
    if sys.excepthook is not sys.__excepthook__:
        return

    def print_last(kind: type[BaseException], raised: BaseException, trace: TracebackType | None) -> None:
        if raised is error:
            print_error(raised)
        else:
            sys.__excepthook__(kind, raised, trace)

    sys.excepthook = print_last
