"""Tools for the tests of programs that use Sabot: `ScriptedSource` reads a script, `ListSink` keeps rows,
`ManualClock` moves by hand, `MemoryBroker` is a broker inside the process. `run`, `crash_at_every_step` and
`simulate` crash an app and start it again; `Witness` records what it did outside meanwhile; `FakeModelServer`
replaces models.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
