"""grpc.health.v1 over sockets."""

from grpc_peer import deframed
from purerpc import StatusCode
from toy import Toy, connected, serving

from trio_broker._proto.grpc.health.v1 import health_pb2 as pb
from trio_broker.rpc import frames
from trio_broker.rpc.health import Health

SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


def asks(wire, stream_id, method, service=""):
    message = pb.HealthCheckRequest(service=service).SerializeToString()
    return wire.request(stream_id, message, method=f"/grpc.health.v1.Health/{method}")


def statuses(answer):
    return [pb.HealthCheckResponse.FromString(message).status for message in deframed(answer.body)]


async def watched(wire, stream_id, count):
    """Wait for so many statuses."""
    await wire.begun(stream_id)
    while len(statuses(wire.answers[stream_id])) < count:
        assert await wire.read()
    return statuses(wire.answers[stream_id])


async def test_check():
    health = Health("toy.Toy")
    health.set("toy.Toy", serving=True)
    async with serving(Toy(), health.service) as server, connected(server) as wire:
        await wire.write(asks(wire, 1, "Check"), asks(wire, 3, "Check", "toy.Toy"), asks(wire, 5, "Check", "no.Such"))
        assert statuses(await wire.answered(1)) == [NOT_SERVING]
        assert statuses(await wire.answered(3)) == [SERVING]
        unknown = await wire.answered(5)
        assert unknown.code == StatusCode.NOT_FOUND.value
        assert unknown.text == "unknown service no.Such; known are toy.Toy"


async def test_list():
    health = Health("toy.Toy")
    health.set("", serving=True)
    async with serving(Toy(), health.service) as server, connected(server) as wire:
        await wire.write(wire.request(1, b"", method="/grpc.health.v1.Health/List"))
        (message,) = deframed((await wire.answered(1)).body)
        listed = pb.HealthListResponse.FromString(message).statuses
        assert {name: listed[name].status for name in listed} == {"": SERVING, "toy.Toy": NOT_SERVING}


async def test_watch_tells_changes_and_only_them():
    health = Health("toy.Toy")
    async with serving(Toy(), health.service) as server, connected(server) as wire:
        await wire.write(asks(wire, 1, "Watch", "toy.Toy"), asks(wire, 3, "Watch"), asks(wire, 5, "Watch", "no.Such"))
        assert await watched(wire, 1, 1) == [NOT_SERVING]
        assert await watched(wire, 3, 1) == [NOT_SERVING]
        assert await watched(wire, 5, 1) == [SERVICE_UNKNOWN]
        health.set("toy.Toy", serving=True)
        assert await watched(wire, 1, 2) == [NOT_SERVING, SERVING]
        health.set("toy.Toy", serving=True)
        health.set("toy.Toy", serving=False)
        assert await watched(wire, 1, 3) == [NOT_SERVING, SERVING, NOT_SERVING]
        assert statuses(wire.answers[3]) == [NOT_SERVING]
        await wire.write(frames.reset(5, frames.CANCEL))


async def test_a_name_that_would_take_much_to_keep_is_not_watched():
    async with serving(Toy(), Health().service) as server, connected(server) as wire:
        await wire.write(asks(wire, 1, "Watch", "x" * 255), asks(wire, 3, "Watch", "x" * 256))
        assert (await wire.answered(3)).code == StatusCode.INVALID_ARGUMENT.value
        assert await watched(wire, 1, 1) == [SERVICE_UNKNOWN]


async def test_watchers_are_told_that_the_server_stops():
    health = Health("toy.Toy")
    health.set("", serving=True)
    async with serving(Toy(), health.service) as server, connected(server) as wire:
        await wire.write(asks(wire, 1, "Watch"), asks(wire, 3, "Watch", "toy.Toy"))
        await watched(wire, 1, 1)
        await watched(wire, 3, 1)
        health.stop()
        answer = await wire.answered(1)
        assert statuses(answer) == [SERVING, NOT_SERVING]
        assert answer.code == StatusCode.UNAVAILABLE.value
        assert (await wire.answered(3)).code == StatusCode.UNAVAILABLE.value


async def test_a_watch_of_a_server_that_stops_ends_too():
    health = Health()
    health.stop()
    async with serving(Toy(), health.service) as server, connected(server) as wire:
        await wire.write(asks(wire, 1, "Watch"))
        answer = await wire.answered(1)
        assert statuses(answer) == [NOT_SERVING]
        assert answer.code == StatusCode.UNAVAILABLE.value
