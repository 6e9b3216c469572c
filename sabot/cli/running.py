"""Runs one App in the foreground: signals, log lines, exit codes."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from sabot.app import SECOND_SIGNAL_SECONDS, App
from sabot.cli.loading import WrongUse
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import SabotError

__all__ = ["LOG_LEVELS", "guarded", "run_app", "set_up_logging"]

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def set_up_logging(level: str) -> None:
    """Log lines of Sabot from `level` up, those of other libraries from `warning` up, to stderr."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("sabot").setLevel(level.upper())


def run_app(app: App) -> None:
    """Returns after END, or after SIGINT or SIGTERM and a final checkpoint; a second signal ends the process."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        now = SYSTEM_CLOCK.monotonic()
        if stopping and now - stopping[0] < SECOND_SIGNAL_SECONDS:
            return
        if stopping:
            os.write(2, b"sabot: stopped at once; the last complete checkpoint counts\n")
            os._exit(128 + number)
        stopping.append(now)
        os.write(2, b"sabot: stopping in good order; again to stop at once\n")
        app.request_stop()

    stopping: list[float] = []
    # signal.signal, not loop.add_signal_handler: the second Ctrl-C must work while an agent blocks the loop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        asyncio.run(_run(app))
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the process ends by itself now, with its own exit code


async def _run(app: App) -> None:
    """As `app.run()`. With a call that refuses to be cancelled the event loop cannot be closed, so the process ends here."""
    code = 0
    try:
        with _progress_shown(app):
            await app.run()
    except Exception as error:
        if not app.agent_runtime.left_behind:
            raise
        code = _said(error, 1, False)
    if app.agent_runtime.left_behind:
        logging.shutdown()
        os._exit(code)


@contextlib.contextmanager
def _progress_shown(app: App) -> Iterator[None]:
    """On a terminal, how much of its files the app has read; nothing for inputs without an end."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        showing = asyncio.get_running_loop().create_task(_show_progress(app, shown))
        try:
            yield
        finally:
            showing.cancel()


async def _show_progress(app: App, shown: Progress) -> None:
    bar = None
    while True:
        await asyncio.sleep(0.2)
        progress = app.progress()
        if progress is not None:
            done, total = progress
            bar = shown.add_task("read", total=total) if bar is None else bar
            shown.update(bar, completed=done, total=total)


def guarded(work: Callable[[], None], *, debug: bool) -> int:
    """Does the work; says what failed in one line on stderr. Exit code: 0, 1 (failure), 2 (wrong use), 130."""
    try:
        work()
    except WrongUse as error:
        return _said(error, 2, debug and error.cause is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _said(error, 1, debug)
    return 0


def _said(error: Exception, code: int, with_traceback: bool) -> int:
    if with_traceback:
        traceback.print_exception(error)
    known = isinstance(error, SabotError)
    line = str(error) if known else f"{type(error).__name__}: {error} (--loglevel debug shows where)"
    print("sabot: " + " ".join(line.split()), file=sys.stderr)
    return code
