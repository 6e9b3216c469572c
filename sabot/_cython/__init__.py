"""The compiled kernels: all loops over rows. Importing this package from a tree whose kernels are not built raises
ImportError.
"""

from importlib.util import find_spec as _find_spec

if _find_spec("sabot._cython.arrow.batch") is None:
    raise ImportError(
        "sabot is not built: run `make` in its source tree (or install it with pip; `python -m` in the source tree takes the tree, "
        "`python examples/app.py` what is installed)"
    )
