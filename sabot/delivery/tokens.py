"""What is to be delivered after a start: decided from what the checkpoint says of a track and what the receiver knows.

    seq = generation * 2**34 + n      a run (generation) never gives out a number that another one may have given out

Pure: no files, no clocks, no receivers. The reasons stand in docs/decisions/007.
"""

from dataclasses import dataclass

from sabot.checkpoint.manifest import StoredTrack
from sabot.connectors.base import Token
from sabot.errors import DeliveryConflict, UserError

__all__ = ["CHOICES", "SEQ_BITS", "Opening", "after", "first_seq", "in_words", "opening"]

SEQ_BITS = 34  # a part each 200 ms for a century; and 2**29 generations, each below 2**63
CHOICES = ("repeat", "skip")


@dataclass(frozen=True)
class Opening:
    """How a track begins: pending parts above `delivered` are delivered; with `renumber` all of them, under new numbers, once a
    checkpoint knows these. The receiver's token is `settle`d, or renewed, at `delivered`. The next number is above `above`.
    """

    delivered: int
    above: int
    settle: bool = False
    renumber: bool = False
    note: str = ""


def first_seq(generation: int) -> int:
    """The number below the first one of this run."""
    return generation << SEQ_BITS


def in_words(seq: int) -> str:
    """As people see it: "4/5", the fifth part of generation 4."""
    return f"{seq >> SEQ_BITS}/{seq & (1 << SEQ_BITS) - 1}"


def after(seq: int) -> int:
    """The number below the first one of a run that is above `seq`."""
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
) -> Opening:
    """Raises DeliveryConflict, with the ways on spelled out, where going on by itself could repeat or lose output.

    stored: the track in the checkpoint that is restored; None: it has none, or nothing is restored. newest: that checkpoint is the
    newest of the job, not a savepoint. choice: what the user has said, of CHOICES. fresh: he said that the job starts afresh.
    """
    if choice is not None and choice not in CHOICES:
        raise UserError(f"redeliver={choice!r}", hint='"repeat" or "skip"')
    track = stored or StoredTrack("")
    above = max(first_seq(generation), track.given)
    if not keeps_token and (newest or not track.given or choice == "repeat"):  # it knows parts by their numbers
        return Opening(track.delivered, above)
    if token is not None and token.seq == 0 and token.incarnation != incarnation:
        token = None  # of a life that had not delivered anything
    if not keeps_token:
        why = "it keeps no token, so nobody knows whether it was given more after this savepoint"
    elif token is None:
        if track.given == 0:
            return Opening(0, above, settle=True)
        if not track.pending and newest:
            return Opening(
                track.delivered, above, settle=True, note="the receiver has lost its token; nothing was pending"
            )
        why = f"the receiver has lost its token, and {_parts(track)} may be there or not"
    elif token.incarnation != incarnation:
        if fresh:
            return Opening(0, max(above, after(token.seq)), settle=True)
        why = (
            f"the receiver has output of another life of this job (incarnation {token.incarnation or 'unknown'}, this one is "
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
        return Opening(track.delivered, above, settle=True, renumber=True, note=f"{why}; all of it is delivered again")
    if choice == "skip":
        return Opening(
            max(known, track.given), above, settle=True, note=f"{why}; {len(track.pending)} saved parts are skipped"
        )
    raise DeliveryConflict(
        f"sink {name}: {why}",
        hint="choose: redeliver=repeat (--redeliver repeat) delivers again what comes from this checkpoint on, so some "
        "output may be there twice; redeliver=skip drops the saved parts that may be there already, so some may be missing, "
        "and what an older checkpoint computes anew is still delivered; "
        "or start from the checkpoint that belongs to this output",
    )


def _parts(track: StoredTrack) -> str:
    if not track.pending:
        return "what came after this checkpoint"
    return f"{len(track.pending)} saved parts ({track.pending[0].seq} to {track.pending[-1].seq})"
