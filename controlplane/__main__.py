"""`python -m controlplane` and the console script."""

import sys
from typing import Final

_INTERRUPTED: Final = 130
"""As shells report a program that SIGINT ended."""


def main() -> None:
    try:
        from controlplane.cli.main import app  # noqa: PLC0415  # a second in which Ctrl-C should print no traceback
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    app()


if __name__ == "__main__":
    main()
