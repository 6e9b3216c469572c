"""Sabot: a Python streaming engine that runs agents."""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, elsewhere="sabot.api.elsewhere")

del lazy_exports  # no name of ours

__version__ = "0.1.0"
