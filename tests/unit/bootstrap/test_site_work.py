"""Which site an instance works with: the file's, the one applied last, the demo; and what another instance applied."""

from pathlib import Path

import pytest

from controlplane.bootstrap.site_work import SiteWork, demo_site_file
from controlplane.kernel.errors import InvalidError
from controlplane.testing.effects import FakeClock
from controlplane.testing.memory_store import MemoryStore

SMALL = """\
site: {name: small}
node_pools: [{name: b200, gpu: b200, nodes: 1, gpus_per_node: 8, simulated: true}]
engines: [{name: default, kind: simulated}]
deployments: [{name: chat, model: llama-3.1-8b, replicas: {min: 1, max: 2}}]
gateway: {port: 8100}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.yaml"
    text = SMALL.replace("model: llama-3.1-8b", "model: lama-3.1-8b").replace("port: 8100", "port: no")
    path.write_text(text, encoding="utf-8")
    return path


def work(store: MemoryStore, *, port: int | None = None) -> SiteWork:
    return SiteWork(store=store, clock=FakeClock(), gateway_port=port)


async def test_without_a_file_the_demo_then_what_was_applied_last(small: Path) -> None:
    store = MemoryStore()
    assert (await work(store).begin(None)).site.name == "demo"
    assert (await work(store).begin(small)).site.name == "small"
    assert (await work(store).begin(None)).site.name == "small"


async def test_looking_applies_nothing(small: Path) -> None:
    store = MemoryStore()
    assert (await work(store).look(small)).name == "small"
    async with store.transaction() as tx:
        assert await tx.site() is None


async def test_a_port_given_at_start_is_this_instances_own(small: Path) -> None:
    store = MemoryStore()
    mine = work(store, port=9000)
    await mine.begin(small)
    spec = await mine.gateway_spec()
    assert spec is not None
    assert spec.port == 9000
    assert (await work(store).begin(None)).site.gateway.port == 8100


async def test_a_broken_file_is_refused_with_every_place(broken: Path) -> None:
    store = MemoryStore()
    with pytest.raises(InvalidError) as refused:
        await work(store).begin(broken)
    places = [(problem.file, problem.line > 0, problem.column > 0) for problem in refused.value.problems]
    assert places == [(str(broken), True, True)] * 2
    async with store.transaction() as tx:
        assert await tx.site() is None


async def test_a_dry_run_changes_nothing_and_says_what_it_would(small: Path) -> None:
    store = MemoryStore()
    mine = work(store)
    await mine.begin(small)
    answer = await mine.apply_document(SMALL.replace("max: 2", "max: 4"), True)
    assert answer.changed
    assert any("2 -> 4" in sentence for sentence in answer.sentences)
    async with store.transaction() as tx:
        assert (await tx.deployments())[0].spec.replicas_max == 2
    await mine.apply_document(SMALL.replace("max: 2", "max: 4"), False)
    async with store.transaction() as tx:
        assert (await tx.deployments())[0].spec.replicas_max == 4


async def test_what_another_instance_applied_is_taken_over(small: Path) -> None:
    store = MemoryStore()
    mine, other = work(store), work(store)
    assert await mine.follow() == "no site is applied"
    await mine.begin(small)
    assert await mine.follow() == "site small, generation 1"
    await other.begin(None)
    await other.apply_document(SMALL.replace("port: 8100", "port: 8200"), False)
    assert "took over site small, generation 2" in await mine.follow()
    site = mine.site()
    assert site is not None
    assert site.gateway.port == 8200
    assert await mine.follow() == "site small, generation 2"


def test_the_demo_is_there() -> None:
    assert demo_site_file().parent.name == "demo"
