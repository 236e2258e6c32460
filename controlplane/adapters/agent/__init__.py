"""The node agent: an HTTP server beside the GPUs."""

from typing import Final

DEFAULT_PORT: Final = 9410
"""Beside dcgm-exporter's 9400, so that both can run on a node."""
