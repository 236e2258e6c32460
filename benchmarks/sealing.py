"""How fast copies are sealed and sent, and opened again; and where the time goes.

    python -m benchmarks.sealing [--quick]

Stages are seconds of CPU of one thread; the whole is wall time, on two cores if nobody else works on them. MB are
10^6 bytes of plaintext. Three kinds of data: `pages` looks like a database's files, `rows` is text with random fields,
which packs slowly, `random` does not pack at all.
"""

import os
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

import zstandard
from rich.console import Console

from benchmarks.loopback_store import loopback_store
from benchmarks.report import Grid, Report, show
from controlplane.adapters.backup.archive_reader import open_archive
from controlplane.adapters.backup.archive_writer import ArchiveWriter
from controlplane.adapters.backup.keyring import BreakGlassPrivate, SiteKeyring
from controlplane.adapters.backup.packing import CHUNK_BYTES
from controlplane.adapters.backup.sealing import FAST_LEVEL, Sealer
from controlplane.adapters.objectstore.s3 import S3Store, make_client
from controlplane.adapters.objectstore.seaweedfs import EmbeddedObjectStore
from controlplane.domain.dataset import BucketSpec, DatasetKind, StorageClass
from controlplane.kernel.errors import TerminalError
from controlplane.kernel.ids import BucketName, DatasetName, PointId
from controlplane.kernel.units import MIB
from controlplane.recovery.ports import ObjectStore, SilentWatch, SnapshotFacts, manifest_key
from controlplane.testing.effects import START, FakeClock
from controlplane.testing.s3 import FakeS3

SUMMARY: Final = "copies sealed, sent and opened again, with the cost of each stage"
AIM_MB_S: Final = 400.0
MEMORY: Final = "memory"
LOOPBACK: Final = "loopback HTTP"
LEVELS: Final = (-5, -3, -1, 1, 2, 3)
CHUNKS: Final = (MIB // 4, MIB // 2, MIB, 2 * MIB, 4 * MIB)
_SAMPLE_BYTES: Final = 16 * MIB
_SAMPLE_BYTES_QUICK: Final = 2 * MIB
_TURNS: Final = 16
"""Times that a sample goes through the whole: 270 MB in less than a second."""
_TURNS_QUICK: Final = 2
_ROUNDS: Final = 3
_ROUNDS_QUICK: Final = 1
_MEGA: Final = 1e6
_PAGE_BYTES: Final = 8192
_DATASET: Final = DatasetName("bench")


def run(*, quick: bool = False) -> Report:
    size, turns, rounds = (
        (_SAMPLE_BYTES_QUICK, _TURNS_QUICK, _ROUNDS_QUICK) if quick else (_SAMPLE_BYTES, _TURNS, _ROUNDS)
    )
    samples = {"pages": pages(size), "rows": rows(size), "random": Random(3).randbytes(size)}
    stages = {name: stages_of(data, rounds) for name, data in samples.items()}
    levels = {name: levels_of(data, rounds) for name, data in samples.items() if name != "random"}
    chunks = chunks_of(samples["pages"], rounds)
    with stores() as reached:
        whole = {
            store_name: {name: whole_of(store, data, turns, rounds) for name, data in samples.items()}
            for store_name, store in reached.items()
        }
    tables = [
        Grid(
            title="Stages, MB/s of one thread's CPU",
            heads=("stage", *stages),
            rows=[(stage, *(each[stage] for each in stages.values())) for stage in stages["pages"]],
        ),
        *(_grid(f"zstd on {name}, MB/s of one thread's CPU", found) for name, found in levels.items()),
        _grid("zstd and seal by the size of chunks of pages, MB/s of one thread's CPU", chunks),
        Grid(
            title="Whole copies: MB/s of wall time, and seconds of our CPU for a GB",
            heads=("store and data", "write", "its CPU", "read", "its CPU"),
            rows=[
                (f"{store}, {name}", written.mb_s, written.cpu_s, read.mb_s, read.cpu_s)
                for store, found in whole.items()
                for name, (written, read) in found.items()
            ],
        ),
    ]
    told = {
        store: {name: {"write": asdict(written), "read": asdict(read)} for name, (written, read) in found.items()}
        for store, found in whole.items()
    }
    return Report(
        name="sealing",
        grids=tables,
        verdict=verdict(whole),
        results={"stages": stages, "levels": levels, "chunks": chunks, "whole": told, "aim_mb_s": AIM_MB_S},
    )


def verdict(whole: Mapping[str, Mapping[str, tuple["Whole", "Whole"]]]) -> str:
    aimed = {f"{store}, {name}": found[0].mb_s for store in (MEMORY, LOOPBACK) for name, found in whole[store].items()}
    met = [case for case, mb_s in aimed.items() if mb_s >= AIM_MB_S]
    return (
        f"Aim: at least {AIM_MB_S:.0f} MB/s sealed, hashed and sent, on two cores that also run the store. "
        f"Met in {len(met)} of {len(aimed)} cases: {'; '.join(met) or 'none'}."
    )


# -- data
def pages(size: int) -> bytes:
    """Heap pages as PostgreSQL has them: a header, item pointers, rows from the end with counters, words, padding."""
    rng, out = Random(1), bytearray()
    while len(out) < size:
        page, at, number = bytearray(_PAGE_BYTES), _PAGE_BYTES, len(out) // _PAGE_BYTES
        struct.pack_into("<QHHHHHH", page, 0, len(out), 0, 0, 264, 0, _PAGE_BYTES, 0x2004)
        for slot in range(60):
            head = struct.pack("<IIIHHBx", rng.randrange(1 << 20), 0, 0, number & 0xFFFF, slot, 0)
            fields = struct.pack("<iii", number * 60 + slot, rng.randrange(100), rng.randrange(-5000, 5000))
            row = head + fields + rng.choice([b"new", b"pending", b"shipped"]) + b" " * 40 + _hex(rng)
            at -= len(row)
            page[at : at + len(row)] = row
            struct.pack_into("<HH", page, 24 + 4 * slot, at, len(row))
        out += page
    return bytes(out[:size])


def rows(size: int) -> bytes:
    """A text dump with many random fields."""
    rng = Random(2)
    words = [rng.randbytes(5).hex() for _ in range(3000)]
    lines, length = list[str](), 0
    while length < size:
        when = f"2026-11-{rng.randrange(1, 29):02d} {rng.randrange(24):02d}:{rng.randrange(60):02d}"
        picked = f"{rng.choice(words)} {rng.choice(words)}"
        lines.append(f"{len(lines)}\t{picked}\t{when}\t{rng.randrange(10**9)}\t{rng.random():.6f}\n")
        length += len(lines[-1])
    return "".join(lines).encode()[:size]


def _hex(rng: Random) -> bytes:
    return rng.randbytes(12).hex().encode()


# -- stages
def stages_of(data: bytes, rounds: int) -> Mapping[str, float]:
    chunks = cut(data, CHUNK_BYTES)
    sealer, compressor = Sealer(bytes(32), "bench"), zstandard.ZstdCompressor(level=FAST_LEVEL)
    sealed = [bytes(sealer.close("bench", chunk, None)) for chunk in chunks]
    packed = [bytes(sealer.close("bench", chunk, compressor.compress(chunk))) for chunk in chunks]
    return {
        "SHA-256": cpu_mb_s(data, rounds, lambda: [sha256(chunk).digest() for chunk in chunks]),
        "AES-256-GCM, seal": cpu_mb_s(data, rounds, lambda: [sealer.close("bench", chunk, None) for chunk in chunks]),
        "AES-256-GCM, open": cpu_mb_s(data, rounds, lambda: [sealer.open("bench", blob) for blob in sealed]),
        f"zstd {FAST_LEVEL} and seal": cpu_mb_s(data, rounds, partial(_seal_all, sealer, compressor, chunks)),
        "open and unpack": cpu_mb_s(data, rounds, lambda: [sealer.open("bench", blob) for blob in packed]),
    }


def levels_of(data: bytes, rounds: int) -> Mapping[str, Mapping[str, float]]:
    chunks, found = cut(data, CHUNK_BYTES), dict[str, Mapping[str, float]]()
    for level in LEVELS:
        compressor, decompressor = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
        frames = [compressor.compress(chunk) for chunk in chunks]
        pack = cpu_mb_s(data, rounds, partial(_each, compressor.compress, chunks))
        unpack = cpu_mb_s(data, rounds, partial(_each, decompressor.decompress, frames))
        found[f"level {level}"] = {"ratio": len(data) / sum(map(len, frames)), "pack": pack, "unpack": unpack}
    return found


def chunks_of(data: bytes, rounds: int) -> Mapping[str, Mapping[str, float]]:
    sealer, compressor = Sealer(bytes(32), "bench"), zstandard.ZstdCompressor(level=FAST_LEVEL)
    found = dict[str, Mapping[str, float]]()
    for size in CHUNKS:
        chunks = cut(data, size)
        speed = cpu_mb_s(data, rounds, partial(_seal_all, sealer, compressor, chunks))
        ratio = len(data) / sum(map(len, _seal_all(sealer, compressor, chunks)))
        found[f"{size // 1024} KiB"] = {"ratio": ratio, "seal": speed}
    return found


def _each[Item](work: Callable[[Item], bytes], items: Sequence[Item]) -> Sequence[bytes]:
    return [work(item) for item in items]


def _seal_all(
    sealer: Sealer, compressor: zstandard.ZstdCompressor, chunks: Sequence[memoryview]
) -> Sequence[bytearray]:
    return [sealer.close("bench", chunk, compressor.compress(chunk)) for chunk in chunks]


def cut(data: bytes, size: int) -> list[memoryview]:
    return [memoryview(data)[at : at + size] for at in range(0, len(data), size)]


def cpu_mb_s(data: bytes, rounds: int, work: Callable[[], object]) -> float:
    spent: list[float] = []
    for _ in range(rounds):
        began = time.thread_time()
        work()
        spent.append(time.thread_time() - began)
    return len(data) / _MEGA / max(statistics.median(spent), 1e-9)


# -- the whole
class MemoryStore(FakeS3):
    """Takes a copy of each body, as any store does, and nothing else: no lifecycle, one version."""

    def __init__(self) -> None:
        super().__init__(FakeClock(), versioned=False, object_lock=False)


@dataclass(frozen=True, slots=True)
class Whole:
    """Medians of a copy that was written, or read."""

    mb_s: float
    """Of wall time, with whatever else the machine did."""
    cpu_s: float
    """Of this process for a GB, all threads: what is left when the store's own work is somebody else's."""


def whole_of(store: ObjectStore, data: bytes, turns: int, rounds: int) -> tuple[Whole, Whole]:
    """Written, and read."""
    keyring = SiteKeyring(bytes(32), break_glass_public=BreakGlassPrivate.generate().public)
    source = memoryview(bytearray(data))  # Not immutable, as what adapters read into.
    written, read = list[tuple[float, float]](), list[tuple[float, float]]()
    for number in range(rounds + 1):
        point = PointId(f"20260105T080000.000Z-{number:04x}")
        with _timed(written):
            _write(store, keyring, point, source, turns)
        with _timed(read):
            archive = open_archive(store, keyring, manifest_key(_DATASET, point), watch=SilentWatch())
            got = sum(len(chunk) for chunk in archive.read("all"))
        assert got == len(data) * turns, "all of it came back"
        for key in (manifest_key(_DATASET, point), *(pack.key for pack in archive.manifest.streams[0].packs)):
            store.delete(key)
    return _whole(written[1:], len(data) * turns), _whole(read[1:], len(data) * turns)  # The first warms everything.


def _write(store: ObjectStore, keyring: SiteKeyring, point: PointId, source: memoryview, turns: int) -> None:
    writer = ArchiveWriter(
        store,
        keyring,
        dataset=_DATASET,
        kind=DatasetKind.FILES,
        point=point,
        storage_class=StorageClass.STANDARD,
        lock=None,
        watch=SilentWatch(),
    )
    with writer.stream("all") as stream:
        for _ in range(turns):
            stream.write(source)
    writer.commit(
        SnapshotFacts(engine="bench 1", consistent_at=START), started_at=START, finished_at=START, parent=None
    )


@contextmanager
def _timed(into: list[tuple[float, float]]) -> Iterator[None]:
    began, cpu = time.perf_counter(), time.process_time()
    yield
    into.append((time.perf_counter() - began, time.process_time() - cpu))


def _whole(times: Sequence[tuple[float, float]], size_bytes: int) -> Whole:
    megabytes = size_bytes / _MEGA
    return Whole(
        mb_s=megabytes / statistics.median(wall for wall, _ in times),
        cpu_s=statistics.median(cpu for _, cpu in times) / megabytes * 1e3,
    )


@contextmanager
def stores() -> Iterator[Mapping[str, ObjectStore]]:
    """The real server only where it is installed."""
    with ExitStack() as stack:
        found: dict[str, ObjectStore] = {
            MEMORY: MemoryStore(),
            LOOPBACK: stack.enter_context(loopback_store()),
        }
        try:
            found["SeaweedFS, durable"] = stack.enter_context(seaweedfs())
        except TerminalError as error:
            print(f"without SeaweedFS: {error}", file=sys.stderr)
        yield found


@contextmanager
def seaweedfs() -> Iterator[S3Store]:
    with TemporaryDirectory(prefix="quarterdeck-bench-") as folder:
        embedded = EmbeddedObjectStore(Path(folder), site_mark=f"bench-{os.getpid()}")
        endpoint = embedded.ensure_running()
        try:
            spec = BucketSpec(name=BucketName("bench"), bucket="bench", embedded=True)
            client = make_client(
                spec, endpoint=endpoint.url, access_key=endpoint.access_key, secret_key=endpoint.secret_key
            )
            client.create_bucket(Bucket=spec.bucket)
            yield S3Store(client, spec.bucket, flush=embedded.flush)
        finally:
            embedded.stop()


def _grid(title: str, found: Mapping[str, Mapping[str, float]]) -> Grid:
    heads = next(iter(found.values()))
    return Grid(title=title, heads=("", *heads), rows=[(name, *each.values()) for name, each in found.items()])


def main(arguments: Sequence[str]) -> int:
    show(run(quick="--quick" in arguments), Console())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
