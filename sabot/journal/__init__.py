"""The journal of effects: what jobs have asked of the world, before and after. `base` is the contract."""

from sabot.late import late_names

__getattr__, __dir__, __all__ = late_names(__name__)
