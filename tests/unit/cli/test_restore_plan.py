"""What a restore by hand would take, and where it may not go."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from controlplane.adapters.backup.vault import Vault, VaultPlace
from controlplane.cli.restore_plan import RestorePlan, chain_for, check_moment, check_target
from controlplane.cli.vault_access import OpenVault
from controlplane.domain.dataset import BucketSpec, DatasetKind, KeyPurpose, RecoverySpec, StorageClass, WalMode
from controlplane.kernel.errors import ConflictError, InvalidError, NotFoundError, QuarterdeckError
from controlplane.testing.effects import START
from controlplane.testing.recovery_points import BUCKET, make_dataset, make_point

HOUR: Final = timedelta(hours=1)
PLACE: Final = BucketSpec(name=BUCKET, bucket="acme")
ORDERS: Final = replace(make_dataset(), wal=WalMode.STREAMING)
FULL: Final = make_point(START)
INCREMENT: Final = make_point(START + HOUR, parent=FULL.point)
BROKEN: Final = make_point(START + 2 * HOUR, problems=("a pack is not there",))
POINTS: Final = (FULL, INCREMENT, BROKEN)


@pytest.mark.parametrize(
    ("point", "moment", "links"),
    [
        (None, None, [FULL, INCREMENT]),
        (None, START + 2 * HOUR, [FULL, INCREMENT]),
        (None, START + HOUR / 2, [FULL]),
        (FULL.point, None, [FULL]),
        (FULL.point, START + 3 * HOUR, [FULL]),
    ],
)
def test_the_newest_whole_one_of_the_moment_or_before(
    point: str | None, moment: datetime | None, links: list[object]
) -> None:
    assert list(chain_for(POINTS, ORDERS, PLACE, point, moment).links) == links


@pytest.mark.parametrize(
    ("point", "moment", "error", "said"),
    [
        ("2026", None, NotFoundError, "there is no recovery point '2026'; there are 2026"),
        (
            None,
            START - HOUR,
            NotFoundError,
            "the oldest copy of orders in main is of 2026-01-05 08:00:00",
        ),
        (INCREMENT.point, START, InvalidError, "expected 2026-01-05 09:00:00 UTC, of which"),
        (BROKEN.point, None, ConflictError, "a pack is not there; choose another recovery point"),
    ],
)
def test_what_cannot_be_had(
    point: str | None, moment: datetime | None, error: type[QuarterdeckError], said: str
) -> None:
    with pytest.raises(error, match=said):
        chain_for(POINTS, ORDERS, PLACE, point, moment)


def test_an_empty_bucket_says_so() -> None:
    with pytest.raises(NotFoundError, match="there is no recovery point yet"):
        chain_for((), ORDERS, PLACE, None, START)


def test_a_moment_that_has_not_come() -> None:
    check_moment(START, START)
    check_moment(None, START)
    with pytest.raises(InvalidError, match="a moment that has passed; now it is 2026-01-05 08:00:00 UTC"):
        check_moment(START + HOUR, START)


@pytest.fixture
def opened(tmp_path: Path) -> OpenVault:
    state_dir, live = tmp_path / "state", tmp_path / "srv" / "files"
    state_dir.mkdir()
    live.mkdir(parents=True)
    files = replace(ORDERS, kind=DatasetKind.FILES, path=str(live))
    place = VaultPlace(state_dir=state_dir, site_mark="m", secret=str, now=lambda: datetime.now(UTC))
    return OpenVault(
        vault=Vault(place), declared=RecoverySpec(buckets=(PLACE,), datasets=(files,)), site="lab", state_dir=state_dir
    )


def test_a_folder_of_its_own_will_do_and_is_not_made(opened: OpenVault, tmp_path: Path) -> None:
    check_target(opened, tmp_path / "back")
    assert not (tmp_path / "back").exists(), "a plan makes nothing"
    (tmp_path / "empty").mkdir()
    check_target(opened, tmp_path / "empty")
    check_target(opened, tmp_path / "srv" / "files-back")


@pytest.mark.parametrize(
    ("into", "said"),
    [
        ("state", "is inside of the control plane's own state folder; name an empty folder elsewhere"),
        ("state/new", "is inside of the control plane's own state folder"),
        ("back/../state/new", "is inside of the control plane's own state folder"),
        ("srv/files/back", "is inside of the live folder of orders"),
        ("link/back", "is inside of the live folder of orders"),
        ("link", "is not a folder"),
        ("srv", r"is not empty \(it holds files\); a restore overwrites nothing"),
        ("file", "is not a folder; name an empty folder, or one that is not there yet"),
    ],
)
def test_nothing_that_lives_is_a_target(opened: OpenVault, tmp_path: Path, into: str, said: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "srv" / "files")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "back").mkdir()
    with pytest.raises(ConflictError, match=said):
        check_target(opened, tmp_path / into)


def test_the_plan_as_people_and_as_scripts_read_it() -> None:
    cold = replace(FULL, storage_classes=frozenset({StorageClass.GLACIER}))
    plan = RestorePlan(
        dataset=ORDERS,
        bucket=PLACE,
        chain=chain_for((cold,), ORDERS, PLACE, None, None),
        moment=START + HOUR,
        into=Path("back"),
        only=KeyPurpose.BREAK_GLASS,
    )
    text = "\n".join(plan.lines())
    assert "copy    20260105T080000.000Z-0000 of 2026-01-05 08:00:00 UTC, 2.0 GiB (stored as 1.0 GiB)" in text
    assert "log     from there on, up to 2026-01-05 09:00:00 UTC" in text
    assert "key     the break-glass key alone" in text
    assert "parts lie in an archive class" in text
    found = plan.json()
    assert (found["dataset"], found["key"], found["archived"], found["to_time"]) == (
        "orders", "break-glass", True, "2026-01-05T09:00:00+00:00"
    )  # fmt: skip
    assert found["rto_forecast_s"] == plan.forecast.total_s
