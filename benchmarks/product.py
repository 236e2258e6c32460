"""The whole product as its user runs it: the command in its own process, an API to ask, processes to count."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2
import psutil

from controlplane.adapters.instance import ROLE_VARIABLE, is_held, site_mark
from controlplane.adapters.launchers.local.processes import REPLICA_VARIABLE
from controlplane.bootstrap.leftovers import marked_processes

COMMAND: Final = (sys.executable, "-m", "controlplane")
_START_S: Final = 60.0
_END_S: Final = 90.0
_LOOK_S: Final = 0.05
_ASK_S: Final = 10.0


class NotReachedError(Exception):
    """What was waited for did not come in time; the text says what there was instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A replica as the API tells it."""

    name: str
    phase: str
    node: str
    gpus: tuple[int, ...]


class Product:
    """`quarterdeck up` on a state folder of its own and free ports, in the foreground of a process of its own."""

    def __init__(
        self,
        state_dir: Path,
        *,
        site: Path | None = None,
        load: bool = False,
        instance: str | None = None,
        gateway_port: int | None = None,
    ) -> None:
        self.state_dir = state_dir
        self.gateway_port, self.control_port = gateway_port or free_port(), free_port()
        self._instance = instance
        self.gateway_url = f"http://127.0.0.1:{self.gateway_port}"
        self.control_url = f"http://127.0.0.1:{self.control_port}"
        self.site = site
        self._load = load
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def arguments(self) -> list[str]:
        arguments = ["--state-dir", str(self.state_dir), "--port", str(self.gateway_port)]
        arguments += ["--control-port", str(self.control_port)]
        arguments += [] if self.site is None else ["--site", str(self.site)]
        arguments += [] if self._instance is None else ["--instance", self._instance]
        return arguments if self._load else [*arguments, "--no-load"]

    @property
    def log(self) -> Path:
        return self.state_dir / f"terminal-{self._instance or 'only'}.log"

    def start(self) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [*COMMAND, "up", *self.arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL to the control plane alone, as the kernel's memory killer would."""
        assert self._process is not None, "started before it is killed"
        self._process.kill()
        self._process.wait()

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ctrl-C, and wait; its exit code."""
        assert self._process is not None, "started before it is stopped"
        self._process.send_signal(number)
        return self._process.wait(_END_S)

    def end(self) -> None:
        """Whatever the state: nothing of it runs afterwards."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self.kill()
        for process in self.processes():
            process.kill()

    def processes(self) -> list[psutil.Process]:
        """All that it started, but itself."""
        return marked_processes(site_mark(self.state_dir))

    def replica_processes(self) -> dict[str, set[int]]:
        """Process groups by replica name: more than one of a name is a replica started twice."""
        found: dict[str, set[int]] = {}
        for process in self.processes():
            try:
                name = process.environ().get(REPLICA_VARIABLE)
                if name is not None:
                    found.setdefault(name, set()).add(os.getpgid(process.pid))
            except (psutil.Error, ProcessLookupError):
                continue
        return found

    def roles(self) -> Counter[str]:
        """How many process groups there are of each other kind: gateway, activator, load."""
        groups: set[tuple[str, int]] = set()
        for process in self.processes():
            try:
                role = process.environ().get(ROLE_VARIABLE)
                if role is not None:
                    groups.add((role, os.getpgid(process.pid)))
            except (psutil.Error, ProcessLookupError):
                continue
        return Counter(role for role, _ in groups)

    def is_up(self) -> bool:
        return is_held(self.state_dir, self._instance)

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(f"{self.control_url}{path}", timeout=_ASK_S)

    def post(self, path: str, body: Mapping[str, object]) -> httpx2.Response:
        return httpx2.post(f"{self.control_url}{path}", json=dict(body), timeout=_ASK_S)

    def ask(self, path: str, body: Mapping[str, object], *, timeout_s: float = _ASK_S) -> httpx2.Response:
        """Through the gateway, as a client of the models."""
        return httpx2.post(f"{self.gateway_url}{path}", json=dict(body), timeout=timeout_s)

    def get_models(self) -> list[dict[str, object]]:
        """What the gateway offers, as an OpenAI client lists it."""
        answer = httpx2.get(f"{self.gateway_url}/v1/models", timeout=_ASK_S)
        answer.raise_for_status()
        models: list[dict[str, object]] = answer.json()["data"]
        return models

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command of ours against this control plane."""
        environment = {**os.environ, "QUARTERDECK_URL": self.control_url, "COLUMNS": "200", "NO_COLOR": "1"}
        return subprocess.run(
            [*COMMAND, *words], capture_output=True, text=True, check=False, env=environment, timeout=_START_S
        )

    def replicas(self) -> list[Row]:
        return [
            Row(name=row["name"], phase=row["phase"], node=row["node"], gpus=tuple(row["gpus"]))
            for row in self.get("/api/v1/replicas").json()
        ]

    def stored_phases(self) -> Counter[str]:
        """Of the store's file itself, whoever is alive."""
        with sqlite3.connect(f"file:{self.state_dir}/store.sqlite3?mode=ro", uri=True) as connection:
            return Counter(phase for (phase,) in connection.execute("SELECT phase FROM replicas"))

    def until_ready(self, timeout_s: float = _START_S) -> None:
        """Every deployment has its least number of replicas, and the gateway answers."""

        def served() -> bool:
            status = self.get("/api/v1/status").json()
            rows = status["deployments"]
            enough = all(row["replicas_by_phase"].get("ready", 0) >= row["replicas_min"] for row in rows)
            return bool(rows) and enough and status["gateway"] == "fresh"

        self.until(served, "every deployment is served", timeout_s)

    def until(self, reached: Callable[[], bool], what: str, timeout_s: float) -> float:
        """Seconds that it took. NotReachedError."""
        begin = time.monotonic()
        last = "no answer yet"
        while time.monotonic() - begin < timeout_s:
            try:
                if reached():
                    return time.monotonic() - begin
                last = "not so"
            except (httpx2.HTTPError, KeyError) as error:
                last = repr(error)
            time.sleep(_LOOK_S)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise NotReachedError(f"{what}: not within {timeout_s:g} s ({last}); its terminal ended with\n{tail}")


class Load:
    """`quarterdeck load` beside the product; what it reports when it ends."""

    def __init__(self, product: Product, options: Sequence[str], report: Path) -> None:
        self._report = report
        self._log = report.with_suffix(".log")
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *COMMAND, "load", "--gateway", product.gateway_url, "--control-plane", product.control_url,
                    "--json", str(report), *options,
                ],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def stop(self) -> dict[str, object]:
        """No more requests; what is open may finish for five seconds."""
        self._process.send_signal(signal.SIGINT)
        return self.finished(timeout_s=30.0)

    def finished(self, timeout_s: float) -> dict[str, object]:
        """Its whole report, once it ends by itself."""
        try:
            self._process.wait(timeout_s)
        finally:
            self.kill()
        if not self._report.exists():
            raise NotReachedError(f"the load reported nothing: {self._log.read_text(errors='replace')[-1500:]}")
        report: dict[str, object] = json.loads(self._report.read_text())
        return report

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
