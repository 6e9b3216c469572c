"""Child processes: a supervisor, itself a process, that starts and owns every child of a worker; their streams, limits and ends.

`import sabot` loads nothing of it, and neither does the supervisor, which needs the standard library alone.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
