"""Sources and sinks: their contracts, files, SQL databases, the broker inside the process, and dead letters."""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
