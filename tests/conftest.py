"""Fixtures for every suite."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

GOLDEN = Path(__file__).parent / "golden"

type GoldenText = Callable[[str, str], None]

TOGETHER: Final = (
    "tests/vllm/",
    "tests/e2e/test_demo.py",
    "tests/e2e/test_recovery_demo.py",
    "tests/integration/test_drill_truth_postgresql.py",
)
"""What one worker runs, in order: it shares a costly start, or wants the machine's attention."""


class OnePlaceScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist's types are its own
    """Each test goes to whichever worker is free, apart from those that belong together.

    In place of xdist 3.8's `--dist loadgroup`, which groups nothing under pytest 9.2: it renames tests by an attribute
    that pytest no longer reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OnePlaceScheduling:
    return OnePlaceScheduling(config, log)


@pytest.fixture
def golden_text() -> GoldenText:
    """Compare a text with `tests/golden/NAME`; with QUARTERDECK_GOLDEN=write the file is written instead."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("QUARTERDECK_GOLDEN") == "write":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        expected = path.read_text(encoding="utf-8")
        assert text == expected, f"tests/golden/{name} differs; QUARTERDECK_GOLDEN=write writes it anew"

    return compare
