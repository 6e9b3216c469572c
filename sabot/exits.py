"""The end of the process, asked for by the user's code: KeyboardInterrupt and SystemExit, raised wherever that code runs.

On the event loop they would end the loop under everybody, and in a thread of the engine nobody would hear of them. So whoever calls the
user's code carries them as the cause of an ordinary error; the app stops in good order, and then `AgentRuntime.run` raises them again.
"""

from sabot.errors import SabotError

__all__ = ["EXITS", "Exit", "carried", "exit_in"]

EXITS = (KeyboardInterrupt, SystemExit)
Exit = KeyboardInterrupt | SystemExit


def exit_in(error: BaseException | None) -> Exit | None:
    """The one behind this error, if there is one: it, its cause, or the cause of that."""
    seen: set[int] = set()  # a user's error may be its own cause
    while error is not None and id(error) not in seen:
        if isinstance(error, EXITS):
            return error
        seen.add(id(error))
        error = error.__cause__
    return None


def carried(asked: BaseException, where: str) -> SabotError:
    """An ordinary error, behind which `exit_in` finds it."""
    error = SabotError(f"{where} ends the process: {type(asked).__name__}: {asked}".rstrip(": "))
    error.__cause__ = asked
    return error
