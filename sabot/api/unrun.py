"""A warning at the end of a script whose streams were written into sinks but never run: such a script does nothing,
and exits with code 0.
"""

import atexit
import sys

_waiting: dict[str, list[str]] = {}  # by app: the sinks of streams that never ran


def note_written(app: str, sink: str) -> None:
    """Records that a stream writes into this sink, if the running program is a script. If the script ends without
    having started the app, a warning is printed.

    In a notebook, an interactive session, or a module that a test or `sabot run` imports, nothing is recorded,
    because the app may be started elsewhere.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "sabot":
        frame = frame.f_back
    names = frame.f_globals
    if names.get("__name__") != "__main__" or "__file__" not in names or hasattr(sys, "ps1") or sys.flags.interactive:
        return
    if not _waiting:
        atexit.register(_tell)
    _waiting.setdefault(app, []).append(sink)


def note_run(app: str) -> None:
    """Records that the app was started, so that no warning is printed at the end of the script."""
    if _waiting:
        _waiting[app] = []


def _tell() -> None:
    if hasattr(sys, "last_value"):  # the script ended with an error, which Python has printed
        return
    for app, sinks in _waiting.items():
        if sinks:
            print(
                f"sabot: app {app} never ran, so nothing went to {', '.join(dict.fromkeys(sinks))} "
                "(end the script with app.main(), or start it by: sabot run module:app)",
                file=sys.stderr,
            )
