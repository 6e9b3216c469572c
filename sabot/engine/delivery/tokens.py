"""Decides which saved parts a start delivers, from the track in the checkpoint and the receiver's token (the number
of the last part that the receiver has).

    seq = generation * 2**34 + n      each run of an app has its own generation, so no two runs use the same number

These functions are pure: they use no files, clocks or receivers. docs/decisions/007 has the reasons for the rules.
"""

from dataclasses import replace
from typing import get_args

from sabot.api.settings import Redeliver
from sabot.base.dataclass import dataclass
from sabot.connectors.base import Token
from sabot.engine.checkpoint.manifest import StoredTrack
from sabot.errors import DeliveryConflict, UserError

SEQ_BITS = 34  # numbers for a part each 200 ms over a century; 2**29 generations fit below 2**63


@dataclass(frozen=True)
class Opening:
    """The state in which a track begins.

    `delivered`: the pending parts with higher numbers are delivered, and the receiver's token is set to this number.
    `above`: the next new part gets a higher number. `renumber`: True if all pending parts are delivered under new
    numbers, once a checkpoint lists these. `note`: a text for the log, or "".
    """

    delivered: int
    above: int
    renumber: bool = False
    note: str = ""


ASIDE = 1 << 62
"""The bit in the number of a part that is delivered aside: rows of another thread that must be at the receiver at once.
The other bits are the number of the last part before it. The token is set back to that number afterwards.
"""


def first_seq(generation: int) -> int:
    """Returns the number before the first part of this generation: its first part gets this number plus 1."""
    return generation << SEQ_BITS


def in_words(seq: int) -> str:
    """Returns a number as people see it: "4/5" is the fifth part of generation 4."""
    return f"{seq >> SEQ_BITS}/{seq & (1 << SEQ_BITS) - 1}"


def without_aside(token: Token | None) -> Token | None:
    """Returns the token as it was before a part was delivered aside, if the process ended before it was set back."""
    return token if token is None or token.seq < ASIDE else replace(token, seq=token.seq & ~ASIDE)


def after(seq: int) -> int:
    """Returns `first_seq` of the generation that follows the one of `seq`."""
    return ((seq >> SEQ_BITS) + 1) << SEQ_BITS


def opening(
    name: str,
    stored: StoredTrack | None,
    token: Token | None,
    *,
    keeps_token: bool,
    incarnation: str,
    generation: int,
    newest: bool,
    choice: str | None,
    fresh: bool = False,
    token_place: str = "",
) -> Opening:
    """Returns how the track of the sink `name` begins. Raises DeliveryConflict, whose hint lists the choices, if the
    start could repeat or lose output and the user has not chosen.

    `stored`: the track in the restored checkpoint, or None if the checkpoint has none or nothing is restored.
    `token`: that of the receiver, or None. `keeps_token`: False if the receiver stores no token and recognises a part
    by its number. `incarnation`: the id of the app since its last fresh start. `generation`: that of this run.
    `newest`: True if the restored checkpoint is the newest of the app, False for a savepoint. `choice`: the
    `redeliver=` of the user, or None; anything but "repeat" and "skip" is a UserError. `fresh`: True if the user
    wants the app to start afresh. `token_place`: the path of the file that has the token, or "".
    """
    if choice is not None and choice not in get_args(Redeliver):
        raise UserError(f"redeliver={choice!r}", hint='"repeat" or "skip"')
    track = stored or StoredTrack("")
    above = max(first_seq(generation), track.given)
    # A sink that keeps no token recognises a part by its number.
    if not keeps_token and (newest or not track.given or choice == "repeat"):
        return Opening(track.delivered, above)
    if token is not None and token.empty:
        gone = "the receiver has nothing any more of what was delivered: was it deleted?" if track.delivered else ""
        return Opening(track.delivered, above, note=gone)
    if token is not None and token.seq == 0 and token.incarnation != incarnation:
        token = None  # left by an incarnation that had not delivered anything
    of_another_life = token is not None and token.incarnation != incarnation
    if not keeps_token:
        why = "it keeps no token, so nobody knows whether it was given more after this savepoint"
    elif token is None:
        if track.given == 0:
            return Opening(0, above)
        if not track.pending and newest:
            lost = "the receiver has lost its token; nothing was pending" if track.delivered else ""
            return Opening(track.delivered, above, note=lost)
        why = f"the receiver has lost its token, and {_parts(track)} may be there or not"
    elif of_another_life:
        if fresh:
            return Opening(0, max(above, after(token.seq)))
        why = (
            f"the receiver has output of another incarnation of this app ({token.incarnation or 'unknown'}; this one is "
            f"{incarnation}), which had other checkpoints (if they are gone for good: start afresh, --fresh)"
        )
    elif token.seq < track.delivered:
        why = f"the receiver's token {token.seq} is older than the {track.delivered} that was delivered"
    elif token.seq > track.given:
        why = f"output up to {token.seq} was delivered after this checkpoint, which knows numbers up to {track.given}"
    else:
        return Opening(token.seq, above)
    known = 0 if token is None else token.seq
    above = max(above, after(known))
    if choice == "repeat":
        return Opening(track.delivered, above, renumber=True, note=f"{why}; all of it is delivered again")
    if choice == "skip":
        return Opening(max(known, track.given), above, note=f"{why}; {len(track.pending)} saved parts are skipped")
    raise DeliveryConflict(
        f"sink {name}: {why}" + (f"; the place of its token is {token_place}" if token_place else ""),
        hint="choose one:\n"
        "  --redeliver repeat (redeliver=): delivers again what comes from this checkpoint on; some output may be there twice\n"
        "  --redeliver skip: drops the saved parts that may be there already; some output may be missing, and what an older "
        "checkpoint computes anew is still delivered\n"
        "  start from the checkpoint that belongs to this output"
        + (f"\n  remove {token_place}, if the output is gone" if token_place and of_another_life else ""),
    )


def _parts(track: StoredTrack) -> str:
    if not track.pending:
        return "what came after this checkpoint"
    return f"{len(track.pending)} saved parts ({track.pending[0].seq} to {track.pending[-1].seq})"
