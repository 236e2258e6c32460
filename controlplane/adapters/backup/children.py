"""Programs of others: found or named as missing, run with a deadline, ended when somebody asks to stop."""

import os
import pwd
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.kernel.units import MIB
from controlplane.recovery.ports import Watch

POLL_S: Final = 0.05
"""Between two looks at a child, and at whether somebody asked to stop."""
_END_WAIT_S: Final = 5.0
"""For a child to end when asked."""
_SAID_MAX_BYTES: Final = 4 * MIB
"""Of what a program says; more is no message."""
_READ_BYTES: Final = MIB
_QUOTED_CHARS: Final = 400
_INHERITED: Final = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    status: int
    out: str
    err: str


def program(name: str, install: str, *, search: str | None = None) -> str:
    """Its path, in the folders of `search` (None: of PATH). TerminalError with the line that installs it."""
    found = shutil.which(name, path=search)
    if found is None:
        raise TerminalError(f"the program {name} is not on this machine; install it: {install}")
    return found


def run(
    argv: Sequence[str | Path],
    watch: Watch,
    *,
    deadline_s: float,
    env: Mapping[str, str] | None = None,
    user: int | None = None,
) -> Finished:
    """Whatever its status. RetryableError when it takes too long, TerminalError when it does not start.

    `user`: who it runs as, when we are root; None: as we do.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with _child(argv, out, err, env, user) as process:
            until = time.monotonic() + deadline_s
            while process.poll() is None:
                watch.advance(0)
                if time.monotonic() > until:
                    raise RetryableError(f"{_name(argv)} did not end within {deadline_s:.0f} s and was ended")
                time.sleep(POLL_S)
        return Finished(status=process.returncode, out=_text(out), err=_text(err))


@dataclass(slots=True)
class Piped:
    """A program whose output is the copy."""

    argv: Sequence[str | Path]
    watch: Watch
    silence_s: float
    env: Mapping[str, str] | None = None
    err: str = field(default="", init=False)
    """What it said, once its output has ended."""

    def pieces(self) -> Generator[bytes]:
        """Its standard output; closing ends the program. RetryableError when it fails, or is silent for too long."""
        with tempfile.TemporaryFile() as err, _child(self.argv, subprocess.PIPE, err, self.env) as process:
            assert process.stdout is not None, "the output is a pipe"
            yield from _pieces(process.stdout, self.watch, self.silence_s, _name(self.argv))
            status = _awaited(process)
            self.err = _text(err)
        if status != 0:
            raise RetryableError(f"{_name(self.argv)} failed: {last_words(self.err) or f'status {status}'}")


def last_words(said: str) -> str:
    """The end of what a program said, in one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " | ".join(lines[-2:])[-_QUOTED_CHARS:]


def spawn(argv: Sequence[str | Path], *, cwd: Path) -> subprocess.Popen[bytes]:
    """A server of a scratch copy: it writes its own log, and `end` is for the caller to call."""
    try:
        return subprocess.Popen(
            [str(word) for word in argv],
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise TerminalError(f"{_name(argv)} does not start: {error.strerror}") from error


def log_words(log: Path) -> str:
    """The end of a server's log, in one line."""
    try:
        return last_words(log.read_text(encoding="utf-8", errors="replace")) or "it said nothing"
    except OSError:
        return "it wrote no log"


def end(process: subprocess.Popen[bytes]) -> None:
    """End a child that we started: asked first, killed then."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _child(
    argv: Sequence[str | Path],
    out: IO[bytes] | int,
    err: IO[bytes],
    env: Mapping[str, str] | None,
    user: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    account = pwd.getpwuid(user) if user is not None else None
    try:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment(env),
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
            cwd="/" if account else None,
            start_new_session=True,
        )
    except OSError as error:
        raise TerminalError(f"{_name(argv)} does not start: {error.strerror}") from error
    try:
        yield process
    finally:
        end(process)
        if process.stdout is not None:
            process.stdout.close()


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a program of others may know of our environment: no secret of ours."""
    return {**{name: os.environ[name] for name in _INHERITED if name in os.environ}, **(more or {})}


def _pieces(output: IO[bytes], watch: Watch, silence_s: float, name: str) -> Iterator[bytes]:
    heard = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            watch.advance(0)
            if not selector.select(timeout=min(1.0, silence_s)):
                if time.monotonic() - heard > silence_s:
                    raise RetryableError(f"{name} gave nothing for {silence_s:.0f} s and was ended")
                continue
            piece = os.read(output.fileno(), _READ_BYTES)
            if not piece:
                return
            heard = time.monotonic()
            yield piece


def _awaited(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(_END_WAIT_S)
    except subprocess.TimeoutExpired as error:
        raise RetryableError("the program closed its output and did not end") from error


def _text(file: IO[bytes]) -> str:
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(0, size_bytes - _SAID_MAX_BYTES))
    return file.read().decode(errors="replace")


def _name(argv: Sequence[str | Path]) -> str:
    return Path(argv[0]).name
