"""A control plane that starts with another site file asks before it takes away what serves; and it comes up."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from controlplane.bootstrap.site_work import Begun, SiteWork
from controlplane.cli.up import _print_refused
from controlplane.domain.event import NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.recovery import DrillPhase, Inventory, Override, RiskyAction
from controlplane.domain.store import Transaction
from controlplane.kernel.errors import ConflictError, InvalidError
from controlplane.testing.builders import make_replica
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.memory_store import MemoryStore
from controlplane.testing.recovery_points import BUCKET, DATASET, DAY, make_drill, make_point

SITE: Final = """\
site: {name: small}
node_pools: [{name: b200, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}]
engines: [{name: default, kind: simulated}]
deployments:
  - {name: chat, model: llama-3.1-8b, replicas: {min: 1, max: 2}, max_num_seqs: 64}
  - {name: old, model: llama-3.1-8b, replicas: {min: 1, max: 2}}
gateway: {port: 8100}
recovery:
  own_store: false
  buckets: [{name: main, embedded: true}]
  datasets: [{name: orders, kind: files, path: /srv, rpo: 1h, rto: 1h}]
  drills: [{name: orders-daily, dataset: orders}]
"""
RESTARTS: Final = SITE.replace("max_num_seqs: 64", "max_num_seqs: 32").replace("8100", "8200")
REMOVES: Final = SITE.replace("  - {name: old, model: llama-3.1-8b, replicas: {min: 1, max: 2}}\n", "")
GROWS: Final = SITE.replace("max: 2}, max_num_seqs", "max: 3}, max_num_seqs")
WITHOUT: Final = RESTARTS.partition("recovery:")[0]


class Plane:
    """A store in which a site was applied and serves, while its dataset's last drill is red."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.clock = FakeClock()

    def work(self) -> SiteWork:
        """Of a control plane that starts now."""
        return SiteWork(store=self.store, clock=self.clock, gateway_port=None)

    def file(self, text: str) -> Path:
        path = self.folder / "next.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    async def begin(self, text: str, *, strict: bool = False) -> Begun:
        return await self.work().begin(self.file(text), strict=strict)

    async def serve(self, *deployments: str) -> None:
        await self.begin(SITE)
        async with self.store.transaction() as tx:
            await self._recovery(tx)
            for number, row in enumerate(await tx.deployments()):
                if row.spec.name in deployments:
                    replica = make_replica(row.spec.name, node="b200-0", gpus=(number,), port=9000 + number)
                    await tx.put_replica(replica)

    async def _recovery(self, tx: Transaction) -> None:
        point = make_point(START)
        seen = Inventory(dataset=DATASET, bucket=BUCKET, observed_at=START, points=(point,), since=START - 9 * DAY)
        await tx.put_inventory(seen)
        await tx.put_drill(replace(make_drill(START), phase=DrillPhase.FAILED, failure="rows: 3, not 4"))

    async def seqs(self) -> int | None:
        async with self.store.transaction() as tx:
            return next(row.spec.max_num_seqs for row in await tx.deployments() if row.spec.name == "chat")

    async def refusals(self) -> list[NewEvent]:
        async with self.store.transaction() as tx:
            return [one.event for one in await tx.events(limit=1000) if one.event.reason is Reason.SITE_REFUSED]


@pytest.fixture
async def plane(tmp_path: Path) -> Plane:
    plane = Plane(tmp_path)
    await plane.serve("chat", "old")
    return plane


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (RESTARTS, "replicas of chat would be replaced, and recovery"),
        (REMOVES, "replicas of old would be removed, and recovery"),
        (WITHOUT, "replicas of chat would be replaced, and recovery"),
        (
            REMOVES.replace("seqs: 64", "seqs: 32"),
            "replicas of chat would be replaced and replicas of old would be removed, and recovery",
        ),
    ],
    ids=["replaced", "removed", "and without the dataset", "both"],
)
async def test_it_comes_up_with_what_was_there_and_says_so(plane: Plane, text: str, what: str) -> None:
    work = plane.work()
    begun = await work.begin(plane.file(text))
    assert what in begun.refused
    assert "rows: 3, not 4" in begun.refused
    assert f"`quarterdeck site apply {plane.folder / 'next.yaml'}`" in begun.refused
    assert (begun.site.name, begun.site.gateway.port) == ("small", 8100)
    assert begun.site.recovery.dataset("orders") is not None
    assert await plane.seqs() == 64
    assert work.site() == begun.site
    assert await work.follow() == "site small, generation 1", "it is at home in what is stored"
    (event,) = await plane.refusals()
    assert event.sentence == begun.refused


async def test_strict_does_not_start_and_writes_nothing(plane: Plane) -> None:
    with pytest.raises(ConflictError, match="is not applied: replicas of chat would be replaced"):
        await plane.begin(RESTARTS, strict=True)
    assert await plane.refusals() == []
    assert await plane.seqs() == 64


async def test_afterwards_it_is_applied_as_always(plane: Plane) -> None:
    work = plane.work()
    await work.begin(plane.file(RESTARTS))
    with pytest.raises(ConflictError, match="quarterdeck recovery override deploy"):
        await work.apply_document(RESTARTS, False)
    async with plane.store.transaction() as tx:
        await tx.append_override(
            Override(action=RiskyAction.DEPLOY, by="ann", reason="rollback", at=START, until=START + DAY)
        )
    assert (await work.apply_document(RESTARTS, False)).changed
    assert await plane.seqs() == 32


async def test_an_override_counts_at_the_start_too(plane: Plane) -> None:
    async with plane.store.transaction() as tx:
        await tx.append_override(
            Override(action=RiskyAction.DEPLOY, by="ann", reason="rollback", at=START, until=START + DAY)
        )
    assert (await plane.begin(RESTARTS)).refused == ""
    assert await plane.seqs() == 32


@pytest.mark.parametrize("text", [SITE, GROWS, SITE.replace("8100", "8200")], ids=["same", "grows", "gateway"])
async def test_what_takes_nothing_away_is_applied(plane: Plane, text: str) -> None:
    assert (await plane.begin(text, strict=True)).refused == ""
    assert await plane.refusals() == []


@pytest.mark.parametrize(("serving", "refused"), [((), False), (("old",), False), (("chat",), True)])
async def test_what_does_not_serve_is_not_taken_away(
    tmp_path: Path, serving: tuple[str, ...], *, refused: bool
) -> None:
    """After `quarterdeck down` a file may say what it likes, although the copies grew old meanwhile."""
    plane = Plane(tmp_path)
    await plane.serve(*serving)
    assert bool((await plane.begin(RESTARTS)).refused) is refused
    assert await plane.seqs() == (64 if refused else 32)


async def test_a_stored_site_that_this_version_cannot_read_is_replaced(plane: Plane) -> None:
    async with plane.store.transaction() as tx:
        await tx.put_site(name="small", document="site: {nam: small}", digest="0", now=START)
    assert (await plane.begin(RESTARTS)).refused == ""
    assert await plane.seqs() == 32


async def test_a_broken_file_stops_the_start_as_before(plane: Plane) -> None:
    with pytest.raises(InvalidError):
        await plane.begin(RESTARTS.replace("llama-3.1-8b", "lama-3.1-8b"))


async def test_removing_what_serves_by_the_api_asks_too(plane: Plane) -> None:
    work = plane.work()
    await work.begin(None)
    with pytest.raises(ConflictError, match="replicas of old would be removed"):
        await work.apply_document(REMOVES, False)
    answer = await work.apply_document(REMOVES, True)
    assert "replicas of old would be removed" in answer.sentences[-1]


def test_a_person_reads_it_word_for_word(capsys: pytest.CaptureFixture[str]) -> None:
    _print_refused("")
    assert capsys.readouterr().out == ""
    _print_refused("next.yaml is not applied: [red] is no colour here")
    assert capsys.readouterr().out == "refused: next.yaml is not applied: [red] is no colour here\n"
