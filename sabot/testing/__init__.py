"""Tools for the tests of programs that use Sabot: sources that follow a script, a sink that keeps its rows, a clock that is moved by
hand, a broker inside the process; runners that let an app die and begin again; a witness of what it did to the world meanwhile; and a
server in the place of models.
"""

from typing import TYPE_CHECKING

from sabot.late import late_names

if TYPE_CHECKING:
    from sabot.clock import ManualClock
    from sabot.connectors.memory import MemoryBroker
    from sabot.testing.every_step import Crashes, crash_at_every_step
    from sabot.testing.lives import run
    from sabot.testing.model_server import FakeModelServer, ModelRequest
    from sabot.testing.recording import RecordedAnswers
    from sabot.testing.script import BARRIER, CRASH, END, ScriptedSource
    from sabot.testing.simulation import Simulation, simulate
    from sabot.testing.sinks import ListSink
    from sabot.testing.witness import SideEffect, Witness, WitnessClient, WitnessFailed

__all__ = [
    "BARRIER",
    "CRASH",
    "END",
    "Crashes",
    "FakeModelServer",
    "ListSink",
    "ManualClock",
    "MemoryBroker",
    "ModelRequest",
    "RecordedAnswers",
    "ScriptedSource",
    "SideEffect",
    "Simulation",
    "Witness",
    "WitnessClient",
    "WitnessFailed",
    "crash_at_every_step",
    "run",
    "simulate",
]

_HOMES = {
    "sabot.clock": ("ManualClock",),
    "sabot.connectors.memory": ("MemoryBroker",),
    "sabot.testing.every_step": (
        "Crashes",
        "crash_at_every_step",
    ),
    "sabot.testing.lives": ("run",),
    "sabot.testing.model_server": (
        "FakeModelServer",
        "ModelRequest",
    ),
    "sabot.testing.recording": ("RecordedAnswers",),
    "sabot.testing.script": (
        "BARRIER",
        "CRASH",
        "END",
        "ScriptedSource",
    ),
    "sabot.testing.simulation": (
        "Simulation",
        "simulate",
    ),
    "sabot.testing.sinks": ("ListSink",),
    "sabot.testing.witness": (
        "SideEffect",
        "Witness",
        "WitnessClient",
        "WitnessFailed",
    ),
}

if not TYPE_CHECKING:  # for type checkers every name would exist, misspelled ones too
    __getattr__, __dir__ = late_names(__name__, _HOMES)
