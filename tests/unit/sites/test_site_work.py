"""A document goes into a store as a whole or not at all; a new run compares with what an earlier one applied."""

from pathlib import Path

import pytest

from controlplane.bootstrap.site_work import SiteWork
from controlplane.domain.site import Site
from controlplane.domain.store import AppliedSite, Store
from controlplane.kernel.errors import InvalidError
from controlplane.testing.effects import FakeClock
from controlplane.testing.memory_store import MemoryStore

TEXT = """\
site: {name: lab}
node_pools: [{name: b200, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}]
engines: [{name: sim, kind: simulated}]
deployments: [{name: chat, model: llama-3.1-8b, replicas: {min: 1, max: 2}}]
"""
MOVED = TEXT + "gateway: {port: 8001}\n"
MOVE = "gateway.port: 8000 -> 8001"


def work(store: Store, *, gateway_port: int | None = None) -> SiteWork:
    return SiteWork(store=store, clock=FakeClock(), gateway_port=gateway_port)


async def applied(store: Store) -> AppliedSite | None:
    async with store.transaction() as tx:
        return await tx.site()


async def begun(store: Store, file: Path, *, gateway_port: int | None = None) -> Site:
    return (await work(store, gateway_port=gateway_port).begin(file)).site


def written(folder: Path, text: str) -> Path:
    file = folder / "site.yaml"
    file.write_text(text, encoding="utf-8")
    return file


async def test_apply_then_nothing_then_a_section() -> None:
    store = MemoryStore()
    one = work(store)
    assert len((await one.apply_document(TEXT, False)).sentences) == 2
    assert not (await one.apply_document(TEXT, False)).changed
    assert (await one.apply_document(MOVED, True)).sentences == (MOVE,)
    site = await applied(store)
    assert site is not None
    assert site.document == TEXT, "a dry run writes nothing"
    assert (await one.apply_document(MOVED, False)).sentences == (MOVE,)


async def test_a_broken_document_changes_nothing() -> None:
    store = MemoryStore()
    one = work(store)
    await one.apply_document(TEXT, False)
    with pytest.raises(InvalidError, match=r"site\.yaml:4:35"):
        await one.apply_document(TEXT.replace("llama-3.1-8b", "no-such-model"), False)
    site = await applied(store)
    assert site is not None
    assert site.document == TEXT


async def test_a_new_run_tells_what_the_file_changed_since_the_last_one(tmp_path: Path) -> None:
    store = MemoryStore()
    await begun(store, written(tmp_path, TEXT))
    await begun(store, written(tmp_path, MOVED))
    async with store.transaction() as tx:
        (newest,) = await tx.events(kind="site", limit=1, newest_first=True)
    assert newest.event.sentence.endswith(MOVE)


async def test_a_port_of_this_instance_alone_is_no_change_of_the_site(tmp_path: Path) -> None:
    store = MemoryStore()
    await begun(store, written(tmp_path, TEXT))
    site = await begun(store, written(tmp_path, TEXT), gateway_port=9000)
    assert site.gateway.port == 9000
    found = await applied(store)
    assert found is not None
    assert (found.document, found.generation) == (TEXT, 1)


async def test_a_changed_port_is_told_together_with_the_one_that_is_kept(tmp_path: Path) -> None:
    store = MemoryStore()
    one = work(store, gateway_port=28000)
    await one.begin(written(tmp_path, TEXT))
    told = f"{MOVE} (this control plane keeps 28000, from --port)"
    assert (await one.apply_document(MOVED, True)).sentences == (told,)
    assert (await one.apply_document(MOVED, False)).sentences == (told,)
    assert (await one.apply_document(MOVED, False)).sentences == ()
    site = one.site()
    assert site is not None
    assert site.gateway.port == 28000


async def test_a_changed_comment_is_told_as_what_it_is() -> None:
    store = MemoryStore()
    one = work(store)
    await one.apply_document(TEXT, False)
    answer = await one.apply_document(TEXT + "# for the night\n", True)
    assert answer.changed
    assert answer.sentences == ("only the file's text changes: nothing that runs does",)


async def test_without_a_file_the_site_applied_last_goes_on(tmp_path: Path) -> None:
    store = MemoryStore()
    await begun(store, written(tmp_path, MOVED))
    assert (await work(store).begin(None)).site.gateway.port == 8001


async def test_another_instances_site_is_taken_over() -> None:
    store = MemoryStore()
    one, two = work(store), work(store)
    assert await two.follow() == "no site is applied"
    await one.apply_document(MOVED, False)
    assert "took over site lab, generation 1" in await two.follow()
    assert two.site() == one.site()
    assert await two.follow() == "site lab, generation 1"
