"""Programs of others, run with a deadline and ended when asked."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from controlplane.adapters.backup.children import Piped, environment, last_words, log_words, program, run
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.recovery.ports import CancelledWorkError, SilentWatch
from tests.processes import children_that_name

SLEEPER = "time.sleep(60)"
SLEEP = [sys.executable, "-c", f"import time; print('up', flush=True); {SLEEPER}"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_program_that_is_missing_is_named_with_its_install_line() -> None:
    with pytest.raises(TerminalError, match="nosuchprogram is not on this machine; install it: apt-get install x"):
        program("nosuchprogram", "apt-get install x")


def test_what_a_program_says_and_how_it_ends() -> None:
    done = run(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), SilentWatch(), deadline_s=30
    )
    assert (done.status, done.out, done.err) == (3, "out\n", "err\n")


def test_a_program_that_takes_too_long_is_ended() -> None:
    with pytest.raises(RetryableError, match="did not end within 0 s"):
        run(SLEEP, SilentWatch(), deadline_s=0.1)
    assert children_that_name(SLEEPER) == []


def test_a_program_is_ended_when_somebody_asks() -> None:
    with pytest.raises(CancelledWorkError):
        run(SLEEP, SilentWatch(cancelled=lambda: True), deadline_s=30)
    assert children_that_name(SLEEPER) == []


def test_a_program_that_does_not_start_is_said(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with pytest.raises(TerminalError, match="plain does not start"):
        run([tmp_path / "plain"], SilentWatch(), deadline_s=1)


def test_output_flows_however_much_is_said_beside_it() -> None:
    code = "import sys; [sys.stderr.write('x' * 1000) and sys.stdout.write('y' * 1000) for _ in range(2000)]"
    child = Piped(python(code), SilentWatch(), 30.0)
    assert sum(len(piece) for piece in child.pieces()) == 2_000_000
    assert len(child.err) == 2_000_000


def test_output_of_a_program_that_fails_is_no_copy() -> None:
    child = Piped(python("import sys; print('half'); sys.exit('no more room')"), SilentWatch(), 30.0)
    with pytest.raises(RetryableError, match="no more room"):
        list(child.pieces())


def test_a_silent_program_is_ended() -> None:
    with pytest.raises(RetryableError, match="gave nothing for 0 s"):
        list(Piped(python("import time; time.sleep(60)"), SilentWatch(), 0.1).pieces())
    assert children_that_name(SLEEPER) == []


def test_a_reader_that_stops_ends_the_program() -> None:
    pieces = Piped(SLEEP, SilentWatch(), 30.0).pieces()
    assert next(pieces) == b"up\n"
    assert children_that_name(SLEEPER) != []
    pieces.close()
    assert children_that_name(SLEEPER) == []


def test_a_pipe_is_left_when_somebody_asks() -> None:
    asked = threading.Event()
    began = time.monotonic()
    pieces = Piped(SLEEP, SilentWatch(cancelled=asked.is_set), 30.0).pieces()
    next(pieces)
    asked.set()
    with pytest.raises(CancelledWorkError):
        next(pieces)
    assert time.monotonic() - began < 20


def test_a_program_sees_none_of_our_secrets() -> None:
    os.environ["QUARTERDECK_PROMETHEUS_TOKEN"] = "secret"
    try:
        assert "QUARTERDECK_PROMETHEUS_TOKEN" not in environment()
        done = run(python("import os; print(sorted(os.environ))"), SilentWatch(), deadline_s=30, env={"MORE": "1"})
    finally:
        del os.environ["QUARTERDECK_PROMETHEUS_TOKEN"]
    assert "TOKEN" not in done.out
    assert "MORE" in done.out


def test_last_words_are_one_line(tmp_path: Path) -> None:
    assert last_words("first\n\nsecond\nthird\n") == "second | third"
    assert len(last_words("x" * 10_000)) < 1000
    assert log_words(tmp_path / "nowhere") == "it wrote no log"
