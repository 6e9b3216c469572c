"""`sabot checkpoints` lists, shows and verifies checkpoints; `sabot savepoint` makes copies to keep."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
import pyarrow as pa
import typer

from sabot.base.logs import set_up_logging
from sabot.base.quantities import bytes_words
from sabot.base.redaction import redacted_url
from sabot.cli.app_checkpoints import AppWord, find_checkpoints
from sabot.cli.printing import columns, json_line, moment, plain
from sabot.cli.running import guarded
from sabot.engine.checkpoint import Manifest
from sabot.engine.checkpoint.inspection import (
    CheckpointRecord,
    KeptSavepoint,
    checkpoint_records,
    create_savepoint,
    savepoint_place,
    savepoint_records,
    task_records,
)
from sabot.engine.delivery.tokens import in_words
from sabot.errors import CorruptCheckpoint, SabotError, UserError

checkpoints = typer.Typer(
    help="List, show and verify the checkpoints of an app.", no_args_is_help=True, rich_markup_mode=None
)
savepoint = typer.Typer(
    help="Make, list and remove savepoints: checkpoints that are kept.", no_args_is_help=True, rich_markup_mode=None
)

_STATE_DEPTH = 3  # <task>/states/<state>/…

Id = Annotated[int | None, typer.Argument(metavar="ID", min=1, help="The id of the checkpoint; default: the newest.")]
State = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="The state of the app, where sabot run has --state DIR."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]


def _run(work: Any) -> None:
    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


@checkpoints.command("list")
def list_(app: AppWord, state: State = None, json: Json = False) -> None:
    """List the complete checkpoints, the oldest first. The column NEW is the size of files that the checkpoint before does not have."""

    def work() -> None:
        found = find_checkpoints(app, state)
        records, damaged = checkpoint_records(found)
        if not records and not damaged:
            found.manifest()  # raises: there is no checkpoint
        if json:
            for each in records:
                json_line(asdict(each))
        else:
            columns(
                ["checkpoint", "generation", "written", "files", "size", "new", "tasks", "undelivered", "app"],
                [_line(each) for each in records],
            )
        if damaged:
            raise UserError(damaged)

    _run(work)


@checkpoints.command()
def show(app: AppWord, checkpoint_id: Id = None, state: State = None, json: Json = False) -> None:
    """Show one checkpoint: positions of sources, operators with their state, agents, and output that is not delivered yet."""

    def work() -> None:
        manifest = find_checkpoints(app, state).manifest(checkpoint_id)
        if json:
            json_line(msgspec.to_builtins(msgspec.structs.replace(manifest, path=None, place=None)))
            return
        for name, value in {
            "checkpoint": manifest.checkpoint_id,
            "written": moment(manifest.created_ms),
            **_program(manifest),
            **_journal(manifest),
            "generation": manifest.generation,
            "incarnation": manifest.incarnation,
            "files": f"{len(manifest.contents)}, {bytes_words(manifest.nbytes)}",
            "time": _seconds(manifest.seconds or None),
        }.items():
            typer.echo(f"{name:<12} {plain(str(value))}".rstrip())
        _table("tasks", ["task", "size", "reached", "aligned", "snapshot", "saved"], _tasks(manifest))
        _table("positions", ["task", "source", "topic", "partition", "next offset"], _positions(manifest))
        _table("state", ["task", "operator", "size", "description"], _states(manifest))
        _table("agents", ["agent", "processed", "errors", "dead letters", "unfinished"], _agents(manifest))
        _table("output", ["sink", "track", "given", "delivered", "waiting"], _tracks(manifest))

    _run(work)


@checkpoints.command()
def verify(app: AppWord, checkpoint_id: Id = None, state: State = None, json: Json = False) -> None:
    """Read every file of one checkpoint, or of all, and compare it with its hash. Exit code 1 if a file differs or is missing; the
    other checkpoints are read all the same, and the newest whole one is named.
    """

    def work() -> None:
        found = find_checkpoints(app, state)
        wanted = checkpoint_id or found.chosen
        if not wanted and not found.storage.ids():
            found.manifest()  # raises: there is no checkpoint
        damaged, newest = list[CorruptCheckpoint](), 0
        for each, manifest in [(wanted, found.manifest(wanted))] if wanted else found.kept():
            try:
                if isinstance(manifest, CorruptCheckpoint):
                    raise manifest
                found.storage.verify(manifest)
            except CorruptCheckpoint as error:
                if each not in found.storage.ids():  # a running app has removed it while it was read
                    if wanted:
                        found.manifest(wanted)  # raises: it has others
                    continue
                damaged.append(error)
                if json:
                    json_line({"checkpoint": each, "whole": False, "error": error.message})
                else:
                    typer.echo(f"checkpoint {each}: {plain(error.message)}")
                continue
            newest, files, nbytes = each, len(manifest.contents), manifest.nbytes
            if json:
                json_line({"checkpoint": manifest.checkpoint_id, "files": files, "bytes": nbytes, "whole": True})
            else:
                typer.echo(
                    f"checkpoint {manifest.checkpoint_id}: {files} files, {bytes_words(nbytes)}, all hashes match"
                )
        if wanted and damaged:
            raise damaged[0]
        if damaged:
            good = f"checkpoint {newest} is the newest whole one" if newest else "none is whole"
            raise UserError(f"{len(damaged)} checkpoints are damaged; {good}", hint=damaged[-1].hint)

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
    state: State = None,
    json: Json = False,
) -> None:
    """Make a savepoint: a copy of a checkpoint that is never removed automatically.

    A running app makes a new checkpoint for it; if the app does not run, its newest checkpoint is copied. `sabot run --from PLACE`
    starts from the savepoint.
    """

    def work() -> None:
        found = find_checkpoints(app, state)
        made = create_savepoint(found, to, timeout)
        try:
            journal = _journal(found.storage.read(made.checkpoint))
        except (SabotError, OSError):  # a running app has removed it meanwhile; its copy says the same
            journal = {}
        if json:
            json_line(asdict(made) | journal)
            return
        typer.echo(f"checkpoint {made.checkpoint} is kept in {made.savepoint}")
        for each in journal.values():
            needed = plain(each).removeprefix("journal ")
            typer.echo(
                f"the journal of durable agents is not in it: a start needs journal {needed}, or a copy that was made later"
            )

    _run(work)


@savepoint.command("list")
def list_savepoints(app: AppWord, state: State = None, json: Json = False) -> None:
    """List the savepoints beside local checkpoints, and those that the journal of durable agents keeps entries for.

    WRITTEN is the time of the checkpoint.
    """

    def work() -> None:
        found = find_checkpoints(app, state)
        known = list(savepoint_records(found).values())
        # Those in a file system that only the program can open are known by the notes of the journal alone.
        notes = [note for note in found.storage.savepoints() if not note.readable]
        known += [KeptSavepoint("", note.checkpoint_id, note.made_ms, 0, note.location) for note in notes]
        if json:
            for each in known:
                facts = {"checkpoint": each.checkpoint, "written": each.written, "bytes": each.bytes}
                json_line(facts | {"savepoint": each.place, "problem": each.problem})
            return
        rows = [[each.checkpoint, moment(each.written), bytes_words(each.bytes), each.place] for each in known]
        columns(["checkpoint", "written", "size", "savepoint"], rows)
        for each in known:
            if each.problem:
                typer.echo(f"{plain(each.place)} cannot be read: {plain(each.problem)}", err=True)

    _run(work)


@savepoint.command()
def drop(
    app: AppWord,
    place: Annotated[str, typer.Argument(metavar="PLACE", help="The place of the savepoint.")],
    state: State = None,
    json: Json = False,
) -> None:
    """Remove a savepoint, and let the app's journal trim the entries that were kept for it."""

    def work() -> None:
        found = find_checkpoints(app, state)
        found.storage.drop_savepoint(savepoint_place(found, place))
        where = redacted_url(place)
        if json:
            json_line({"dropped": where})
        else:
            typer.echo(f"savepoint {plain(where)} is removed")

    _run(work)


def _line(record: CheckpointRecord) -> list[object]:
    sizes = (
        record.files,
        bytes_words(record.bytes),
        bytes_words(record.new_bytes),
        record.tasks,
        record.undelivered_rows,
    )
    program = " ".join(filter(None, (record.app, record.version)))
    return [record.checkpoint, record.generation, moment(record.written), *sizes, program]


def _program(manifest: Manifest) -> dict[str, str]:
    return {name: str(manifest.describe.get(name, "")) for name in ("app", "version", "sabot")}


def _journal(manifest: Manifest) -> dict[str, str]:
    """Returns which journal a checkpoint of durable agents goes on with, and up to where it must reach; else {}."""
    for stored in manifest.tasks.values():
        if (facts := stored.meta.get("journal")) is not None:
            reached = ", ".join(f"{offset:,}" for _, offset in facts["positions"])
            where = facts.get("where", "")  # not in checkpoints of older versions
            return {"journal": f"{where} {facts['identity']}, up to entry {reached}".lstrip()}
    return {}


def _table(what: str, titles: list[str], rows: Iterable[list[object]]) -> None:
    found = list(rows)
    if found:
        typer.echo(f"\n{what}")
        columns(titles, found)


def _tasks(manifest: Manifest) -> Iterable[list[object]]:
    for each in task_records(manifest):
        yield [each.task, bytes_words(each.bytes), *map(_seconds, (each.reached, each.aligned, each.sync, each.saved))]


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f} s"


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
            yield [task, name, bytes_words(sizes[folder]), texts.get(name, "")]
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
