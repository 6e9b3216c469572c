"""Durable agents, and jobs and actions, which can be used without an App.

Modules are imported when one of their names is first used (`lazy_imports`): jobs and actions import the journal.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
