"""`sabot run`, and `sabot worker` with Faust's form of the command. Their options are made from the settings of an app."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sabot.api.settings import Settings
from sabot.base.dataclass import dataclass
from sabot.base.logs import LOG_LEVELS, as_json, name_program, set_up_logging
from sabot.base.options import option, options_of
from sabot.base.redaction import redacted_url, scrubbed, visible
from sabot.cli.late import settled
from sabot.cli.loading import WrongUse, functions_words, load_app, use_functions
from sabot.cli.options import Functions, Target, log_format, log_level, until_of, with_options
from sabot.cli.running import guarded, run_app
from sabot.cli.web import ConsoleOptions, say_links
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.app import App
    from sabot.engine.workers import Launcher


@dataclass(frozen=True, kw_only=True)
class RunOptions(ConsoleOptions, Settings):
    """The options of `sabot run`: the settings of the app, and where and how it runs."""

    workers: int | None = option(
        None,
        "the number of worker processes that share the tasks of streams; 1: all run in this process",
        metavar="N",
        kind=int,
        bounds=(1, None),
    )
    listen: str | None = option(
        None, "the address where the app waits for workers of `sabot join` on other machines", metavar="HOST:PORT"
    )
    secrets: str | None = option(
        None,
        "the directory with the file `token` for workers that join; for TLS also tls.crt, tls.key, ca.crt",
        metavar="DIR",
    )
    ray: str | None = option(
        None, "the Ray cluster whose nodes run the workers; auto: the cluster of this machine", metavar="ADDRESS"
    )
    ray_resources: str | None = option(
        None, "the resources that each worker takes on its node, by Ray's names: CPU=1", metavar="NAME=N,…"
    )
    web: bool = option(False, "the console, a page of the app for a browser on this machine", kind=bool, metavar=" ")
    loglevel: str = option(
        "info", f"the lowest level to log: {', '.join(LOG_LEVELS)}", check=log_level, metavar="LEVEL"
    )
    log_format: str = option(
        "text", "the format of log lines: text, or json with one object per line", check=log_format, metavar="FORMAT"
    )
    reload: bool = option(
        False, "a new start when a file of the program changes, for development", kind=bool, metavar=" "
    )


def words_of(given: Mapping[str, Any], *, again: bool = False) -> list[str]:
    """Returns options of `sabot run` as words of a command line. `again`: True leaves out options for one start, such as --fresh."""
    words = []
    for name, value in given.items():
        if value is None or (again and options_of(RunOptions)[name].once):
            continue
        option = f"--{name.rstrip('_').replace('_', '-')}"
        if value is True:
            words.append(option)
        else:
            for each in value if isinstance(value, list) else [value]:
                words += [option, str(each)]
    return words


@with_options(RunOptions, elsewhere=True)
def run(target: Target, functions: Functions = None, **given: Any) -> None:
    """Run an app until its input ends, or Ctrl-C. Options override the settings of the program."""
    use_functions(functions)
    loglevel, log_format, reload = (given.pop(name) for name in ("loglevel", "log_format", "reload"))
    logs = {"loglevel": loglevel, "log_format": log_format}
    settings = {
        name: value for name, value in given.items() if value is not None and value is not False and value != []
    }
    if reload:
        command = [sys.executable, "-m", "sabot", *functions_words(), "run", target]
        from sabot.cli.reloading import reload_on_change

        first, again = ([*command, *words_of(logs | settings, again=each)] for each in (False, True))
        settled()
        raise typer.Exit(reload_on_change(first, again, Path.cwd()))
    set_up_logging(loglevel, log_format)
    worker = [*functions_words(), "run-worker", target, *words_of(logs)]
    raise typer.Exit(
        guarded(lambda: _work(target, settings, worker), debug=loglevel == "debug", program=f"sabot run {target}")
    )


@with_options(RunOptions, elsewhere=True)
def worker(context: typer.Context, **given: Any) -> None:
    """Run an app, as `run` does, by Faust's form: sabot -A module:app worker."""
    if context.obj is None:
        raise typer.BadParameter("no app is named: write sabot -A module:app worker")
    run(context.obj, **given)


def _work(target: str, settings: dict[str, Any], worker: Sequence[str] = ()) -> None:
    from sabot.engine.runtime.life.signals import StopSignals

    with StopSignals.held(for_good=True) as signals:
        with signals.raising():
            settings = dict(settings)
            web = settings.pop("web", None)
            console = ConsoleOptions(**{each.name: settings.pop(each.name, None) for each in fields(ConsoleOptions)})
            if not web and console.given:
                raise WrongUse("options that begin with --web- are for the console", hint="give --web too")
            app = _loaded(target, settings, worker)
            name_program(app.id, app.settings.version)
            app.agent_runtime.load()
            settled()
        with (
            console_shown(app, [*functions_words(), target], console)
            if web
            else contextlib.nullcontext(lambda: None) as after_run
        ):
            run_app(app, after_run)


@contextlib.contextmanager
def console_shown(
    app: "App", program: Sequence[str], options: ConsoleOptions | None = None
) -> Iterator[Callable[[], None]]:
    """Opens the console of the app, which commands find by the words of `program`, and prints its address. Yields a function to be
    called after a run without an error.

    Raises WrongUse for a value that the options --web-… do not take, and UserError if no port is free.
    """
    from sabot.web.console import Console

    given = options or ConsoleOptions()
    try:
        console = Console(app, program=program, **given.arguments)
    except OSError as error:
        raise UserError(
            f"the console cannot keep its token in the state directory: {error.strerror or error}",
            hint="start without --web, or make the directory writable",
        ) from error
    say_links(app.id, console)

    def after_run() -> None:
        if done := console.after_run():
            line = as_json(scrubbed(done), logging.INFO) or f"sabot: {visible(done, lines=False)}"
            print(line, file=sys.stderr, flush=True)

    try:
        yield after_run
    finally:
        console.close()


def _loaded(target: str, settings: dict[str, Any], worker: Sequence[str]) -> "App":
    """Loads the app and applies the options. `worker`: the words after `sabot` that start a worker of the app. Raises WrongUse."""
    app = load_app(target)
    settings = dict(settings)
    cluster = {name: settings.pop(name, None) for name in ("workers", "listen", "secrets", "ray", "ray_resources")}
    if settings.get("from_") is not None:
        from sabot.cli.app_checkpoints import find_checkpoints

        saved = find_checkpoints(settings["from_"])
        if isinstance(saved.location, tuple):
            raise WrongUse(
                f"--from {redacted_url(settings['from_'])}: the checkpoints are in a file system object, which has no address",
                hint="copy a checkpoint to a directory or a URI: sabot savepoint create … --to DIR",
            )
        settings = settings | {"from_": f"{saved.location}@{saved.manifest().checkpoint_id}"}
    try:
        app.configure(**settings | {"until": until_of(settings.get("until"))})
        _spread(app, worker, **cluster)
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
    """Sets the app up for several workers, if the options ask for them or if an agent runs in a process of its own.

    Raises WrongUse for options of workers without several workers, and for --ray-resources without --ray.
    """
    workers = workers or 1
    if workers == 1 and not any(spec.process for spec in app.spec.agent_specs):
        if any(given is not None for given in (listen, secrets, ray, ray_resources)):
            raise WrongUse(
                "--listen, --secrets, --ray and --ray-resources need an app with several workers",
                hint="give --workers N too",
            )
        return
    from sabot.engine.workers import (  # here, so that other commands do not load it
        LocalLauncher,
        TcpRendezvous,
        over_workers,
    )

    launcher: Callable[[], Launcher] | None = None
    if ray is not None:
        from sabot.engine.workers.on_ray import RayLauncher, parse_resources

        launcher = partial(RayLauncher, ray, worker, parse_resources(ray_resources or "CPU=1"))
    elif ray_resources is not None:
        raise WrongUse("--ray-resources needs workers on Ray", hint="give --ray ADDRESS too")
    elif listen is None:
        launcher = partial(LocalLauncher, [sys.executable, "-P", "-m", "sabot", *worker])
    app.spec.workers = over_workers(app.spec, TcpRendezvous.of(launcher, listen, secrets).begin, workers)
