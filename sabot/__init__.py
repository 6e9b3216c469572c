"""Sabot: a Python streaming engine that runs agents."""

from sabot.late import late_names

__getattr__, __dir__, __all__ = late_names(__name__)

del late_names  # no name of ours

__version__ = "0.1.0"
