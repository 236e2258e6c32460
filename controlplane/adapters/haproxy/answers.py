"""HAProxy's answers, parsed. Pure; formats of HAProxy 2.8, each with a recorded sample in the tests."""

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from controlplane.gateway.changes import GatewaySeen, SlotAdmin, SlotSeen, deployment_of
from controlplane.gateway.render import STRUCTURE_MARK
from controlplane.kernel.ids import DeploymentName

HOLD_SERVER: Final = "hold"
"""The activator's place in each deployment's backend."""

_MAINT_BITS: Final = 0x01 | 0x02 | 0x20
"""srv_admin_state: forced, inherited, resolution. 0x04 only remembers that the file said `disabled`."""
_DRAIN_BITS: Final = 0x08 | 0x10
_OP_STOPPED: Final = 0

_LOAD_COLUMNS: Final = 8
"""pxname, svname, qcur, qmax, scur, smax, slim are the first seven; HAProxy only ever adds columns at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """From `show info`."""

    pid: int
    start_time_s: int
    structure: str

    @property
    def epoch(self) -> str:
        return f"{self.pid}.{self.start_time_s}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """From the master's `show proc`."""

    master: int
    worker: int | None
    old_workers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatRow:
    """One line of `show stat`."""

    backend: str
    server: str
    """`BACKEND` for the backend's own line."""
    queued: int
    in_flight: int
    limit: int
    total: int
    errors: int
    """Failed connections, failed responses, responses 5xx."""
    abandoned: int
    """Their callers left before the end of the answer."""
    responses_5xx: int
    status: str
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    arrivals: int
    responses_5xx: int


def parse_info(text: str) -> WorkerInfo | None:
    """None when `show info` is not in the text, or the process is none of ours."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    description = fields.get("description", "")
    if "Pid" not in fields or not description.startswith(STRUCTURE_MARK):
        return None
    return WorkerInfo(
        pid=int(fields["Pid"]),
        start_time_s=int(fields["Start_time_sec"]),
        structure=description.removeprefix(STRUCTURE_MARK).strip(),
    )


def parse_processes(text: str) -> Processes:
    master = 0
    workers: list[int] = []
    old: list[int] = []
    into = workers
    for line in text.splitlines():
        if line.startswith("# old workers"):
            into = old
        fields = line.split()
        if len(fields) >= 2 and fields[0].isdigit():  # noqa: PLR2004 - pid and type
            if fields[1] == "master":
                master = int(fields[0])
            elif fields[1] == "worker":
                into.append(int(fields[0]))
    return Processes(master=master, worker=workers[0] if workers else None, old_workers=tuple(old))


def parse_stat(text: str) -> Iterator[StatRow]:
    """Rows of `show stat`, wherever it stands in the text. The header names the columns; 2.8 has about 100."""
    columns: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("# pxname,"):
            columns = {name: index for index, name in enumerate(line[2:].split(","))}
        elif columns and "," in line:
            fields = next(csv.reader((line,))) if '"' in line else line.split(",")
            if len(fields) == len(columns):
                yield _stat_row(fields, columns)
        else:
            columns = {}


def _stat_row(fields: list[str], columns: Mapping[str, int]) -> StatRow:
    def number(name: str) -> int:
        return int(fields[columns[name]] or 0)

    responses_5xx = number("hrsp_5xx")
    return StatRow(
        backend=fields[columns["pxname"]],
        server=fields[columns["svname"]],
        queued=number("qcur"),
        in_flight=number("scur"),
        limit=number("slim"),
        total=number("stot"),
        errors=responses_5xx + number("econ") + number("eresp"),
        abandoned=number("cli_abrt"),
        responses_5xx=responses_5xx,
        status=fields[columns["status"]],
        endpoint=fields[columns["addr"]],
    )


def parse_counted(text: str) -> dict[DeploymentName, Counted]:
    """Entries of `show table arrivals`: `0x...: key=chat use=0 exp=0 shard=0 gpc0=9 gpc1=0`."""
    counted: dict[DeploymentName, Counted] = {}
    for line in text.splitlines():
        if not line.startswith("0x") or " key=" not in line:
            continue
        pairs = dict(part.split("=", 1) for part in line.split() if "=" in part)
        counted[DeploymentName(pairs["key"])] = Counted(
            arrivals=int(pairs.get("gpc0", 0)), responses_5xx=int(pairs.get("gpc1", 0))
        )
    return counted


def parse_slots(info: WorkerInfo, text: str) -> GatewaySeen:
    """From `show servers state` (address, weight, both states exactly) and `show stat` (limit, load) in one text."""
    loads = _loads(text)
    slots: dict[DeploymentName, list[SlotSeen]] = {}
    for backend, server, field in _server_states(text):
        deployment = deployment_of(backend)
        if deployment is None or server == HOLD_SERVER:
            continue
        in_flight, limit = loads.get((backend, server), (0, 0))
        slots.setdefault(deployment, []).append(
            SlotSeen(
                endpoint=f"{field('srv_addr')}:{field('srv_port')}",
                admin=_admin(int(field("srv_admin_state"))),
                up=int(field("srv_op_state")) != _OP_STOPPED,
                weight=int(field("srv_uweight")),
                maxconn=limit,
                in_flight=in_flight,
            )
        )
    return GatewaySeen(structure=info.structure, slots={name: tuple(found) for name, found in slots.items()})


def _loads(text: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(in flight, limit) of each line of `show stat`. Only the first columns are cut: there may be 10,000 lines."""
    columns: list[str] = []
    loads: dict[tuple[str, str], tuple[int, int]] = {}
    scur = slim = 0
    for line in text.splitlines():
        if line.startswith("# pxname,"):
            columns = line[2:].split(",", _LOAD_COLUMNS)[:_LOAD_COLUMNS]
            scur, slim = columns.index("scur"), columns.index("slim")
        elif columns and "," in line:
            fields = line.split(",", _LOAD_COLUMNS)
            loads[fields[0], fields[1]] = (int(fields[scur] or 0), int(fields[slim] or 0))
        else:
            columns = []
    return loads


def parse_drained(text: str) -> set[tuple[str, str]]:
    """(backend, server) of those told to drain. `show stat` says DOWN for one that drains and fails its check."""
    return {
        (backend, server)
        for backend, server, field in _server_states(text)
        if _admin(int(field("srv_admin_state"))) is SlotAdmin.DRAIN
    }


def _server_states(text: str) -> Iterator[tuple[str, str, Callable[[str], str]]]:
    """Lines of `show servers state`: backend, server, and a look-up of its columns by name."""
    columns: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("# be_id"):
            columns = {name: index for index, name in enumerate(line[2:].split())}
            continue
        fields = line.split()
        if columns and len(fields) == len(columns):
            yield fields[columns["be_name"]], fields[columns["srv_name"]], _Fields(fields, columns)


@dataclass(frozen=True, slots=True)
class _Fields:
    fields: list[str]
    columns: Mapping[str, int]

    def __call__(self, name: str) -> str:
        return self.fields[self.columns[name]]


def _admin(bits: int) -> SlotAdmin:
    if bits & _MAINT_BITS:
        return SlotAdmin.MAINT
    return SlotAdmin.DRAIN if bits & _DRAIN_BITS else SlotAdmin.READY


def refusals(text: str) -> list[str]:
    """What HAProxy answered to `set` commands that is no success: it is silent, or says what it changed."""
    return [line for line in text.splitlines() if line.strip() and "changed" not in line and "no need to" not in line]
