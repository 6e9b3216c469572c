"""Sabot: a Python streaming engine that runs agents."""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, elsewhere="sabot.api.elsewhere", beside={"__version__": "sabot.base.version"}
)

del lazy_exports  # no name of ours
