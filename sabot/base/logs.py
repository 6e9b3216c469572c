"""Log lines of an app: their destination and their format."""

import asyncio
import json
import logging
import os
import sys
import sysconfig
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from sabot.base.present_job import PRESENT_JOB
from sabot.base.redaction import scrubbed, visible
from sabot.base.version import sabot_version

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("text", "json")
_OURS = f"{Path(__file__).parents[1]}{os.sep}"
_LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), "<")
_TRACE_CHARACTERS = 2048
_DEMOS = f"{_OURS}demos{os.sep}"  # these are programs as users write them


class Scrubbing(logging.Formatter):
    """A formatter that hides secrets in log lines of other libraries and in tracebacks, and that escapes control
    characters. A line that a job logs, or one of its tools, names the job.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # a name of `logging`
        line, job = super().formatMessage(record), PRESENT_JOB.get()
        return line if job is None or not job.job or job.job in line else f"{line} (job {job.job})"

    def format(self, record: logging.LogRecord) -> str:
        return visible(scrubbed(super().format(record)))


class AsJson(logging.Formatter):
    """A formatter that writes one JSON object a line: time (ISO, UTC), level, logger, message, pid, the versions of
    Sabot and of the program, and the app once it is loaded; also worker if the app has several, and traceback if there
    is one. A line that a job logs, or one of its tools, has the job, tenant, user, session and trace.
    """

    def __init__(self, worker: str) -> None:
        super().__init__()
        self.facts = {"sabot": sabot_version()} | ({"worker": worker} if worker else {})

    def format(self, record: logging.LogRecord) -> str:
        trace = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        return self.line(record, scrubbed(record.getMessage()), scrubbed(trace))

    def line(self, record: logging.LogRecord, message: str, trace: str) -> str:
        """Returns the line of a record with these texts, in which no secret is left. Waits for no lock."""
        facts = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": visible(message),
            "pid": record.process,
            **self.facts,
        }
        if (job := PRESENT_JOB.get()) is not None:
            facts |= {name: visible(scrubbed(each)) for name, each in job.named.items()}
        if trace:
            facts["traceback"] = visible(trace)
        return json.dumps(facts, ensure_ascii=False)


def warn_of_users_error(
    log: logging.Logger, error: BaseException, message: str, *given: object, level: int = logging.WARNING
) -> None:
    """Logs a message with the traceback of an error in the user's code. Frames of Sabot above the user's code are
    left out, and known secrets are hidden, whatever handlers the program has.
    """
    if not log.isEnabledFor(level):
        return
    trace, text = users_part(error.__traceback__), ""
    if trace is not None:
        lines = "".join(traceback.format_exception(type(error), error, trace))
        text = visible(scrubbed(lines)).rstrip()
    record = log.makeRecord(log.name, level, __file__, 0, message, given, None)
    record.exc_text = text or None
    log.handle(record)


def is_sabots(file: str) -> bool:
    """Returns True if a file of code belongs to Sabot and not to the user's program. The code of the demos is a user's."""
    return file.startswith(_OURS) and not file.startswith(_DEMOS)


def is_users(file: str) -> bool:
    """Returns True if a file of code belongs to the user's program, and not to Sabot, Python or an installed library."""
    return not is_sabots(file) and not file.startswith(_LIBRARIES)


def is_new(record: logging.LogRecord) -> bool:
    """Returns False for a line that the function of a job logs while it is replayed: it has logged the line before.
    Lines of Sabot itself are always new.
    """
    return f"{record.name}.".startswith("sabot.") or not getattr(asyncio._get_running_loop(), "repeats", False)


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """Returns the part of a traceback that begins with the first frame of the user's code, or None if there is no
    such frame.
    """
    while trace is not None and is_sabots(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def trace_of(error: BaseException) -> str | None:
    """Returns the frames of an error in the user's code, without its name and message, or None if it has none there: their last 2,048
    characters, with the innermost frame.
    """
    trace = users_part(error.__traceback__)
    if trace is None:
        return None
    return visible(scrubbed("".join(traceback.format_tb(trace)))).rstrip()[-_TRACE_CHARACTERS:]


_json: AsJson | None = None  # set if this process was asked for JSON


def name_program(app: str, version: str) -> None:
    """Writes the app and the version of its program into each JSON line from now on."""
    if _json is not None:
        _json.facts |= {"app": app} | ({"version": version} if version else {})


def log_is_json() -> bool:
    """Returns True if the log of this process has JSON lines, and so has all that is written to stderr."""
    return _json is not None


def as_json(message: str, level: int, trace: str = "") -> str | None:
    """Returns a message that is not logged but written to stderr, such as the error that ends the process, as a line
    of the log. Returns None if the log has text lines. `message`, `trace`: without secrets (`scrubbed`).

    A handler of a signal may call this: it waits for no lock, which the interrupted code may hold.
    """
    if _json is None:
        return None
    return _json.line(logging.LogRecord("sabot", level, __file__, 0, message, (), None), message, trace)


def set_up_logging(level: str, form: str = "text", worker: str = "") -> None:
    """Sends log lines of Sabot from `level` up, and those of other libraries from `warning` up, to stderr. Does
    nothing if the program has set up logging by itself. Lines that functions of jobs log in replays (`is_new`) are only
    kept if `level` is "debug".

    `form`: "text" or "json", also for what is written to stderr beside the log. `worker`: the name of this process in
    its log lines, or "" if the app has one process.
    """
    global _json
    _json = AsJson(worker) if form == "json" else None
    if logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    least = logging.getLevelNamesMapping()[level.upper()]
    handler.addFilter(lambda record: record.levelno >= least or not f"{record.name}.".startswith("sabot."))
    text = Scrubbing(f"%(asctime)s %(levelname)s {f'{worker}, ' if worker else ''}%(name)s: %(message)s")
    if least > logging.DEBUG:
        handler.addFilter(is_new)
    handler.setFormatter(_json or text)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # The log ring of an app keeps lines from INFO up in any case.
    logging.getLogger("sabot").setLevel(min(least, logging.INFO))
