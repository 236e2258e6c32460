"""`python -m controlplane.adapters.activator CONFIG.json`: started by the gateway driver, outlives it."""

import logging
import sys
from pathlib import Path
from typing import Final

import uvloop
from pydantic import ValidationError

from controlplane.adapters.activator.config import ActivatorConfig
from controlplane.adapters.activator.server import serve

_USAGE: Final = 2


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and its one argument
        sys.stderr.write("usage: python -m controlplane.adapters.activator CONFIG.json\n")
        return _USAGE
    file = Path(sys.argv[1])
    try:
        config = ActivatorConfig.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        sys.stderr.write(f"{file}: {error}\n")
        return _USAGE
    uvloop.run(serve(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
