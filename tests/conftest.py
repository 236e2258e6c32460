"""Fixtures for every suite."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"

type GoldenText = Callable[[str, str], None]


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
