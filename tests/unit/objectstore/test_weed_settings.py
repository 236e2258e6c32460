"""The embedded store's secrets and ports: made once, private, and kept."""

import json
import stat
from pathlib import Path

import pytest

from controlplane.adapters.objectstore.weed import Places, Settings
from controlplane.kernel.errors import TerminalError


def test_settings_are_kept_for_this_user_only(tmp_path: Path) -> None:
    places = Places(tmp_path / "store")
    places.create()
    settings = Settings.fresh()

    places.keep(settings)

    assert places.settings() == settings
    for name in ("settings.json", "identities.json"):
        assert stat.S_IMODE((tmp_path / "store" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


def test_nothing_is_known_before_the_first_start(tmp_path: Path) -> None:
    assert Places(tmp_path).settings() is None


def test_every_store_has_secrets_and_ports_of_its_own() -> None:
    one, other = Settings.fresh(), Settings.fresh()

    assert len(set(one.ports.model_dump().values())) == 8
    assert one.secret_key != other.secret_key
    assert len({one.secret_key, one.volume_token, one.filer_token, one.access_key}) == 4


def test_other_ports_leave_the_secrets() -> None:
    settings = Settings.fresh()

    moved = settings.moved()

    assert moved.ports != settings.ports
    assert (moved.access_key, moved.secret_key) == (settings.access_key, settings.secret_key)


def test_damaged_settings_are_not_replaced_in_silence(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"ports": 1}', encoding="utf-8")

    with pytest.raises(TerminalError, match=r"settings\.json"):
        Places(tmp_path).settings()


def test_no_secret_is_on_the_command_line(tmp_path: Path) -> None:
    places, settings = Places(tmp_path), Settings.fresh()
    places.keep(settings)

    said = " ".join(places.command(Path("/bin/weed"), settings))

    for secret in (settings.secret_key, settings.access_key, settings.volume_token, settings.filer_token):
        assert secret not in said
    key = json.loads((tmp_path / "identities.json").read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
    assert key == {"accessKey": settings.access_key, "secretKey": settings.secret_key}


def test_it_reports_nothing_to_anybody_and_makes_no_bucket_by_itself(tmp_path: Path) -> None:
    said = Places(tmp_path).command(Path("/bin/weed"), Settings.fresh())

    assert "-master.telemetry=false" in said
    assert "-s3.autoCreateBucket=false" in said
    assert "-ip.bind=127.0.0.1" in said


def test_its_environment_is_made_for_it(tmp_path: Path) -> None:
    environment = Places(tmp_path).environment(Settings.fresh())

    assert "AWS_ACCESS_KEY_ID" not in environment
    assert environment["HOME"] == str(tmp_path)
