"""`sabot demo`: programs that show Sabot at work. Each is imported when it is called."""

from collections.abc import Callable
from json import dumps as encoded
from typing import Annotated, Any, NoReturn

import typer

from sabot.base.logs import set_up_logging
from sabot.cli.options import Fresh, LogLevel
from sabot.cli.running import guarded

demos = typer.Typer(help="Run a program that shows Sabot at work.", no_args_is_help=True, rich_markup_mode=None)


@demos.command()
def fraud(
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="The number of payments.")] = 1_000_000,
    seed: Annotated[int, typer.Option(metavar="S", help="The seed of the generator: equal seeds give equal rows.")] = 0,
    broker: Annotated[
        str, typer.Option(metavar="URL", help="The broker: memory:// or kafka://host:port.")
    ] = "memory://",
    state: Annotated[
        str, typer.Option(metavar="memory|DIR", help="The place of state; with DIR a checkpoint each second.")
    ] = "memory",
    fresh: Fresh = False,
    json: Annotated[bool, typer.Option("--json", help="Print only the figures, as one JSON object.")] = False,
    loglevel: LogLevel = "warning",
) -> None:
    """Find card fraud in a generated stream of payments: a batch agent scores, a record agent raises alerts."""
    from sabot.demos.fraud import demo

    _show(lambda: demo.run(rows, seed, broker, state, fresh=fresh, json=json), json, loglevel)


@demos.command()
def refunds(
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="The number of tickets.")] = 60,
    json: Annotated[bool, typer.Option("--json", help="Print only the figures, as one JSON object.")] = False,
    loglevel: LogLevel = "warning",
) -> None:
    """Refund tickets with a durable agent that asks a person and is killed twice. A test bank counts the refunds it was asked for."""
    from sabot.demos.refunds import demo

    _show(lambda: demo.run(jobs, json=json), json, loglevel)


@demos.command()
def agents(
    tickets: Annotated[int, typer.Option(min=10, metavar="N", help="The number of tickets.")] = 40,
    json: Annotated[bool, typer.Option("--json", help="Print only the figures, as one JSON object.")] = False,
    loglevel: LogLevel = "warning",
) -> None:
    """Answer tickets with a model and tools; the agent asks a person and is killed twice. A test server and bank count their calls."""
    from sabot.demos.agents import demo

    _show(lambda: demo.run(tickets, json=json), json, loglevel)


def _show(run: Callable[[], Any], json: bool, loglevel: str) -> NoReturn:
    """Runs a demo and exits with its code. `json`: True to print nothing but the figures that `run` returns."""

    def work() -> None:
        figures = run()
        if json:
            typer.echo(encoded(figures))

    set_up_logging(loglevel)
    raise typer.Exit(guarded(work, debug=loglevel == "debug"))
