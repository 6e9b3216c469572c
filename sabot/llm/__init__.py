"""Models and what they call: messages and requests (`messages`, `spec`), answers (`results`), tools (`tools`). `provider` is the contract
of a vendor's API, `errors` the tree of what goes wrong.
"""

from sabot.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
