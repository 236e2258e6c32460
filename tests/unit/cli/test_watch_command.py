"""The live view: one picture from answers alone (golden), and the figures that it computes itself."""

import io

from rich.console import Console

from controlplane.api.wire import DecisionOut, StatusOut
from controlplane.cli.client import ApiClient, parsed, parsed_rows
from controlplane.cli.exits import ExitCode
from controlplane.cli.watch import Arrivals, Sparkline, picture_of
from controlplane.domain.telemetry import Missing
from tests.conftest import GoldenText
from tests.unit.cli.conftest import Fleet


def picture(fleet: Fleet, *, columns: int) -> str:
    """One frame, with a minute of arrivals at chat-8b."""
    with ApiClient(fleet.url) as client:
        status = parsed(StatusOut, client.get("/api/v1/status"))
        decisions = parsed_rows(DecisionOut, client.get("/api/v1/decisions"))
    arrivals = Arrivals()
    total = 0.0
    for second in range(40):
        total += 10.0 + second % 20
        arrivals.add(float(second), total)
    console = Console(width=columns, file=io.StringIO(), color_system=None, force_terminal=True, legacy_windows=False)
    with console.capture() as captured:
        console.print(picture_of(status, decisions, {"chat-8b": arrivals}))
    return captured.get()


def test_a_frame(fleet: Fleet, golden_text: GoldenText) -> None:
    golden_text("cli_watch.txt", picture(fleet, columns=100))


def test_a_frame_fits_a_terminal_of_eighty_columns(fleet: Fleet, golden_text: GoldenText) -> None:
    drawn = picture(fleet, columns=80)
    assert max(map(len, drawn.splitlines())) <= 80
    golden_text("cli_watch_80.txt", drawn)


def test_a_frame_of_nothing(empty: Fleet) -> None:
    drawn = picture(empty, columns=80)
    assert "no site" in drawn
    assert "no deployments" in drawn
    assert "no scaling decision yet" in drawn


def test_figures_that_are_missing_are_marked(fleet: Fleet) -> None:
    fleet.telemetry.set_gateway(Missing("HAProxy does not answer"))
    row = next(line for line in picture(fleet, columns=100).splitlines() if "chat-70b" in line)
    assert row.split()[2] == "?"


def test_one_picture_where_nobody_watches_a_terminal(fleet: Fleet) -> None:
    """A pipe gets what `--once` prints: a live view would never end there."""
    for typed in (["watch", "--once", "--interval", "0.2"], ["watch", "--interval", "0.2"]):
        result = fleet.run(*typed)
        assert result.exit_code == ExitCode.OK
        assert "●●◌ 2 of 3, 1 starting" in result.output


def test_rates_are_smoothed_and_begin_anew_with_the_counter() -> None:
    arrivals = Arrivals()
    arrivals.add(0.0, 100.0)
    assert not arrivals.rates
    arrivals.add(1.0, 110.0)
    arrivals.add(2.0, 130.0)
    assert arrivals.rate_rps == 15.0
    arrivals.add(3.0, None)
    assert arrivals.rate_rps == 15.0
    arrivals.add(4.0, 5.0)
    arrivals.add(5.0, 9.0)
    assert arrivals.rate_rps == 4.0


def test_a_sparkline_shows_the_last_values_by_the_largest() -> None:
    assert Sparkline([0.0, 50.0, 100.0]).drawn(30) == "▁▅█"
    assert Sparkline([100.0, 1.0, 1.0]).drawn(2) == "██"
    assert Sparkline([0.0, 0.0]).drawn(30) == "▁▁"
    assert Sparkline([]).drawn(30) == ""
