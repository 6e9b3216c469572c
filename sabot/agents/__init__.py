"""Agents on the engine; and jobs and actions, which need no App.

Nothing is loaded before it is named (`lazy_imports`): jobs and actions bring the journal.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
