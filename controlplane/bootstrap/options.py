"""What `up` asks for and is told: apart from `serve`, so that a command line that only looks loads none of that."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from controlplane.api.wire import DeploymentOut, EventOut, StatusOut

READY_PATIENCE: Final = timedelta(seconds=120)
"""After this the banner is printed anyway: a real model may load for minutes, and the banner names who is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    state_dir: Path
    site_file: Path | None
    gateway_port: int | None
    control_port: int
    load: bool
    log_level: str
    instance: str | None
    """Its name where several work in one folder; None: the only one."""
    strict: bool = False
    """Do not start at all where the gate refuses the site file."""
    break_glass: Path | None = None
    """File of the offline key, lent for a drill."""
    break_glass_passphrase: Path | None = None
    """File with its passphrase."""


def log_file(options: ServeOptions) -> Path:
    name = f"control-plane-{options.instance}.log" if options.instance else "control-plane.log"
    return options.state_dir / "logs" / name


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What there is to tell once it runs."""

    status: StatusOut
    control_url: str
    state_dir: Path
    load: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Whom to tell what, as it happens."""

    on_starting: Callable[[str], None]
    """Nothing stands in the way: it starts now. With why it starts with another site than was asked for; empty: it
    does not."""
    on_ready: Callable[[Running], None]
    on_event: Callable[[EventOut], None]


def not_ready(deployments: Sequence[DeploymentOut]) -> list[DeploymentOut]:
    """Those with fewer ready replicas than their minimum."""
    return [row for row in deployments if row.replicas_by_phase.get("ready", 0) < row.replicas_min]
