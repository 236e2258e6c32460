"""Where files and sockets are."""

import os
import shutil
from pathlib import Path

import pytest

from controlplane.adapters.haproxy.places import (
    SOCKET_PATH_BYTES_MAX,
    GatewayPaths,
    metrics_port,
    start_lock,
    write_atomically,
)
from controlplane.kernel.errors import RetryableError


def test_in_the_state_directory_when_it_fits() -> None:
    paths = GatewayPaths.under(Path("/srv/state"))
    assert (paths.run, paths.logs) == (Path("/srv/state/gateway"), Path("/srv/state/gateway"))


@pytest.mark.parametrize("state_dir", ["/srv/" + "x" * 80, "/srv/with space", "/srv/#1", "/srv/größe"])
def test_beside_it_when_sockets_or_haproxy_could_not_cope(state_dir: str) -> None:
    paths = GatewayPaths.under(Path(state_dir))
    assert paths.logs == Path(state_dir) / "gateway"
    assert paths.run != paths.logs
    assert len(os.fsencode(paths.activator_control)) <= SOCKET_PATH_BYTES_MAX
    assert paths == GatewayPaths.under(Path(state_dir)), "found again"
    assert paths.run != GatewayPaths.under(Path(state_dir + "-other")).run


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    paths = GatewayPaths.under(tmp_path / ("long" * 30))
    paths.create()
    try:
        write_atomically(paths.config, "text")
        assert paths.run.stat().st_mode & 0o777 == 0o700
        assert paths.config.stat().st_mode & 0o777 == 0o600
        assert paths.config.read_text() == "text"
    finally:
        shutil.rmtree(paths.run)


def test_the_metrics_port_is_kept(tmp_path: Path) -> None:
    paths = GatewayPaths(logs=tmp_path, run=tmp_path)
    port = metrics_port(paths)
    assert metrics_port(paths) == port
    paths.metrics_port_file.write_text("garbage")
    assert metrics_port(paths) > 0


def test_one_starts_at_a_time(tmp_path: Path) -> None:
    paths = GatewayPaths(logs=tmp_path, run=tmp_path)
    with start_lock(paths), pytest.raises(RetryableError, match="another control plane"), start_lock(paths):
        pass
    with start_lock(paths):
        pass
