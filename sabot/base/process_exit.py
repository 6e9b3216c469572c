"""KeyboardInterrupt and SystemExit ("exits") that the user's code raises to end the process.

Raised on the event loop they would end the loop for all its tasks, and raised in a thread of the engine they would go
unnoticed. So code that calls the user's code wraps them in an ordinary error with the exit as its cause. The app then
stops in good order, and `AgentRuntime.run` raises the exit again.
"""

from sabot.errors import SabotError

EXITS = (KeyboardInterrupt, SystemExit)
Exit = KeyboardInterrupt | SystemExit


def find_exit(error: BaseException | None) -> Exit | None:
    """Returns the first exit in the chain of an error and its causes, or None if there is none."""
    seen: set[int] = set()  # a user's error may be its own cause
    while error is not None and id(error) not in seen:
        if isinstance(error, EXITS):
            return error
        seen.add(id(error))
        error = error.__cause__
    return None


def wrap_exit(asked: BaseException, where: str) -> SabotError:
    """Returns an ordinary error whose cause is the exit `asked`. `where`: the code that raised it, for the message."""
    error = SabotError(f"{where} ends the process: {type(asked).__name__}: {asked}".rstrip(": "))
    error.__cause__ = asked
    return error
