"""docs/simulated-engine.md names every option and every fault, and none that is not there."""

import re
from pathlib import Path

from controlplane.simulation.engine.faults import START_ONLY, Fault
from controlplane.simulation.engine.options import option_parser

PAGE = (Path(__file__).parents[2] / "docs" / "simulated-engine.md").read_text(encoding="utf-8")


def test_every_option_has_a_line() -> None:
    options = {
        option for action in option_parser()._actions for option in action.option_strings if option.startswith("--")
    }
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) == options - {"--help"}


def test_every_fault_has_a_line() -> None:
    section = PAGE.partition("## Faults")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z-]+)", row.split("|")[1])}
    assert named == {fault.value for fault in Fault}
    sentence = next(line for line in section.splitlines() if "only be set at start" in line)
    assert set(re.findall(r"`([a-z-]+)`", sentence)) == {fault.value for fault in START_ONLY}
