"""The end of `up` and `down`: a process that hangs on its way out ends all the same, and `down` waits for the last."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from typer.testing import CliRunner

from controlplane.adapters.instance import InstanceLock, InstanceNote
from controlplane.cli.exits import ExitCode
from controlplane.cli.main import app

HANGS = """
import asyncio, threading
from controlplane.bootstrap import serve as serving
from controlplane.cli import up

async def serve(options, told):
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)

serving.serve = serve
up._HANGS_S = 0.5
up._serve(None)
"""
LINGERS = """
import os, signal, sys, time
from pathlib import Path
from controlplane.adapters.instance import InstanceLock, InstanceNote

class Told(Exception): pass

def stop(*_):
    raise Told

signal.signal(signal.SIGTERM, stop)
with InstanceLock(Path(sys.argv[1])) as lock:
    lock.write_note(InstanceNote(pid=os.getpid(), control_url="http://127.0.0.1:1", gateway_url=""))
    print("up", flush=True)
    try:
        time.sleep(60)
    except Told:
        pass
time.sleep(1.5)
"""


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )
    assert done.returncode == ExitCode.FAILED
    assert "Timeout" in done.stderr
    assert "in wait" in done.stderr, "where it hangs is told"


def test_down_waits_for_the_process_and_not_only_for_its_lock(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LINGERS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        started_s = time.monotonic()
        result = CliRunner().invoke(app, ["down", "--state-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert time.monotonic() - started_s > 1.0
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, "ended, and not asked after yet"


def test_down_finds_a_note_of_somebody_long_gone(tmp_path: Path) -> None:
    """The lock is held by whoever wrote no note of its own: the pid in it may be anybody's, or nobody's."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as gone:
        gone.wait()
    with InstanceLock(tmp_path) as lock:
        lock.write_note(InstanceNote(pid=gone.pid, control_url="", gateway_url=""))
        result = CliRunner().invoke(app, ["down", "--state-dir", str(tmp_path)])
    assert result.exit_code == ExitCode.FAILED
    assert "has not said its pid yet; try again" in " ".join(result.output.split())
