"""A replica's output: `log` of the present run, `log.1` of what came before; both bounded."""

import os
from pathlib import Path
from typing import Final

from controlplane.kernel.units import KIB, MIB

LOG_BYTES_MAX: Final = 64 * MIB
"""A chatty engine writes some MiB a day; one that logs every request is cut before it fills a disk."""
_KEPT_BYTES: Final = 8 * MIB
"""Of what is cut off, so much of the end stays."""
_TAIL_BYTES: Final = 256 * KIB
"""Read for a tail: far more than the lines that anybody asks for."""


def begin_log(log: Path) -> None:
    """Before a start: what an earlier run of that name wrote becomes `log.1`."""
    if log.exists() and log.stat().st_size > 0:
        _keep_tail(log)
        log.unlink()


def bound_log(log: Path) -> None:
    """Cut a log that grew too long. Safe under a running writer, which appends: at worst a line written now is lost."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        _keep_tail(log)
        os.truncate(log, 0)


def tail(log: Path, lines: int) -> list[str]:
    """The last lines; empty when there is no log."""
    if lines <= 0 or not log.exists():
        return []
    return _last_bytes(log, _TAIL_BYTES).decode("utf-8", errors="replace").splitlines()[-lines:]


def _keep_tail(log: Path) -> None:
    old = log.with_name(log.name + ".1")
    fresh = log.with_name(log.name + ".1.new")
    fresh.write_bytes(_last_bytes(log, _KEPT_BYTES))
    fresh.replace(old)


def _last_bytes(log: Path, count: int) -> bytes:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - count))
        return file.read(count)
