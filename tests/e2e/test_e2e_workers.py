"""``--workers 2``: two processes behind one port, that look like one broker from outside."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
from e2e_broker import SAFETY_S, BrokerProcess, clean_environment, eventually, serve_command
from e2e_wire import Wire
from postgres_databases import Databases
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from trio_broker.client import connect

TWO = ("--workers", "2")
DRAINING = ("UNAVAILABLE", "DRAINING")


@pytest.fixture(scope="module")
def broker(postgres: Databases) -> Iterator[BrokerProcess]:
    """For tests that leave its workers running."""
    with postgres.new() as url, BrokerProcess(url, *TWO) as broker:
        yield broker
        broker.stop()


def of_workers(broker: BrokerProcess, name: str, **labels: str) -> list[float]:
    """One sample of each worker."""
    return [broker.metric(name, **labels, worker=worker) for worker in ("0", "1")]


def workers(broker: BrokerProcess) -> list[psutil.Process]:
    """Their processes, by number."""
    return sorted(broker.system().children(), key=lambda process: process.cmdline()[-1])


def connect_wires(stack: ExitStack, broker: BrokerProcess, count: int) -> list[Wire]:
    """Connections whose first call has been answered."""
    wires = [stack.enter_context(Wire(broker.address)) for _ in range(count)]
    for wire in wires:
        wire.round_trip()
    return wires


def test_connections_are_shared_out_evenly_and_so_are_calls(broker: BrokerProcess) -> None:
    published = of_workers(broker, "method_count", method="Publish", status="OK")
    with ExitStack() as stack:
        wires = connect_wires(stack, broker, 64)
        assert of_workers(broker, "trio_broker_connections") == [32, 32]
        ids = [wire.published(wire.publish("even", b"x", keep=True)) for wire in wires for _ in range(3)]
    assert ids == [*range(1, 3 * 64 + 1)]
    now = of_workers(broker, "method_count", method="Publish", status="OK")
    assert [after - before for before, after in zip(published, now, strict=True)] == [96, 96]


def test_few_connections_are_shared_out_evenly_too_though_others_came_and_went(broker: BrokerProcess) -> None:
    for _ in range(5):
        with ExitStack() as stack:
            eventually(lambda: sum(of_workers(broker, "trio_broker_connections")), 0.0)
            connect_wires(stack, broker, 4)
            assert of_workers(broker, "trio_broker_connections") == [2, 2]


def test_one_page_has_the_metrics_of_both_and_of_their_number(broker: BrokerProcess) -> None:
    status, page = broker.get("/metrics")
    assert status == 200
    families = list(text_string_to_metric_families(page))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    for family in families:
        of = {sample.labels.get("worker") for sample in family.samples}
        assert of in (
            set(),
            {None} if family.name in ("trio_broker_workers", "trio_broker_workers_ready") else {"0", "1"},
        )
    assert broker.metric("trio_broker_workers") == broker.metric("trio_broker_workers_ready") == 2
    assert of_workers(broker, "trio_broker_worker_restarts_total") == [0, 0]
    assert of_workers(broker, "trio_broker_ready") == [1, 1]


def test_openmetrics_is_spoken_too(broker: BrokerProcess) -> None:
    connection = HTTPConnection(broker.metrics_address, timeout=SAFETY_S)
    connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    page = connection.getresponse().read().decode()
    connection.close()
    names = [family.name for family in parse_openmetrics(page)]
    assert "trio_broker_build" in names
    assert len(names) == len(set(names))


def test_a_broker_with_workers_is_ready_and_says_so_of_each(broker: BrokerProcess) -> None:
    status, page = broker.get("/readyz")
    assert (status, page.splitlines()[:3]) == (200, ["ready", "worker 0: ready", "worker 1: ready"])
    assert broker.get("/healthz") == (200, "ok\n")


def test_it_starts_with_one_event_ready_and_each_line_of_a_worker_has_its_number(broker: BrokerProcess) -> None:
    (ready,) = [line for line in broker.log if line["event"] == "ready"]
    assert (ready["workers"], "worker" in ready) == (2, False)
    of = [line["worker"] for line in broker.log if line["event"] == "worker_ready"]
    assert sorted(of) == [0, 1]


def test_no_command_line_and_no_variable_of_a_worker_has_the_url_of_the_store(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, *TWO) as broker:
        for process in workers(broker):
            assert postgres_url not in " ".join(process.cmdline())
            assert postgres_url not in process.environ().values()
        broker.stop()


def test_workers_share_what_memory_the_broker_may_use(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, *TWO, "--memory-max", "512MiB") as broker:
        first, second = of_workers(broker, "trio_broker_memory_limit_bytes")
        own = broker.system().memory_info().rss
        assert first == second
        assert 0.9 * (512 * 2**20 - own) < first + second < 512 * 2**20


def connected_to_each(stack: ExitStack, broker: BrokerProcess) -> tuple[Wire, Wire]:
    """Return a connection to each worker, by its number."""
    (first,) = connect_wires(stack, broker, 1)
    has_first = of_workers(broker, "trio_broker_connections")
    (second,) = connect_wires(stack, broker, 1)
    return (first, second) if has_first == [1, 0] else (second, first)


def test_a_worker_that_is_killed_is_replaced_and_the_streams_of_the_other_go_on(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, *TWO) as broker, ExitStack() as stack:
        of_0, of_1 = connected_to_each(stack, broker)
        streams = [wire.subscribe("orders") for wire in (of_0, of_1)]
        for wire, stream in zip((of_0, of_1), streams, strict=True):
            wire.stand(stream)
        workers(broker)[0].kill()
        of_0.read_to_the_end()
        assert of_1.published(of_1.publish("orders", b"meanwhile", keep=True)) == 1
        of_1.read_until(lambda: len(streams[1].received()) == 1)
        eventually(lambda: broker.get("/readyz")[1].splitlines()[0], "ready")
        assert broker.metric("trio_broker_worker_restarts_total", worker="0") == 1
        assert broker.wait_logged("worker_ended")["exit_code"] == -9
        (again,) = connect_wires(stack, broker, 1)
        assert of_workers(broker, "trio_broker_connections") == [1, 1]
        assert again.published(again.publish("orders", b"through the new one", keep=True)) == 2
        broker.stop()


def test_a_worker_that_is_told_to_stop_drains_and_is_replaced(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, *TWO) as broker, ExitStack() as stack:
        of_0, of_1 = connected_to_each(stack, broker)
        streams = [wire.subscribe("orders") for wire in (of_0, of_1)]
        for wire, stream in zip((of_0, of_1), streams, strict=True):
            wire.stand(stream)
        workers(broker)[1].terminate()
        assert of_1.failed(streams[1]).told == DRAINING
        of_1.close()
        assert broker.wait_logged("worker_ended")["exit_code"] == 0
        eventually(lambda: broker.get("/readyz")[1].splitlines()[0], "ready")
        of_0.round_trip()
        assert not streams[0].over
        broker.stop()


def test_all_workers_drain_and_the_exit_code_is_0(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, *TWO) as broker, ExitStack() as stack:
        wires = connect_wires(stack, broker, 4)
        streams = [wire.subscribe("orders") for wire in wires]
        for wire, stream in zip(wires, streams, strict=True):
            wire.stand(stream)
        broker.terminate()
        for wire, stream in zip(wires, streams, strict=True):
            assert wire.failed(stream).told == DRAINING
            wire.read_to_the_end()
        assert broker.wait() == 0
        assert broker.errors() == []


def test_a_signal_that_every_process_gets_is_one_for_each(postgres_url: str) -> None:
    """As systemd sends it."""
    with BrokerProcess(postgres_url, *TWO) as broker:
        for process in (*workers(broker), broker.system()):
            process.terminate()
        assert broker.wait() == 0
        assert broker.errors() == []


def test_a_worker_that_stands_still_is_given_nobody_and_does_not_keep_the_process(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, *TWO, "--grace", "0s") as broker, ExitStack() as stack:
        workers(broker)[0].suspend()
        eventually(lambda: broker.get("/readyz")[1].splitlines()[0], "ready, with 1 of 2 workers")
        assert broker.get("/readyz")[0] == 200
        assert "worker 0: silent for" in broker.get("/readyz")[1]
        connect_wires(stack, broker, 4)
        assert of_workers(broker, "trio_broker_connections") == [0, 4]
        stack.close()
        broker.terminate()
        assert broker.wait() == 1
        assert broker.wait_logged("workers_stuck")["workers"] == [0]


def test_until_the_drain_delay_is_over_connections_are_taken_and_a_second_signal_ends_all(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, *TWO, "--drain-delay", "60s") as broker:
        processes = workers(broker)
        broker.terminate()
        broker.wait_logged("stopping")
        assert broker.get("/readyz")[1].startswith("draining\n")
        with Wire(broker.address) as late:
            assert late.published(late.publish("orders")) == 1
        broker.terminate()
        assert broker.wait() == 1
        assert psutil.wait_procs(processes, SAFETY_S)[1] == []


def test_workers_whose_supervisor_is_killed_drain(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, *TWO) as broker, Wire(broker.address) as wire:
        stream = wire.subscribe("orders")
        wire.stand(stream)
        processes = workers(broker)
        broker.kill()
        assert wire.failed(stream).told == DRAINING
        wire.close()
        assert psutil.wait_procs(processes, SAFETY_S)[1] == []
        assert broker.wait_logged("supervisor_gone")


def test_all_processes_describe_themselves_when_asked(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, *TWO) as broker:
        broker.system().send_signal(signal.SIGUSR1)

        def described() -> set[object]:
            broker.get("/healthz")
            return {line.get("worker") for line in broker.log if line["event"] == "process_described"}

        eventually(described, {None, 0, 1})
        broker.stop()


async def test_a_unix_socket_is_shared_too(postgres_url: str, tmp_path: Path) -> None:
    with BrokerProcess(postgres_url, *TWO, "--listen", f"unix:{tmp_path}/broker") as broker:
        async with connect(broker.address) as first, connect(broker.address) as second:
            assert [await client.publish("orders", b"x") for client in (first, second)] == [1, 2]
            assert of_workers(broker, "trio_broker_connections") == [1, 1]
        broker.stop()
        assert not (tmp_path / "broker").exists()


def refused(*arguments: str) -> tuple[int, list[str]]:
    """Start a broker that cannot; return the exit code and what is said beside the log."""
    done = subprocess.run(
        serve_command(*arguments), capture_output=True, env=clean_environment(), text=True, timeout=SAFETY_S
    )
    return done.returncode, [line for line in done.stderr.splitlines() if not line.startswith("{")]


@pytest.mark.parametrize("store", ["memory:", "sqlite:///broker.db"])
def test_a_store_of_one_process_is_refused(store: str) -> None:
    kind = store.partition(":")[0]
    told = (
        "trio-broker: --workers 2 needs a store that several processes can share, and "
        f"--store {kind}: is for one alone: use postgresql:// or cassandra://, or --workers 1"
    )
    assert refused(store, *TWO) == (2, [told])


def test_what_no_worker_can_do_is_told_once(postgres_url: str) -> None:
    code, (line,) = refused(f"{postgres_url}?nonsense=1", *TWO)
    assert code == 1
    assert line.startswith("trio-broker: the PostgreSQL URL cannot be read: ")


def test_a_taken_address_is_told_once(broker: BrokerProcess, postgres_url: str) -> None:
    for flag, address in (("--listen", broker.address), ("--metrics-listen", broker.metrics_address)):
        code, (line,) = refused(postgres_url, *TWO, flag, address)
        assert (code, line.endswith(f"({flag})")) == (1, True)
        assert address in line
