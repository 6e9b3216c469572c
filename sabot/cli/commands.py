"""The table of commands, and the entry point `main`. A command's module is imported when the command is called."""

import gc
import os
import signal
from typing import TYPE_CHECKING, Annotated

import typer

import sabot
from sabot.base.logs import name_program, set_up_logging
from sabot.cli.late import LateCommand, add_late, settled
from sabot.cli.loading import load_app, use_functions
from sabot.cli.options import Functions, LogFormat, LogLevel, Target
from sabot.cli.running import guarded, leave_at_once

if TYPE_CHECKING:
    pass

cli = typer.Typer(
    name="sabot",
    help="Streaming agents on Kafka, from pip install.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
LATE = {
    "run": LateCommand("Run an app until its input ends, or Ctrl-C.", ("run",), "run", settles=True),
    "worker": LateCommand(
        "Run an app, as `run` does, by Faust's form: sabot -A module:app worker.", ("run",), "worker", settles=True
    ),
    "sql": LateCommand("Run SQL: in a shell, from a file, or with -c.", ("sql",), "sql"),
    "init": LateCommand("Write a small project with a test into a new folder.", ("starting",), "init"),
    "plan": LateCommand("Print the plan of an app.", ("planning",), "plan"),
    "state": LateCommand(
        "Read the state of an app, running or not, from its newest checkpoint.", ("reading",), "state"
    ),
    "connectors": LateCommand(
        "List the connectors of Sabot and of other packages: what a crash does to the rows that each reads and writes.",
        ("connectors",),
        "connectors",
    ),
    "plugins": LateCommand(
        "List the installed plugins, what each provides, and why one cannot be loaded.", ("plugins",), "plugins"
    ),
    "join": LateCommand("Work for an app whose coordinator waits on another machine.", ("joining",), "join"),
    "audit": LateCommand(
        "Show which effects of a durable job were allowed, by which rule, and who approved them.",
        ("auditing",),
        "audit",
    ),
    "ledger": LateCommand("Sum up the calls, tokens and cost of durable jobs.", ("ledger",), "ledger"),
    "budgets": LateCommand("Show the budgets of an app or a kernel, and their use so far.", ("ledger",), "budgets"),
    "checkpoints": LateCommand("List, show and verify the checkpoints of an app.", ("checkpoints",), "checkpoints"),
    "savepoint": LateCommand(
        "Make, list and remove savepoints: checkpoints that are kept.", ("checkpoints",), "savepoint"
    ),
    "top": LateCommand(
        "Show what each task of a running app does, or the workers of a journal, refreshed each second.",
        ("top",),
        "top",
    ),
    "web": LateCommand("Show apps that run elsewhere, or not at all, in a browser.", ("web",), "web"),
    "workers": LateCommand("Show the workers of a running app and their tasks.", ("workers",), "workers"),
    "rescale": LateCommand("Give a running app another number of workers.", ("workers",), "rescale"),
    "dlq": LateCommand("List, show and redrive dead letters.", ("letters",), "dlq"),
    "journal": LateCommand("Show the journal of a durable job.", ("journal",), "journal"),
    "jobs": LateCommand(
        "Run, list and steer jobs of a journal.", ("replaying", "states", "serving", "working", "agent_jobs"), "jobs"
    ),
    "schedules": LateCommand("List, pause and trigger the schedules of a kernel.", ("schedules",), "schedules"),
    "topics": LateCommand("List, make and read the topics of a Kafka broker.", ("topics",), "topics"),
    "actions": LateCommand("List and answer questions to people.", ("actions",), "actions"),
    "mcp": LateCommand("Serve an app's state and memory over the Model Context Protocol.", ("mcp",), "mcp"),
    "demo": LateCommand("Run a program that shows Sabot at work.", ("demos",), "demos"),
}
"""The commands by name: the line of each in the help, and the modules that are imported for it."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sabot {sabot.__version__}")
        raise typer.Exit


@cli.callback()
def _root(
    context: typer.Context,
    app: Annotated[
        str | None, typer.Option("--app", "-A", metavar="MODULE:APP", help="The app for `worker` and `dlq`.")
    ] = None,
    functions: Functions = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = app
    use_functions(functions)


@cli.command("run-worker", hidden=True)
def run_one_worker(target: Target, loglevel: LogLevel = "info", log_format: LogFormat = "text") -> None:
    """Run as one of the processes that `sabot run --workers` starts."""
    from sabot.engine.runtime.app_spec import AppSpec
    from sabot.engine.workers import run_worker

    def load() -> AppSpec:
        app = load_app(target)
        name_program(app.id, app.settings.version)
        settled()
        return app.spec

    code = 0

    def work() -> None:
        nonlocal code
        code = run_worker(load, lambda name: set_up_logging(loglevel, log_format, name))

    raise typer.Exit(guarded(work, debug=loglevel == "debug") or code)


add_late(cli, LATE)


def _open_standard_files() -> None:
    """Opens each closed standard stream as /dev/null.

    Otherwise a file that the program opens would get the number of the closed stream, and libraries would write messages into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number


def main() -> None:
    """Runs the command line: the entry point of the `sabot` script."""
    _open_standard_files()
    gc.disable()  # until `settled` is called
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave_at_once)
    cli()
