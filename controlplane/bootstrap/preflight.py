"""What must hold before anything is started: a folder that can be written, ports that are free."""

import errno
import os
import socket
from pathlib import Path
from typing import Final

import psutil

from controlplane.bootstrap.leftovers import marked_processes
from controlplane.bootstrap.options import ServeOptions
from controlplane.kernel.errors import ConflictError, InvalidError, Problem

_FOLDER_MODE: Final = 0o700
_HOSTS_WITH_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "0.0.0.0", "::", "*"})  # noqa: S104  # compared only


def check_state_dir(folder: Path) -> None:
    """Make it; InvalidError when it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
        writable, why = os.access(folder, os.W_OK | os.X_OK), os.strerror(errno.EACCES)
    except OSError as error:
        writable, why = False, error.strerror or str(error)
    if not writable:
        raise InvalidError(
            [
                Problem(
                    field="--state-dir",
                    found=f"{folder} ({why})",
                    expected="a folder that this user may write",
                    hint="name another with --state-dir, or with QUARTERDECK_STATE_DIR",
                )
            ]
        )


def check_lent_key(options: ServeOptions) -> None:
    """The offline key, where it is lent, opens: at once, and not when a drill needs it. Errors as of `keyfiles`."""
    if options.break_glass is None:
        if options.break_glass_passphrase is not None:
            raise InvalidError(
                [
                    Problem(
                        field="QUARTERDECK_BREAK_GLASS_PASSPHRASE_FILE",
                        found=f"{options.break_glass_passphrase}, and no key that it is for",
                        expected="the key's own file as well, in QUARTERDECK_BREAK_GLASS_KEY",
                        hint="unset both when the key is not to be lent",
                    )
                ]
            )
        return
    from controlplane.adapters.backup.keyfiles import (  # noqa: PLC0415 - cryptography, which no other start loads here
        read_break_glass_private,
        read_passphrase,
    )

    words = options.break_glass_passphrase
    read_break_glass_private(options.break_glass, None if words is None else lambda: read_passphrase(words))


def check_port(host: str, port: int, *, what: str, option: str, mark: str | None = None) -> None:
    """ConflictError when something else listens there, with its name; `mark`: processes that may, since they are ours.

    A host that cannot be resolved here is left to whoever listens: it says more of it.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        return
    for family, kind, protocol, _, address in addresses:
        error = _refusal(family, kind, protocol, address)
        if error is None:
            continue
        if error.errno != errno.EADDRINUSE:
            raise ConflictError(f"the {what} cannot listen on {host}:{port}: {error.strerror}; choose with {option}")
        holder = _listener(port)
        if holder is not None and mark is not None and holder in marked_processes(mark):
            continue
        raise ConflictError(
            f"port {port} on {host}, for the {what}, is taken by {_described(holder)}; end that, or choose another "
            f"with {option}"
        )


def check_ports_apart(host: str, gateway_port: int, control_port: int) -> None:
    """InvalidError where the gateway, on `host`, would need the control plane's own port."""
    if gateway_port != control_port or host not in _HOSTS_WITH_LOOPBACK:
        return
    raise InvalidError(
        [
            Problem(
                field="--control-port",
                found=f"{control_port}, the gateway's port too (--port, or `gateway.port` of the site)",
                expected="another port for each of them",
                hint="choose another with --port or with --control-port",
            )
        ]
    )


def _refusal(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> OSError | None:
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return error
    return None


def _listener(port: int) -> psutil.Process | None:
    """Who listens there; None where this user may not see it."""
    try:
        for found in psutil.net_connections(kind="tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid:
                return psutil.Process(found.pid)
    except psutil.Error:
        return None
    return None


def _described(process: psutil.Process | None) -> str:
    if process is None:
        return "a program that this user cannot see, or that is just ending"
    try:
        return f"{process.name()} (pid {process.pid})"
    except psutil.Error:
        return f"pid {process.pid}"
