"""What a load asks the control plane: the objectives before, the fleet's bill after. It runs without either."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import aiohttp

from controlplane.simulation.load.model import Objective
from controlplane.simulation.load.report import FleetReport

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10.0)
"""Every answer of the control plane comes from memory or one short transaction."""


async def stated_objectives(url: str) -> Mapping[str, Objective]:
    """By served name; empty when no control plane answers."""
    answer = await _get(url, "/api/v1/deployments", {})
    found = {}
    for deployment in _items(answer):
        slo = deployment.get("slo") or {}
        objective = Objective(
            ttft_s=_limit_s(slo.get("ttft")),
            inter_token_s=_limit_s(slo.get("inter_token")),
            end_to_end_s=_limit_s(slo.get("end_to_end")),
        )
        for name in deployment.get("served_names", ()):
            found[str(name)] = objective
    return found


async def fleet_report(url: str, since: datetime, until: datetime) -> FleetReport | None:
    """The fleet's use between two moments; None when no control plane answers."""
    answer = await _get(url, "/api/v1/usage", {"since": since.isoformat(), "until": until.isoformat()})
    if not isinstance(answer, dict):
        return None
    try:
        return FleetReport(
            gpu_hours=float(answer["gpu_hours"]),
            gpu_hours_static_peak=float(answer["gpu_hours_static_peak"]),
            scale_events=int(answer["scale_events"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


async def _get(url: str, path: str, query: Mapping[str, str]) -> Any:
    """The parsed answer; None for anything that is none: a load does not fail over its report."""
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(url.rstrip("/") + path, params=query) as response,
        ):
            return await response.json() if response.ok else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None


def _items(answer: Any) -> list[dict[str, Any]]:
    """A bare list, or a page with `items`."""
    items = answer.get("items", []) if isinstance(answer, dict) else answer
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _limit_s(target: Any) -> float | None:
    value = target.get("limit_s") if isinstance(target, dict) else None
    return float(value) if isinstance(value, int | float) else None
