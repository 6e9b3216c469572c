"""Log lines of a program that is one app: where they go, and how they look."""

import json
import logging
import sys
from datetime import UTC, datetime

from sabot.redaction import scrubbed

__all__ = ["LOG_FORMATS", "LOG_LEVELS", "set_up_logging"]

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("text", "json")


class _Scrubbing(logging.Formatter):
    """Hides secrets in log lines of other libraries, and in tracebacks, which quote the program, where a password may be written."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


class _AsJson(logging.Formatter):
    """One JSON object a line: time (ISO, UTC), level, logger, message, and traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": scrubbed(record.getMessage()),
        }
        if record.exc_info:
            facts["traceback"] = scrubbed(self.formatException(record.exc_info))
        return json.dumps(facts, ensure_ascii=False)


def set_up_logging(level: str, form: str = "text") -> None:
    """Sends log lines of Sabot from `level` up, and those of other libraries from `warning` up, to stderr. A program that has set up
    logging by itself keeps its handlers.
    """
    if logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    text = _Scrubbing("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_AsJson() if form == "json" else text)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("sabot").setLevel(level.upper())
