"""Ports that more than one feature looks through."""

from typing import Protocol

from controlplane.domain.telemetry import TelemetrySnapshot


class Telemetry(Protocol):
    """The latest of everything measured. Cheap: returns what the last scrape left, never waits."""

    def snapshot(self) -> TelemetrySnapshot: ...
