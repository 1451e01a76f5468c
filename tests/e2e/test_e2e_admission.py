"""More clients and subscriptions than may be: who has a place keeps it, and others are told when to come again."""

from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from e2e_broker import SAFETY_S, BrokerProcess, eventually
from e2e_failure import CallFailed
from e2e_peers import PEERS, Peer
from e2e_wire import Wire

from trio_broker._proto.grpc.health.v1 import health_pb2

OVERLOADED = ("RESOURCE_EXHAUSTED", "OVERLOADED")


@pytest.mark.parametrize("name", ["grpcio", "grpcio.aio"])  # purerpc trips over the PING that follows a GOAWAY
def test_clients_beyond_the_bound_are_told_so_and_served_once_there_is_a_place(name: str) -> None:
    async def scenario(peer: Peer) -> None:
        async with peer.connect(broker.address) as other:
            with Wire(broker.address) as first:
                assert first.published(first.publish("orders", keep=True)) == 1
                live = first.subscribe("orders")
                first.stand(live)
                for _ in range(3):
                    with pytest.raises(CallFailed) as refused:
                        await other.publish("orders")
                    assert refused.value.told == OVERLOADED
                    assert refused.value.retry_after_s == 1
                    assert "--connections-max" in refused.value.text
                assert 1 <= broker.metric("trio_broker_connections_refused_total") <= 6, "they do not hammer"
                assert first.published(first.publish("orders", keep=True)) == 2
                first.read_until(lambda: live.received())
            eventually(lambda: broker.metric("trio_broker_connections"), 0)
        async with peer.connect(broker.address) as other:
            assert (await other.publish("orders", keep=True)).id == 3

    with BrokerProcess("memory:", "--connections-max", "1") as broker:
        PEERS[name].run(scenario)
        assert broker.metric("trio_broker_connections_limit") == 1
        broker.stop()


def test_the_health_of_a_full_broker_can_be_asked() -> None:
    with BrokerProcess("memory:", "--connections-max", "1") as broker, Wire(broker.address) as first:
        assert first.published(first.publish("orders")) == 1
        with grpc.insecure_channel(broker.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                health_pb2.HealthCheckRequest.SerializeToString,
                health_pb2.HealthCheckResponse.FromString,
            )
            serving = health_pb2.HealthCheckResponse.SERVING
            assert check(health_pb2.HealthCheckRequest(), timeout=SAFETY_S).status == serving
        first.round_trip()


@pytest.mark.parametrize("method", ["Subscribe", "SubscribeBatch"])
def test_a_client_that_subscribes_without_end_leaves_places_for_others(method: str, tmp_path: Path) -> None:
    path = f"/broker.Broker/{method}"
    with BrokerProcess(f"sqlite:///{tmp_path}/broker.db", "--subscribers-max", "20") as broker, ExitStack() as open_now:
        flood, *others = [open_now.enter_context(Wire(broker.address)) for _ in range(5)]
        request = b"\n\x06orders"
        opened = [flood.start(path, request) for _ in range(30)]
        flood.stand(*opened)
        refused = [exchange for exchange in opened if exchange.over]
        live = [exchange for exchange in opened if not exchange.over]
        assert len(refused) == 20
        for exchange in refused:
            failure = flood.failed(exchange)
            assert failure.told == OVERLOADED
            assert failure.retry_after_s == 1
            assert failure.text.startswith("10 subscriptions are live, 10 of them on this connection")
            assert "--subscribers-max" in failure.text
        for other in others:
            other.stand(other.start(path, request))
        assert broker.subscribers() == 14
        assert broker.metric("trio_broker_subscribers_refused_total") == 20
        assert broker.metric("trio_broker_subscribers_limit") == 20
        assert flood.published(flood.publish("orders", b"x")) == 1
        flood.read_until(lambda: all(exchange.messages() for exchange in live))
        flood.cancel(*live)
        eventually(broker.subscribers, 4)
        others[0].stand(*[others[0].start(path, request) for _ in range(7)])
        broker.stop()
