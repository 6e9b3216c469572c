"""The commands and options of the command line. `loading`, `running` and the demos do what the commands say."""

import os
import signal
import sys
from json import dumps as encoded
from pathlib import Path
from typing import Annotated, Any

import typer

import sabot
from sabot.app import App
from sabot.cli.actions import actions
from sabot.cli.agent_jobs import jobs
from sabot.cli.auditing import audit
from sabot.cli.checkpoints import checkpoints, savepoint
from sabot.cli.jobs import find_job
from sabot.cli.journal import journal
from sabot.cli.ledger import budgets, ledger
from sabot.cli.letters import dlq
from sabot.cli.loading import WrongUse, load_app
from sabot.cli.mcp import mcp
from sabot.cli.options import until_of
from sabot.cli.planning import plan
from sabot.cli.plugins import plugins
from sabot.cli.reading import state as read_state
from sabot.cli.reloading import reload_on_change, words_of
from sabot.cli.replaying import diff_jobs, fork_job, record, replay
from sabot.cli.running import guarded, leave_at_once, run_app
from sabot.cli.starting import init
from sabot.cli.states import checkpoint, list_checkpoints, restore
from sabot.cli.topics import topics
from sabot.errors import UserError
from sabot.logs import LOG_FORMATS, LOG_LEVELS, set_up_logging
from sabot.redaction import redacted_url
from sabot.runtime.signals import StopSignals

__all__ = ["main"]

_cli = typer.Typer(
    name="sabot",
    help="Streaming agents on Kafka, from pip install.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_demos = typer.Typer(help="Programs that show Sabot at work.", no_args_is_help=True, rich_markup_mode=None)
_cli.add_typer(_demos, name="demo")
_cli.command()(init)
_cli.command()(plan)
_cli.command("state")(read_state)
_cli.command()(plugins)
_cli.command()(audit)
_cli.command()(ledger)
_cli.command()(budgets)
_cli.add_typer(checkpoints, name="checkpoints")
_cli.add_typer(savepoint, name="savepoint")
_cli.add_typer(dlq, name="dlq")
_cli.add_typer(journal, name="journal")
_cli.add_typer(jobs, name="jobs")
jobs.command()(record)
jobs.command()(replay)
jobs.command("fork")(fork_job)
jobs.command("diff")(diff_jobs)
jobs.command()(checkpoint)
jobs.command("checkpoints")(list_checkpoints)
jobs.command()(restore)
_cli.add_typer(topics, name="topics")
_cli.add_typer(actions, name="actions")
_cli.add_typer(mcp, name="mcp")


def _log_level(value: str) -> str:
    if value.lower() not in LOG_LEVELS:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(LOG_LEVELS)}")
    return value.lower()


def _log_format(value: str) -> str:
    if value.lower() not in LOG_FORMATS:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(LOG_FORMATS)}")
    return value.lower()


Target = Annotated[str, typer.Argument(metavar="MODULE:APP", help="The module and the App in it.")]
Broker = Annotated[str | None, typer.Option(metavar="URL", help="memory:// or kafka://host:port")]
LogLevel = Annotated[str, typer.Option(metavar="LEVEL", callback=_log_level, help=", ".join(LOG_LEVELS))]
LogFormat = Annotated[
    str,
    typer.Option("--log-format", metavar="FORMAT", callback=_log_format, help="text, or json: an object a line."),
]
State = Annotated[str | None, typer.Option(metavar="memory|DIR", help="Where the keyed state lives.")]
CheckpointDir = Annotated[str | None, typer.Option(metavar="DIR|URI", help="Default: checkpoints in the state's DIR.")]
Interval = Annotated[str | None, typer.Option("--checkpoint-interval", metavar="TIME", help="5s, 100ms, or seconds.")]
Parallelism = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads of each stage of a stream; agents have concurrency=.")
]
Journal = Annotated[
    str | None,
    typer.Option(help="Of durable agents: a directory, memory, kafka://… or postgresql://…; by default in the state."),
]
ForgetEffects = Annotated[
    bool, typer.Option("--forget-effects", help="With --fresh: forget what durable agents did; it may be done again.")
]
Reprocess = Annotated[
    list[str] | None,
    typer.Option(metavar="AGENT", help="Read the records of this durable agent again: what it does is done again."),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="State that is not taken over: an operator, or OPERATOR.AGGREGATE; else all goes on."
    ),
]
SchemaFrom = Annotated[
    str | None,
    typer.Option(
        "--schema", metavar="kept|refresh", help="refresh: infer columns anew, instead of as the checkpoint has them."
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget the checkpoints; start from the beginning.")]
MetricsPort = Annotated[
    int | None, typer.Option(min=0, max=65535, metavar="PORT", help="Serve /metrics, /healthz, /ready.")
]
MetricsHost = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where: 127.0.0.1 by default.")]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="SAVEPOINT", help="Start from this savepoint; DIR@ID for one of several in it."),
]
Redeliver = Annotated[
    str | None,
    typer.Option(metavar="repeat|skip", help="Where the receiver has other output than the checkpoint knows of."),
]
Until = Annotated[
    str | None,
    typer.Option(
        metavar="now|TIME", help="End where topics end now, or before the first record of a time: a backfill."
    ),
]
Restart = Annotated[
    str | None,
    typer.Option(metavar="HOW", help='After a failure: "fixed(3, 1s)", three times, a second apart; "none".'),
]


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


@_cli.command()
def run(
    target: Target,
    broker: Broker = None,
    loglevel: LogLevel = "info",
    log_format: LogFormat = "text",
    state: State = None,
    journal: Journal = None,
    checkpoint_dir: CheckpointDir = None,
    checkpoint_interval: Interval = None,
    parallelism: Parallelism = None,
    fresh: Fresh = False,
    forget_effects: ForgetEffects = False,
    reprocess: Reprocess = None,
    drop: Drop = None,
    schema: SchemaFrom = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = None,
    from_: From = None,
    redeliver: Redeliver = None,
    restart: Restart = None,
    until: Until = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="For development: start again when a file of the program changes.")
    ] = False,
) -> None:
    """Run an app until its input ends, or Ctrl-C. The options override what the program says."""
    settings = {
        "broker": broker,
        "state": state,
        "journal": journal,
        "checkpoint_dir": checkpoint_dir,
        "checkpoint_interval": checkpoint_interval,
        "parallelism": parallelism,
        "fresh": fresh or None,
        "forget_effects": forget_effects or None,
        "reprocess": reprocess or None,
        "drop": drop or None,
        "schema": schema,
        "metrics_port": metrics_port,
        "metrics_host": metrics_host,
        "from_": from_,
        "redeliver": redeliver,
        "restart": restart,
        "until": until,
    }
    if reload:
        said = {"loglevel": loglevel, "log_format": log_format, **settings}
        command = [sys.executable, "-m", "sabot", "run", target]
        first, again = ([*command, *words_of(said, again=each)] for each in (False, True))
        raise typer.Exit(reload_on_change(first, again, Path.cwd()))
    set_up_logging(loglevel, log_format)
    raise typer.Exit(guarded(lambda: _work(target, settings), debug=loglevel == "debug"))


@_cli.command()
def worker(
    context: typer.Context,
    broker: Broker = None,
    loglevel: LogLevel = "info",
    log_format: LogFormat = "text",
    state: State = None,
    journal: Journal = None,
    checkpoint_dir: CheckpointDir = None,
    checkpoint_interval: Interval = None,
    parallelism: Parallelism = None,
    fresh: Fresh = False,
    forget_effects: ForgetEffects = False,
    reprocess: Reprocess = None,
    drop: Drop = None,
    schema: SchemaFrom = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = None,
    from_: From = None,
    redeliver: Redeliver = None,
    restart: Restart = None,
    until: Until = None,
) -> None:
    """The same as `run`, in Faust's words: sabot -A module:app worker."""
    if context.obj is None:
        raise typer.BadParameter("which app? write: sabot -A module:app worker")
    run(
        context.obj,
        broker=broker,
        loglevel=loglevel,
        log_format=log_format,
        state=state,
        journal=journal,
        checkpoint_dir=checkpoint_dir,
        checkpoint_interval=checkpoint_interval,
        parallelism=parallelism,
        fresh=fresh,
        forget_effects=forget_effects,
        reprocess=reprocess,
        drop=drop,
        schema=schema,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        from_=from_,
        redeliver=redeliver,
        restart=restart,
        until=until,
    )


def _work(target: str, settings: dict[str, Any]) -> None:
    with StopSignals.held(for_good=True) as signals:
        with signals.raising():
            app = _loaded(target, settings)
        run_app(app)


def _loaded(target: str, settings: dict[str, Any]) -> App:
    app = load_app(target)
    if settings["from_"] is not None:
        job = find_job(settings["from_"])
        if isinstance(job.location, tuple):
            raise WrongUse(
                f"{redacted_url(settings['from_'])}: its file system has no address",
                hint="keep it where one has: sabot savepoint create … --to DIR",
            )
        settings = settings | {"from_": f"{job.location}@{job.manifest().checkpoint_id}"}
    try:
        app.configure(**settings | {"until": until_of(settings["until"])})
    except UserError as error:
        raise WrongUse(error.message, hint=error.hint) from error
    return app


@_demos.command()
def fraud(
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Transactions.")] = 1_000_000,
    seed: Annotated[int, typer.Option(metavar="S", help="Of the generator: the same seed, the same rows.")] = 0,
    broker: Annotated[str, typer.Option(metavar="URL", help="memory:// or kafka://host:port")] = "memory://",
    state: Annotated[str, typer.Option(metavar="memory|DIR", help="DIR: a checkpoint each second.")] = "memory",
    fresh: Fresh = False,
    json: Annotated[bool, typer.Option("--json", help="Only the figures, as one JSON object.")] = False,
    loglevel: LogLevel = "warning",
) -> None:
    """Find card fraud in a made-up stream of payments: a batch agent scores, a record agent raises alerts."""
    from sabot.demos.fraud import demo  # here, so that `sabot run` does not load the demo

    def work() -> None:
        figures = demo.run(rows, seed, broker, state, fresh=fresh, json=json)
        if json:
            typer.echo(encoded(figures))

    set_up_logging(loglevel)
    raise typer.Exit(guarded(work, debug=loglevel == "debug"))


@_demos.command()
def refunds(
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Tickets.")] = 60,
    json: Annotated[bool, typer.Option("--json", help="Only the figures, as one JSON object.")] = False,
    loglevel: LogLevel = "warning",
) -> None:
    """Refund tickets by a durable agent that asks a person and is killed twice; a witness counts what the bank was really asked."""
    from sabot.demos.refunds import demo

    def work() -> None:
        figures = demo.run(jobs, json=json)
        if json:
            typer.echo(encoded(figures))

    set_up_logging(loglevel)
    raise typer.Exit(guarded(work, debug=loglevel == "debug"))


@_demos.command()
def agents(
    tickets: Annotated[int, typer.Option(min=10, metavar="N", help="Tickets.")] = 40,
    json: Annotated[bool, typer.Option("--json", help="Only the figures, as one JSON object.")] = False,
    loglevel: LogLevel = "warning",
) -> None:
    """Answer tickets by a model with tools that asks a person and is killed twice; its server and a bank count what they were asked."""
    from sabot.demos.agents import demo

    def work() -> None:
        figures = demo.run(tickets, json=json)
        if json:
            typer.echo(encoded(figures))

    set_up_logging(loglevel)
    raise typer.Exit(guarded(work, debug=loglevel == "debug"))


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
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave_at_once)
    _cli()
