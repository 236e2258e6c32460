"""Rules of the section `recovery` that span fields."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from controlplane.adapters.sitefile.convert_recovery import OWN_DATASET
from controlplane.adapters.sitefile.findings import Finding, Path, Plain, shown_text
from controlplane.adapters.sitefile.outline import Entry, duration, entries, names, section, text, texts
from controlplane.recovery.schedule import cron_problem


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needs:
    """Which fields say where a dataset of a kind is."""

    all_of: tuple[str, ...]
    example: str
    embedded: bool = False
    """`embedded: true` stands for all of them."""


_NEEDS: Final[Mapping[str, _Needs]] = {
    "postgresql": _Needs(all_of=("url",), example="url: {env: ORDERS_URL}", embedded=True),
    "postgresql-dump": _Needs(all_of=("url",), example="url: {env: ORDERS_URL}", embedded=True),
    "redis": _Needs(all_of=("url",), example="url: {env: REDIS_URL}"),
    "mongodb": _Needs(all_of=("url",), example="url: {env: MONGODB_URL}"),
    "sqlite": _Needs(all_of=("path",), example="path: /var/lib/app/app.sqlite3"),
    "files": _Needs(all_of=("path",), example="path: /srv/models/adapters"),
    "pgbackrest": _Needs(all_of=("path", "stanza"), example="path: /etc/pgbackrest/pgbackrest.conf, stanza: main"),
}
_PLACES: Final = ("url", "path", "stanza")
_CHECK_WORDS: Final = ("at_least", "at_most", "equals", "fresh_within")


def recovery_findings(data: Plain) -> Iterator[Finding]:
    """Everything that the rules have against `recovery`."""
    for path, bucket in entries(data, "recovery", "buckets"):
        yield from _bucket(path, bucket)
    for path, dataset in entries(data, "recovery", "datasets"):
        yield from _place(path, dataset)
        yield from _wal(path, dataset)
        yield from _cadence(path, dataset)
        yield from _snapshots_within_rpo(path, dataset)
        for place, check in entries(dataset, "checks"):
            yield from _check((*path, *place), check)
    for path, drill in entries(data, "recovery", "drills"):
        yield from _cadence(path, drill)
        yield from _drilled_bucket(path, drill, data)
        yield from _break_glass(path, drill, data)


def _bucket(path: Path, bucket: Entry) -> Iterator[Finding]:
    if bucket.get("embedded") is True:
        for key in ("endpoint", "access_key", "secret_key"):
            if bucket.get(key) is not None:
                yield _needless((*path, key), f"{key} with embedded: true", f"delete {key}, or embedded")
    for key, other in (("access_key", "secret_key"), ("secret_key", "access_key")):
        if bucket.get(key) is not None and bucket.get(other) is None:
            expected, hint = f"{other} beside {key}", f"add {other}, or leave both to boto3's own search"
            yield Finding(path=(*path, other), found="nothing", expected=expected, hint=hint)


def _place(path: Path, dataset: Entry) -> Iterator[Finding]:
    kind, embedded = text(dataset, "kind"), dataset.get("embedded") is True
    needs = _NEEDS.get(kind or "")
    if needs is None:
        return
    own = text(dataset, "name") == OWN_DATASET and kind == "sqlite"
    if embedded and not needs.embedded:
        hint = "delete embedded; the control plane's own store is the dataset control-plane"
        yield _needless((*path, "embedded"), f"embedded with kind: {kind}", hint)
    for key in _PLACES:
        given = dataset.get(key) is not None
        wanted = key in needs.all_of and not (embedded and needs.embedded) and not own
        if wanted and not given:
            expected = f"{key}: where the {kind} dataset is"
            yield Finding(path=(*path, key), found="nothing", expected=expected, hint=f"add `{needs.example}`")
        if given and not wanted:
            where = "of the control plane's own store" if own else f"with kind: {kind}" + ", embedded" * embedded
            yield _needless((*path, key), f"{key} {where}", f"delete {key}")


def _wal(path: Path, dataset: Entry) -> Iterator[Finding]:
    kind = text(dataset, "kind")
    if dataset.get("wal") is not None and kind is not None and kind != "postgresql":
        yield _needless((*path, "wal"), f"wal with kind: {kind}", "delete wal: only kind: postgresql has it")


def _cadence(path: Path, entry: Entry) -> Iterator[Finding]:
    cron = text(entry, "cron")
    if cron is None:
        return
    if entry.get("every") is not None:
        yield _needless((*path, "every"), "every beside cron", "delete one of the two")
    problem = cron_problem(cron)
    if problem is not None:
        yield Finding(path=(*path, "cron"), found=shown_text(cron), expected="a cron expression in UTC", hint=problem)


def _snapshots_within_rpo(path: Path, dataset: Entry) -> Iterator[Finding]:
    """Without a log between them, snapshots are the RPO."""
    logged = text(dataset, "kind") in ("postgresql", "pgbackrest") and text(dataset, "wal") != "off"
    every, rpo = duration(dataset, "every"), duration(dataset, "rpo")
    if not logged and every is not None and rpo is not None and every > rpo:
        yield Finding(
            path=(*path, "every"),
            found=f"a snapshot every {text(dataset, 'every')} for an rpo of {text(dataset, 'rpo')}",
            expected="every at most rpo: nothing is kept between two snapshots of this kind",
            hint="shorten every, or say which rpo is really needed",
        )


def _check(path: Path, check: Entry) -> Iterator[Finding]:
    if all(check.get(word) is None for word in _CHECK_WORDS):
        expected, hint = f"one of {', '.join(_CHECK_WORDS)}", "for example at_least: 1"
        yield Finding(path=path, found="a check that expects nothing", expected=expected, hint=hint)


def _drilled_bucket(path: Path, drill: Entry, data: Plain) -> Iterator[Finding]:
    bucket, name = text(drill, "bucket"), text(drill, "dataset")
    if bucket is None or bucket not in names(data, "recovery", "buckets"):
        return
    for _, dataset in entries(data, "recovery", "datasets"):
        listed = [one for _, one in texts(dataset, "buckets") or ()]
        if text(dataset, "name") == name and listed and bucket not in listed:
            expected, hint = (
                f"a bucket of {name}: {', '.join(listed)}",
                f"add {bucket} to its buckets, or drill another",
            )
            yield Finding(path=(*path, "bucket"), found=bucket, expected=expected, hint=hint)


def _break_glass(path: Path, drill: Entry, data: Plain) -> Iterator[Finding]:
    if text(drill, "key") == "break-glass" and section(data, "recovery", "keys").get("break_glass") is None:
        expected = "recovery.keys.break_glass, which every copy is sealed for"
        hint = "make one with `quarterdeck backup break-glass`, and name its public half there"
        yield Finding(path=(*path, "key"), found="break-glass without such a key", expected=expected, hint=hint)


def _needless(path: Path, found: str, hint: str) -> Finding:
    return Finding(path=path, found=found, expected="it not to be there", hint=hint, at_key=True)
