"""A flush whose answer was lost: what is told of it is what happened; nothing is lost, and no id given twice."""

from collections.abc import AsyncGenerator
from typing import Self

import pytest
import trio
from blackhole import Blackhole
from postgres_databases import Databases
from postgres_kit import Outside, Task, ids, message, opened, read_all, set_standbys, until, waiting_for_standby
from postgres_server import PostgresServer

from persistence import Head, NewMessage, OutcomeUnknown, Store, StoreUnavailable
from persistence.postgres.connection import Address
from persistence.postgres.flush import Answer, Flush
from persistence.postgres.outcome import Turn
from persistence.postgres.patience import Patience
from persistence.postgres.writing import Writer


@pytest.fixture
async def store(postgres_url: str) -> AsyncGenerator[Store]:
    async with opened(postgres_url) as store:
        yield store


async def check_log(store: Store, *bodies: bytes) -> None:
    """The log of ``orders`` is exactly this, from id 1, and goes on after it."""
    assert [(record.id, record.body) for record in await read_all(store)] == list(enumerate(bodies, 1))
    assert ids(await store.append([message(body=b"next")])) == [len(bodies) + 1]


async def test_a_backend_ended_amid_a_flush_costs_no_publish(store: Store, outside: Outside) -> None:
    async with trio.open_nursery() as nursery:
        with outside.holding_subject():
            append = Task(nursery, store.append, [message(body=b"second"), message(body=b"third")])
            await until(outside.stuck)
            (first,) = outside.stuck()
            outside.terminate(first)
            await until(outside.stuck)
            assert outside.stuck() != [first]
        assert ids(await append.result()) == [2, 3]
    await check_log(store, b"first", b"second", b"third")


async def test_backends_ended_again_and_again_leave_nothing_appended(store: Store, outside: Outside) -> None:
    async with trio.open_nursery() as nursery:
        with outside.holding_subject():
            append = Task(nursery, store.append, [message()])
            while append.is_running:
                outside.terminate(*outside.stuck())
                await trio.lowlevel.checkpoint()
        with pytest.raises(StoreUnavailable, match="terminating connection"):
            await append.result()
    await check_log(store, b"first")


async def test_a_row_locked_for_longer_than_the_budget(postgres_url: str, outside: Outside) -> None:
    async with opened(postgres_url, commit_timeout_s=2) as store:
        with outside.holding_subject(), pytest.raises(StoreUnavailable, match="statement timeout"):
            await store.append([message(), message("other")])
        assert await store.head("other") == Head(1, 0)
        await check_log(store, b"first")


async def test_an_answer_lost_after_the_commit_is_found_out(
    postgres_url: str, outside: Outside, hole: Blackhole
) -> None:
    async with opened(hole.through(postgres_url)) as store, trio.open_nursery() as nursery:
        hole.hold_replies()
        append = Task(nursery, store.append, [message(body=b"second"), message("other"), message(body=b"third")])
        await until(lambda: outside.do("SELECT last_id FROM trio_broker.subjects ORDER BY name") == [(3,), (1,)])
        hole.cut()
        hole.release()
        outcomes = await append.result()
        assert ids(outcomes) == [2, 1, 3]
        assert [record.time_us for record in await read_all(store)][1:] == [outcomes[0].time_us] * 2
        await check_log(store, b"first", b"second", b"third")


async def test_a_connection_cut_before_the_server_heard_of_the_flush(
    postgres_url: str, outside: Outside, hole: Blackhole
) -> None:
    async with opened(hole.through(postgres_url)) as store, trio.open_nursery() as nursery:
        hole.hold()
        append = Task(nursery, store.append, [message(body=b"second")])
        await trio.to_thread.run_sync(hole.wait_request_held)
        hole.cut()
        hole.release()
        assert ids(await append.result()) == [2]
        await check_log(store, b"first", b"second")


async def test_a_connection_cut_while_the_flush_waits_for_a_lock_is_waited_for(
    postgres_url: str, outside: Outside, hole: Blackhole
) -> None:
    """The backend does not notice that its client is gone, and goes on."""
    async with opened(hole.through(postgres_url)) as store, trio.open_nursery() as nursery:
        with outside.holding_subject():
            append = Task(nursery, store.append, [message(body=b"second")])
            await until(outside.stuck)
            hole.cut()
            await until(lambda: len(outside.stuck()) == 2)  # the new connection waits for the old one
        assert ids(await append.result()) == [2]
        await check_log(store, b"first", b"second")


async def test_a_database_out_of_reach_until_the_deadline_leaves_the_outcome_unknown(
    postgres_url: str, outside: Outside, hole: Blackhole
) -> None:
    async with opened(hole.through(postgres_url), commit_timeout_s=2) as store:
        hole.hold_replies()
        began = trio.current_time()
        with pytest.raises(OutcomeUnknown, match="could not be asked"):
            await store.append([message(body=b"second")])
        assert trio.current_time() - began < 5  # connecting may take 2 s
        hole.release()
        await check_log(store, b"first", b"second")


async def test_a_flush_that_arrives_after_its_outcome_was_called_unknown(
    postgres_url: str, outside: Outside, hole: Blackhole
) -> None:
    async with opened(hole.through(postgres_url), commit_timeout_s=2) as store:
        hole.hold()
        with pytest.raises(OutcomeUnknown):
            await store.append([message(body=b"late")])
        assert outside.do("SELECT last_id FROM trio_broker.subjects") == [(1,)]
        hole.release()
        (next_id,) = ids(await store.append([message(body=b"next")]))
        bodies = [record.body for record in await read_all(store)]
        assert bodies in ([b"first", b"next"], [b"first", b"late", b"next"])
        assert next_id == len(bodies)


async def test_a_server_killed_amid_a_flush_and_back_in_time(own_postgres: PostgresServer) -> None:
    with Databases(own_postgres.dsn()) as databases, databases.new() as url, Outside(url) as outside:
        async with opened(url) as store, trio.open_nursery() as nursery:
            with outside.holding_subject():
                append = Task(nursery, store.append, [message(body=b"second")])
                await until(outside.stuck)
                own_postgres.kill9()
            own_postgres.start()
            assert ids(await append.result()) == [2]
            await check_log(store, b"first", b"second")


async def test_a_server_killed_amid_a_flush_and_not_back_in_time(own_postgres: PostgresServer) -> None:
    with Databases(own_postgres.dsn()) as databases, databases.new() as url, Outside(url) as outside:
        async with opened(url, commit_timeout_s=2) as store, trio.open_nursery() as nursery:
            with outside.holding_subject():
                append = Task(nursery, store.append, [message()])
                await until(outside.stuck)
                own_postgres.kill9()
            with pytest.raises(OutcomeUnknown, match="refused"):
                await append.result()
            with pytest.raises(StoreUnavailable, match="refused"):
                await store.append([message()])
            own_postgres.start()
            await check_log(store, b"first")


async def test_a_server_that_stands_still_until_the_deadline(own_postgres: PostgresServer) -> None:
    with Databases(own_postgres.dsn()) as databases, databases.new() as url:
        async with opened(url, commit_timeout_s=2) as store:
            with own_postgres.frozen(), pytest.raises(OutcomeUnknown, match="no answer within"):
                await store.append([message(body=b"second")])
            (next_id,) = ids(await store.append([message(body=b"next")]))
            assert next_id == len(await read_all(store)) in (2, 3)


async def test_a_commit_that_no_standby_confirmed_is_asked_about_until_one_does(own_postgres: PostgresServer) -> None:
    with Databases(own_postgres.dsn()) as databases, databases.new() as url, Outside(url) as outside:
        async with opened(url) as store, trio.open_nursery() as nursery:
            set_standbys(outside, "nobody")
            append = Task(nursery, store.append, [message(body=b"second")])
            await until(lambda: waiting_for_standby(outside))
            outside.do("SELECT pg_cancel_backend(%s)", *waiting_for_standby(outside))  # it ends with a warning only
            await until(lambda: waiting_for_standby(outside))
            assert append.is_running
            set_standbys(outside, "")
            assert ids(await append.result()) == [2]
            await check_log(store, b"first", b"second")


async def test_a_writer_whose_row_is_gone_begins_anew(store: Store, outside: Outside) -> None:
    outside.do("DELETE FROM trio_broker.writers")
    assert ids(await store.append([message(body=b"second")])) == [2]
    await check_log(store, b"first", b"second")


async def test_a_lost_answer_and_a_row_that_is_gone_leave_the_outcome_unknown(
    postgres_url: str, outside: Outside, hole: Blackhole
) -> None:
    async with opened(hole.through(postgres_url)) as store, trio.open_nursery() as nursery:
        hole.hold_replies()
        append = Task(nursery, store.append, [message(body=b"second")])
        await until(lambda: outside.do("SELECT last_id FROM trio_broker.subjects") == [(2,)])
        outside.do("DELETE FROM trio_broker.writers")
        hole.cut()
        hole.release()
        with pytest.raises(OutcomeUnknown, match="is gone"):
            await append.result()
        await check_log(store, b"first", b"second")


async def test_connections_lost_between_flushes_cost_no_publish(store: Store, outside: Outside) -> None:
    for round_ in range(3):
        outside.terminate_all()
        assert ids(await store.append([message()])) == [2 + round_]


class Rivals:
    """Two sessions of one writer, as when the first was lost and does not know."""

    def __init__(self, url: str) -> None:
        self.old, self.new = Writer(Address(url, 5), 10), Writer(Address(url, 5), 10)

    def __enter__(self) -> Self:
        self.old.open(Patience(5))
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.old.close()
        self.new.close()

    def take_over(self) -> Turn:
        self.new._writer = self.old._writer
        return self.new._connect(Patience(5)).turn

    def send_late(self, *batch: NewMessage) -> Answer | None:
        assert self.old._session is not None
        self.old._flushes = 7
        return self.old._send(self.old._session, Flush(batch))


async def test_a_late_flush_of_a_fenced_session_appends_nothing(store: Store, postgres_url: str) -> None:
    with Rivals(postgres_url) as rivals:
        assert rivals.take_over().epoch == 2
        assert rivals.send_late(message(), message("other")) is None
        assert rivals.take_over().last_flush == 0
    await check_log(store, b"first")
    assert await store.head("other") == Head(1, 0)


async def test_taking_over_waits_for_a_flush_that_has_begun(store: Store, postgres_url: str, outside: Outside) -> None:
    with Rivals(postgres_url) as rivals:
        async with trio.open_nursery() as nursery:
            with outside.holding_subject():
                flush = Task(nursery, trio.to_thread.run_sync, rivals.send_late, message(body=b"second"))
                await until(outside.stuck)
                taking_over = Task(nursery, trio.to_thread.run_sync, rivals.take_over)
                await until(lambda: len(outside.stuck()) == 2)
                assert taking_over.is_running
            answer = await flush.result()
            turn = await taking_over.result()
        assert turn.last_flush == 7
        assert turn.answer == answer
        assert answer.last_ids == [2]
    await check_log(store, b"first", b"second")
