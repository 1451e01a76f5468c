"""What the broker promises, through each gRPC library and on each store, from outside its process."""

import time

import pytest
from e2e_broker import BrokerProcess
from e2e_failure import CallFailed
from e2e_peers import PEERS, Client, Peer, received

ID_MAX = 2**63 - 1
CLOCK_OFF_S = 1.0
"""By so much a store's clock may differ from this machine's: Cassandra is asked for its time over the network."""


async def refused(peer: Peer, client: Client, subject: str, id_: int, reason: str, text: str) -> CallFailed:
    """Fetch what cannot be fetched."""
    with pytest.raises(CallFailed) as failure:
        await client.fetch(subject, id_)
    assert failure.value.told == ("INVALID_ARGUMENT", reason if peer.sees_details else None)
    assert text in failure.value.text
    return failure.value


def test_fifty_publishes_reach_three_subscribers_in_order(broker: BrokerProcess, peer: Peer, subject: str) -> None:
    async def scenario(peer: Peer) -> None:
        async with (
            peer.connect(broker.address) as publisher,
            peer.connect(broker.address) as one,
            peer.connect(broker.address) as two,
            one.subscribe(subject) as first,
            one.subscribe(subject) as second,
            two.subscribe(subject) as third,
        ):
            sent = [(n + 1, b"event %d" % n) for n in range(50)]
            assert [(await publisher.publish(subject, body)).id for _, body in sent] == list(range(1, 51))
            for messages in await peer.together([received(stream, 50) for stream in (first, second, third)]):
                assert [(message.id, message.body) for message in messages] == sent
                assert {message.subject for message in messages} == {subject}

    peer.run(scenario)


def test_a_subscriber_hears_of_its_own_subject_only(broker: BrokerProcess, peer: Peer, subject: str) -> None:
    others = (f"{subject}.deeper", f"{subject}0", subject.rpartition(".")[0], subject.upper())

    async def scenario(peer: Peer) -> None:
        async with peer.connect(broker.address) as client, client.subscribe(subject) as stream:
            for n in range(5):
                for other in others:
                    await client.publish(other, b"not for you")
                await client.publish(subject, b"%d" % n)
            assert [message.body for message in await received(stream, 5)] == [b"0", b"1", b"2", b"3", b"4"]

    peer.run(scenario)


def test_a_new_subscriber_gets_no_history(broker: BrokerProcess, peer: Peer, subject: str) -> None:
    async def scenario(peer: Peer) -> None:
        async with peer.connect(broker.address) as client:
            for _ in range(3):
                await client.publish(subject, b"before", keep=True)
            async with client.subscribe(subject) as stream:
                await client.publish(subject, b"after", keep=True)
                assert [(message.id, message.body) for message in await received(stream, 1)] == [(4, b"after")]

    peer.run(scenario)


def test_a_subscriber_whose_headers_came_misses_nothing(broker: BrokerProcess, peer: Peer, subject: str) -> None:
    async def scenario(peer: Peer) -> None:
        async with peer.connect(broker.address) as publisher, peer.connect(broker.address) as client:
            for _ in range(20):
                async with client.subscribe(subject) as stream:
                    published = await publisher.publish(subject)
                    assert (await stream.receive()).id == published.id

    peer.run(scenario)


def test_expired_ids_and_ids_that_never_were_are_told_apart(broker: BrokerProcess, peer: Peer, subject: str) -> None:
    async def scenario(peer: Peer) -> None:
        async with peer.connect(broker.address) as client:
            assert (await client.publish(subject, b"kept", keep=True)).id == 1
            assert (await client.publish(subject, b"not kept")).id == 2
            assert (await client.fetch(subject, 1)).body == b"kept"
            await refused(peer, client, subject, 2, "EXPIRED_ID", "no longer kept")
            for id_ in (3, 0, -1, ID_MAX, -ID_MAX - 1):
                failure = await refused(peer, client, subject, id_, "INVALID_ID", f"id {id_} was never assigned")
                assert failure.metadata == ({"last_id": "2"} if peer.sees_details else {})
            await refused(peer, client, f"{subject}.unheard-of", 1, "INVALID_ID", "its last id is 0")

    peer.run(scenario)


def test_a_message_is_the_same_live_and_fetched(broker: BrokerProcess, peer: Peer, subject: str) -> None:
    headers = {"trace": b"\x00\xff", "empty": b"", "name with blanks": "ü".encode()}
    body = bytes(range(256)) * 400

    async def scenario(peer: Peer) -> None:
        async with peer.connect(broker.address) as client, client.subscribe(subject) as stream:
            before_s = time.time()
            published = await client.publish(subject, body, headers=headers, keep=True)
            after_s = time.time()
            live, fetched = await stream.receive(), await client.fetch(subject, published.id)
            assert live == fetched
            assert (live.subject, live.id, live.body, dict(live.headers)) == (subject, 1, body, headers)
            assert live.published_at == published.published_at
            published_s = live.published_at.ToMicroseconds() / 1e6
            assert before_s - CLOCK_OFF_S <= published_s <= after_s + CLOCK_OFF_S

    peer.run(scenario)


def test_the_time_of_publishing_never_decreases(broker: BrokerProcess, peer: Peer, subject: str) -> None:
    async def scenario(peer: Peer) -> None:
        async with peer.connect(broker.address) as one, peer.connect(broker.address) as two:
            replies = await peer.together([client.publish(subject) for client in (one, two) * 25])
            by_id = sorted(replies, key=lambda reply: reply.id)
            assert [reply.id for reply in by_id] == list(range(1, 51))
            times = [reply.published_at.ToMicroseconds() for reply in by_id]
            assert times == sorted(times)

    peer.run(scenario)


def test_what_is_not_kept_is_delivered_and_cannot_be_fetched(broker: BrokerProcess, peer: Peer, subject: str) -> None:
    async def scenario(peer: Peer) -> None:
        async with peer.connect(broker.address) as client, client.subscribe(subject) as stream:
            assert (await client.publish(subject, b"now or never")).id == 1
            await refused(peer, client, subject, 1, "EXPIRED_ID", "no longer kept")
            assert (await stream.receive()).body == b"now or never"
            assert (await client.publish(subject, b"next", keep=True)).id == 2
            assert (await client.fetch(subject, 2)).body == b"next"

    peer.run(scenario)


def test_a_message_is_there_until_it_expires_and_never_after(broker: BrokerProcess, subject: str) -> None:
    """The store's clock counts, which told the time at some moment between asking and hearing that it is published."""

    async def scenario(peer: Peer) -> None:
        async with peer.connect(broker.address) as client:
            asked_s = time.monotonic()
            published = await client.publish(subject, b"for a second", expirationSeconds=1)
            published_s = time.monotonic()
            with pytest.raises(CallFailed) as failure:
                while True:
                    began_s = time.monotonic()
                    await client.fetch(subject, published.id)
                    assert began_s < published_s + 1
            assert time.monotonic() >= asked_s + 1
            assert failure.value.told == ("INVALID_ARGUMENT", "EXPIRED_ID")

    PEERS["grpcio"].run(scenario)
