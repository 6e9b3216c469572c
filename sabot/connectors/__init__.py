"""Sources and sinks: their contracts, files, SQL databases, the broker inside the process, and dead letters."""

from typing import Any

from sabot.base.lazy_imports import lazy_exports

_load, __dir__, __all__ = lazy_exports(__name__)

_OF_SOURCES = (
    "Commits HasIdentity HoldsPartitions LimitsRecords ReadsInParallel ReportsBacklog ReportsLag ReportsProgress "
    "SkipsHeaders WritesBack"
)
_OF_SINKS = "AsksOwner ChecksTypes ExpectsColumns Finishes StartsAfresh WaitsForLetters"


def __getattr__(name: str) -> Any:
    for kind, abilities in (("Source", _OF_SOURCES), ("Sink", _OF_SINKS)):
        if name in abilities.split():
            # no AttributeError: `from sabot.connectors import …` would replace its text
            raise ImportError(
                f"the ability {name} is gone: leave the base out, its members have defaults in {kind} (and keep your methods)",
                name=__name__,
            )
    return _load(name)
