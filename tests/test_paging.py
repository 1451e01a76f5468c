"""Pages of a log: `Broker.fetch_range`."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from broker_kit import broker_on
from trial_store import TrialStore

from trio_broker import Broker, BrokerClosed, Earliest, InvalidId, InvalidPosition, InvalidSubject, open_broker
from trio_broker.config import Config
from trio_broker.errors import BrokerError
from trio_broker.message import Message
from trio_broker.paging import PAGE_MAX_BYTES, PAGE_MAX_MESSAGES
from trio_broker.service.encoding import RESPONSE_MAX_BYTES, page_response
from trio_broker.validation import ID_MAX

BODY_MAX_BYTES = int(Config().body_max_bytes)


@pytest.fixture(params=["memory:", "sqlite"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Broker]:
    url = "memory:" if request.param == "memory:" else f"sqlite:///{tmp_path / 'broker.db'}"
    async with open_broker(url) as broker:
        yield broker


async def fill(broker: Broker, *bodies: bytes, expiration: int | None = None) -> None:
    for body in bodies:
        await broker.publish("a", body, expiration, headers={"n": body[:9]} if body else None)


async def told(broker: Broker, *arguments: int) -> tuple[list[int], int, int]:
    page = await broker.fetch_range("a", *arguments)
    return [message.id for message in page.messages], page.scanned_to, page.last_id


async def test_a_page_has_what_is_kept_of_a_part_of_the_log(broker: Broker) -> None:
    await fill(broker, *[b"%d" % n for n in range(1, 11)])
    await fill(broker, b"gone", b"gone", expiration=0)
    whole = list(range(1, 11))
    assert await told(broker) == (whole, 12, 12)
    assert await told(broker, 0, 0, 4) == ([1, 2, 3, 4], 4, 12)
    assert await told(broker, 4, 6) == ([5, 6], 6, 12)
    assert await told(broker, 4, 6, 1) == ([5], 5, 12)
    assert await told(broker, 9, 11) == ([10], 11, 12)
    assert await told(broker, 6, 6) == ([], 6, 12)
    assert await told(broker, 7, 3) == ([], 7, 12)
    assert await told(broker, 12) == ([], 12, 12)
    assert await told(broker, 0, ID_MAX) == (whole, 12, 12)
    page = await broker.fetch_range("a", 2, 3)
    assert list(page.messages) == [await broker.fetch("a", 3)]
    assert isinstance(page.messages[0], Message)
    assert page.messages[0].headers == {"n": b"3"}


async def test_a_subject_without_messages_has_an_empty_page(broker: Broker) -> None:
    assert await told(broker) == ([], 0, 0)


async def test_what_no_log_has_is_refused(broker: Broker) -> None:
    await fill(broker, b"", b"")
    for after_id in (3, ID_MAX):
        with pytest.raises(InvalidId) as unknown:
            await broker.fetch_range("a", after_id)
        assert unknown.value.metadata == {"last_id": "2"}
    for name, arguments in (
        ("after_id is -1", (-1,)),
        ("until_id is -2", (0, -2)),
        ("max_messages is -3", (0, 0, -3)),
        ("after_id is 9223372036854775808", (ID_MAX + 1,)),
    ):
        with pytest.raises(InvalidPosition, match=name):
            await broker.fetch_range("a", *arguments)
    with pytest.raises(TypeError):
        await broker.fetch_range("a", "1")  # type: ignore[arg-type]
    with pytest.raises(InvalidSubject):
        await broker.fetch_range("no subject")
    await broker.close()
    with pytest.raises(BrokerClosed):
        await broker.fetch_range("a")


@pytest.mark.parametrize(
    "bodies", [[BODY_MAX_BYTES] * 2, [1_500_000] * 4, [0] * 3, [300] * 20_000, [4_000_000, 100, 100, BODY_MAX_BYTES]]
)
async def test_pages_are_whole_together_and_each_is_below_what_clients_take(bodies: list[int]) -> None:
    subject = "s" * 255
    async with open_broker("memory:", Config(flush_messages=16_384)) as broker:
        checked = [
            broker.check(subject, bytes(size), None, {f"h{n}": b"v" for n in range(size % 64)}) for size in bodies
        ]
        for place in range(0, len(checked), 5_000):
            group = broker.hand_over(checked[place : place + 5_000], "here")
            while settled := await group.settled():
                assert not any(isinstance(run.outcome, BrokerError) for run in settled)
        ids: list[int] = []
        scanned_to, last_id = 0, 1
        while scanned_to < last_id:
            page = await broker.fetch_range(subject, scanned_to)
            assert page.scanned_to > scanned_to
            assert len(page_response(subject, page)) < RESPONSE_MAX_BYTES
            assert len(page.messages) <= PAGE_MAX_MESSAGES
            ids += [message.id for message in page.messages]
            _, scanned_to, last_id = page
        assert ids == list(range(1, len(bodies) + 1))


async def test_a_page_may_be_bounded_and_holds_one_message_at_least(broker: Broker) -> None:
    await fill(broker, bytes(1000), bytes(1000), bytes(1000))
    for max_bytes, count in ((1, 1), (2500, 2), (PAGE_MAX_BYTES, 3)):
        page = await broker.fetch_range("a", max_bytes=max_bytes)
        assert (len(page.messages), page.scanned_to) == (count, count)


async def test_what_has_expired_is_passed_over() -> None:
    store = TrialStore()
    async with broker_on(store) as broker:
        await fill(broker, b"1", b"2", expiration=10)
        await fill(broker, b"3")
        await fill(broker, b"4", expiration=10)
        store.clock_us += 60_000_000
        assert await told(broker, 0, 0, 2) == ([], 2, 4)
        assert await told(broker, 2, 0, 2) == ([3], 4, 4)
        async with broker.subscribe("a", start=Earliest(), until=4) as messages:
            assert [message.id async for message in messages] == [3]
