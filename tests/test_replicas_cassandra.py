"""Brokers on one Cassandra, of which each leaves appending to some subjects to the others."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count

import pytest
import trio
from blackhole import Blackhole
from postgres_kit import until
from replicas_kit import Mortal, Published, linked, replica, until_linked

from persistence import NewMessage, Outcome
from persistence.errors import BadContent, StoreFull, StoreUnavailable
from trio_broker import Broker, Draft
from trio_broker import errors as broker_errors
from trio_broker._proto import replicas_pb2 as pb
from trio_broker.errors import Conflict
from trio_broker.notation import parse_tcp
from trio_broker.replicas import Replicas, forwarding

PUBLISHERS = 8


@pytest.fixture
def url(cassandra_url: str) -> str:
    return cassandra_url


def forwarded(replicas: Replicas) -> int:
    assert replicas.forwarding is not None
    return replicas.forwarding.forwarded


def left_by(replicas: Replicas, *, to: Replicas | None = None) -> str:
    """A subject that a replica leaves to another one."""
    assert replicas.forwarding is not None
    for number in count():
        subject = f"orders.{number}"
        if replicas.forwarding.is_left(subject):
            assert to is None or to.forwarding is not None
            if to is None or not to.forwarding.is_left(subject):  # type: ignore[union-attr]
                return subject
    raise AssertionError


async def test_each_subject_is_left_to_one_and_everybody_hears_all_in_order(url: str) -> None:
    async with linked(url, 3) as (brokers, replicas), AsyncExitStack() as stack, trio.open_nursery() as nursery:
        subjects = [f"s.{number}" for number in range(4)]
        listeners = [
            (subject, await stack.enter_async_context(broker.subscribe(subject)))
            for broker in brokers
            for subject in subjects
        ]

        async def publish(broker: Broker, subject: str) -> None:
            for n in range(25):
                await broker.publish(subject, b"%d" % n, None, headers={"n": b"%d" % n})

        with trio.fail_after(60):
            for broker in brokers:
                for subject in subjects:
                    nursery.start_soon(publish, broker, subject)
            for subject, messages in listeners:
                got = [await messages.receive() for _ in range(75)]
                assert [message.id for message in got] == list(range(1, 76)), subject
                assert all(message.headers == {"n": message.body} for message in got)
        assert sum(map(forwarded, replicas)) == 3 * 4 * 25 * 2 // 3  # of three that publish to a subject two ask
        assert not any(broker.fanout.gaps[reason] for broker in brokers for reason in broker.fanout.gaps)


async def test_what_is_not_kept_reaches_everybody_whichever_of_three_publishes_it(url: str) -> None:
    """All publish to one subject at once: two ask the third, and hear of it by its answer and by its stream."""
    async with linked(url, 3) as (brokers, replicas), AsyncExitStack() as stack, trio.open_nursery() as nursery:
        listeners = [await stack.enter_async_context(broker.subscribe("live")) for broker in brokers]
        await until(lambda: all(len(broker.fanout.tails.get("live", ())) == 2 for broker in brokers))

        async def publish(name: int, broker: Broker) -> None:
            for n in range(25):
                await broker.publish("live", b"%d.%d" % (name, n))

        with trio.fail_after(60):
            for name, broker in enumerate(brokers):
                nursery.start_soon(publish, name, broker)
            for messages in listeners:
                got = [await messages.receive() for _ in range(75)]
                assert [message.id for message in got] == list(range(1, 76))
                assert len({message.body for message in got}) == 75
        assert sum(map(forwarded, replicas)) == 50
        assert not any(broker.fanout.gaps[reason] for broker in brokers for reason in broker.fanout.gaps)


async def test_a_key_has_one_id_whoever_is_asked(url: str) -> None:
    async with linked(url, 3) as (brokers, _):
        with trio.fail_after(30):
            ids = [
                [await broker.publish(f"s.{n}", b"x", None, idempotency_key="k") for broker in brokers]
                for n in range(8)
            ]
            assert ids == [[1, 1, 1]] * 8
            (result,) = await brokers[0].publish_batch([Draft("s.0", b"x", None, idempotency_key="k")])
            assert result == 1


async def test_outcomes_come_back_as_if_it_had_been_appended_here(url: str) -> None:
    async with linked(url, 2) as ((ours, _), (replicas, other)):
        subject = left_by(replicas, to=other)
        with trio.fail_after(30):
            assert await ours.publish(subject, b"x", 60, headers={"a": b"1"}) == 1
            message = await ours.fetch(subject, 1)
            assert (message.body, message.headers) == (b"x", {"a": b"1"})
            assert await ours.publish(subject, b"y", None, expected_last_id=1) == 2
            with pytest.raises(Conflict, match="is 2, and not 1") as conflict:
                await ours.publish(subject, b"y", None, expected_last_id=1)
            assert conflict.value.metadata == {"last_id": "2"}
            results = await ours.publish_batch([Draft(subject, b"%d" % n, None) for n in range(300)])
            assert results == list(range(3, 303))
        assert forwarded(replicas) == 303


async def test_who_asks_tells_its_own_subscribers_the_time_of_the_log(url: str) -> None:
    async with linked(url, 2) as ((ours, _), (replicas, other)):
        subject = left_by(replicas, to=other)
        async with ours.subscribe(subject) as messages:
            with trio.fail_after(30):
                await ours.publish(subject, b"x", None)
                assert (await messages.receive()) == await ours.fetch(subject, 1)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (StoreFull("no space"), broker_errors.StorageFull),
        (BadContent("no such text"), broker_errors.Rejected),
        (StoreUnavailable("away"), None),
    ],
    ids=["full", "content", "away"],
)
async def test_failures_of_the_others_store_come_back_too(
    url: str, error: Exception, seen: type[broker_errors.BrokerError] | None
) -> None:
    async with linked(url, 2) as ((ours, theirs), (replicas, other)):
        subject = left_by(replicas, to=other)

        async def fail(_batch: object) -> list[Outcome]:
            await trio.lowlevel.checkpoint()
            raise error

        theirs._store.append = fail  # type: ignore[method-assign, assignment]
        with trio.fail_after(30):
            if seen is None:  # nothing was appended there: it is appended here
                assert await ours.publish(subject, b"x", None) == 1
            else:
                with pytest.raises(seen):
                    await ours.publish(subject, b"x", None)


async def test_an_atomic_batch_is_appended_here(url: str) -> None:
    async with linked(url, 2) as ((ours, _), (replicas, other)):
        subject = left_by(replicas, to=other)
        with trio.fail_after(30):
            results = await ours.publish_batch([Draft(subject, b"%d" % n, None) for n in range(5)], atomic=True)
        assert results == [1, 2, 3, 4, 5]
        assert forwarded(replicas) == 0


async def test_two_that_leave_subjects_to_each_other_do_not_wait_for_each_other(url: str) -> None:
    async with linked(url, 2) as (brokers, replicas), trio.open_nursery() as nursery:
        subjects = [left_by(replicas[0], to=replicas[1]), left_by(replicas[1], to=replicas[0])]

        async def publish(broker: Broker, subject: str) -> None:
            for _ in range(50):
                await broker.publish(subject, b"x", None)

        with trio.fail_after(60):
            async with trio.open_nursery() as publishers:
                for broker in brokers:
                    for subject in subjects * 4:
                        publishers.start_soon(publish, broker, subject)
        assert min(map(forwarded, replicas)) == 200
        nursery.cancel_scope.cancel()


async def publish_through(
    broker: Broker, subject: str, published: Published, trouble: Callable[[], Awaitable[object]], *, keys: bool
) -> None:
    """Let eight publish while there is trouble: it begins when some is acknowledged; some more is after it."""
    numbers = count()
    enough = 1_000_000

    async def publish(name: int) -> None:
        while (number := next(numbers)) < enough:
            body = b"%d.%d" % (name, number)
            await published.publish(broker, subject, body, key=body.decode() if keys else "")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name in range(PUBLISHERS):
                nursery.start_soon(publish, name)
            await until(lambda: len(published.ids) >= 40)
            await trouble()
            acknowledged = len(published.ids)
            await until(lambda: len(published.ids) >= acknowledged + 40)
            enough = 0
    assert not published.refused
    await published.check(broker, subject)


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "no-keys"])
async def test_an_owner_that_leaves_costs_nobody_an_outcome(url: str, *, keys: bool) -> None:
    async with replica(url) as (ours, replicas), trio.open_nursery() as nursery:
        owner = await nursery.start(Mortal().run, url)
        await until_linked([replicas, owner.replicas], 2)
        published = Published()
        subject = left_by(replicas, to=owner.replicas)
        await publish_through(ours, subject, published, owner.leave, keys=keys)
        assert forwarded(replicas) >= 40
        assert not published.unknown


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "no-keys"])
async def test_an_owner_that_is_killed_costs_no_message(url: str, *, keys: bool) -> None:
    async with replica(url) as (ours, replicas), trio.open_nursery() as nursery:
        owner = await nursery.start(Mortal().run, url)
        await until_linked([replicas, owner.replicas], 2)
        published = Published()
        subject = left_by(replicas, to=owner.replicas)

        async def kill() -> None:
            owner.kill()
            await owner.ended.wait()

        await publish_through(ours, subject, published, kill, keys=keys)
        assert forwarded(replicas) >= 40
        assert not (keys and published.unknown)
        assert len(published.unknown) <= PUBLISHERS


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "no-keys"])
async def test_a_connection_that_is_cut_costs_no_message(url: str, *, keys: bool) -> None:
    async with linked(url, 2) as ((ours, _), (replicas, other)):
        published = Published()
        subject = left_by(replicas, to=other)

        async def cut() -> None:
            for _ in range(3):
                await until(replicas.is_linked)
                at = forwarded(replicas)
                await until(lambda at=at: forwarded(replicas) > at)  # type: ignore[misc]
                for link in replicas.links.values():
                    link.lose("cut by the test")
            await until(replicas.is_linked)

        await publish_through(ours, subject, published, cut, keys=keys)
        assert not (keys and published.unknown)
        assert len(published.unknown) <= 3 * PUBLISHERS


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "no-keys"])
async def test_an_owner_behind_a_black_hole_is_done_without(
    url: str, monkeypatch: pytest.MonkeyPatch, *, keys: bool
) -> None:
    monkeypatch.setattr(forwarding, "PATIENCE_S", 1)
    with Blackhole("127.0.0.1", 0) as hole:
        async with replica(url) as (ours, replicas), trio.open_nursery() as nursery:
            owner = await nursery.start(Mortal(f"127.0.0.1:{hole.port}").run, url)
            listener = parse_tcp(owner.listening_at)
            hole.lead_to(listener.port)
            await until_linked([replicas, owner.replicas], 2)
            published = Published()

            async def hold() -> None:
                await trio.lowlevel.checkpoint()
                hole.hold()

            await publish_through(ours, left_by(replicas, to=owner.replicas), published, hold, keys=keys)
            assert forwarded(replicas) >= 40
            assert not (keys and published.unknown)
            assert len(published.unknown) <= PUBLISHERS
            assert not replicas.is_linked()
            hole.release()
            await until(replicas.is_linked)
            nursery.cancel_scope.cancel()


async def test_an_owner_that_is_draining_is_done_without(url: str) -> None:
    async with linked(url, 2) as ((ours, theirs), (replicas, other)):
        published = Published()
        await publish_through(ours, left_by(replicas, to=other), published, theirs.drain, keys=False)
        assert not published.unknown
        assert replicas.forwarding is not None
        assert replicas.forwarding.refused >= 40


async def test_an_owner_that_says_nothing_is_waited_for_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PATIENCE_S", 0.5)
    async with linked(url, 2) as ((ours, theirs), (replicas, other)):
        subject = left_by(replicas, to=other)
        began, go_on = trio.Event(), trio.Event()
        append = theirs._store.append

        async def hold(batch: list[NewMessage]) -> list[Outcome]:
            began.set()
            await go_on.wait()
            return await append(batch)

        theirs._store.append = hold  # type: ignore[method-assign, assignment]
        with trio.fail_after(30):
            with pytest.raises(broker_errors.OutcomeUnknown, match="another broker was asked"):
                await ours.publish(subject, b"unknown", None)
            assert not ours.store_away_s()  # it is not the store that is away
            assert began.is_set()
            assert await ours.publish(subject, b"here", None, idempotency_key="k") == 1
            go_on.set()
            await until(lambda: not theirs.committer.queued_messages)
        await theirs.drain()
        page = await ours.fetch_range(subject)
        assert sorted(message.body for message in page.messages) == [b"here", b"unknown"]


@pytest.mark.parametrize(
    "answer",
    [b"\xff\xff", pb.AppendResponse().SerializeToString(), pb.AppendResponse(results=[pb.AppendResult()] * 3)],
    ids=["garbage", "too-few", "too-many"],
)
async def test_an_answer_that_makes_no_sense_is_no_answer(url: str, answer: bytes | pb.AppendResponse) -> None:
    data = answer if isinstance(answer, bytes) else answer.SerializeToString()
    async with linked(url, 2) as ((ours, _), (replicas, other)):
        subject = left_by(replicas, to=other)
        (link,) = replicas.links.values()

        async def ask(*_args: object) -> bytes:
            await trio.lowlevel.checkpoint()
            return data

        link.ask = ask  # type: ignore[method-assign]
        with trio.fail_after(30):
            with pytest.raises(broker_errors.OutcomeUnknown):
                await ours.publish(subject, b"x", None)
            assert await ours.publish(subject, b"y", None, idempotency_key="k") == 1
