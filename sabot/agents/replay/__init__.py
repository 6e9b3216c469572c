"""Replay: what happened in jobs, as a file; its events played again; and the code of today run over it.

recording   what is kept, saved, loaded; of a bus, or of a journal
player      how it is played
fork        a job goes on from one of its steps, otherwise than it did
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
