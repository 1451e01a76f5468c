"""``trio-broker backup`` beside a broker under load, and what can be done with the copy."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from e2e_broker import SAFETY_S, BrokerProcess, clean_environment, sqlite_url
from e2e_failure import CallFailed
from e2e_journal import Journal, check_recovered, fetch_all, last_id, publish_through
from e2e_peers import PEERS, Peer

AIO = PEERS["grpcio.aio"]
ACKNOWLEDGED = 4_000
SKIPPED = 1_000_000


def start_backup(database: Path, destination: Path, *flags: str) -> subprocess.Popen[str]:
    store = sqlite_url(database.parent)
    return subprocess.Popen(
        [sys.executable, "-m", "trio_broker", "backup", str(destination), "--store", store, *flags],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_copy_made_under_load_has_all_that_was_acknowledged_before(
    sqlite_broker: Callable[..., BrokerProcess], database: Path, tmp_path: Path
) -> None:
    destination = tmp_path / "restored" / database.name
    destination.parent.mkdir()
    journal = Journal()
    acknowledged_before: dict[str, dict[int, bytes]] = {}
    backups = []

    def back_up() -> None:
        acknowledged_before.update({subject: dict(bodies) for subject, bodies in journal.bodies.items()})
        backups.append(start_backup(database, destination))

    with sqlite_broker() as broker:
        AIO.run(publish_through, [broker.address], journal, ACKNOWLEDGED, back_up)
        out, err = backups[0].communicate(timeout=SAFETY_S)
        assert backups[0].returncode == 0, err
        AIO.run(check_recovered, broker.address, journal)
        broker.stop()

    assert out == f"{destination}: {destination.stat().st_size} bytes, checked\n"
    assert [file.name for file in destination.parent.iterdir()] == [destination.name]
    assert destination.stat().st_mode & 0o777 == 0o600
    with BrokerProcess(sqlite_url(destination.parent)) as restored:
        for subject, bodies in acknowledged_before.items():
            assert AIO.run(fetch_all, restored.address, subject, bodies) == bodies
        restored.stop()


async def publish(peer: Peer, address: str, body: bytes) -> int:
    async with peer.connect(address) as client:
        return (await client.publish("orders", body, keep=True)).id


async def refusal(peer: Peer, address: str, id_: int) -> str | None:
    async with peer.connect(address) as client:
        with pytest.raises(CallFailed) as failure:
            await client.fetch("orders", id_)
    return failure.value.reason


def test_ids_given_after_the_backup_are_not_given_again_when_the_restored_file_skips_them(
    sqlite_broker: Callable[..., BrokerProcess], database: Path, tmp_path: Path
) -> None:
    """As docs/DEPLOY.md tells to restore."""
    copy = tmp_path / "copy.db"
    with sqlite_broker() as broker:
        assert AIO.run(publish, broker.address, b"in the copy") == 1
        backup = start_backup(database, copy)
        assert backup.communicate(timeout=SAFETY_S)[1] == ""
        assert AIO.run(publish, broker.address, b"after it") == 2
        broker.stop()
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute(f"UPDATE subjects SET last_id = last_id + {SKIPPED}")
    copy.replace(database)
    with sqlite_broker() as broker:
        assert AIO.run(fetch_all, broker.address, "orders", [1]) == {1: b"in the copy"}
        assert AIO.run(refusal, broker.address, 2) == "EXPIRED_ID"
        assert AIO.run(last_id, broker.address, "orders") == 1 + SKIPPED
        assert AIO.run(publish, broker.address, b"after the restoration") == 2 + SKIPPED
        broker.stop()
