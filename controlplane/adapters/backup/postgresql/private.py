"""How the server of a restored copy is closed to everybody else: a private socket, no settings of the site's."""

from typing import Final

from controlplane.adapters.backup.postgresql.places import CopyPlaces
from controlplane.adapters.backup.postgresql.programs import Programs, account, give

PORT: Final = 5432
"""Names the socket file only: nothing listens."""

_FIXED: Final = {
    "listen_addresses": "",
    "port": str(PORT),
    "external_pid_file": "",
    "unix_socket_group": "",
    "unix_socket_permissions": "0700",
    "ssl": "off",
    # What the site had set on the live server must not act from here.
    "archive_mode": "off",
    "archive_command": "",
    "archive_library": "",
    "synchronous_standby_names": "",
    "max_logical_replication_workers": "0",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "cluster_name": "quarterdeck restored copy",
    # A damaged copy has to fail.
    "ignore_checksum_failure": "off",
    "zero_damaged_pages": "off",
    "ignore_invalid_pages": "off",
    "shared_buffers": "128MB",
    "huge_pages": "off",
    "max_connections": "40",
    "dynamic_shared_memory_type": "mmap",  # in its own folder: nothing is left in /dev/shm after a kill
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "jit": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "warning",
    "log_line_prefix": "",
    "lc_messages": "C",
    "log_timezone": "UTC",
}
_SINCE_17: Final = {"summarize_wal": "off"}
_SINCE_18: Final = {"io_method": "worker"}
_SINCE_17_MAJOR: Final = 17
_SINCE_18_MAJOR: Final = 18


def private_settings(places: CopyPlaces, programs: Programs) -> dict[str, str]:
    """On the command line, where they win over every file that came with the copy; the files they name are written."""
    who = account()
    trust = places.home / "pg_hba.conf"
    trust.write_text("local all all trust\nlocal replication all trust\n", encoding="utf-8")
    names = places.home / "pg_ident.conf"
    names.write_text("", encoding="utf-8")
    own = places.home / "postgresql.conf"
    own.write_text("", encoding="utf-8")
    for file in (trust, names, own):
        give(file, who)
    return {
        **_FIXED,
        **(_SINCE_17 if programs.major >= _SINCE_17_MAJOR else {}),
        **(_SINCE_18 if programs.major >= _SINCE_18_MAJOR else {}),
        "config_file": str(own),
        "hba_file": str(trust),
        "ident_file": str(names),
        "unix_socket_directories": str(places.sockets),
    }
