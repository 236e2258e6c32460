"""Logs: everything with its keys in the file, one line of what went wrong on the terminal."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.bootstrap.logs import write_logs_to


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_the_file_has_keys_and_traceback_and_the_terminal_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "control-plane.log"
    write_logs_to(path, "INFO")
    log = logging.getLogger("controlplane.test")
    log.debug("not kept")
    log.info("replica launched", extra={"replica": "qd-chat-0", "gpus": [0]})
    try:
        int("no number")
    except ValueError:
        log.exception("a loop failed", extra={"loop": "replicas"})
    kept = path.read_text(encoding="utf-8")
    first, second, *rest = kept.splitlines()
    assert first.endswith("Z INFO controlplane.test replica launched replica='qd-chat-0' gpus=[0]")
    assert second.endswith("ERROR controlplane.test a loop failed loop='replicas'")
    assert rest[-1] == "ValueError: invalid literal for int() with base 10: 'no number'"
    assert capsys.readouterr().err == f"ERROR: a loop failed; see {path}\n"
