"""One line to a Unix socket, the whole answer back: HAProxy's runtime API, its master's, the activator's."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Final

from controlplane.kernel.errors import RetryableError

ANSWER_TIMEOUT: Final = timedelta(seconds=2)
"""HAProxy answers within a millisecond, for thousands of servers within a hundred; this is a stuck process."""

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Far above `show stat` of 10,000 servers (some 3 MB)."""

_READ_BYTES: Final = 256 * 1024


class NotRunningError(RetryableError):
    """Nobody listens on the socket."""


async def ask(path: Path, line: str, *, timeout: timedelta = ANSWER_TIMEOUT) -> str:  # noqa: ASYNC109 - a deadline per call
    """Send `line` (several HAProxy commands joined by `;`), return everything that came back.

    NotRunningError when nobody listens; RetryableError when the answer does not come, or is cut.
    """
    assert "\n" not in line, "one line at a time"
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            return await _exchange(path, line)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotRunningError(f"nobody listens on {path}") from error
    except TimeoutError as error:
        seconds = timeout.total_seconds()
        raise RetryableError(f"no answer on {path} within {seconds:g} s to: {line[:80]}") from error
    except OSError as error:
        raise RetryableError(f"the connection to {path} broke: {error}") from error


async def _exchange(path: Path, line: str) -> str:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(line.encode() + b"\n")
        writer.write_eof()
        await writer.drain()
        chunks: list[bytes] = []
        size_bytes = 0
        while chunk := await reader.read(_READ_BYTES):
            chunks.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > ANSWER_BYTES_MAX:
                raise RetryableError(f"the answer on {path} is longer than {ANSWER_BYTES_MAX} bytes")
        return b"".join(chunks).decode(errors="replace")
    finally:
        writer.close()
