"""HAProxy's processes: a master and its workers, started, adopted, reloaded, sent commands, ended.

Master and worker, because only the master can be asked about workers that a reload left behind: their open requests
must be seen, or a replica would be stopped under them. A killed master takes its worker along, so what is left after
any kill is nothing, and a start from the file brings the servers of the moment.
"""

import asyncio
import os
import signal
from contextlib import suppress
from datetime import timedelta
from typing import Final

import psutil

from controlplane.adapters.haproxy import processes
from controlplane.adapters.haproxy.answers import parse_info, parse_processes, parse_slots, parse_stat, refusals
from controlplane.adapters.haproxy.places import (
    GatewayPaths,
    forget_metrics_port_if_taken,
    start_lock,
    tail,
    write_atomically,
)
from controlplane.adapters.haproxy.runtime import NotRunningError, ask
from controlplane.adapters.haproxy.traffic import BACKEND_ROW
from controlplane.gateway.changes import Assignment, GatewaySeen
from controlplane.gateway.render import Structure, render_config
from controlplane.kernel.errors import RetryableError, TerminalError

START_TIMEOUT: Final = timedelta(seconds=10)
"""HAProxy starts in 50 ms, on a busy machine or with 10,000 slots in a second or two."""

RELOAD_TIMEOUT: Final = timedelta(seconds=15)
"""A reload parses the configuration in the master: 0.1 s for three deployments."""

CHECK_TIMEOUT: Final = timedelta(seconds=15)

COMMANDS_PER_LINE: Final = 100
"""Slots changed in one exchange: some 20 kB, below HAProxy's buffer."""

ROLE: Final = "gateway"

_POLL: Final = timedelta(milliseconds=20)
_ALERT: Final = "[ALERT]"
_ALERTS_CHARS_MAX: Final = 1000


class HaproxyProcess:
    def __init__(self, paths: GatewayPaths, site_mark: str, binary: str) -> None:
        self._paths = paths
        self._site = site_mark
        self._binary = binary
        self._written: tuple[Structure, Assignment] | None = None
        self._started: list[psutil.Process] = []

    async def see(self) -> GatewaySeen | None:
        """What the worker runs; None when there is none. RetryableError when it does not answer."""
        self.reap()
        try:
            text = await ask(self._paths.admin_socket, "show info; show servers state; show stat -1 4 -1")
        except NotRunningError:
            return None
        info = parse_info(text)
        if info is None:
            raise RetryableError(f"{self._paths.admin_socket} answered, but not as HAProxy of this gateway")
        return parse_slots(info, text)

    def prepare_start(self) -> None:
        """Before the structure is rendered: the exporter's port may be another program's by now."""
        forget_metrics_port_if_taken(self._paths)

    async def start(self, structure: Structure, slots: Assignment) -> None:
        """RetryableError when it does not come up (its port is taken...), TerminalError when its file is wrong."""
        with start_lock(self._paths):
            for master in processes.leaders(self._site, ROLE):
                # It runs but its sockets are gone: let it finish its requests, its ports are free at once.
                with suppress(psutil.NoSuchProcess):
                    master.send_signal(signal.SIGUSR1)
            await self._install(structure, slots)
            paths = self._paths
            log = paths.logs / "haproxy.log"
            before_bytes = log.stat().st_size if log.exists() else 0
            argv = (self._binary, "-W", "-db", "-S", f"{paths.master_socket},mode,600", "-f", str(paths.config))
            master = processes.spawn(argv, site=self._site, role=ROLE, log=log, env={})
            self._started.append(master)
            if not await self._runs(structure.digest, master):
                await processes.end(master)
                found = _alerts(tail(log, before_bytes)) or "it did not answer in time"
                spec = structure.table.spec
                raise RetryableError(f"HAProxy did not start on {spec.host}:{spec.port}: {found}")
            self._written = (structure, slots)

    async def reload(self, structure: Structure, slots: Assignment) -> None:
        """Hitless: the new worker takes the listeners over, the old one finishes its requests."""
        before = self._paths.config.read_text(encoding="utf-8") if self._paths.config.exists() else None
        await self._install(structure, slots)
        answer = await ask(self._paths.master_socket, "reload", timeout=RELOAD_TIMEOUT)
        if not answer.startswith("Success=1"):
            if before is not None:
                write_atomically(self._paths.config, before)
            found = _alerts(answer) or answer[:_ALERTS_CHARS_MAX]
            raise RetryableError(f"HAProxy refused to reload and goes on as it was: {found}")
        self._written = (structure, slots)
        if not await self._runs(structure.digest, None):
            raise RetryableError("HAProxy reloaded but its new worker does not answer")
        self._remove_stale(structure)

    async def send(self, lines: tuple[str, ...]) -> None:
        """RetryableError with HAProxy's words when it refuses one."""
        for first in range(0, len(lines), COMMANDS_PER_LINE):
            batch = lines[first : first + COMMANDS_PER_LINE]
            refused = refusals(await ask(self._paths.admin_socket, "; ".join(batch)))
            if refused:
                raise RetryableError(f"HAProxy refused a change: {refused[0]} (of {len(batch)} sent)")

    def write(self, structure: Structure, slots: Assignment) -> None:
        """Keep the file true, so that a restart begins with the servers of now."""
        if self._written is not None and self._written[0] is structure and self._written[1] == slots:
            return
        write_atomically(self._paths.config, render_config(structure, slots))
        self._written = (structure, slots)

    async def refuse_new(self) -> None:
        """Close the public port; requests in flight go on."""
        with suppress(RetryableError):
            await ask(self._paths.admin_socket, "shutdown frontend public")

    async def wait_until_idle(self, grace: timedelta) -> None:
        """Return when no request is in flight, or after `grace`."""
        try:
            async with asyncio.timeout(grace.total_seconds()):
                while True:
                    rows = parse_stat(await ask(self._paths.admin_socket, "show stat -1 2 -1"))
                    if not any(row.in_flight for row in rows if row.server == BACKEND_ROW):
                        return
                    await asyncio.sleep(_POLL.total_seconds())
        except (TimeoutError, RetryableError):
            return

    async def end(self) -> None:
        for master in processes.leaders(self._site, ROLE):
            await processes.end(master)
        self.reap()

    def reap(self) -> None:
        self._started = [process for process in self._started if processes.is_alive(process)]

    async def _install(self, structure: Structure, slots: Assignment) -> None:
        """Write the files, have HAProxy check the configuration, put it in place. TerminalError when it is wrong."""
        for name, text in structure.beside.texts.items():
            file = self._paths.run / name
            if not file.exists():
                write_atomically(file, text)
        write_atomically(self._paths.candidate, render_config(structure, slots))
        complaints = await self._complaints()
        if complaints is not None:
            raise TerminalError(f"the rendered {self._paths.candidate} is not valid: {complaints}")
        os.replace(self._paths.candidate, self._paths.config)  # noqa: PTH105 - one rename

    async def _complaints(self) -> str | None:
        """What HAProxy says against the candidate; None: it is valid."""
        check = await asyncio.create_subprocess_exec(
            self._binary,
            "-c",
            "-q",
            "-f",
            str(self._paths.candidate),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(CHECK_TIMEOUT.total_seconds()):
                output, _ = await check.communicate()
        except TimeoutError as error:
            check.kill()
            await check.wait()
            raise RetryableError("HAProxy's check of the configuration did not end in time") from error
        return None if check.returncode == 0 else _alerts(output.decode(errors="replace"))

    async def _runs(self, digest: str, master: psutil.Process | None) -> bool:
        """Wait until a worker with this structure answers; False when its process ends or the time is up.

        And until its master does: that one executes itself anew once the worker runs, deaf for a moment.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                while True:
                    with suppress(RetryableError):
                        info = parse_info(await ask(self._paths.admin_socket, "show info"))
                        if info is not None and info.structure == digest:
                            current = parse_processes(await ask(self._paths.master_socket, "show proc"))
                            if current.worker == info.pid:
                                return True
                    if master is not None and not processes.is_alive(master):
                        return False
                    await asyncio.sleep(_POLL.total_seconds())
        except TimeoutError:
            return False

    def _remove_stale(self, structure: Structure) -> None:
        """Maps and replies of earlier structures. Running workers have read theirs."""
        for kind in ("*.map", "*.json"):
            for file in self._paths.run.glob(kind):
                if file.name not in structure.beside.texts and file != self._paths.activator_config:
                    file.unlink(missing_ok=True)


def _alerts(text: str) -> str:
    """What HAProxy complains about, without its process numbers."""
    lines = [line.split(":", 1)[-1].strip() for line in text.splitlines() if line.startswith(_ALERT)]
    return "; ".join(lines)[:_ALERTS_CHARS_MAX]
