"""Chunks: what is put in comes out, in bytes that later releases read too; which messages go together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistence import NO_HEADERS, Key, NewMessage, Record
from persistence.cassandra.buckets import FOR_EVER_US, TTL_MAX_S, ttl_s
from persistence.cassandra.chunks import (
    Damaged,
    decode_chunk,
    encode_chunk,
    encode_message,
    encode_restored,
    encode_restored_chunk,
)
from persistence.cassandra.clock import Clock
from persistence.cassandra.reading import get_message
from persistence.cassandra.shares import CHUNK_BYTES_MAX, CHUNK_MESSAGES_MAX, EXPIRATION_MAX_S, Share, refusal

TIME_US = 1_700_000_000_000_000


def test_the_bytes_of_a_chunk_do_not_change() -> None:
    messages = encode_message(2, 60, {"h": b"v"}, b"body") + encode_message(0, None, NO_HEADERS, b"")
    chunk = encode_chunk(TIME_US, messages)
    assert chunk == bytes.fromhex(
        "00060a24 181e4000"  # the time
        "00000002 0000003c 0000000a 00000004"
        "00000001 00000001 68 76"
        "626f6479"
        "00000000 ffffffff 00000000 00000000"
    )
    assert list(decode_chunk(9, chunk)) == [
        Record(7, b"body", {"h": b"v"}, TIME_US, TIME_US + 60_000_000),
        Record(9, b"", {}, TIME_US, None),
    ]


def test_the_bytes_of_a_chunk_of_restored_messages_do_not_change() -> None:
    records = [Record(7, b"body", {"h": b"v"}, TIME_US, TIME_US + 1), Record(2**32, b"", {}, TIME_US - 5, None)]
    chunk = encode_restored_chunk(b"".join(encode_restored(2**32 - record.id, record) for record in records))
    assert chunk == bytes.fromhex(
        "ffffffffffffffff"
        "fffffff9 00060a24181e4000 00060a24181e4001 0000000a 00000004"
        "00000001 00000001 68 76"
        "626f6479"
        "00000000 00060a24181e3ffb 7fffffffffffffff 00000000 00000000"
    )
    assert list(decode_chunk(2**32, chunk)) == records


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        bytes(3),
        b"\xff" * 50,
        bytes(range(1, 60)),
        encode_chunk(TIME_US, encode_message(0, 60, {"h": b"v"}, b"body"))[:-1],
        encode_chunk(TIME_US, encode_message(9, 60, NO_HEADERS, b"an id of 0")),
        encode_restored_chunk(encode_restored(9, Record(0, b"an id of 0", NO_HEADERS, TIME_US, None))),
        encode_restored_chunk(encode_restored(0, Record(9, b"", NO_HEADERS, TIME_US, None)))[:-1],
        bytes.fromhex(
            "00060a24181e4000 00000000 0000003c 00000009 00000000 00000001 00000000 ff"
        ),  # a name not in UTF-8
    ],
)
def test_what_is_no_chunk_is_damaged(garbage: bytes) -> None:
    with pytest.raises(Damaged):
        list(decode_chunk(9, garbage))


def test_the_row_that_is_damaged_is_named(caplog: pytest.LogCaptureFixture) -> None:
    steps = get_message(Key("orders", 9), Clock(lambda: TIME_US))
    next(steps)
    steps.send([{"base_id": 5}])
    with pytest.raises(Damaged, match="subject='orders' base_id=5 id=12 is damaged"):
        steps.send([{"id": 12, "chunk": b"garbage"}])
    assert "row_damaged subject='orders' base_id=5 id=12" in caplog.text


messages = st.builds(
    NewMessage,
    subject=st.just("orders"),
    body=st.binary(max_size=50) | st.just(b"x" * (CHUNK_BYTES_MAX // 2)),
    expiration_s=st.none() | st.sampled_from([0, 1, 60, EXPIRATION_MAX_S]),
    headers=st.dictionaries(st.text("abü", min_size=1, max_size=3), st.binary(max_size=3), max_size=2),
)


@given(st.lists(messages, max_size=200))
def test_a_share_comes_out_as_it_was_put_in(batch: list[NewMessage]) -> None:
    share = Share("orders", batch)
    records = [
        record
        for chunk in share.chunks
        for record in decode_chunk(chunk.last + 1, encode_chunk(TIME_US, chunk.messages))
    ]
    assert records == [
        Record(id_, body, headers, TIME_US, None if seconds is None else TIME_US + seconds * 1_000_000)
        for id_, (_, body, seconds, headers, *_) in enumerate(batch, 1)
        if seconds != 0
    ]
    for chunk in share.chunks:
        kept = [*decode_chunk(chunk.last + 1, encode_chunk(TIME_US, chunk.messages))]
        assert len(kept) <= CHUNK_MESSAGES_MAX
        assert len(kept) == 1 or sum(len(record.body) for record in kept) <= CHUNK_BYTES_MAX
        assert chunk.expires_us(TIME_US) == max(
            FOR_EVER_US if record.expires_us is None else record.expires_us for record in kept
        )


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-5, 60), (0, 60), (0.000_001, 61), (1, 61), (1.5, 62), (TTL_MAX_S, TTL_MAX_S), (TTL_MAX_S - 60, TTL_MAX_S)],
)
def test_a_row_outlives_what_is_in_it_by_a_minute(seconds: float, expected: int) -> None:
    assert ttl_s(TIME_US + round(seconds * 1_000_000), TIME_US) == expected


def test_a_row_with_something_that_never_expires_has_no_ttl() -> None:
    assert ttl_s(FOR_EVER_US, TIME_US) == 0


def test_the_longest_expiration_is_20_years() -> None:
    assert EXPIRATION_MAX_S == 20 * 365 * 24 * 3600
    assert refusal(NewMessage("orders", b"", EXPIRATION_MAX_S)) is None
    assert refusal(NewMessage("orders", b"", None)) is None
    assert str(EXPIRATION_MAX_S) in (refusal(NewMessage("orders", b"", EXPIRATION_MAX_S + 1)) or "")
