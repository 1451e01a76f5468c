"""Calls of every kind over sockets: answers, cancellation, deadlines, exceptions."""

import logging

import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_peer import deframed
from h2_peer import data
from purerpc import Status, StatusCode
from toy import METHODS, Toy, connected, serving

from trio_broker.rpc import frames
from trio_broker.rpc.status import DetailedStatus

WAITING = ["Echo", "Repeat", "Collect", "Chat", "Group", "Drain"]


def values(answer):
    return [BytesValue.FromString(message).value for message in deframed(answer.body)]


@pytest.mark.parametrize("method", METHODS)
async def test_every_kind_answers(method):
    async with serving(Toy()) as server, connected(server) as wire:
        await wire.write(wire.order(1, method, b"hello", end=method != "Drain"))
        if method == "Drain":
            await wire.write(data(1, end=True))
            await wire.begun(1)
            while len(values(wire.answers[1])) < 3:
                await wire.read()
            assert values(wire.answers[1]) == [b"hello"] * 3
        else:
            answer = await wire.answered(1)
            assert answer.code == 0
            assert values(answer) == [b"hello"] * (3 if method == "Repeat" else 1)


async def test_the_calls_of_one_read_are_one_group():
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        await wire.write(*[wire.order(stream_id, "Group", b"%d" % stream_id) for stream_id in range(1, 21, 2)])
        for stream_id in range(1, 21, 2):
            assert values(await wire.answered(stream_id)) == [b"%d" % stream_id]
    assert sum(toy.groups) == 10
    assert len(toy.groups) < 10


async def test_a_call_cancelled_in_the_read_it_came_in_reaches_no_handler():
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        cancelled = wire.order(1, "Group", b"wait") + frames.reset(1, frames.CANCEL)
        await wire.write(cancelled + wire.order(3, "Group", b"hello"))
        assert (await wire.answered(3)).code == 0
        assert toy.groups == [1]


@pytest.mark.parametrize("how", ["reset", "deadline", "closed"])
async def test_the_work_of_a_group_ends_with_the_last_of_its_calls(how, caplog):
    toy = Toy()
    async with serving(toy) as server:
        async with connected(server) as wire:
            more = {1: [("grpc-timeout", "10m")], 3: [("grpc-timeout", "500m")]} if how == "deadline" else {}
            await wire.write(
                *[wire.order(stream_id, "Group", b"wait", more=more.get(stream_id, [])) for stream_id in (1, 3)]
            )
            await toy.until("began Group")
            assert toy.groups == [2]
            if how == "reset":
                await wire.write(frames.reset(1, frames.CANCEL), wire.order(5, "Echo", b"hello"))
                await wire.answered(5)
                assert "ended Group" not in toy.log
                await wire.write(frames.reset(3, frames.CANCEL))
            elif how == "deadline":
                assert (await wire.answered(1)).code == StatusCode.DEADLINE_EXCEEDED.value
                assert "ended Group" not in toy.log
                assert (await wire.answered(3)).code == StatusCode.DEADLINE_EXCEEDED.value
            if how != "closed":
                await toy.until("ended Group")
        await toy.until("ended Group")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def ended(method):
    return {"Group": "abandoned Group", "Repeat": "ended Repeat"}.get(method, f"ended {method}")


@pytest.mark.parametrize("how", ["reset", "closed", "lost"])
@pytest.mark.parametrize("method", WAITING)
async def test_a_cancelled_call_ends_its_handler_at_once(method, how):
    toy = Toy()
    async with serving(toy) as server:
        async with connected(server) as wire:
            await wire.write(wire.order(1, method, b"wait"))
            await toy.until(f"began {method}")
            if how == "reset":
                await wire.write(frames.reset(1, frames.CANCEL))
                await toy.until(ended(method))
            elif how == "lost":
                linger_off(wire)
        await toy.until(ended(method))
        await toy.until(f"over {method} None")


def linger_off(wire):
    """Closing the socket will reset the connection."""
    wire.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_a_drained_call_that_is_cancelled_closes_its_source(how):
    toy = Toy()
    async with serving(toy) as server:
        async with connected(server) as wire:
            await wire.write(wire.order(1, "Drain", b"idle"))
            await wire.begun(1)
            toy.sources[0].push(b"hello")
            while not wire.answers[1].body:
                await wire.read()
            assert values(wire.answers[1]) == [b"hello"]
            if how == "reset":
                await wire.write(frames.reset(1, frames.CANCEL))
                await toy.until("closed Drain")
        await toy.until("closed Drain")
        toy.sources[0].push(b"too late")
    assert toy.log.count("closed Drain") == 1


@pytest.mark.parametrize("method", [*WAITING, "idle Drain"])
async def test_a_deadline_ends_a_call(method):
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        order = b"idle" if method == "idle Drain" else b"wait"
        method = method.removeprefix("idle ")
        await wire.write(wire.order(1, method, order, more=[("grpc-timeout", "20m")]))
        answer = await wire.answered(1)
        assert answer.code == StatusCode.DEADLINE_EXCEEDED.value
        await toy.until("closed Drain" if order == b"idle" else ended(method))
        await toy.until(f"over {method} {StatusCode.DEADLINE_EXCEEDED.value}")
        assert not server.deadlines


async def test_a_deadline_that_has_passed_already():
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        await wire.write(wire.order(1, "Echo", b"wait", more=[("grpc-timeout", "0n")]))
        assert (await wire.answered(1)).code == StatusCode.DEADLINE_EXCEEDED.value


async def test_a_deadline_before_the_request_is_complete():
    async with serving(Toy()) as server, connected(server) as wire:
        await wire.write(wire.request(1, end=False, more=[("grpc-timeout", "10m")]))
        answer = await wire.answered(1)
        assert answer.code == StatusCode.DEADLINE_EXCEEDED.value
        assert answer.reset == "NO_ERROR"


async def test_a_deadline_that_is_not_reached_is_forgotten():
    async with serving(Toy()) as server, connected(server) as wire:
        await wire.write(wire.order(1, "Echo", b"x", more=[("grpc-timeout", "99999999H")]))
        assert (await wire.answered(1)).code == 0
        assert not server.deadlines


@pytest.mark.parametrize("method", ["Repeat", "Drain"])
async def test_a_deadline_ends_a_call_whose_client_does_not_read(method):
    """Its status could wait for a window for ever: the stream is reset."""
    toy = Toy()
    async with serving(toy) as server, connected(server, {frames.INITIAL_WINDOW_SIZE: 10}) as wire:
        order = b"pour" if method == "Repeat" else bytes(100)
        await wire.write(wire.order(1, method, order, more=[("grpc-timeout", "300m")]))
        await toy.until(f"closed {method}")
        assert await wire.was_reset(1) == "CANCEL"


async def test_an_answer_that_waits_for_a_window_was_not_abandoned():
    toy = Toy()
    async with serving(toy) as server, connected(server, {frames.INITIAL_WINDOW_SIZE: 10}) as wire:
        await wire.write(wire.order(1, "Group", bytes(100), more=[("grpc-timeout", "20m")]))
        assert await wire.was_reset(1) == "CANCEL"
    assert "abandoned Group" not in toy.log
    assert "over Group 0" in toy.log


async def test_the_status_of_an_abandoned_call_is_the_applications():
    toy = Toy()
    toy.abandon_status = DetailedStatus(StatusCode.DEADLINE_EXCEEDED, "not applied", "WHY", [BytesValue(value=b"why")])
    async with serving(toy) as server, connected(server) as wire:
        await wire.write(wire.order(1, "Group", b"wait", more=[("grpc-timeout", "20m")]))
        answer = await wire.answered(1)
        assert answer.text == "not applied"
        assert b"grpc-status-details-bin" in answer.trailers


# what handlers raise


@pytest.mark.parametrize("order", [b"bug", b"bug of a child", b"two bugs"])
@pytest.mark.parametrize("method", METHODS)
async def test_a_bug_is_internal_without_its_text_and_logged_once(method, order, caplog):
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        await wire.write(wire.order(1, method, order), wire.order(3, "Echo", b"hello"))
        answer = await wire.answered(1)
        assert (answer.code, answer.text) == (StatusCode.INTERNAL.value, "internal error")
        assert (await wire.answered(3)).code == 0
    (record,) = caplog.records
    request_id = answer.trailers[b"x-request-id"].decode()
    assert record.getMessage().startswith(f"rpc_failed method=/toy.Toy/{method} request_id={request_id} error=")
    assert record.exc_info is not None


@pytest.mark.parametrize("order", [b"refuse", b"refuse in a child"])
@pytest.mark.parametrize("method", METHODS)
async def test_a_refusal_is_the_clients_and_not_logged(method, order, caplog):
    async with serving(Toy()) as server, connected(server) as wire:
        await wire.write(wire.order(1, method, order))
        answer = await wire.answered(1)
        assert (answer.code, answer.text) == (StatusCode.ABORTED.value, "not now")
    assert not caplog.records


@pytest.mark.parametrize("method", METHODS)
async def test_a_message_that_does_not_parse(method, caplog):
    async with serving(Toy()) as server, connected(server) as wire:
        await wire.write(wire.request(1, b"\xff", method=method))
        answer = await wire.answered(1)
        assert answer.code == StatusCode.INVALID_ARGUMENT.value
        assert answer.text == "the request is not a google.protobuf.BytesValue"
    assert not caplog.records


async def test_a_message_in_a_group_that_does_not_parse_fails_alone():
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        await wire.write(wire.request(1, b"\xff", method="Group") + wire.order(3, "Group", b"fine"))
        assert (await wire.answered(1)).code == StatusCode.INVALID_ARGUMENT.value
        assert (await wire.answered(3)).code == 0


async def test_a_bug_while_being_cancelled_does_not_reach_the_other_calls(caplog):
    """A group of Cancelled and an error: trio takes the Cancelled out, and the error must not end the connection."""
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        await wire.write(wire.order(1, "Echo", b"bug when cancelled"), wire.order(3, "Echo", b"wait"))
        await toy.until("began Echo", 2)
        await wire.write(frames.reset(1, frames.CANCEL))
        await toy.until("ended Echo")
        await wire.write(wire.order(5, "Echo", b"hello"))
        assert (await wire.answered(5)).code == 0
        assert toy.log.count("ended Echo") == 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_calls_that_no_group_answered_are_internal(caplog, monkeypatch):
    async def forget(self, calls, request=None):
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Toy, "group", forget)
    async with serving(Toy()) as server, connected(server) as wire:
        await wire.write(wire.order(1, "Group", b"hello"))
        answer = await wire.answered(1)
        assert answer.code == StatusCode.INTERNAL.value
    (record,) = caplog.records
    request_id = answer.trailers[b"x-request-id"].decode()
    assert record.getMessage() == f"rpc_unanswered method=/toy.Toy/Group request_id={request_id}"


async def test_a_handler_that_never_waits_ends_with_its_call():
    """The client takes some and cancels: a generator without a checkpoint must not go on for ever."""
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        await wire.write(wire.order(1, "Repeat", b"pour"))
        await wire.begun(1)
        await wire.write(frames.reset(1, frames.CANCEL))
        await toy.until("closed Repeat")


async def test_a_status_with_any_text():
    toy = Toy()
    toy.abandon_status = Status(StatusCode.ABORTED, "50 % café\n\udcff" + "é" * 5000)
    async with serving(toy) as server, connected(server) as wire:
        await wire.write(wire.order(1, "Group", b"wait", more=[("grpc-timeout", "20m")]))
        assert (await wire.answered(1)).text.startswith("50 %25 caf%C3%A9%0A")
