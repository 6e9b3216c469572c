"""`sabot join`: runs a worker on this machine for `sabot run --listen` on another machine."""

import sys
from typing import Annotated

import typer

from sabot.base.logs import set_up_logging
from sabot.cli.loading import functions_words
from sabot.cli.options import LogFormat, LogLevel
from sabot.cli.running import guarded
from sabot.engine.workers import join_as_worker


def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The address where the coordinator listens.")],
    target: Annotated[
        str, typer.Argument(metavar="MODULE:APP", help="The module and the App in it, as on the coordinator.")
    ],
    secrets: Annotated[
        str, typer.Option(metavar="DIR", help="The directory with `token`; for TLS also tls.crt, tls.key, ca.crt.")
    ],
    loglevel: LogLevel = "info",
    log_format: LogFormat = "text",
) -> None:
    """Work for an app whose coordinator waits on another machine.

    The coordinator runs there with sabot run … --workers N --listen HOST:PORT. The command ends when the app ends.
    """
    set_up_logging(loglevel, log_format)
    worker = [*functions_words(), "run-worker", target, "--loglevel", loglevel, "--log-format", log_format]
    command = [sys.executable, "-P", "-m", "sabot", *worker]
    raise typer.Exit(guarded(lambda: join_as_worker(command, address, secrets), debug=loglevel == "debug"))
