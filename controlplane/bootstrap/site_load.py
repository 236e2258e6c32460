"""The load that a site declares (the demo does): a process of its own, bounded, adopted after a restart."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil

from controlplane.adapters.instance import ROLE_VARIABLE, SITE_VARIABLE
from controlplane.bootstrap.leftovers import marked_processes
from controlplane.domain.site import LoadSpec

_ROLE: Final = "load"
_STOP_S: Final = 5.0
"""It cancels its open requests at the first signal; more is a hang."""


class SiteLoad:
    """At most one per state folder."""

    def __init__(self, *, state_dir: Path, mark: str) -> None:
        self._log = state_dir / "logs" / "load.log"
        self._mark = mark
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, spec: LoadSpec, gateway_url: str, *, control_url: str, embedding: frozenset[str]) -> None:
        """Start it unless one of an earlier control plane still runs."""
        if self._running() is not None:
            return
        self._log.parent.mkdir(parents=True, exist_ok=True)
        arguments = load_arguments(spec, gateway_url, control_url=control_url, embedding=embedding)
        environment = {**os.environ, SITE_VARIABLE: self._mark, ROLE_VARIABLE: _ROLE}
        with self._log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "controlplane.simulation.load", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )

    def stop(self) -> None:
        """End it before what it calls goes away, so that its report counts no failure of ours."""
        process = self._running()
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_S)
        except psutil.TimeoutExpired:
            process.kill()
        if self._child is not None:
            self._child.wait()

    def _running(self) -> psutil.Process | None:
        for process in marked_processes(self._mark):
            try:
                if process.environ().get(ROLE_VARIABLE) == _ROLE:
                    return process
            except psutil.Error:
                continue
        return None


def load_arguments(spec: LoadSpec, gateway_url: str, *, control_url: str, embedding: frozenset[str]) -> list[str]:
    """The options of `quarterdeck load` that play a site's load; `embedding` names the deployments that embed."""
    arguments = [
        "--gateway", gateway_url,
        "--control-plane", control_url,
        "--day", f"{spec.day.total_seconds():g}",
        "--duration", f"{spec.duration.total_seconds():g}",
        "--peak-rps", f"{spec.peak_rps:g}",
        "--trough-rps", f"{spec.trough_rps:g}",
        "--prompt-tokens", str(spec.prompt_tokens_mean),
        "--output-tokens", str(spec.output_tokens_mean),
        "--seed", str(spec.seed),
    ]  # fmt: skip
    for name, weight in spec.deployment_weights:
        arguments += ["--embed" if name in embedding else "--model", f"{name}={weight:g}"]
    return arguments
