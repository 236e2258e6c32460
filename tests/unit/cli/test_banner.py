"""What `up` prints when it runs."""

import asyncio
import io
import re
from pathlib import Path

from rich.console import Console

from controlplane.api.context import LoopAnswer
from controlplane.api.wire import StatusOut
from controlplane.cli.banner import banner_lines
from controlplane.cli.client import ApiClient, parsed
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.telemetry import Missing
from controlplane.testing.builders import make_plan, make_spec
from controlplane.testing.effects import START
from tests.conftest import GoldenText
from tests.unit.cli.conftest import Fleet


def printed(fleet: Fleet, *, control_url: str, state_dir: Path, detached: bool) -> str:
    """With this machine's path of the program replaced."""
    with ApiClient(fleet.url) as client:
        status = parsed(StatusOut, client.get("/api/v1/status"))
    console = Console(width=100, file=io.StringIO(), color_system=None, highlight=False, soft_wrap=True)
    with console.capture() as captured:
        for line in banner_lines(
            status, control_url=control_url, state_dir=state_dir, detached=detached, load="none (--no-load)"
        ):
            console.print(line)
    return re.sub(r"^  \S*quarterdeck ", "  quarterdeck ", captured.get(), flags=re.MULTILINE)


def test_in_the_foreground(fleet: Fleet, golden_text: GoldenText) -> None:
    text = printed(fleet, control_url="http://127.0.0.1:8080", state_dir=Path(".quarterdeck"), detached=False)
    golden_text("cli_up.txt", text)


def test_elsewhere_and_detached_every_line_can_be_typed_as_it_stands(fleet: Fleet, golden_text: GoldenText) -> None:
    text = printed(fleet, control_url="http://127.0.0.1:9080", state_dir=Path("my state"), detached=True)
    golden_text("cli_up_detached.txt", text)
    assert text.count("--control-plane http://127.0.0.1:9080") == 3
    assert "down --state-dir 'my state'" in text


def test_who_is_not_served_yet_is_named_with_the_reason(fleet: Fleet) -> None:
    asyncio.run(_without_room(fleet))
    text = printed(fleet, control_url="http://127.0.0.1:8080", state_dir=Path(".quarterdeck"), detached=True)
    assert "  not ready yet: chat-9b 0 of 1: 1 more replicas wanted, no room: each wants 8 GPUs\n" in text
    assert text.count("not ready yet") == 1
    assert "chat-9b waits: 1 more replicas wanted, no room" in fleet.run("status").output


def test_a_gateway_that_is_not_up_is_told_with_the_reason(fleet: Fleet) -> None:
    fleet.telemetry.set_gateway(Missing("its socket is not there"))
    gateway = LoopAnswer(
        loop="gateway", resource="site", outcome="failed", seconds_since_last_tick=0.5, overdue=False,
        failures_in_a_row=4, sentence="port 8000 is taken",
    )  # fmt: skip
    fleet.change(loops=lambda: [gateway])
    text = printed(fleet, control_url="http://127.0.0.1:8080", state_dir=Path(".quarterdeck"), detached=False)
    assert "http://127.0.0.1:8000/v1  (not up: port 8000 is taken)\n" in text


async def _without_room(fleet: Fleet) -> None:
    async with fleet.store.transaction() as tx:
        await tx.put_deployment_spec(make_spec("chat-9b"), make_plan("chat-9b"), START)
        for reason, sentence in (
            (Reason.NO_CAPACITY, "1 more replicas wanted, no room: each wants 8 GPUs"),
            (Reason.RESUMED_BY_PERSON, "Deployment chat-9b is managed again."),
        ):
            event = NewEvent(
                at=START, kind=EventKind.DEPLOYMENT, subject="chat-9b", deployment="chat-9b", reason=reason,
                sentence=sentence,
            )  # fmt: skip
            await tx.append_events([event])
