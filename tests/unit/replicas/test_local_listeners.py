"""The kernel's tables of sockets, read; who of a port's listeners a connection may reach."""

from ipaddress import ip_address

import pytest

from controlplane.adapters.launchers.local.listeners import Address, Listener, parse_listeners, reached_at

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
IPV4 = HEAD + (
    "   0: 0100007F:4E20 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 899266 1\n"
    "   1: 00000000:4E21 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 898658 1\n"
    "   2: 0100007F:4E20 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 899999 1\n"
    "   3: 0100007F:4E22 0100007F:9C41 06 00000000:00000000 03:00000B5A 00000000     0        0 0 3 0\n"
)
IPV6 = HEAD + (
    "   0: 00000000000000000000000000000000:4E20 00000000000000000000000000000000:0000 0A "
    "00000000:00000000 00:00000000 00000000     0        0 11 1\n"
    "   1: 00000000000000000000000001000000:4E20 00000000000000000000000000000000:0000 0A "
    "00000000:00000000 00:00000000 00000000     0        0 12 1\n"
    "   2: 0000000000000000FFFF00000100007F:4E20 00000000000000000000000000000000:0000 0A "
    "00000000:00000000 00:00000000 00000000     0        0 13 1\n"
)


def listener(address: str, inode: int) -> Listener:
    return Listener(address=ip_address(address), port=20000, uid=0, inode=inode)


def test_listening_sockets_are_read_and_no_others() -> None:
    assert list(parse_listeners(IPV4, {20000, 20001, 20002})) == [
        Listener(address=ip_address("127.0.0.1"), port=20000, uid=1000, inode=899266),
        Listener(address=ip_address("0.0.0.0"), port=20001, uid=0, inode=898658),
    ]
    assert [one.inode for one in parse_listeners(IPV4, {20001})] == [898658]


def test_addresses_of_ipv6_and_those_of_ipv4_inside_it() -> None:
    found = [(str(one.address), one.inode) for one in parse_listeners(IPV6, {20000})]
    assert found == [("::", 11), ("::1", 12), ("127.0.0.1", 13)]


@pytest.mark.parametrize(
    ("host", "inodes"),
    [
        ("127.0.0.1", {1, 2}),
        ("::1", {3}),
        ("10.0.0.7", {4, 5}),
        ("0.0.0.0", {1, 2, 3, 4, 5}),
        (None, {1, 2, 3, 4, 5}),
    ],
)
def test_an_exact_address_is_reached_before_all_addresses(host: str | None, inodes: set[int]) -> None:
    listeners = [
        listener("127.0.0.1", 1),
        listener("127.0.0.1", 2),
        listener("::1", 3),
        listener("0.0.0.0", 4),
        listener("::", 5),
    ]
    address: Address | None = None if host is None else ip_address(host)
    assert {one.inode for one in reached_at(listeners, address)} == inodes
