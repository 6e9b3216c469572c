"""Paths that come from a list of files (the log of a table, a manifest, a message of another process) and have to lead
to files below the folder of that list. Whoever writes such a list could otherwise have any file of this machine read.
"""

import os
from collections.abc import Iterable


def wrong_path(path: str, root: str) -> str:
    """Returns the reason why a relative path, with "/" between its parts, may not be used below `root`; "" if it may.
    The reason follows the path in a sentence. `root`: the words for the folder, or for the place in an object store.
    """
    if path.startswith("/"):
        return "is an absolute path"
    components = path.split("/")
    if ".." in components:
        return f"leads out of {root}"
    if "" in components or "." in components:
        return "is not the path of a file"
    if "\0" in path:
        return "has characters that no app writes"
    return ""


def first_outside(folder: str, paths: Iterable[str]) -> str | None:
    """Returns the first of some paths of this machine that is not below `folder` when all symbolic links are followed;
    None if all are. Paths that do not exist are looked at, too. Blocks.
    """
    below = os.path.join(os.path.realpath(folder), "")
    folders: dict[str, bool] = {}  # the folders of the paths, since many files are in few of them
    for path in paths:
        above = os.path.dirname(path)
        if above not in folders:
            folders[above] = os.path.join(os.path.realpath(above), "").startswith(below)
        inside = folders[above] if not os.path.islink(path) else os.path.realpath(path).startswith(below)
        if not inside or os.path.basename(path) in ("", ".", ".."):
            return path
    return None
