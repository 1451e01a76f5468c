"""What a node has on its disk: making it flush and compact by CQL alone, and looking into its files.

Owns:      the settings of a table that does so soon; reading an sstable, by the node's own tool.
Not here:  what should be there (the tests); the node (cassandra_server.py).
Threads:   any; reading a file takes some 2 s, most of it to start Java.
"""

import json
import subprocess

from cassandra_keyspaces import Keyspaces
from cassandra_server import CassandraServer, java_command

_SOON = """
    ALTER TABLE {} WITH memtable_flush_period_in_ms = 100 AND gc_grace_seconds = 0
    AND compaction = {{'class': 'SizeTieredCompactionStrategy', 'min_threshold': 2}}
"""
_COMPACTIONS = "SELECT keyspace_name, columnfamily_name FROM system.compaction_history"


def compact_soon(keyspaces: Keyspaces, table: str) -> None:
    """From now on flush what is written to a table at once, and compact any two files; forget what expired."""
    keyspaces.execute(_SOON.format(table))


def was_compacted(keyspaces: Keyspaces, table: str) -> bool:
    return tuple(table.split(".")) in keyspaces.execute(_COMPACTIONS)


def columns_on_disk(server: CassandraServer, table: str) -> set[str]:
    """The columns for which some row in the files of a table has something, expired or not; static ones aside."""
    columns = set()
    for file in server.directory.glob(f"data/{table.replace('.', '/')}-*/*-Data.db"):
        exported = subprocess.run(
            java_command("tools.SSTableExport", file, "-l"),
            cwd=server.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        assert exported.returncode == 0 or not file.exists(), exported.stderr  # it may have been compacted meanwhile
        partitions = [json.loads(line) for line in exported.stdout.splitlines() if line.startswith("{")]
        rows = [row for partition in partitions for row in partition["rows"] if row["type"] == "row"]
        columns |= {cell["name"] for row in rows for cell in row["cells"]}
    return columns
