"""`python -m controlplane` and the console script."""

from controlplane.cli.main import app


def main() -> None:
    app()


if __name__ == "__main__":
    main()
