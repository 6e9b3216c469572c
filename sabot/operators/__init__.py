"""Physical operators: what runs inside a task."""

from sabot.late import late_names

__getattr__, __dir__, __all__ = late_names(__name__)
