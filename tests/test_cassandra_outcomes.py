"""Answers that are lost, nodes that stop and die: what is told of each message is what happened."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import trio
from blackhole import Blackhole
from cassandra_keyspaces import Keyspaces
from cassandra_kit import Told, Writer, opened, writers
from cassandra_server import CassandraServer
from postgres_kit import Task, ids, message, read_all, until

from persistence import Appended, Failed, Head, OutcomeUnknown, Register, Rejected, Store, open_store
from persistence.cassandra import database, opening, writing
from persistence.cassandra.steps import Batch, Bound, Statement, Unclear


@pytest.fixture
def hole(cassandra: Keyspaces) -> Iterator[Blackhole]:
    with Blackhole.before(cassandra.url) as hole:
        yield hole


@pytest.fixture
def short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is waited for 0.4 s, of a commit timeout of 10 s."""
    monkeypatch.setattr(opening, "REQUEST_SHARE", 0.04)


class Doubts:
    """Counts the answers that were not heard."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._failure = database.failure
        monkeypatch.setattr(database, "failure", self._count)

    def _count(self, *args: object) -> Exception:
        error = self._failure(*args)
        self.count += isinstance(error, Unclear)
        return error


@pytest.fixture
def doubts(monkeypatch: pytest.MonkeyPatch) -> Doubts:
    return Doubts(monkeypatch)


async def write_on(writer: Writer, batches: int) -> None:
    for _ in range(batches):
        await writer.write()


async def test_six_writers_on_one_subject_leave_no_gap_and_nothing_twice(
    cassandra_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "MESSAGES_MAX", 50)  # over several buckets
    told = Told()
    async with writers(cassandra_url, 6, told) as all_writers, trio.open_nursery() as nursery:
        for writer in all_writers:
            nursery.start_soon(write_on, writer, 12)
    assert len(told.ids) == 6 * 3 * (1 + 2 + 3 + 4)
    async with open_store(cassandra_url) as store:
        await told.check(store)


async def test_that_check_fails_when_the_condition_is_taken_out_of_the_append(
    cassandra_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    move_head = Unconditional()
    monkeypatch.setattr(writing, "_MOVE_HEAD", move_head)
    told = Told()
    async with writers(cassandra_url, 6, told) as all_writers, trio.open_nursery() as nursery:
        for writer in all_writers:
            nursery.start_soon(write_on, writer, 12)
    async with open_store(cassandra_url) as store:
        with pytest.raises(AssertionError):
            await told.check(store)


class Unconditional(Statement):
    """Moves the head wherever it is; that a condition holds is said always."""

    def __init__(self) -> None:
        super().__init__(writing._MOVE_HEAD.cql.partition("IF")[0] + "IF sealed != true")

    def __call__(self, *values: object) -> Bound:
        return super().__call__(*values[:7])


async def test_six_writers_while_the_node_stops_and_goes_on(
    own_cassandra: CassandraServer, short_requests: None, doubts: Doubts
) -> None:
    told = Told()
    url = own_cassandra.url("stopped")
    async with writers(url, 6, told) as all_writers, trio.open_nursery() as nursery:
        for writer in all_writers:
            nursery.start_soon(write_on, writer, 15)
        for _ in range(5):
            heard = len(told.ids)
            await until(lambda heard=heard: len(told.ids) > heard)
            with own_cassandra.frozen():
                before = doubts.count
                await until(lambda before=before: doubts.count >= before + 6)
    assert doubts.count >= 30
    async with open_store(url) as store:
        await told.check(store)


async def test_a_node_that_is_killed_under_load_has_all_that_it_acknowledged(own_cassandra: CassandraServer) -> None:
    told = Told()
    url = own_cassandra.url("killed")
    async with writers(url, 3, told) as all_writers, trio.open_nursery() as nursery:
        for writer in all_writers:
            nursery.start_soon(write_on, writer, 10**9)
        await until(lambda: len(told.ids) > 100)
        await trio.to_thread.run_sync(own_cassandra.kill9)
        await until(lambda: told.not_appended)
        acknowledged = len(told.ids)
        await trio.to_thread.run_sync(own_cassandra.start)
        await until(lambda: len(told.ids) > acknowledged + 100)
        nursery.cancel_scope.cancel()
    async with open_store(url) as store:
        await told.check(store)


async def check_log(store: Store, *bodies: bytes) -> None:
    """The log of ``orders`` is exactly this, from id 1, and goes on after it."""
    assert [(record.id, record.body) for record in await read_all(store)] == list(enumerate(bodies, 1))
    assert ids(await store.append([message(body=b"next")])) == [len(bodies) + 1]


async def test_an_answer_lost_after_the_node_appended_is_found_out(cassandra_url: str, hole: Blackhole) -> None:
    async with opened(hole.through(cassandra_url)) as store, trio.open_nursery() as nursery:
        hole.hold_replies()
        append = Task(nursery, store.append, [message(body=b"second"), message(body=b"third")])
        await trio.to_thread.run_sync(hole.wait_reply_held)
        hole.cut()
        hole.release()
        assert ids(await append.result()) == [2, 3]
        await check_log(store, b"first", b"second", b"third")


async def test_a_connection_cut_before_the_node_heard_of_the_flush(cassandra_url: str, hole: Blackhole) -> None:
    async with opened(hole.through(cassandra_url)) as store, trio.open_nursery() as nursery:
        hole.hold()
        append = Task(nursery, store.append, [message(body=b"second")])
        await trio.to_thread.run_sync(hole.wait_request_held)
        hole.cut()
        hole.release()
        assert ids(await append.result()) == [2]
        await check_log(store, b"first", b"second")


async def test_a_node_out_of_reach_until_the_deadline_leaves_the_outcome_unknown(
    cassandra_url: str, hole: Blackhole
) -> None:
    async with opened(hole.through(cassandra_url), commit_timeout_s=1) as store:
        hole.hold_replies()
        with pytest.raises(OutcomeUnknown, match="may or may not have been done"), trio.fail_after(5):
            await store.append([message(body=b"second")])
        hole.release()
        await check_log(store, b"first", b"second")


async def test_one_subject_in_doubt_and_another_appended_are_told_apart(cassandra_url: str) -> None:
    async with opened(cassandra_url, commit_timeout_s=1) as store:
        store._database.send = partial(lose, store._database.send, "lost")
        batch = [message("lost"), message(body=b"second"), message("lost"), message(expiration_s=-1)]
        lost, second, lost_too, rejected = await store.append(batch)
        assert second == Appended(2, second.time_us)
        assert isinstance(rejected, Rejected)
        for outcome in (lost, lost_too):
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, OutcomeUnknown)
        with pytest.raises(OutcomeUnknown):
            await store.append([message("lost")])
    async with open_store(cassandra_url) as store:
        await check_log(store, b"first", b"second")
        assert await store.head("lost") == Head(1, 0)


def lose(
    send: Callable[..., None], subject: str, request: Bound | Batch, longest_s: float, answer: Callable[..., None]
) -> None:
    """Send a request, unless it is a batch that appends to this subject: then it never gets anywhere."""
    if isinstance(request, Bound) or subject not in request.parts[0].values:
        send(request, longest_s, answer)


async def test_registers_are_set_once_whatever_gets_lost(cassandra_url: str, hole: Blackhole) -> None:
    async with opened(hole.through(cassandra_url)) as store, trio.open_nursery() as nursery:
        version = await store.compare_and_set("leader", b"a", version=0)
        assert version is not None
        hole.hold_replies()
        setting = Task(nursery, partial(store.compare_and_set, version=version), "leader", b"b")
        await trio.to_thread.run_sync(hole.wait_reply_held)
        hole.cut()
        hole.release()
        assert await setting.result() == version + 1
        assert await store.load("leader") == Register(b"b", version + 1)


async def test_a_register_deleted_or_not_is_told_as_unknown(cassandra_url: str, hole: Blackhole) -> None:
    """By whom it was deleted cannot be seen when it is gone."""
    async with opened(hole.through(cassandra_url)) as store, trio.open_nursery() as nursery:
        version = await store.compare_and_set("leader", b"a", version=0)
        hole.hold_replies()
        deleting = Task(nursery, partial(store.delete, version=version), "leader")
        await trio.to_thread.run_sync(hole.wait_reply_held)
        hole.cut()
        hole.release()
        with pytest.raises(OutcomeUnknown, match="may or may not"):
            await deleting.result()
        assert await store.load("leader") is None
