"""Replay: the history of a job as a recording, its events published again, and the code of today run over it.

recording      makes recordings from a bus or from a journal; saves and loads them
player         the modes in which a recording is played
verification   compares the code of today with a recording
fork           continues a job from one of its steps, with changes; `answers`: the values that it uses in place of calls
               and of people; `fork_guards`: which calls it makes, and who pays for them
"""

from sabot.agents.replay.fork import FORK_ALLOWS, Forked, fork
from sabot.agents.replay.player import ReplayMode, ReplayPlayer
from sabot.agents.replay.recording import Recording, ReplayRecorder, RunMetadata, record_job
from sabot.agents.replay.verification import JobCode, ReplayDifference, Verified, code_of, verified

__all__ = [
    "FORK_ALLOWS",
    "Forked",
    "JobCode",
    "Recording",
    "ReplayDifference",
    "ReplayMode",
    "ReplayPlayer",
    "ReplayRecorder",
    "RunMetadata",
    "Verified",
    "code_of",
    "fork",
    "record_job",
    "verified",
]
