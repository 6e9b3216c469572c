"""The commands and options of the command line. `loading`, `running` and the demos do what the commands say."""

import gc
import os
import signal
from typing import TYPE_CHECKING, Annotated

import typer

import sabot
from sabot.cli.late import LateCommand, add_late, settled
from sabot.cli.loading import load_app
from sabot.cli.options import LogFormat, LogLevel, Target
from sabot.cli.running import guarded, leave_at_once
from sabot.logs import set_up_logging

if TYPE_CHECKING:
    from sabot.app import App

_cli = typer.Typer(
    name="sabot",
    help="Streaming agents on Kafka, from pip install.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_LATE = {
    "run": LateCommand("Run an app until its input ends, or Ctrl-C.", ("run",), "run", settles=True),
    "worker": LateCommand(
        "The same as `run`, in Faust's words: sabot -A module:app worker.", ("run",), "worker", settles=True
    ),
    "init": LateCommand("Write a small project with a test into a new folder.", ("starting",), "init"),
    "plan": LateCommand("Print the plan of an app.", ("planning",), "plan"),
    "state": LateCommand(
        "Read the state of an app, running or not, from its newest checkpoint.", ("reading",), "state"
    ),
    "plugins": LateCommand(
        "The plugins that are installed, what each brings, and why one cannot be loaded.", ("plugins",), "plugins"
    ),
    "join": LateCommand("Work for an app whose coordinator waits on another machine.", ("joining",), "join"),
    "audit": LateCommand(
        "What a job was allowed to do, by which rule, and who has approved it.", ("auditing",), "audit"
    ),
    "ledger": LateCommand("What jobs have used.", ("ledger",), "ledger"),
    "budgets": LateCommand("What the scopes of an app, or a kernel, may use.", ("ledger",), "budgets"),
    "checkpoints": LateCommand("Checkpoints of an app.", ("checkpoints",), "checkpoints"),
    "savepoint": LateCommand("Checkpoints to keep.", ("checkpoints",), "savepoint"),
    "workers": LateCommand("What each worker of a running app does.", ("workers",), "workers"),
    "rescale": LateCommand("Give a running app another number of workers.", ("workers",), "rescale"),
    "dlq": LateCommand("Dead letters in Kafka topics, files and tables.", ("letters",), "dlq"),
    "journal": LateCommand("The journal of effects.", ("journal",), "journal"),
    "jobs": LateCommand("Jobs in a journal.", ("replaying", "states", "agent_jobs"), "jobs"),
    "topics": LateCommand("The topics of a Kafka broker.", ("topics",), "topics"),
    "actions": LateCommand("Questions to people, and their answers.", ("actions",), "actions"),
    "mcp": LateCommand("The Model Context Protocol.", ("mcp",), "mcp"),
    "demo": LateCommand("Programs that show Sabot at work.", ("demos",), "demos"),
}
"""The commands: the line of each in the help, and the modules that are loaded for it."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sabot {sabot.__version__}")
        raise typer.Exit


@_cli.callback()
def _root(
    context: typer.Context,
    app: Annotated[
        str | None, typer.Option("--app", "-A", metavar="MODULE:APP", help="The app for `worker` and `dlq`.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = app


@_cli.command("run-worker", hidden=True)
def run_one_worker(target: Target, loglevel: LogLevel = "info", log_format: LogFormat = "text") -> None:
    """One of the processes that `run --workers` starts."""
    from sabot.workers import run_worker

    def load() -> "App":
        app = load_app(target)
        settled()
        return app

    code = 0

    def work() -> None:
        nonlocal code
        code = run_worker(load, lambda name: set_up_logging(loglevel, log_format, name))

    raise typer.Exit(guarded(work, debug=loglevel == "debug") or code)


add_late(_cli, _LATE)


def _open_standard_files() -> None:
    """Opens a closed standard stream as /dev/null. Otherwise a file of the program would get its number, and libraries' messages."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number


def main() -> None:
    """The entry point of the `sabot` script."""
    _open_standard_files()
    gc.disable()  # until all is `settled`
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave_at_once)
    _cli()
