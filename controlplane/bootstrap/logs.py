"""Logs: a constant message, variables as keys; to a file of bounded size, warnings also to the terminal."""

import logging
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

_FILE_BYTES_MAX: Final = 16 * 1024 * 1024
_FILES_KEPT: Final = 3
_CHATTY: Final = ("alembic", "uvicorn")
"""Libraries that log their own steps at INFO."""
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


class KeyValueFormatter(logging.Formatter):
    """`2026-01-05T08:00:00.123Z INFO controlplane.gateway message key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        keys = " ".join(f"{key}={value!r}" for key, value in record.__dict__.items() if key not in _STANDARD)
        text = f"{at} {record.levelname} {record.name} {record.getMessage()}{' ' if keys else ''}{keys}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class OneLineFormatter(logging.Formatter):
    """`ERROR: message; see FILE`: what a terminal gets. The traceback is in the file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname}: {record.getMessage()}; see {self._path}"


def write_logs_to(path: Path, level: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = RotatingFileHandler(path, maxBytes=_FILE_BYTES_MAX, backupCount=_FILES_KEPT, encoding="utf-8")
    file.setFormatter(KeyValueFormatter())
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.ERROR)
    terminal.setFormatter(OneLineFormatter(path))
    root = logging.getLogger()
    root.handlers[:] = [file, terminal]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
