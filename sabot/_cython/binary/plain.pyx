"""How deep plain values of Python are nested. See plain.pyi."""

__all__ = ["plain_depth"]


def plain_depth(value, int most):
    """Returns how deep a value is nested, if it has values of plain types only. See plain.pyi."""
    return depth_of(value, most)


cdef int depth_of(object value, int left) except -2:
    """Returns -1 for another type, and below `left` levels, so that a value that contains itself has an end."""
    cdef type kind = type(value)
    cdef int deepest = 0, depth
    if value is None or kind is str or kind is int or kind is float or kind is bool or kind is bytes:
        return 0
    if left == 0:
        return -1
    if kind is dict:
        for key, each in (<dict>value).items():
            if type(key) is not str and depth_of(key, 0) < 0:
                return -1
            depth = depth_of(each, left - 1)
            if depth < 0:
                return -1
            deepest = max(deepest, depth)
        return deepest + 1
    if kind is list or kind is tuple:
        for each in value:
            depth = depth_of(each, left - 1)
            if depth < 0:
                return -1
            deepest = max(deepest, depth)
        return deepest + 1
    return -1
