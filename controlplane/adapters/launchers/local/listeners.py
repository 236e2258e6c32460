"""Who listens on a replica's port: its own group, nobody yet, or somebody else, whose answers would pass for its own.

An engine binds its port some seconds after its start (vLLM: about ten), so another program may take the port meanwhile
and serve the same model name. With SO_REUSEPORT (vLLM's `api-server-count` above 1) two may even listen at once, and
the kernel deals the connections out to both: so every listener of a port must belong to the group, not just one.

The kernel tells: /proc/net/tcp{,6} has each listening socket's inode, /proc/PID/fd who holds it. Reading the first
costs 1 to 2 us for each socket of the machine, so that is done at each look only while some replica is not known to
hold its port.
"""

import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

import psutil

from controlplane.adapters.launchers.local.processes import Member
from controlplane.kernel.ids import ReplicaName
from controlplane.replicas.ports import PortHolder

type Address = IPv4Address | IPv6Address

_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENING: Final = " 0A "
"""TCP_LISTEN between the blanks of its column; no other column can read like that."""
_SOCKET: Final = "socket:["
_SETTLED_AGE_MAX_S: Final = 2.0
"""Who holds its port could lose it only to one that shares it (SO_REUSEPORT): a rare mistake, found this soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listening TCP socket of this machine."""

    address: Address
    port: int
    uid: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PortSight:
    """Who listens; `stranger` names somebody else, for people."""

    holder: PortHolder
    stranger: str = ""


UNTOLD: Final = PortSight(holder=PortHolder.UNTOLD)
_NOBODY: Final = PortSight(holder=PortHolder.NOBODY)
_OWN: Final = PortSight(holder=PortHolder.OWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """Holds as long as the port's sockets are the same, and so are those processes of the group."""

    sight: PortSight
    inodes: frozenset[int]
    pids: frozenset[int]
    """Of an own port: the leader and who holds it. Of a stranger's: the whole group, as a new member may hold it."""

    def still_holds(self, inodes: frozenset[int], pids: frozenset[int]) -> bool:
        if self.inodes != inodes or self.sight == _NOBODY:
            return False
        return self.pids <= pids if self.sight == _OWN else self.pids == pids


class PortWatch:
    """Remembers what it found, so that an undisturbed replica costs next to nothing. Not safe for threads."""

    def __init__(self, host: str) -> None:
        """`host`: the address that replicas are asked at; a name stands for all addresses of this machine."""
        self._host = _address_of(host)
        self._verdicts: dict[ReplicaName, _Verdict] = {}
        self._read_at_s = float("-inf")

    def look(self, groups: Mapping[ReplicaName, list[Member]]) -> dict[ReplicaName, PortSight]:
        """For each group whose leader lives and shows its port; UNTOLD on a system that does not tell."""
        led = {name: members for name, members in groups.items() if members[0].is_leader and members[0].port}
        self._verdicts = {name: verdict for name, verdict in self._verdicts.items() if name in led}
        if not led or self._is_settled(led):
            return {name: self._verdicts[name].sight for name in led}
        self._read_at_s = time.monotonic()
        listeners = read_listeners({members[0].port for members in led.values()})
        if listeners is None:
            self._verdicts.clear()
            return dict.fromkeys(led, UNTOLD)
        of_port: dict[int, list[Listener]] = {}
        for listener in listeners:
            of_port.setdefault(listener.port, []).append(listener)
        for name, members in led.items():
            self._judge(name, members, reached_at(of_port.get(members[0].port, ()), self._host))
        return {name: self._verdicts[name].sight for name in led}

    def _is_settled(self, led: Mapping[ReplicaName, list[Member]]) -> bool:
        if time.monotonic() - self._read_at_s > _SETTLED_AGE_MAX_S:
            return False
        verdicts = [(self._verdicts.get(name), members) for name, members in led.items()]
        return all(v is not None and v.sight == _OWN and v.pids <= _pids(members) for v, members in verdicts)

    def _judge(self, name: ReplicaName, members: list[Member], reached: Collection[Listener]) -> None:
        inodes = frozenset(listener.inode for listener in reached)
        before = self._verdicts.get(name)
        if before is None or not before.still_holds(inodes, _pids(members)):
            self._verdicts[name] = _verdict(members, reached, inodes)


def _verdict(members: list[Member], reached: Collection[Listener], inodes: frozenset[int]) -> _Verdict:
    held = {member.pid: sockets_of(member.pid) & inodes for member in members} if inodes else {}
    missing = inodes.difference(*held.values())
    strangers: list[int] = []
    for pid in _holders_of(missing, but=held.keys()) if missing else ():
        if _session_of(pid) == members[0].pid:
            missing -= sockets_of(pid)
        else:
            strangers.append(pid)
    if strangers:
        stranger = _described(strangers[0])
    elif missing and (unseen := _still_listening(reached, missing)):
        stranger = f"a process that cannot be looked into, of user {unseen.uid}"
    else:
        # A socket that closed while we looked is looked for again.
        sight = _OWN if inodes and not missing else _NOBODY
        holders = {pid for pid, some in held.items() if some}
        return _Verdict(sight=sight, inodes=inodes, pids=frozenset({members[0].pid, *holders}))
    return _Verdict(sight=PortSight(holder=PortHolder.OTHER, stranger=stranger), inodes=inodes, pids=_pids(members))


def _holders_of(inodes: Collection[int], *, but: Collection[int]) -> list[int]:
    """Processes of the whole machine, so far as this user may look into them. Some 10 us for each; rarely needed."""
    return [pid for pid in psutil.pids() if pid not in but and not sockets_of(pid).isdisjoint(inodes)]


def _still_listening(before: Collection[Listener], inodes: Collection[int]) -> Listener | None:
    """One of the sockets, if it is still there: one that is gone had no holder to be found."""
    present = {listener.inode for listener in read_listeners({one.port for one in before}) or ()}
    return next((one for one in before if one.inode in inodes and one.inode in present), None)


def read_listeners(ports: Collection[int]) -> tuple[Listener, ...] | None:
    """The TCP sockets of this machine that listen on one of the ports; None on a system without such tables."""
    found: list[Listener] = []
    for table in _TABLES:
        try:
            text = Path(table).read_text(encoding="ascii")
        except FileNotFoundError:
            # Without IPv6 the second is missing; without the first this is no Linux.
            if table == _TABLES[0]:
                return None
            continue
        found += parse_listeners(text, ports)
    return tuple(found)


def parse_listeners(text: str, ports: Collection[int]) -> Iterator[Listener]:
    """Those of a table in the format of proc_net_tcp(5) that listen on one of the ports."""
    for line in text.splitlines():
        if _LISTENING not in line:
            continue
        columns = line.split()
        address, _, digits = columns[1].partition(":")
        if (port := int(digits, 16)) in ports:
            yield Listener(address=_parse_address(address), port=port, uid=int(columns[7]), inode=int(columns[9]))


def reached_at(of_port: Iterable[Listener], host: Address | None) -> tuple[Listener, ...]:
    """Of a port's listeners those that a connection to the host may reach: bound to exactly it, else to all addresses.

    `host` None or unspecified: any address of this machine, so any listener.
    """
    listeners = tuple(of_port)
    if host is None or host.is_unspecified:
        return listeners
    exact = tuple(listener for listener in listeners if listener.address == host)
    return exact or tuple(listener for listener in listeners if listener.address.is_unspecified)


def sockets_of(pid: int) -> frozenset[int]:
    """Inodes of the sockets that a process holds; empty when it is gone or may not be looked into."""
    try:
        targets = [_target_of(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return frozenset()
    return frozenset(int(target[len(_SOCKET) : -1]) for target in targets if target.startswith(_SOCKET))


def _target_of(descriptor: Path) -> str:
    """Empty when it was closed meanwhile."""
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""


def _parse_address(digits: str) -> Address:
    """Words of 32 bits in the machine's own byte order; an IPv4 address inside IPv6 is taken as itself."""
    words = bytes.fromhex(digits)
    if sys.byteorder == "little":
        words = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    address = ip_address(words)
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _address_of(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _pids(members: Iterable[Member]) -> frozenset[int]:
    return frozenset(member.pid for member in members)


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _described(pid: int) -> str:
    try:
        return f"process {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return f"process {pid}"
