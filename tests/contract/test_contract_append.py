"""Appending: ids, order, results, and what comes back is what was appended."""

import pytest
from contract_kit import START_US, Clock, get, ids, message, read_all

from persistence import Appended, Head, InvalidId, NewMessage, Record, Rejected, Store


async def test_ids_start_at_1_and_go_on_over_batches(store: Store) -> None:
    assert ids(await store.append([message()])) == [1]
    assert ids(await store.append([message()] * 3)) == [2, 3, 4]
    assert ids(await store.append([message()])) == [5]


async def test_each_subject_has_its_own_contiguous_ids_in_batch_order(store: Store) -> None:
    batch = [message(subject, body=b"%d" % n) for n, subject in enumerate("abacabc")]
    assert ids(await store.append(batch)) == [1, 1, 2, 1, 3, 2, 2]
    assert [(r.id, r.body) for r in await read_all(store, "a")] == [(1, b"0"), (2, b"2"), (3, b"4")]
    assert [(r.id, r.body) for r in await read_all(store, "b")] == [(1, b"1"), (2, b"5")]
    assert [(r.id, r.body) for r in await read_all(store, "c")] == [(1, b"3"), (2, b"6")]


async def test_one_result_for_each_message_in_order(store: Store, clock: Clock) -> None:
    too_long = store.limits().expiration_max_s + 1
    kept, refused, unkept, negative, last = await store.append(
        [message(), message(expiration_s=too_long), message(expiration_s=0), message(expiration_s=-1), message()]
    )
    assert kept == Appended(1, START_US)
    assert isinstance(refused, Rejected)
    assert str(too_long) in refused.why
    assert unkept == Appended(2, START_US)
    assert isinstance(negative, Rejected)
    assert last == Appended(3, START_US)
    assert [r.id for r in await read_all(store, "orders")] == [1, 3]


async def test_a_rejected_message_leaves_no_trace(store: Store) -> None:
    (outcome,) = await store.append([message("new", expiration_s=-1)])
    assert isinstance(outcome, Rejected)
    assert await store.head("new") == Head(1, 0)
    assert await store.subjects() == []
    assert await get(store, "new", 1) == InvalidId(0)


async def test_nothing_appended_is_nothing_changed(store: Store) -> None:
    assert await store.append([]) == []
    assert await store.subjects() == []


@pytest.mark.parametrize(
    "body",
    [b"", b"\0", b"a\0b\0", bytes(range(256)), b"not utf-8 \xff\xfe", b"v" * (4 * 1024 * 1024)],
    ids=["empty", "nul", "nuls inside", "every byte", "not utf-8", "4 MiB"],
)
async def test_a_body_comes_back_as_it_was(store: Store, body: bytes) -> None:
    await store.append([message(body=body)])
    record = await get(store, "orders", 1)
    assert isinstance(record, Record)
    assert record.body == body
    assert [r.body for r in await read_all(store, "orders")] == [body]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"a": b""},
        {"content-type": b"text/plain", "Ключ": "значение".encode(), "z": b"\0\xff"},
        {f"name-{n}": bytes([n]) * 256 for n in range(64)},
    ],
    ids=["none", "empty value", "any bytes", "many"],
)
async def test_headers_come_back_as_they_were(store: Store, headers: dict[str, bytes]) -> None:
    await store.append([message(headers=headers)])
    record = await get(store, "orders", 1)
    assert isinstance(record, Record)
    assert record.headers == headers
    (read,) = await read_all(store, "orders")
    assert list(read.headers.items()) == list(headers.items())


async def test_what_the_caller_does_to_its_headers_later_changes_nothing(store: Store) -> None:
    headers = {"a": b"1"}
    await store.append([message(headers=headers)])
    headers["a"] = b"2"
    (record,) = await read_all(store, "orders")
    assert record.headers == {"a": b"1"}


@pytest.mark.parametrize("subject", ["a", "a.b.c", "Größe", "東京.訂單", "🛫.🛬", "s" * 255, "quote'\"; --"])
async def test_any_subject_will_do(store: Store, subject: str) -> None:
    await store.append([message(subject), message("other")])
    assert [r.id for r in await read_all(store, subject)] == [1]
    assert await store.head(subject) == Head(1, 1)
    assert subject in await store.subjects()


async def test_subjects_that_differ_a_little_are_different(store: Store) -> None:
    alike = ["order", "orders", "Order", "order.", "é", "e\u0301"]
    assert ids(await store.append([message(subject) for subject in alike])) == [1] * len(alike)


async def test_times_never_decrease_within_a_subject_when_the_clock_goes_back(store: Store, clock: Clock) -> None:
    await store.append([message()])
    clock.advance(-3600)
    back, other = await store.append([message(), message("other")])
    assert back == Appended(2, START_US)
    assert other == Appended(1, START_US - 3_600_000_000)
    clock.advance(3601)
    (on,) = await store.append([message()])
    assert on == Appended(3, START_US + 1_000_000)


async def test_a_large_batch_over_many_subjects(store: Store) -> None:
    batch = [message(f"subject.{n % 700}", body=b"%d" % n) for n in range(2_100)]
    assert ids(await store.append(batch)) == [1 + n // 700 for n in range(2_100)]
    assert [r.body for r in await read_all(store, "subject.699")] == [b"699", b"1399", b"2099"]


@pytest.mark.parametrize("size", [1, 2, 3, 511, 512, 513, 1023, 1025])
async def test_a_batch_of_any_size_is_kept_whole(store: Store, size: int) -> None:
    bodies = [b"%d" % n for n in range(size)]
    await store.append([message(body=body) for body in bodies])
    assert [(r.id, r.body) for r in await read_all(store, "orders", max_messages=2000)] == [*enumerate(bodies, 1)]


async def test_the_largest_batch_of_the_limits_is_taken(store: Store) -> None:
    limits = store.limits()
    assert len(await store.append([message(expiration_s=0)] * limits.flush_messages_max)) == limits.flush_messages_max
    body = b"x" * (4 * 1024 * 1024)
    await store.append([NewMessage("large", body, None)] * (16 * 1024 * 1024 // len(body)))
    assert await store.head("large") == Head(1, 4)
