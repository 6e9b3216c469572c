"""The guarantee that each source and sink of an app has across a crash: what a start uses, and what people are told."""

from sabot.connectors.base import Delivers, Delivery, KeepsToken, Sink, Source
from sabot.errors import UserError

NO_CHECKPOINTS = (
    "no guarantee: the app keeps no checkpoints (state= or checkpoint_dir=), so a start after a crash begins anew"
)


def why_repeated(sink: Sink, wanted: Delivery, *, kept: bool = True) -> str:
    """Returns the reason why a crash may repeat rows of the sink, or "" if rows are written in parts, and so exactly once unless
    `Delivers.repeats` says more.

    `wanted`: `delivery=` of the user; with None the sink is written exactly once if it can be, if its rows outlive the process, and if
    the app keeps checkpoints (`kept`). Raises UserError for a sink that cannot deliver as wanted.
    """
    if wanted == "at_least_once":
        return 'delivery="at_least_once" asks for it'
    if not isinstance(sink, Delivers):
        if wanted == "exactly_once":
            raise UserError(
                f"sink {sink.name} cannot deliver exactly once",
                hint='give it the ability Delivers (docs/sinks.md), or say delivery="at_least_once"',
            )
        return "it cannot tell which rows have arrived, so a crash repeats those since the last checkpoint"
    if wanted is None and not sink.lasting:
        return "its rows end with the process"
    if wanted == "exactly_once" and sink.repeats:
        raise UserError(
            f"sink {sink.name} cannot deliver exactly once: {sink.repeats}",
            hint='say delivery="at_least_once", or leave delivery= out',
        )
    if wanted == "exactly_once" and not kept:
        raise UserError(
            f"sink {sink.name}: exactly once needs checkpoints on a disk",
            hint='App(..., state=DIRECTORY) or checkpoint_dir=; or say delivery="at_least_once"',
        )
    return "" if kept else "the app keeps no checkpoints"


def sink_guarantee(sink: Sink, wanted: Delivery, *, kept: bool) -> str:
    """Returns the guarantee of a sink, for people. `wanted`, `kept` and the errors: as for `why_repeated`."""
    why = why_repeated(sink, wanted, kept=kept)
    if not kept:
        return NO_CHECKPOINTS
    if why:
        return f"at least once: {why}"
    if isinstance(sink, Delivers) and sink.repeats:
        return f"at least once: {sink.repeats}"
    if isinstance(sink, KeepsToken) and not sink.whole:
        return "exactly once: it stores how far a part is there in one step with each chunk of its rows"
    if isinstance(sink, KeepsToken):
        gathered = f", at most once in {sink.gather_s:g} s" if sink.gather_s else ""
        return f"exactly once: it stores the number of the last part in one step with the rows{gathered}"
    return "exactly once: it knows a part that comes again by its number"


def source_guarantee(source: Source, *, kept: bool) -> str:
    """Returns how often a row of the source counts in the state of the app, for people. `kept`: as for `why_repeated`."""
    if not kept:
        return NO_CHECKPOINTS
    if source.guarantee == "at least once":
        return "at least once: rows that no complete checkpoint covers may come again"
    if source.guarantee == "at most once":
        return "at most once: its log keeps no rows for an app that is down"
    if source.log_id:
        return "exactly once while the process lives: its rows are in memory"
    return "exactly once: a start goes on at the position in the checkpoint"
