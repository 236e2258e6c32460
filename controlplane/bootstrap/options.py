"""What `up` asks for and is told: apart from `serve`, so that a command line that only looks loads none of that."""

from dataclasses import dataclass
from pathlib import Path

from controlplane.api.wire import StatusOut


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
