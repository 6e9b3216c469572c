"""Agents on the engine; and jobs and actions, which need no App.

Nothing is loaded before it is named (`late`): jobs and actions bring the journal.
"""

from sabot.late import late_names

__getattr__, __dir__, __all__ = late_names(__name__)
