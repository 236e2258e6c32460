"""MongoDB, with stand-ins for its programs that write down how they were called."""

import json
import socket
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controlplane.adapters.backup.mongodb import MongodbDataset
from controlplane.adapters.backup.mongodb_archive import archive_notes, dumped, restored
from controlplane.domain.dataset import CheckSpec
from controlplane.domain.recovery import Verdict
from controlplane.kernel.errors import ConflictError, RetryableError, TerminalError
from controlplane.recovery.manifest import Count
from controlplane.recovery.ports import CancelledWorkError, RestoreRequest, SnapshotFacts, VerifyRequest
from controlplane.testing.backups import MemorySink, MemorySource, RecordingWatch
from controlplane.testing.effects import START
from tests.processes import children_that_name

URL = "mongodb://user:secret@127.0.0.1:27017/?replicaSet=rs0"
FIELDS = (
    b"\x10concurrent_collections\0\x04\0\0\0"
    b"\x02version\0\x04\0\0\x000.1\0"
    b"\x02server_version\0\x07\0\0\x007.0.14\0"
    b"\x02tool_version\0\x08\0\0\x00100.9.4\0"
)
PRELUDE = b"\x6d\xe2\x99\x81" + (len(FIELDS) + 5).to_bytes(4, "little") + FIELDS + b"\0"
HEAD = f"""#!{sys.executable}
import json, os, pathlib, socket, stat, sys, time
here = pathlib.Path(__file__).resolve().parent
mine = pathlib.Path(__file__).name
def option(name):
    return next((word.partition("=")[2] for word in sys.argv if word.startswith(name + "=")), None)
def note(**more):
    with (here / (mine + ".jsonl")).open("a") as file:
        file.write(json.dumps({{"argv": sys.argv[1:], **more}}) + "\\n")
"""
MONGODUMP = """
if "--version" in sys.argv:
    print("mongodump version: 100.9.4"); sys.exit(0)
path = pathlib.Path(option("--config"))
note(config=path.read_text(), mode=stat.S_IMODE(path.stat().st_mode), path=str(path))
sys.stdout.buffer.write((here / "archive").read_bytes())
for name, rows in (("shop.orders", 1234), ("shop.one", 1)):
    print(f"2026-01-05T08:00:00.000+0000\\tdone dumping {name} ({rows} document{'s' * (rows != 1)})", file=sys.stderr)
"""
MONGOD = """
note()
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(option("--bind_ip"))
    listener.listen()
    while True:
        listener.accept()[0].close()
"""
MONGORESTORE = """
note(body=pathlib.Path(option("--archive")).read_bytes().hex())
print("2026-01-05T08:00:00.000+0000\\tfinished restoring shop.orders (1234 documents, 0 failures)", file=sys.stderr)
print("2026-01-05T08:00:00.000+0000\\tfinished restoring shop.one (1 document, 0 failures)", file=sys.stderr)
"""
MONGOSH = """
expression = sys.argv[-1]
note()
print("[]" if "validate" in expression else "1234" if "count" in expression else "null")
sys.exit(1 if "broken" in expression else 0)
"""


@dataclass
class Tools:
    folder: Path

    def put(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(HEAD + body, encoding="utf-8")
        path.chmod(0o755)

    def calls(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "archive").write_bytes(PRELUDE + b"documents" * 1000)
    found = Tools(folder)
    for name, body in (
        ("mongodump", MONGODUMP),
        ("mongod", MONGOD),
        ("mongorestore", MONGORESTORE),
        ("mongosh", MONGOSH),
    ):
        found.put(name, body)
    return found


def dataset(tools: Tools, url: str = URL) -> MongodbDataset:
    return MongodbDataset(url=url, now=lambda: START, search=str(tools.folder))


def snapshot(adapter: MongodbDataset) -> tuple[MemorySource, SnapshotFacts]:
    sink = MemorySink()
    facts = adapter.snapshot(sink, parent=None, watch=RecordingWatch())
    return sink.source(facts), facts


def test_the_archive_is_copied_and_described(tools: Tools) -> None:
    source, facts = snapshot(dataset(tools))
    assert source.streams == {"archive": (tools.folder / "archive").read_bytes()}
    assert facts.engine == "mongodb 7.0.14"
    assert facts.counts == (Count(name="shop.one", rows=1), Count(name="shop.orders", rows=1234))
    assert facts.consistent_at == START
    assert dict(facts.facts) == {"oplog": "yes", "tool_version": "100.9.4"}


@pytest.mark.parametrize(("url", "oplog"), [(URL, True), ("mongodb://user:secret@127.0.0.1", False)])
def test_the_password_is_never_an_argument(tools: Tools, url: str, oplog: bool) -> None:
    snapshot(dataset(tools, url))
    (call,) = tools.calls("mongodump")
    assert "secret" not in " ".join(call["argv"])
    assert ("--oplog" in call["argv"]) is oplog
    assert "--archive" in call["argv"]
    assert json.loads(call["config"].removeprefix("uri: ")) == url
    assert call["mode"] == stat.S_IRUSR | stat.S_IWUSR
    assert not Path(call["path"]).exists()


def test_a_dump_that_fails_is_no_copy(tools: Tools) -> None:
    tools.put("mongodump", "print('half'); sys.exit('Failed: error reading from db: connection closed')")
    sink = MemorySink()
    with pytest.raises(RetryableError, match="connection closed"):
        dataset(tools).snapshot(sink, parent=None, watch=RecordingWatch())
    assert sink.streams == {}


def test_something_that_is_no_archive_is_refused(tools: Tools) -> None:
    (tools.folder / "archive").write_bytes(b"<html>")
    sink = MemorySink()
    with pytest.raises(TerminalError, match="gave no archive"):
        dataset(tools).snapshot(sink, parent=None, watch=RecordingWatch())
    assert sink.streams == {}


@pytest.mark.parametrize(("url", "option"), [(URL, ["--oplogReplay"]), ("mongodb://127.0.0.1", [])])
def test_a_drill_restores_into_a_private_server(tools: Tools, tmp_path: Path, url: str, option: list[str]) -> None:
    adapter = dataset(tools, url)
    source, _ = snapshot(adapter)
    into = tmp_path / "into"
    adapter.restore(RestoreRequest(chain=(source,), into=into), RecordingWatch())
    checks = (
        CheckSpec(name="orders", sql="db.orders.countDocuments()", at_least=1000),
        CheckSpec(name="nothing", sql="db.orders.findOne()", at_least=1),
        CheckSpec(name="broken", sql="broken"),
    )
    with adapter.start(into, RecordingWatch()) as scratch:
        assert any("(mongod)" in line for line in adapter.leftovers(into))
        outcomes = scratch.verify(VerifyRequest(manifest=source.manifest, checks=checks), RecordingWatch())
    verdicts = {outcome.name: outcome.verdict for outcome in outcomes}
    assert verdicts == {
        "bytes": Verdict.PASSED,
        "mongorestore": Verdict.PASSED,
        "counts": Verdict.PASSED,
        "validate": Verdict.PASSED,
        "orders": Verdict.PASSED,
        "nothing": Verdict.FAILED,
        "broken": Verdict.FAILED,
    }
    (server,) = tools.calls("mongod")
    assert f"--bind_ip={into}/mongod.sock" in server["argv"]
    assert not any(word.startswith("--port") for word in server["argv"])
    (restore,) = tools.calls("mongorestore")
    assert restore["argv"][2:] == option
    assert bytes.fromhex(restore["body"]) == source.streams["archive"]
    assert "secret" not in json.dumps(restore)
    assert not [line for line in adapter.leftovers(into) if "process" in line]
    adapter.end_leftovers(into)
    assert tuple(adapter.leftovers(into)) == ()


@pytest.mark.parametrize(
    ("said", "red"),
    [
        ("finished restoring shop.orders (1230 documents, 4 failures)", {"mongorestore", "counts"}),
        ("finished restoring shop.orders (1230 documents, 0 failures)", {"counts"}),
        ("nothing that is known", {"counts"}),
    ],
)
def test_documents_that_did_not_come_back_turn_the_drill_red(
    tools: Tools, tmp_path: Path, said: str, red: set[str]
) -> None:
    tools.put("mongorestore", f"print({said!r}, file=sys.stderr)")
    adapter = dataset(tools)
    source, _ = snapshot(adapter)
    adapter.restore(RestoreRequest(chain=(source,), into=tmp_path / "into"), RecordingWatch())
    with adapter.start(tmp_path / "into", RecordingWatch()) as scratch:
        outcomes = scratch.verify(VerifyRequest(manifest=source.manifest), RecordingWatch())
    assert {outcome.name for outcome in outcomes if outcome.verdict is Verdict.FAILED} == red


@pytest.mark.parametrize(
    ("name", "words"),
    [("mongorestore", "Failed: corruption found in archive"), ("mongod", "Fatal assertion 28595")],
)
def test_what_will_not_start_is_quoted(tools: Tools, tmp_path: Path, name: str, words: str) -> None:
    log = "pathlib.Path(option('--logpath')).write_text(words)" if name == "mongod" else "print(words, file=sys.stderr)"
    tools.put(name, f"words = {words!r}\n{log}\nsys.exit(1)")
    adapter = dataset(tools)
    source, _ = snapshot(adapter)
    adapter.restore(RestoreRequest(chain=(source,), into=tmp_path / "into"), RecordingWatch())
    with pytest.raises(TerminalError, match=words), adapter.start(tmp_path / "into", RecordingWatch()):
        pass
    assert children_that_name(str(tools.folder)) == []


def test_a_restore_that_hangs_is_left_when_somebody_asks(tools: Tools, tmp_path: Path) -> None:
    tools.put("mongorestore", "time.sleep(60)")
    adapter = dataset(tools)
    source, _ = snapshot(adapter)
    adapter.restore(RestoreRequest(chain=(source,), into=tmp_path / "into"), RecordingWatch())
    watch = RecordingWatch(cancel_at_step="start")
    with pytest.raises(CancelledWorkError), adapter.start(tmp_path / "into", watch):
        pass
    assert children_that_name(str(tools.folder)) == []


def test_without_mongosh_the_assertions_say_that_they_did_not_run(tools: Tools, tmp_path: Path) -> None:
    (tools.folder / "mongosh").unlink()
    adapter = dataset(tools)
    source, _ = snapshot(adapter)
    adapter.restore(RestoreRequest(chain=(source,), into=tmp_path / "into"), RecordingWatch())
    request = VerifyRequest(manifest=source.manifest, checks=(CheckSpec(name="orders", sql="1"),))
    with adapter.start(tmp_path / "into", RecordingWatch()) as scratch:
        outcomes = {outcome.name: outcome for outcome in scratch.verify(request, RecordingWatch())}
    for name in ("validate", "orders"):
        assert outcomes[name].verdict is Verdict.NOT_RUN
        assert "mongodb-mongosh" in outcomes[name].sentence


@pytest.mark.parametrize("name", ["mongodump", "mongod", "mongorestore"])
def test_a_missing_program_is_named_with_where_to_get_it(tools: Tools, tmp_path: Path, name: str) -> None:
    adapter = dataset(tools)
    source, _ = snapshot(adapter)
    adapter.restore(RestoreRequest(chain=(source,), into=tmp_path / "into"), RecordingWatch())
    (tools.folder / name).unlink()
    with pytest.raises(TerminalError, match=f"{name} is not on this machine; install it: .*mongodb-database-tools"):
        _use(adapter, name, tmp_path / "into")


def _use(adapter: MongodbDataset, name: str, into: Path) -> None:
    if name == "mongodump":
        snapshot(adapter)
    else:
        adapter.start(into, RecordingWatch()).__enter__()


def test_a_restore_overwrites_nothing(tools: Tools, tmp_path: Path) -> None:
    adapter = dataset(tools)
    source, _ = snapshot(adapter)
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "precious").touch()
    with pytest.raises(ConflictError):
        adapter.restore(RestoreRequest(chain=(source,), into=tmp_path / "into"), RecordingWatch())


def test_a_folder_whose_path_is_too_long_for_a_socket_is_named(tools: Tools, tmp_path: Path) -> None:
    adapter = dataset(tools)
    source, _ = snapshot(adapter)
    into = tmp_path / ("x" * 100)
    adapter.restore(RestoreRequest(chain=(source,), into=into), RecordingWatch())
    with pytest.raises(TerminalError, match="too long for a socket"), adapter.start(into, RecordingWatch()):
        pass


def test_probing_asks_whether_one_of_the_hosts_answers(tools: Tools) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        source = dataset(
            tools, f"mongodb://user:secret@127.0.0.1:{port + 1 if port < 65535 else 1},127.0.0.1:{port}/"
        ).probe()
    assert source.engine == "mongodump version: 100.9.4"
    with pytest.raises(RetryableError, match=f"127.0.0.1:{port}") as refused:
        dataset(tools, f"mongodb://user:secret@127.0.0.1:{port}").probe()
    assert "secret" not in str(refused.value)
    for url in ("postgresql://x", "mongodb:"):
        with pytest.raises(TerminalError, match="expected mongodb://"):
            dataset(tools, url).probe()


def test_lines_of_the_tools() -> None:
    assert dumped("x\tdone dumping `a.b` (0 documents)\nwriting a.b to archive") == (Count(name="a.b", rows=0),)
    assert restored("finished restoring a.b (1 document, 2 failures)\n") == ({"a.b": 1}, 2)
    assert archive_notes(PRELUDE)["version"] == "0.1"
    assert archive_notes(PRELUDE[:40]) == {"concurrent_collections": "4"}
