"""Subscriptions that are opened and cancelled at random points, thousands of them (F10).

Owns:      the storm, over one connection.
Not here:  what must not be left behind (test_hasty_clients.py).
Threads:   the caller's; every wait is on the socket.
"""

import random

from e2e_wire import Wire
from google.protobuf.message import Message

from trio_broker._proto import broker_pb2 as pb

OPEN_MAX = 100
"""Subscriptions that are open at once."""
SUBJECTS = [f"storm.{n}" for n in range(3)]
KEPT = 50
"""How many messages the subjects should have, for those who begin in the log."""
METHODS = ["/broker.Broker/Subscribe", "/broker.Broker/SubscribeBatch"]


def storm(address: str, count: int, dice: random.Random) -> None:
    """Subscribe from anywhere, and cancel: with the request, before or after the headers, amid messages, or later."""
    with Wire(address) as wire:
        open_streams = []
        for n in range(count):
            stream = wire.prepare(dice.choice(METHODS), start(dice))
            open_streams.append(stream)
            match dice.randrange(20):
                case 0:
                    wire.round_trip()
                case 1:
                    wire.stand(stream)
                case 2:
                    wire.publish(SUBJECTS[n % len(SUBJECTS)], b"live")
                case 3 | 4 | 5 | 6:
                    wire.cancel(open_streams.pop())
            if len(open_streams) >= OPEN_MAX:
                dice.shuffle(open_streams)
                wire.cancel(*[each for each in open_streams[OPEN_MAX // 4 :] if not each.over])
                del open_streams[OPEN_MAX // 4 :]
        wire.cancel(*[each for each in open_streams if not each.over])
        wire.round_trip()


def start(dice: random.Random) -> Message:
    where = dice.choice([{}, {"earliest": True}, {"after_id": dice.randrange(KEPT)}, {"last": 10}])
    return pb.SubscribeRequest(subject=dice.choice(SUBJECTS), **where)
