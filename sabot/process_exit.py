"""KeyboardInterrupt and SystemExit, by which the user's code asks for the end of the process, wherever that code runs.

Raised on the event loop they would end the loop for all its tasks, and raised in a thread of the engine nobody would notice them. So
whoever calls the user's code wraps them: they become the cause of an ordinary error, the app stops in good order, and
`AgentRuntime.run` raises them again at the end.
"""

from sabot.errors import SabotError

EXITS = (KeyboardInterrupt, SystemExit)
Exit = KeyboardInterrupt | SystemExit


def find_exit(error: BaseException | None) -> Exit | None:
    """The exit behind this error: the first one in the chain of the error and its causes; None when there is none."""
    seen: set[int] = set()  # a user's error may be its own cause
    while error is not None and id(error) not in seen:
        if isinstance(error, EXITS):
            return error
        seen.add(id(error))
        error = error.__cause__
    return None


def wrap_exit(asked: BaseException, where: str) -> SabotError:
    """An ordinary error whose cause is the exit `asked`; `find_exit` finds it there."""
    error = SabotError(f"{where} ends the process: {type(asked).__name__}: {asked}".rstrip(": "))
    error.__cause__ = asked
    return error
