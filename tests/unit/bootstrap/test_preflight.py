"""What is in the way before anything starts is named, with the option that goes around it."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from controlplane.adapters.backup.keyfiles import generate_break_glass
from controlplane.adapters.instance import SITE_VARIABLE
from controlplane.bootstrap.options import ServeOptions
from controlplane.bootstrap.preflight import check_lent_key, check_port, check_ports_apart, check_state_dir
from controlplane.kernel.errors import ConflictError, DeniedError, InvalidError, TerminalError


def test_a_free_port_is_fine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    check_port("127.0.0.1", port, what="gateway", option="--port")


def test_a_taken_port_names_the_port_who_has_it_and_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConflictError) as refused:
            check_port("127.0.0.1", port, what="gateway", option="--port", mark="nobody's")
    assert f"port {port} on 127.0.0.1, for the gateway, is taken by " in str(refused.value)
    assert f"(pid {os.getpid()})" in str(refused.value)
    assert "choose another with --port" in str(refused.value)


def test_every_address_is_taken_when_one_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ConflictError, match="is taken by"):
        check_port("0.0.0.0", listener.getsockname()[1], what="gateway", option="--port")


def test_a_gateway_of_ours_may_have_the_port() -> None:
    """The process with the listener has no such mark; its own child, which inherited the listener, has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        child = subprocess.Popen(["/bin/sleep", "30"], env={SITE_VARIABLE: "the-mark"}, pass_fds=[listener.fileno()])
    try:
        check_port("127.0.0.1", port, what="gateway", option="--port", mark="the-mark")
        with pytest.raises(ConflictError, match=rf"sleep \(pid {child.pid}\)"):
            check_port("127.0.0.1", port, what="gateway", option="--port", mark="another")
    finally:
        child.kill()
        child.wait()


def test_an_address_that_this_machine_does_not_have() -> None:
    with pytest.raises(ConflictError, match=r"the gateway cannot listen on 192\.0\.2\.7:8000: .*; choose with --port"):
        check_port("192.0.2.7", 8000, what="gateway", option="--port")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::"])
def test_gateway_and_control_plane_cannot_share_a_port(host: str) -> None:
    with pytest.raises(InvalidError, match=r"--control-port: found 8080, the gateway's port too \(--port") as refused:
        check_ports_apart(host, 8080, 8080)
    assert "choose another with --port or with --control-port" in str(refused.value)
    check_ports_apart(host, 8000, 8080)


def test_on_another_address_the_gateway_may_have_the_same_port() -> None:
    check_ports_apart("192.0.2.7", 8080, 8080)


def test_a_name_that_cannot_be_resolved_is_left_to_the_gateway() -> None:
    check_port("no-such-host.invalid", 8000, what="gateway", option="--port")


def test_a_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    check_state_dir(folder)
    assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (tmp_path / "file" / "state", tmp_path / "file"):
        with pytest.raises(InvalidError, match=r"--state-dir: found .*, expected a folder that this user may write"):
            check_state_dir(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; run as another user")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidError, match="Permission denied"):
        check_state_dir(tmp_path)


def lending(key: Path | None, passphrase: Path | None) -> ServeOptions:
    return ServeOptions(
        state_dir=Path("state"),
        site_file=None,
        gateway_port=None,
        control_port=8080,
        load=False,
        log_level="INFO",
        instance=None,
        break_glass=key,
        break_glass_passphrase=passphrase,
    )


def test_a_break_glass_key_that_is_lent_opens_before_anything_starts(tmp_path: Path) -> None:
    key, words = tmp_path / "private.key", tmp_path / "passphrase"
    generate_break_glass(key, tmp_path / "public.key", passphrase=b"correct horse", log_n=10)
    check_lent_key(lending(None, None))
    with pytest.raises(DeniedError, match=r"none was given; .* name that in QUARTERDECK_BREAK_GLASS_PASSPHRASE_FILE"):
        check_lent_key(lending(key, None))
    words.write_text("correct horse\n", encoding="utf-8")
    words.chmod(0o644)
    with pytest.raises(TerminalError, match=rf"run `chmod 600 {words}`"):
        check_lent_key(lending(key, words))
    words.chmod(0o600)
    check_lent_key(lending(key, words))
    words.write_text("wrong horse\n", encoding="utf-8")
    with pytest.raises(DeniedError, match=r"private\.key: the passphrase is wrong"):
        check_lent_key(lending(key, words))


def test_a_passphrase_without_the_key_that_it_is_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"QUARTERDECK_BREAK_GLASS_PASSPHRASE_FILE: found .*, and no key"):
        check_lent_key(lending(None, tmp_path / "passphrase"))
