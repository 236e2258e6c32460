"""The activator's process: started, adopted, told its limits, ended."""

import asyncio
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final

import psutil

import controlplane
from controlplane.adapters.activator.config import ActivatorConfig
from controlplane.adapters.haproxy import processes
from controlplane.adapters.haproxy.places import GatewayPaths, start_lock, tail, write_atomically
from controlplane.adapters.haproxy.runtime import NotRunningError
from controlplane.adapters.haproxy.traffic import activator_state
from controlplane.domain.site import GatewaySpec
from controlplane.kernel.errors import RetryableError

START_TIMEOUT: Final = timedelta(seconds=10)
"""It starts in about a second (imports), on a busy machine in several."""

ROLE: Final = "activator"

MALLOC: Final[Mapping[str, str]] = MappingProxyType(
    {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "1048576"}
)
"""For glibc: one heap, large bodies outside it. Left alone it raises the thresholds (bytes) with the first large body
that goes, and keeps the memory of those after it."""

_POLL: Final = timedelta(milliseconds=20)
_SHOWN_CHARS: Final = 400


class ActivatorProcess:
    def __init__(self, paths: GatewayPaths, site_mark: str) -> None:
        self._paths = paths
        self._site = site_mark
        self._started: list[psutil.Process] = []

    async def ensure(self, spec: GatewaySpec) -> bool:
        """It runs with the spec's limits. True when it had to be started; RetryableError when it does not start."""
        self.reap()
        config = self._config(spec)
        try:
            state = await activator_state(self._paths)
            if state.config != config:
                write_atomically(self._paths.activator_config, config.model_dump_json())
                await activator_state(self._paths, config)
        except NotRunningError:
            await self._start(config)
            return True
        return False

    def ask_to_stop(self) -> list[psutil.Process]:
        """It sends away what is held and finishes what streams; the processes to wait for."""
        found = processes.leaders(self._site, ROLE)
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        return found

    def reap(self) -> None:
        self._started = [process for process in self._started if processes.is_alive(process)]

    async def _start(self, config: ActivatorConfig) -> None:
        with start_lock(self._paths):
            for deaf in processes.leaders(self._site, ROLE):
                await processes.end(deaf)
            write_atomically(self._paths.activator_config, config.model_dump_json())
            log = self._paths.logs / "activator.log"
            before_bytes = log.stat().st_size if log.exists() else 0
            argv = (sys.executable, "-m", "controlplane.adapters.activator", str(self._paths.activator_config))
            source = str(Path(controlplane.__file__).parent.parent)
            env = {"PYTHONPATH": source, **MALLOC}
            process = processes.spawn(argv, site=self._site, role=ROLE, log=log, env=env)
            self._started.append(process)
            if not await self._answers(process):
                await processes.end(process)
                said = tail(log, before_bytes)[-_SHOWN_CHARS:]
                raise RetryableError(f"the activator did not start; see {log}: {said}")

    async def _answers(self, process: psutil.Process) -> bool:
        try:
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                while processes.is_alive(process):
                    with suppress(RetryableError):
                        await activator_state(self._paths)
                        return True
                    await asyncio.sleep(_POLL.total_seconds())
        except TimeoutError:
            pass
        return False

    def _config(self, spec: GatewaySpec) -> ActivatorConfig:
        paths = self._paths
        return ActivatorConfig(
            listen_socket=str(paths.activator_socket),
            control_socket=str(paths.activator_control),
            admin_socket=str(paths.admin_socket),
            internal_socket=str(paths.internal_socket),
            hold_requests_max=spec.hold_requests_max,
            hold_bytes_max=spec.hold_bytes_max,
            hold_timeout_s=spec.hold_timeout.total_seconds(),
            body_bytes_max=spec.body_bytes_max,
            request_timeout_s=spec.request_timeout.total_seconds(),
        )
