"""What the activator is told, and what it tells."""

from pydantic import BaseModel, ConfigDict


class ActivatorConfig(BaseModel):
    """Limits come from the site's gateway section and may change while it runs; the sockets may not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen_socket: str
    control_socket: str
    admin_socket: str
    """HAProxy's runtime API: asked whether a replica is up, only while something is held."""
    internal_socket: str
    """HAProxy's frontend for what is sent back."""
    hold_requests_max: int
    """Per deployment."""
    hold_bytes_max: int
    """Bodies, all deployments together."""
    hold_timeout_s: float
    body_bytes_max: int
    request_timeout_s: float
    """Longest silence of a replica."""


class ActivatorState(BaseModel):
    """Counters are since the process started."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    started_at_s: float
    """Unix seconds."""
    config: ActivatorConfig
    held: dict[str, int]
    """Requests that wait for a replica, by deployment; only those above zero."""
    body_bytes: int
    """Bodies in memory now."""
    slow_total: int
    """Requests whose model was looked for here."""
    held_total: int
    refused_total: int
    """Answered with an error of our own."""
    late_5xx: dict[str, int]
    """5xx that callers saw and that HAProxy could not count for the deployment."""

    @property
    def epoch(self) -> str:
        return f"{self.pid}.{self.started_at_s:.3f}"


class ControlRequest(BaseModel):
    """One JSON line on the control socket. With `config`: take these limits. The answer is the state."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: ActivatorConfig | None = None
