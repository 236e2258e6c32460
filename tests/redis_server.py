"""A real Redis server for tests, on a Unix socket in a folder of its own."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_START_DEADLINE_S: Final = 10.0
_INSTALL: Final = "apt-get install redis-server (or `make components` as root)"


@contextmanager
def running_redis(folder: Path, *settings: str) -> Iterator[str]:
    """`unix://...`, gone at the end. Skips, saying how to have one."""
    server = shutil.which("redis-server") or shutil.which("valkey-server")
    if server is None:
        pytest.skip(f"no Redis server on this machine; install it: {_INSTALL}")
    folder.mkdir(parents=True, exist_ok=True)
    defaults = ["--port", "0", "--unixsocket", "s", "--save", "", "--repl-diskless-sync-delay", "0"]
    process = subprocess.Popen(
        [server, *defaults, *settings], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await_answer(process, folder / "s")
        yield f"unix://{folder}/s"
    finally:
        process.kill()
        process.wait()


def _await_answer(process: subprocess.Popen[bytes], place: Path) -> None:
    until = time.monotonic() + _START_DEADLINE_S
    while process.poll() is None and time.monotonic() < until:
        try:
            with redis.Redis(unix_socket_path=str(place), retry=Retry(NoBackoff(), 0)) as client:
                client.ping()
                return
        except redis.exceptions.ConnectionError:
            time.sleep(0.02)
    pytest.skip(f"redis-server did not start; to have one: {_INSTALL}")
