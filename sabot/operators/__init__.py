"""Physical operators: what runs inside a task."""

from sabot.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
