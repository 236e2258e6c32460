"""The environment, read in one place."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.kernel.errors import InvalidError, Problem

STATE_DIR_DEFAULT: Final = Path(".quarterdeck")
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of `QUARTERDECK_STATE_DIR`, `..._LOG_LEVEL`, `..._BREAK_GLASS_KEY` and `..._BREAK_GLASS_PASSPHRASE_FILE`.

    Options on the command line win.
    """

    state_dir: Path = STATE_DIR_DEFAULT
    log_level: str = "INFO"
    break_glass: Path | None = None
    """File of the offline key, for the time of a drill that may use no other."""
    break_glass_passphrase: Path | None = None
    """File with its passphrase: a variable that held it would be seen by whoever may look at the process."""


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """InvalidError when a variable holds what it may not."""
    source = os.environ if environment is None else environment
    level = source.get("QUARTERDECK_LOG_LEVEL", "INFO").upper()
    if level not in LOG_LEVELS:
        raise InvalidError(
            [Problem(field="QUARTERDECK_LOG_LEVEL", found=repr(level), expected=f"one of {', '.join(LOG_LEVELS)}")]
        )
    return Settings(
        state_dir=Path(source.get("QUARTERDECK_STATE_DIR") or STATE_DIR_DEFAULT),
        log_level=level,
        break_glass=_path(source.get("QUARTERDECK_BREAK_GLASS_KEY")),
        break_glass_passphrase=_path(source.get("QUARTERDECK_BREAK_GLASS_PASSPHRASE_FILE")),
    )


def _path(value: str | None) -> Path | None:
    """Set to nothing is not set."""
    return Path(value) if value else None
