"""The commands and options of the command line. `loading`, `running` and the demos do what the commands say."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sabot
from sabot.cli.late import LateCommand, add_late, settled
from sabot.cli.loading import WrongUse, load_app
from sabot.cli.options import Fresh, LogFormat, LogLevel, until_of
from sabot.cli.running import guarded, leave_at_once, run_app
from sabot.errors import UserError
from sabot.logs import set_up_logging
from sabot.redaction import redacted_url

if TYPE_CHECKING:
    from sabot.app import App
    from sabot.workers import Launcher

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
"""The commands beside `run` and `worker`: what the help says of each, and what is loaded for it."""


Target = Annotated[str, typer.Argument(metavar="MODULE:APP", help="The module and the App in it.")]
Broker = Annotated[str | None, typer.Option(metavar="URL", help="memory:// or kafka://host:port")]
State = Annotated[str | None, typer.Option(metavar="memory|DIR", help="Where the keyed state lives.")]
CheckpointDir = Annotated[str | None, typer.Option(metavar="DIR|URI", help="Default: checkpoints in the state's DIR.")]
Interval = Annotated[str | None, typer.Option("--checkpoint-interval", metavar="TIME", help="5s, 100ms, or seconds.")]
Parallelism = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads of each stage of a stream; agents have concurrency=.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Processes that share the tasks of streams; 1: this one alone."),
]
Listen = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Start no workers: wait here for those of `sabot join`, on other machines."),
]
Secrets = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Of workers that join: the file `token`; for TLS tls.crt, tls.key and ca.crt."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Start the workers on the nodes of this Ray cluster; auto: that of this machine."
    ),
]
RayResources = Annotated[
    str | None,
    typer.Option(metavar="NAME=N,…", help="What each worker takes of its node, by Ray's names: CPU=1."),
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
    workers: Workers = None,
    listen: Listen = None,
    secrets: Secrets = None,
    ray: Ray = None,
    ray_resources: RayResources = None,
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
        "workers": workers,
        "listen": listen,
        "secrets": secrets,
        "ray": ray,
        "ray_resources": ray_resources,
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
        from sabot.cli.reloading import reload_on_change, words_of

        first, again = ([*command, *words_of(said, again=each)] for each in (False, True))
        settled()
        raise typer.Exit(reload_on_change(first, again, Path.cwd()))
    set_up_logging(loglevel, log_format)
    worker = ["run-worker", target, "--loglevel", loglevel, "--log-format", log_format]
    raise typer.Exit(guarded(lambda: _work(target, settings, worker), debug=loglevel == "debug"))


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
    workers: Workers = None,
    listen: Listen = None,
    secrets: Secrets = None,
    ray: Ray = None,
    ray_resources: RayResources = None,
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
        workers=workers,
        listen=listen,
        secrets=secrets,
        ray=ray,
        ray_resources=ray_resources,
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


def _work(target: str, settings: dict[str, Any], worker: Sequence[str] = ()) -> None:
    from sabot.runtime.signals import StopSignals

    with StopSignals.held(for_good=True) as signals:
        with signals.raising():
            app = _loaded(target, settings, worker)
            app.agent_runtime.load()
            settled()
        run_app(app)


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


def _loaded(target: str, settings: dict[str, Any], worker: Sequence[str]) -> "App":
    """worker: the command that starts a worker of it."""
    app = load_app(target)
    settings = dict(settings)
    meeting = {name: settings.pop(name, None) for name in ("workers", "listen", "secrets", "ray", "ray_resources")}
    if settings["from_"] is not None:
        from sabot.cli.app_checkpoints import find_checkpoints

        saved = find_checkpoints(settings["from_"])
        if isinstance(saved.location, tuple):
            raise WrongUse(
                f"{redacted_url(settings['from_'])}: its file system has no address",
                hint="keep it where one has: sabot savepoint create … --to DIR",
            )
        settings = settings | {"from_": f"{saved.location}@{saved.manifest().checkpoint_id}"}
    try:
        app.configure(**settings | {"until": until_of(settings["until"])})
        _spread(app, worker, **meeting)
    except UserError as error:
        raise WrongUse(error.message, hint=error.hint) from error
    return app


def _spread(
    app: "App",
    worker: Sequence[str],
    workers: int | None,
    listen: str | None,
    secrets: str | None,
    ray: str | None,
    ray_resources: str | None,
) -> None:
    """Over workers, where the options ask for several, or an agent for a process of its own."""
    workers = workers or 1
    if workers == 1 and not any(agent.spec is not None and agent.spec.process for agent in app.agents().values()):
        if any(given is not None for given in (listen, secrets, ray, ray_resources)):
            raise WrongUse(
                "--listen, --secrets and --ray are for an app of several workers", hint="give --workers N too"
            )
        return
    from sabot.workers import LocalLauncher, TcpMeeting, over_workers  # here, so that other commands do not load it

    launcher: Callable[[], Launcher] | None = None
    if ray is not None:
        from sabot.workers.on_ray import RayLauncher, parse_resources

        launcher = partial(RayLauncher, ray, worker, parse_resources(ray_resources or "CPU=1"))
    elif ray_resources is not None:
        raise WrongUse("--ray-resources is for workers on Ray", hint="give --ray ADDRESS too")
    elif listen is None:
        launcher = partial(LocalLauncher, [sys.executable, "-P", "-m", "sabot", *worker])
    app.workers = over_workers(app, TcpMeeting.of(launcher, listen, secrets), workers)


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
