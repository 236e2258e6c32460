"""The environment, read in one place."""

from pathlib import Path

import pytest

from controlplane.kernel.errors import InvalidError
from controlplane.settings import Settings, read_settings


def test_without_anything_set() -> None:
    assert read_settings({}) == Settings()
    assert read_settings({"QUARTERDECK_STATE_DIR": ""}) == Settings()


def test_everything_set() -> None:
    found = read_settings(
        {
            "QUARTERDECK_STATE_DIR": "/var/lib/qd",
            "QUARTERDECK_LOG_LEVEL": "debug",
            "QUARTERDECK_BREAK_GLASS_KEY": "private.key",
            "QUARTERDECK_BREAK_GLASS_PASSPHRASE_FILE": "passphrase",
        }
    )
    assert found == Settings(
        state_dir=Path("/var/lib/qd"),
        log_level="DEBUG",
        break_glass=Path("private.key"),
        break_glass_passphrase=Path("passphrase"),
    )


def test_what_may_not_be_is_named() -> None:
    with pytest.raises(InvalidError, match=r"QUARTERDECK_LOG_LEVEL: found 'LOUD', expected one of DEBUG, INFO"):
        read_settings({"QUARTERDECK_LOG_LEVEL": "loud"})
