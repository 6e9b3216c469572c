"""The folder in which the workers and supervisors of one user keep files for each other, such as leases and the record
of writable folders of sandboxes.
"""

from pathlib import Path

from sabot.base.disk import own_folder
from sabot.errors import UserError
from sabot.process.errors import IoError
from sabot.process.lease import folder_of_leases


def user_folder() -> Path:
    """Returns the folder in which the workers and supervisors of this user keep files for each other, such as leases.
    Creates it if it is missing; other users cannot enter it. Raises IoError if another user has put something in its
    place, or if it cannot be created.
    """
    folder = folder_of_leases()
    try:
        own_folder(folder)
    except UserError as error:
        hint = "remove it, or set XDG_RUNTIME_DIR to a folder of this user's that only this user may enter"
        raise IoError(f"the folder of this user's supervisors cannot be used: {error.message}", hint=hint) from error
    except OSError as error:
        raise IoError(
            f"the folder of this user's supervisors cannot be made: {folder}: {error.strerror or error}",
            hint="set XDG_RUNTIME_DIR to a folder of this user's that only this user may enter",
        ) from error
    return folder
