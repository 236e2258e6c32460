"""Reads archives that `gpg --symmetric` wrote, with the gpg program. Nothing new is written this way.

The passphrase goes through a pipe: an argument can be read by every user of the machine, and an agent would keep it.
"""

import os
import select
import shutil
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, BinaryIO, Final, Never

from controlplane.kernel.errors import DeniedError, NotFoundError, RetryableError, TerminalError
from controlplane.kernel.units import MIB

SILENT_S: Final = 120.0
"""Without a byte from gpg or its end. Deriving the key from the passphrase takes it about 0.1 s; the rest streams."""
_BLOCK_BYTES: Final = MIB
_END_S: Final = 10.0
"""For a program that was killed, or has closed its output, to be gone."""
_WORDS_CHARACTERS: Final = 500


def read_gpg(
    source: Path | BinaryIO, passphrase: Callable[[], bytes], *, name: str = "the gpg archive"
) -> Generator[bytes]:
    """The plaintext, block by block. Only after the last one is it proven: gpg checks its digest (MDC) at the end.

    `name`: of a stream, in errors. NotFoundError: no such file. DeniedError: the passphrase is wrong. TerminalError:
    gpg is not installed, or the archive is damaged, cut off, without an MDC, for a key pair, or no gpg archive.
    RetryableError: gpg fell silent.
    """
    name = str(source) if isinstance(source, Path) else name
    program = gpg_program(name)
    with TemporaryDirectory(prefix="quarterdeck-gpg-") as home, TemporaryFile() as words:
        process, feeder = _start(program, home, words, source, passphrase())
        try:
            yield from _blocks(process, name)
            ended = process.wait(_END_S)
        finally:
            _end(process, feeder)
        if feeder is not None and feeder.trouble is not None:
            raise feeder.trouble
        if ended != 0:
            _refuse(name, words)


def gpg_program(name: str) -> str:
    """Its path. TerminalError, naming what needs it, when it is not installed."""
    program = shutil.which("gpg")
    if program is None:
        raise TerminalError(f"{name}: needs the program gpg, which is not installed: `apt-get install gnupg`")
    return program


def _start(
    program: str, home: str, words: IO[bytes], source: Path | BinaryIO, passphrase: bytes
) -> tuple["subprocess.Popen[bytes]", "_Feeder | None"]:
    options = ["--batch", "--no-tty", "--no-autostart", "--no-options", "--pinentry-mode", "loopback"]
    secret, writing = os.pipe()
    try:
        with suppress(BrokenPipeError), os.fdopen(writing, "wb") as pipe:
            pipe.write(passphrase.rstrip(b"\r\n") + b"\n")
        command = [
            program,
            "--homedir",
            home,
            *options,
            "--passphrase-fd",
            str(secret),
            "--status-fd",
            "2",
            "--decrypt",
        ]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}

        def start(stdin: IO[bytes] | int) -> "subprocess.Popen[bytes]":
            return subprocess.Popen(
                command, stdin=stdin, stdout=subprocess.PIPE, stderr=words, pass_fds=(secret,), env=environment
            )

        if not isinstance(source, Path):
            process = start(subprocess.PIPE)
            assert process.stdin is not None, "asked for as a pipe"
            feeder = _Feeder(source, process.stdin)
            feeder.start()
            return process, feeder
        try:
            with source.open("rb") as file:
                return start(file), None
        except FileNotFoundError:
            raise NotFoundError(f"{source}: there is no such file") from None
    finally:
        os.close(secret)


class _Feeder(threading.Thread):
    """Carries a stream into gpg; `trouble` is what reading the stream raised."""

    def __init__(self, source: BinaryIO, into: IO[bytes]) -> None:
        super().__init__(name="gpg-feed", daemon=True)
        self._source, self._into = source, into
        self.trouble: Exception | None = None

    def run(self) -> None:
        try:
            with suppress(BrokenPipeError), self._into:  # gpg says itself why it stopped reading.
                shutil.copyfileobj(self._source, self._into, _BLOCK_BYTES)
        except Exception as error:  # noqa: BLE001 - raised again by the thread that reads the plaintext
            self.trouble = error


def _blocks(process: "subprocess.Popen[bytes]", name: str) -> Iterator[bytes]:
    assert process.stdout is not None, "asked for as a pipe"
    while True:
        ready, _, _ = select.select([process.stdout], [], [], SILENT_S)
        if not ready:
            raise RetryableError(f"{name}: gpg gave nothing for {SILENT_S:.0f} s and was ended")
        block = os.read(process.stdout.fileno(), _BLOCK_BYTES)
        if not block:
            return
        yield block


def _refuse(name: str, words: IO[bytes]) -> Never:
    words.seek(0)
    said = words.read().decode(errors="replace")
    if "BAD_PASSPHRASE" in said or "Bad session key" in said:
        raise DeniedError(f"{name}: the passphrase is wrong, or the head of the archive is damaged")
    if "GNUPG:] NO_SECKEY" in said:
        raise TerminalError(
            f"{name}: is encrypted for a key pair, expected one with a passphrase (`gpg --symmetric`); `gpg --decrypt` "
            "reads it where its private key is"
        )
    if "GNUPG:] BEGIN_DECRYPTION" not in said:
        raise TerminalError(f"{name}: is no gpg archive")
    if "not integrity protected" in said:
        raise TerminalError(
            f"{name}: has no MDC, so nothing shows whether it was changed; decrypt it by hand to use it"
        )
    if "GNUPG:] DECRYPTION_OKAY" not in said:
        raise TerminalError(f"{name}: was changed or cut off (MDC): what was read of it must not be used")
    last = " ".join(line for line in said.splitlines() if not line.startswith("[GNUPG:]"))[-_WORDS_CHARACTERS:]
    raise TerminalError(f"{name}: gpg failed: {last}")


def _end(process: "subprocess.Popen[bytes]", feeder: "_Feeder | None") -> None:
    if process.poll() is None:
        process.kill()
    process.wait(_END_S)
    if process.stdout is not None:
        process.stdout.close()
    if feeder is not None:
        feeder.join(_END_S)
