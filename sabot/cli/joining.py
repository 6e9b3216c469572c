"""`sabot join`: a worker on this machine, for `sabot run --listen` on another one."""

import sys
from typing import Annotated

import typer

from sabot.cli.options import LogFormat, LogLevel
from sabot.cli.running import guarded
from sabot.logs import set_up_logging
from sabot.workers import join_as_worker


def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the coordinator listens.")],
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The module and the App in it, as there.")],
    secrets: Annotated[str, typer.Option(metavar="DIR", help="The file `token`; for TLS tls.crt, tls.key and ca.crt.")],
    loglevel: LogLevel = "info",
    log_format: LogFormat = "text",
) -> None:
    """Work for an app whose coordinator waits on another machine (sabot run … --workers N --listen HOST:PORT), until it is over."""
    set_up_logging(loglevel, log_format)
    worker = ["run-worker", target, "--loglevel", loglevel, "--log-format", log_format]
    command = [sys.executable, "-P", "-m", "sabot", *worker]
    raise typer.Exit(guarded(lambda: join_as_worker(command, address, secrets), debug=loglevel == "debug"))
