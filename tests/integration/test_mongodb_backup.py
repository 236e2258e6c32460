"""A real MongoDB, where its programs are on this machine."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from controlplane.adapters.backup.mongodb import MongodbDataset
from controlplane.adapters.backup.mongodb_scratch import INSTALL
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import Verdict
from controlplane.recovery.ports import RestoreRequest, VerifyRequest
from controlplane.testing.backups import MemorySink, RecordingWatch
from controlplane.testing.effects import START

PROGRAMS = ("mongod", "mongodump", "mongorestore", "mongosh")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}; install {INSTALL}")
    data = tmp_path / "live"
    data.mkdir()
    place = data / "s"
    argv = ["mongod", f"--dbpath={data}", f"--bind_ip={place}", f"--unixSocketPrefix={data}", f"--logpath={data}/log"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not place.exists() and time.monotonic() < until:
            time.sleep(0.1)
        yield f"mongodb://{quote(str(place), safe='')}"
    finally:
        process.kill()
        process.wait()


def test_what_comes_back_is_what_was_there(url: str, tmp_path: Path) -> None:
    fill = "db.getSiblingDB('shop').orders.insertMany([...Array(1000).keys()].map(i => ({_id: i, note: 'n' + i})))"
    subprocess.run(["mongosh", url, "--quiet", "--eval", fill], check=True, capture_output=True, timeout=60)
    adapter = MongodbDataset(url=url, now=lambda: START)
    sink = MemorySink()
    source = sink.source(adapter.snapshot(sink, parent=None, watch=RecordingWatch()))
    adapter.restore(RestoreRequest(chain=(source,), into=tmp_path / "into"), RecordingWatch())
    check = CheckSpec(name="orders", sql="db.getSiblingDB('shop').orders.countDocuments({note: /^n/})", equals="1000")
    with adapter.start(tmp_path / "into", RecordingWatch()) as scratch:
        outcomes = scratch.verify(VerifyRequest(manifest=source.manifest, checks=(check,)), RecordingWatch())
    assert {outcome.verdict for outcome in outcomes} == {Verdict.PASSED}
