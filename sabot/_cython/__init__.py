"""The compiled data plane: loops over rows. An unbuilt tree does not import."""

from importlib.util import find_spec as _find_spec

if _find_spec("sabot._cython.arrow.batch") is None:
    raise ImportError("sabot is not built: run `make` in its source tree (or install it with pip)")
