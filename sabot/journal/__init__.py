"""The journal of effects: a log of the calls that jobs make, written before and after each call. `base` is the
contract.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
