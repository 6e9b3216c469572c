"""`sabot demo`: programs that show Sabot at work. Each is imported when it is called."""

from collections.abc import Callable
from json import dumps as encoded
from typing import Annotated, Any, NoReturn

import typer

from sabot.base.logs import set_up_logging
from sabot.cli.loading import WrongUse
from sabot.cli.options import Fresh, LogLevel
from sabot.cli.running import guarded

demos = typer.Typer(help="Run a program that shows Sabot at work.", no_args_is_help=True, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print only the figures, as one JSON object.")]
Web = Annotated[
    bool,
    typer.Option("--web", help="Show the app in a browser: print the address of its console, and run until Ctrl-C."),
]


@demos.command()
def fraud(
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="The number of payments.")] = 1_000_000,
    seed: Annotated[int, typer.Option(metavar="S", help="The seed of the generator: equal seeds give equal rows.")] = 0,
    broker: Annotated[
        str, typer.Option(metavar="URL", help="The broker: memory:// or kafka://host:port.")
    ] = "memory://",
    state: Annotated[
        str | None,
        typer.Option(
            metavar="memory|DIR", help="The place of state, memory by default; with DIR a checkpoint each second."
        ),
    ] = None,
    fresh: Fresh = False,
    json: Json = False,
    web: Web = False,
    loglevel: LogLevel = "warning",
) -> None:
    """Find card fraud in a generated stream of payments: a batch agent scores, a record agent raises alerts."""
    from sabot.demos.fraud import demo, watched

    def run() -> Any:
        if web:
            return watched.show(rows, seed, broker, state, fresh)
        return demo.run(rows, seed, broker, state or "memory", fresh=fresh, json=json)

    _show(run, json, web, loglevel)


@demos.command()
def refunds(
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="The number of tickets.")] = 60,
    json: Json = False,
    web: Web = False,
    loglevel: LogLevel = "warning",
) -> None:
    """Refund tickets with a durable agent that asks a person and is killed twice. A test bank counts the refunds it was asked for."""
    from sabot.demos.refunds import demo

    _show(lambda: demo.run(jobs, json=json, web=web), json, web, loglevel)


@demos.command()
def agents(
    tickets: Annotated[int, typer.Option(min=10, metavar="N", help="The number of tickets.")] = 40,
    json: Json = False,
    web: Web = False,
    loglevel: LogLevel = "warning",
) -> None:
    """Answer tickets with a model and tools; the agent asks a person and is killed twice. A test server and bank count their calls."""
    from sabot.demos.agents import demo

    _show(lambda: demo.run(tickets, json=json, web=web), json, web, loglevel)


@demos.command()
def orders(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="A database of PostgreSQL with wal_level=logical: postgresql://user@host/database."
        ),
    ],
    changes: Annotated[int, typer.Option(min=1, metavar="N", help="The number of changes.")] = 3000,
    seed: Annotated[int, typer.Option(metavar="S", help="The seed of the changes.")] = 0,
    json: Json = False,
    web: Web = False,
    loglevel: LogLevel = "warning",
) -> None:
    """Follow two tables of PostgreSQL into sums in DuckDB. The app is killed twice, and its sums are compared with the database's own."""
    from sabot.demos.orders import demo

    _show(lambda: demo.run(url, changes, seed, json=json, web=web), json, web, loglevel)


def _show(run: Callable[[], Any], json: bool, web: bool, loglevel: str) -> NoReturn:
    """Runs a demo and exits with its code. `json`: True to print nothing but the figures that `run` returns; not with `web`."""

    def work() -> None:
        if json and web:
            raise WrongUse("--json is for runs that end by themselves", hint="leave out --json or --web")
        figures = run()
        if json:
            typer.echo(encoded(figures))

    set_up_logging(loglevel)
    raise typer.Exit(guarded(work, debug=loglevel == "debug"))
