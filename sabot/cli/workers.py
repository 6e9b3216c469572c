"""`sabot workers` shows the worker processes of a running app; `sabot rescale` changes their number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sabot.base.figures import AppFigures, FlowFigures, WorkerFigures
from sabot.base.logs import set_up_logging
from sabot.base.quantities import bytes_words
from sabot.cli.app_checkpoints import AppWord, find_checkpoints
from sabot.cli.printing import columns, json_line, plain
from sabot.cli.running import guarded
from sabot.engine.checkpoint import ask
from sabot.engine.checkpoint.inspection import AppCheckpoints, control_of
from sabot.errors import UserError

_ASK_SECONDS = 20.0

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]


def workers(app: AppWord, json: Json = False) -> None:
    """Show the workers of a running app and their tasks: rows, lag, CPU and memory. Rates are those of the last seconds."""

    def work() -> None:
        _print(_ask_app(find_checkpoints(app), {"workers": True}, _ASK_SECONDS), json)

    _run(work)


def rescale(
    app: AppWord,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="The new number of workers.")],
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="The longest wait for the change.")
    ] = 100.0,
    json: Json = False,
) -> None:
    """Give a running app another number of workers.

    The app stops with a checkpoint and continues from it with the new workers. No row is lost or repeated.
    """

    def work() -> None:
        _print(_ask_app(find_checkpoints(app), {"rescale": workers}, timeout), json)

    _run(work)


def _run(work: Any) -> None:
    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


def _ask_app(app: AppCheckpoints, request: dict[str, Any], timeout: float) -> dict[str, Any]:
    return ask(running_control(app, "sabot run module:app --workers N"), request, timeout)


def running_control(app: AppCheckpoints, start: str) -> Path:
    """Returns the folder through which requests reach the app. Raises UserError if the app does not run on this machine.

    `start`: the command that starts it, for the error.
    """
    control = control_of(app)
    if control is None:
        raise UserError(
            f"no app runs on {app.place} on this machine",
            hint=f"{start} starts it; if its checkpoints are in an object store, name its --state directory "
            "on the machine where it was started",
        )
    return control


def _print(answer: dict[str, Any], json: bool) -> None:
    if json:
        for each in answer["workers"]:
            json_line({"app": answer["app"], "restarts": answer["restarts"], **each})
        return
    found = AppFigures.of({"workers": answer["workers"]}).workers
    if not found:
        typer.echo(f"{plain(answer['app'])}: no workers: all tasks run in the process that was started")
        return
    tasks = sum(len(each.tasks) for each in found)
    typer.echo(
        f"{plain(answer['app'])}: workers {len(found)}, tasks {tasks}, restarts {answer['restarts']},"
        f" checkpoint {answer['checkpoint']}\n"
    )
    columns(WORKER_TITLES, worker_rows(found))
    typer.echo()
    columns(
        ["task", "worker", "rows/s", "lag", "rows"],
        [
            [task, each.worker, *_flow(figures), _number(figures.rows)]
            for each in found
            for task, figures in each.tasks.items()
        ],
    )


WORKER_TITLES = ["worker", "pid", "tasks", "rows/s", "lag", "cpu", "memory"]


def worker_rows(workers: Sequence[WorkerFigures]) -> list[list[object]]:
    """Returns a row of cells for each worker, under `WORKER_TITLES`."""
    return [
        [
            each.worker,
            each.pid,
            len(each.tasks),
            *_flow(each),
            "-" if each.cpu_percent is None else f"{each.cpu_percent:.0f} %",
            "-" if each.memory_bytes is None else bytes_words(each.memory_bytes),
        ]
        for each in workers
    ]


def _flow(figures: FlowFigures) -> tuple[str, str]:
    return _number(figures.rows_per_second), _number(figures.lag)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
