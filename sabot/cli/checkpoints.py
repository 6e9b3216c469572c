"""`sabot checkpoints` lists, shows and verifies checkpoints; `sabot savepoint` makes copies to keep."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pyarrow as pa
import typer

from sabot.checkpoint import Manifest, ask
from sabot.checkpoint.places import Location
from sabot.cli.app_checkpoints import AppCheckpoints, AppWord, control_of, find_checkpoints
from sabot.cli.printing import columns, json_line, moment, plain, size
from sabot.cli.running import guarded
from sabot.clock import SYSTEM_CLOCK
from sabot.delivery.tokens import in_words
from sabot.errors import CheckpointFailed, CorruptCheckpoint, UserError
from sabot.logs import set_up_logging
from sabot.redaction import redacted_url

checkpoints = typer.Typer(
    help="List, show and verify the checkpoints of an app.", no_args_is_help=True, rich_markup_mode=None
)
savepoint = typer.Typer(
    help="Make, list and remove savepoints: checkpoints that are kept.", no_args_is_help=True, rich_markup_mode=None
)

_STATE_DEPTH = 3  # <task>/states/<state>/…

Id = Annotated[int | None, typer.Argument(metavar="ID", min=1, help="The id of the checkpoint; default: the newest.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]


def _run(work: Any) -> None:
    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


@checkpoints.command("list")
def list_(app: AppWord, json: Json = False) -> None:
    """List the complete checkpoints, the oldest first. The column NEW is the size of files that the checkpoint before does not have."""

    def work() -> None:
        found = find_checkpoints(app)
        rows: list[list[object]] = []
        damaged = ""
        before: set[str] = set()
        for checkpoint_id in found.storage.ids():
            try:
                manifest = found.manifest(checkpoint_id)
            except CorruptCheckpoint as error:
                damaged = damaged or error.message
                continue
            files = {file.name: file.size for file in manifest.contents.values()}
            new = sum(nbytes for name, nbytes in files.items() if name not in before)
            before = set(files)
            waiting = sum(part.rows for track in manifest.lanes.values() for part in track.pending)
            if json:
                json_line(
                    {
                        "checkpoint": checkpoint_id,
                        "generation": manifest.generation,
                        "written": manifest.created_ms,
                        "bytes": sum(files.values()),
                        "new_bytes": new,
                        "files": len(files),
                        "tasks": len(manifest.tasks),
                        "undelivered_rows": waiting,
                        **_program(manifest),
                    }
                )
            facts = _program(manifest)
            what = " ".join(filter(None, (facts["app"], facts["version"])))
            numbers = (len(files), size(sum(files.values())), size(new), len(manifest.tasks), waiting)
            rows.append([checkpoint_id, manifest.generation, moment(manifest.created_ms), *numbers, what])
        if not rows and not damaged:
            found.manifest()
        if not json:
            columns(
                ["checkpoint", "generation", "written", "files", "size", "new", "tasks", "undelivered", "app"], rows
            )
        if damaged:
            raise UserError(damaged)

    _run(work)


@checkpoints.command()
def show(app: AppWord, checkpoint_id: Id = None, json: Json = False) -> None:
    """Show one checkpoint: positions of sources, operators with their state, agents, and output that is not delivered yet."""

    def work() -> None:
        manifest = find_checkpoints(app).manifest(checkpoint_id)
        if json:
            json_line(msgspec.to_builtins(msgspec.structs.replace(manifest, path=None, place=None)))
            return
        for name, value in {
            "checkpoint": manifest.checkpoint_id,
            "written": moment(manifest.created_ms),
            **_program(manifest),
            "generation": manifest.generation,
            "incarnation": manifest.incarnation,
            "files": f"{len(manifest.contents)}, {size(manifest.nbytes)}",
        }.items():
            typer.echo(f"{name:<12} {plain(str(value))}".rstrip())
        _table("positions", ["task", "source", "topic", "partition", "next offset"], _positions(manifest))
        _table("state", ["task", "operator", "size", "description"], _states(manifest))
        _table("agents", ["agent", "processed", "errors", "dead letters", "unfinished"], _agents(manifest))
        _table("output", ["sink", "track", "given", "delivered", "waiting"], _tracks(manifest))

    _run(work)


@checkpoints.command()
def verify(app: AppWord, checkpoint_id: Id = None, json: Json = False) -> None:
    """Read every file of one checkpoint, or of all, and compare it with its hash. Exit code 1 if a file differs or is missing."""

    def work() -> None:
        found = find_checkpoints(app)
        wanted = checkpoint_id or found.chosen
        if not wanted and not found.storage.ids():
            found.manifest()  # raises: there is no checkpoint
        for each in [wanted] if wanted else found.storage.ids():
            manifest = found.manifest(each)
            found.storage.verify(manifest)
            files, nbytes = len(manifest.contents), manifest.nbytes
            if json:
                json_line({"checkpoint": manifest.checkpoint_id, "files": files, "bytes": nbytes, "whole": True})
            else:
                typer.echo(f"checkpoint {manifest.checkpoint_id}: {files} files, {size(nbytes)}, all hashes match")

    _run(work)


@savepoint.command()
def create(
    app: AppWord,
    to: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="The place of the copy; default: `savepoints` beside the checkpoints."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="The longest wait for a running app.")
    ] = 60.0,
    json: Json = False,
) -> None:
    """Make a savepoint: a copy of a checkpoint that is never removed automatically.

    A running app makes a new checkpoint for it; if the app does not run, its newest checkpoint is copied. `sabot run --from PLACE`
    starts from the savepoint.
    """

    def work() -> None:
        found = find_checkpoints(app)
        control = None if found.chosen else control_of(found)
        if control is not None:
            answer = ask(control, {"savepoint": str(_place(found, to, control))}, timeout)
            checkpoint_id, where, running = answer["checkpoint"], answer["path"], True
        else:
            checkpoint_id, where = _copy_checkpoint(found, _place(found, to))
            running = False
        if json:
            json_line({"checkpoint": checkpoint_id, "savepoint": where, "running": running})
        else:
            typer.echo(f"checkpoint {checkpoint_id} is kept in {where}")

    _run(work)


@savepoint.command("list")
def list_savepoints(app: AppWord, json: Json = False) -> None:
    """List the savepoints that the journal of an app with durable agents keeps entries for."""

    def work() -> None:
        notes = sorted(find_checkpoints(app).storage.savepoints(), key=lambda note: note.made_ms)
        for note in notes if json else ():
            json_line({"checkpoint": note.checkpoint_id, "savepoint": note.location, "made": note.made_ms})
        if not json:
            rows: list[list[object]] = [[note.checkpoint_id, moment(note.made_ms), note.location] for note in notes]
            columns(["checkpoint", "made", "savepoint"], rows)

    _run(work)


@savepoint.command()
def drop(
    app: AppWord,
    place: Annotated[str, typer.Argument(metavar="PLACE", help="The place of the savepoint.")],
    json: Json = False,
) -> None:
    """Remove a savepoint, and let the app's journal trim the entries that were kept for it."""

    def work() -> None:
        found = find_checkpoints(app)
        found.storage.drop_savepoint(_place(found, place))
        where = redacted_url(place)
        if json:
            json_line({"dropped": where})
        else:
            typer.echo(f"savepoint {plain(where)} is removed")

    _run(work)


def _copy_checkpoint(app: AppCheckpoints, place: Location) -> tuple[int, str]:
    """Copies the app's checkpoint to `place`. Returns the id of the checkpoint and the place of the copy.

    Raises UserError if the running app removes the checkpoint meanwhile.
    """
    manifest = app.manifest()
    try:
        app.storage.verify(manifest)
        return manifest.checkpoint_id, str(app.storage.copy_to(manifest, place))
    except (CorruptCheckpoint, CheckpointFailed) as error:
        if manifest.checkpoint_id in app.storage.ids():
            raise
        raise UserError(
            f"the running app removed checkpoint {manifest.checkpoint_id} while it was copied, because it has newer ones",
            hint="on the app's machine, name its --state directory, so that the app makes the savepoint; or stop the app",
        ) from error


def _place(app: AppCheckpoints, to: str | None, control: Path | None = None) -> Location:
    """Returns the place of a savepoint, with an absolute path because the running app may have another current
    folder.

    `to`: the place that the user gave, or None for a new folder beside the checkpoints. `control`: the folder through
    which the running app is asked, or None if no app runs on this machine. Raises UserError if `to` is None and the
    app runs with its checkpoints in an object store.
    """
    if to is None and control not in (None, app.storage.directory):
        raise UserError(
            f"the app on {app.place} has its checkpoints in an object store, not here",
            hint="give the place of the savepoint: --to PLACE",
        )
    if to is None:
        stamp = moment(int(SYSTEM_CLOCK.time() * 1000)).replace(" ", "-").replace(":", "").removesuffix("Z")
        return app.below(f"savepoints/{stamp}")
    return to if "://" in to else Path(to).absolute()


def _program(manifest: Manifest) -> dict[str, str]:
    return {"app": str(manifest.describe.get("app", "")), "version": str(manifest.describe.get("version", ""))}


def _table(what: str, titles: list[str], rows: Iterable[list[object]]) -> None:
    found = list(rows)
    if found:
        typer.echo(f"\n{what}")
        columns(titles, found)


def _positions(manifest: Manifest) -> Iterable[list[object]]:
    for task, stored in manifest.tasks.items():
        inputs = dict(stored.meta.get("sources", {}))
        if "source" in stored.meta.get("input", {}):
            inputs[stored.meta["input"]["source"]] = stored.meta["input"]
        for source, facts in inputs.items():
            for topic, partition, offset in facts["positions"]:
                yield [task, source, topic, partition, offset]


def _states(manifest: Manifest) -> Iterable[list[object]]:
    sizes: Counter[str] = Counter()
    for path, file in manifest.contents.items():
        sizes["/".join(path.split("/")[:_STATE_DEPTH])] += file.size
    for task, stored in manifest.tasks.items():
        texts = stored.meta.get("texts", {})
        for name, folder in stored.states.items():
            yield [task, name, size(sizes[folder]), texts.get(name, "")]
        for name, text in texts.items():
            if name not in stored.states:
                yield [task, name, "-", text]


def _agents(manifest: Manifest) -> Iterable[list[object]]:
    for task, stored in manifest.tasks.items():
        for agent, facts in stored.meta.get("agents", {}).items():
            files = [manifest.read_file(task, each["file"]) for each in facts["unfinished"]]
            unfinished = sum(pa.ipc.open_stream(data).read_all().num_rows for data in files)
            yield [agent, facts["messages_processed"], facts["errors"], facts["dead_letters"], unfinished]


def _tracks(manifest: Manifest) -> Iterable[list[object]]:
    for name, track in manifest.lanes.items():
        rows = sum(part.rows for part in track.pending)
        waiting = f"{len(track.pending)} parts, {rows} rows" if track.pending else "-"
        yield [track.sink, name, _seq(track.given), _seq(track.delivered), waiting]


def _seq(seq: int) -> str:
    """Returns the number of a part of the output as text: the run of the app that made the part, and its number in that run."""
    return in_words(seq) if seq else "-"
