"""What `up` prints when it runs."""

import io
import re
from pathlib import Path

from rich.console import Console

from controlplane.api.wire import StatusOut
from controlplane.cli.banner import banner_lines
from controlplane.cli.client import ApiClient, parsed
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
    assert text.count("--control-plane http://127.0.0.1:9080") == 2
    assert "down --state-dir 'my state'" in text
