"""Starts one replica's process: own session, own log, only the environment that it should have, CPUs near its GPUs."""

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.adapters.instance import SITE_VARIABLE
from controlplane.adapters.launchers.local.processes import (
    GPUS_VARIABLE,
    NODE_VARIABLE,
    PORT_VARIABLE,
    REPLICA_VARIABLE,
)
from controlplane.domain.deployment import EngineKind
from controlplane.replicas.ports import LaunchSpec

_INHERITED: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "XDG_CACHE_HOME"),
        *("VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
        *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
        # Where simulated engines write what their GPUs do; of our own variables the only one that replicas need.
        "QUARTERDECK_GPU_STATE_DIR",
    }
)
"""What programs need to find their files and the network. Our own secrets and settings stay with us."""
_INHERITED_PREFIXES: Final = ("LC_", "HF_", "HUGGING_FACE_", "VLLM_", "NCCL_", "CUDA_", "NVIDIA_", "TORCH_")
"""What model servers read: caches, tokens of model hubs, GPU libraries."""
_MARKED_WITHIN_S: Final = 0.25
"""Microseconds are usual. One that ended at once never shows an environment, and is not waited for much longer."""
_MARKS_POLL_S: Final = 0.001
_NUMA_CPUS: Final = "/sys/devices/system/node/node{domain}/cpulist"
_IN_SITE_FILE: Final = "`command` of its item under `engines:`, e.g. `command: [/opt/vllm/bin/vllm, serve]`"
_INSTALL_HINTS: Final[Mapping[EngineKind, str]] = {
    EngineKind.VLLM: "install it (`pip install vllm`, see docs.vllm.ai), or name its program in the site file: "
    f"{_IN_SITE_FILE}",
    EngineKind.SIMULATED: f"it comes with Quarterdeck: run `make up` again, or check the site file: {_IN_SITE_FILE}",
}


@dataclass(frozen=True, slots=True)
class MissingProgram:
    """The sentence says what was looked for and how to get it."""

    sentence: str


def command_of(spec: LaunchSpec, host: str) -> list[str]:
    """The argument vector with its placeholders filled. Plain replacement: arguments may hold JSON braces."""
    return [_fill(argument, spec, host) for argument in spec.template.argv]


def environment_of(spec: LaunchSpec, host: str, mark: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Minimal inherited variables, then the template's, then the marks by which the process is found again."""
    kept = {k: v for k, v in inherited.items() if k in _INHERITED or k.startswith(_INHERITED_PREFIXES)}
    template = {name: _fill(value, spec, host) for name, value in spec.template.env}
    marks = {
        SITE_VARIABLE: mark,
        REPLICA_VARIABLE: spec.name,
        NODE_VARIABLE: spec.node,
        GPUS_VARIABLE: _gpus(spec),
        PORT_VARIABLE: str(spec.port),
        "PYTHONUNBUFFERED": "1",
    }
    return kept | template | marks


def find_program(command: list[str], environment: Mapping[str, str], engine: EngineKind) -> Path | MissingProgram:
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        return MissingProgram(f"program {command[0]!r} was not found on PATH: {_INSTALL_HINTS[engine]}")
    return Path(program)


def port_is_free(host: str, port: int) -> bool:
    """Whether nobody listens there. Who comes between this and the engine's own bind is found by `PortWatch`."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of the last owner in TIME_WAIT are no obstacle, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def spawn(program: Path, command: list[str], environment: Mapping[str, str], log: Path) -> int:
    """Start it in a session of its own, output appended to the log; its process id. OSError when it cannot run.

    posix_spawn sets the session and the signals before the program begins, and returns amid exec: once its environment
    shows, the process carries its marks, and whoever looks after this call finds it.
    """
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    null_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pid = os.posix_spawn(
            program,
            command,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null_fd, 0),
                (os.POSIX_SPAWN_DUP2, log_fd, 1),
                (os.POSIX_SPAWN_DUP2, log_fd, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD],
        )
    finally:
        os.close(log_fd)
        os.close(null_fd)
    _await_marks(pid)
    return pid


def _await_marks(pid: int) -> None:
    """Linux lets the parent go on when the old memory is gone, and fills in the new environment a moment later."""
    give_up_at = time.monotonic() + _MARKED_WITHIN_S
    while time.monotonic() < give_up_at:
        try:
            if Path(f"/proc/{pid}/environ").read_bytes():
                return
        except OSError:
            return  # It ended, or this system shows no environments there.
        time.sleep(_MARKS_POLL_S)


def stay_near(pid: int, numa_domain: int | None) -> None:
    """Bind a process that was just started to the CPUs of a NUMA domain, where the machine tells them.

    Threads and children started later inherit it; a Python program takes far longer than this to start its first.
    """
    if numa_domain is None or not sys.platform.startswith("linux"):
        return
    try:
        cpus = parse_cpu_list(Path(_NUMA_CPUS.format(domain=numa_domain)).read_text(encoding="ascii"))
        if cpus:
            os.sched_setaffinity(pid, cpus & os.sched_getaffinity(0) or cpus)
    except OSError:
        # No such domain on this machine (a simulated node), or the process is gone already: only speed is lost.
        return


def parse_cpu_list(text: str) -> set[int]:
    """The kernel's list format: `0-3,8,10-11`."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _fill(text: str, spec: LaunchSpec, host: str) -> str:
    values = {"python": sys.executable, "name": spec.name, "port": str(spec.port), "host": host, "gpus": _gpus(spec)}
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", value)
    return text


def _gpus(spec: LaunchSpec) -> str:
    return ",".join(map(str, spec.gpus))
