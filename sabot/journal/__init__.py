"""The journal of effects: a log of the operations that jobs ask for, written before and after each one. The module
`base` has the contract.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
