from typing import Any

def plain_depth(value: Any, most: int) -> int:
    """Returns how deep a value is nested: 0 for a text, a number, bytes, a bool or None, and 1 more for each list, tuple
    or dict around it.

    Returns -1 if any value in it is of another type (a subclass too), and if it is nested more than `most` levels deep.
    """
