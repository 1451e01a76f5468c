"""The soak in small: every attack once, and that what stays behind would be told."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_broker import BrokerProcess, eventually, sqlite_url
from e2e_wire import Wire

from .__main__ import FLAGS, MEMORY_SLACK_MIB, certificates, compare
from .hostile import ATTACKS, TLS_ATTACKS, Attacker
from .samples import Sample, look, write

SAMPLE = Sample(1.0, 50.0, 20, 3, 0, 27, 0, 0, 0, 100, 5.0, 7)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(sqlite_url(tmp_path_factory.mktemp("soak")), *FLAGS) as broker:
        yield broker
        broker.stop()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    folder = tmp_path_factory.mktemp("soak-tls")
    _, chain, key = certificates(folder)
    with BrokerProcess(sqlite_url(folder), *FLAGS, "--tls-cert", str(chain), "--tls-key", str(key)) as broker:
        yield broker
        broker.stop()


def attack(broker: BrokerProcess, what: Callable[[Attacker], None]) -> None:
    """Do it once; what is held open is let go at once."""
    over = threading.Event()
    over.set()
    attacker = Attacker(broker.address, over, random.Random(0))
    try:
        what(attacker)
    except OSError:
        pass  # cut off
    finally:
        attacker.close()
    eventually(lambda: look(broker, 0.0).connections, 0)


@pytest.mark.parametrize("what", ATTACKS, ids=lambda what: what.__name__)
def test_an_attack_leaves_nothing_and_the_next_client_is_served(
    plain: BrokerProcess, what: Callable[[Attacker], None]
) -> None:
    attack(plain, what)
    after = look(plain, 0.0)
    assert (after.calls, after.inbound_bytes, after.outbound_bytes) == (0, 0, 0)
    with Wire(plain.address) as wire:
        assert wire.published(wire.publish("orders")) > 0
    eventually(lambda: look(plain, 0.0).connections, 0)


@pytest.mark.parametrize("what", TLS_ATTACKS, ids=lambda what: what.__name__)
def test_an_attack_on_tls_leaves_nothing(tls: BrokerProcess, what: Callable[[Attacker], None]) -> None:
    attack(tls, what)
    after = look(tls, 0.0)
    assert (after.calls, after.inbound_bytes, after.outbound_bytes) == (0, 0, 0)


def test_attackers_go_on_when_they_are_cut_off() -> None:
    over = threading.Event()

    def cut_off(attacker: Attacker) -> None:
        over.set()
        raise ConnectionResetError

    done: Counter[str] = Counter()
    Attacker("127.0.0.1:1", over, random.Random(0)).run([cut_off], done)
    assert done == {"cut_off": 1, "cut_off, cut off": 1}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"memory_mib": 50.0 + MEMORY_SLACK_MIB, "answered": 0}, []),
        ({"memory_mib": 50.5 + MEMORY_SLACK_MIB}, ["memory_mib was 50.0 and is 66.5"]),
        ({"tasks": 28, "descriptors": 21}, ["tasks was 27 and is 28", "descriptors was 20 and is 21"]),
        ({"descriptors": 19, "inbound_bytes": 1}, ["inbound_bytes was 0 and is 1"]),
    ],
)
def test_what_stays_behind_is_told(change: dict[str, float], told: list[str]) -> None:
    assert compare(SAMPLE, SAMPLE._replace(**change)) == told


def test_samples_are_a_table_and_a_picture(tmp_path: Path) -> None:
    write([SAMPLE, SAMPLE._replace(at_s=1800.0)], tmp_path, "soak")
    assert (tmp_path / "soak.csv").read_text().splitlines()[1] == "1.0,50.0,20,3,0,27,0,0,0,100,5.0,7"
    assert "Resident memory" in (tmp_path / "soak.svg").read_text()
