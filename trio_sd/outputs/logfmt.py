"""Log lines: as ``key=value`` pairs, as Prometheus writes them, and for a picture on a terminal."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

__all__ = ["BriefFormatter", "LogfmtFormatter"]


def _quote(text: str) -> str:
    if text and not any(c in ' "=\\' or not c.isprintable() for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return '"' + "".join([c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped]) + '"'


class LogfmtFormatter(logging.Formatter):
    """``time=… level=… source=… msg="…"``; a traceback only when the logger's level is DEBUG."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = (
            f"time={time.replace('+00:00', 'Z')} level={record.levelname} source={record.name} "
            f"msg={_quote(record.getMessage())}"
        )
        if record.exc_info and logging.getLogger(record.name).isEnabledFor(logging.DEBUG):
            line += f" traceback={_quote(self.formatException(record.exc_info))}"
        return line


class BriefFormatter(logging.Formatter):
    """``12:34:56 WARNING message``, for where there is little room."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        time = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        return f"{time} {record.levelname} {record.getMessage()}".replace("\n", " ")
