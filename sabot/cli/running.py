"""Runs one App in the foreground: its signals, errors and exit codes."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from sabot.base.logs import as_json
from sabot.base.process_exit import EXITS, Exit
from sabot.base.redaction import scrubbed
from sabot.cli.loading import WrongUse
from sabot.errors import SabotError

if TYPE_CHECKING:
    from sabot.app import App


def leave_at_once(number: int, frame: FrameType | None) -> None:
    """Exits at once: the handler of Ctrl-C before the app has begun. An exception could be swallowed, and typer would exit with code 1."""
    os._exit(128 + number)


def run_app(app: "App", after_run: Callable[[], None] = lambda: None) -> None:
    """Runs the app until its input ends, or until a signal and a final checkpoint. The caller holds the `StopSignals`.

    `after_run`: called when the run has ended without an error.
    """
    asyncio.run(_run(app, after_run))


async def _run(app: "App", after_run: Callable[[], None]) -> None:
    """Runs `app.run()`. If a user's call does not end when it is cancelled, the event loop cannot be closed: the process exits here."""
    code = 0
    try:
        await app.run()
        after_run()
    except (Exception, *EXITS) as error:
        if not app.agent_runtime.runner.left_behind:
            raise
        code = _exit_code(error) if isinstance(error, EXITS) else print_error(error, 1, False)
    if app.agent_runtime.runner.left_behind:
        logging.shutdown()
        os._exit(code)


def drop_output() -> None:
    """Sends further output to nowhere: its reader has closed it, as `| head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(asked: Exit) -> int:
    """Returns the exit code with which Python would end for this exception."""
    if isinstance(asked, KeyboardInterrupt):
        return getattr(asked, "code", 128 + signal.SIGINT)
    if isinstance(asked.code, int | None):
        return asked.code or 0
    print(as_json(scrubbed(str(asked.code)), logging.CRITICAL) or asked.code, file=sys.stderr)
    return 1


def guarded(work: Callable[[], None], *, debug: bool, program: str = "") -> int:
    """Does the work and returns the exit code: 0, 1 (failure), 2 (wrong use), or 128 + the signal (130 for Ctrl-C).

    Prints a failure as one line on stderr, or as several if the user has a choice to make. `debug`: True to print the traceback too.
    `program`: the words that have started an app, which hints put before its options.
    """
    if signal.getsignal(signal.SIGINT) is leave_at_once:  # from here on there may be resources to close
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        work()
    except WrongUse as error:
        return print_error(error, 2, debug and error.cause is not None)
    except KeyboardInterrupt as asked:
        return _exit_code(asked)
    except BrokenPipeError:
        drop_output()
        return 0
    except Exception as error:
        if program and isinstance(error, SabotError):
            from sabot.api.script_options import hint_with_program  # here, so that `--help` loads no settings

            error.hint = hint_with_program(error.hint, program)
        return print_error(error, 1, debug)
    return 0


def print_error(error: Exception, code: int, with_traceback: bool) -> int:
    """Prints the error, and returns the exit code."""
    from sabot.app import scripts  # here, so that `--help` loads no app

    scripts.print_error(error, with_traceback=with_traceback)
    return code
