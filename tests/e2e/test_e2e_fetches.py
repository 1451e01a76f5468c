"""Fetches take turns where only so many messages may be on their way from the store."""

from collections.abc import Sequence

import pytest
import trio
import trio.testing
from e2e_served import served
from e2e_wire import Wire

from persistence import ExpiredId, InvalidId, Key, Record, Store
from trio_broker import Broker
from trio_broker._proto import broker_pb2 as pb
from trio_broker.service.servicer import Fetches

MESSAGES = 10


def watch_reads(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets how many messages are on their way after each read has begun."""
    store: Store = broker._store
    get, under_way, seen = store.get, 0, []

    async def watched(keys: Sequence[Key]) -> list[Record | InvalidId | ExpiredId]:
        nonlocal under_way
        under_way += len(keys)
        seen.append(under_way)
        try:
            return await get(keys)
        finally:
            under_way -= len(keys)

    monkeypatch.setattr(store, "get", watched)
    return seen


@pytest.mark.parametrize(("most", "reads"), [(1, MESSAGES), (3, 4), (1000, 1)])
async def test_so_many_messages_are_on_their_way_at_once(
    most: int, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served("memory:", fetches_at_once=most) as (broker, address):
        ids = [await broker.publish("orders", b"%d" % number, None) for number in range(MESSAGES)]
        seen = watch_reads(broker, monkeypatch)

        def fetch_all() -> list[list[bytes]]:
            with Wire(address) as one, Wire(address) as other:
                together = [
                    [wire.prepare("/broker.Broker/Fetch", pb.FetchRequest(subject="orders", id=id_)) for id_ in ids]
                    for wire in (one, other)
                ]
                one.read_until(lambda: True)  # sends
                for wire, exchanges in zip((one, other), together, strict=True):
                    wire.finish(*exchanges)
                return [[exchange.received()[0].body for exchange in exchanges] for exchanges in together]

        assert await trio.to_thread.run_sync(fetch_all) == [[b"%d" % number for number in range(MESSAGES)]] * 2
    assert max(seen) <= most
    assert len(seen) >= 2 * reads


async def test_who_waits_goes_on_when_others_have_ended() -> None:
    fetches = Fetches(2)
    assert fetches.begin(5) == 2
    assert fetches.begin(1) == 0
    went_on: list[int] = []

    async def wait() -> None:
        await fetches.some_ended()
        went_on.append(fetches.begin(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert went_on == []
        fetches.end(2)
    assert went_on == [1]
