"""The journal of effects: what jobs have asked of the world, before and after. `base` is the contract."""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
