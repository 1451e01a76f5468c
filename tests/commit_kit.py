"""A committer on a store that a test drives, and what became of publishes."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from trial_store import TrialStore

from persistence import Appended, NewMessage
from trio_broker.commit import Committer
from trio_broker.config import Config
from trio_broker.runs import Group, Pending
from trio_broker.storage import Availability

Delivered = list[tuple[NewMessage, Appended]]


def committer_on(
    store: TrialStore,
    delivered: Delivered | None = None,
    availability: Availability | None = None,
    **settings: object,
) -> Committer:
    deliver = (lambda committed: None) if delivered is None else delivered.extend
    config = Config.model_construct(**settings)  # unchecked: limits may be smaller than a broker's
    return Committer(store, config, deliver, availability or Availability())


@asynccontextmanager
async def committing(
    store: TrialStore,
    delivered: Delivered | None = None,
    availability: Availability | None = None,
    **settings: object,
) -> AsyncGenerator[Committer]:
    committer = committer_on(store, delivered, availability, **settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        yield committer
        committer.close()


async def outcomes(group: Group) -> list[object]:
    """Wait until all of a group is settled; return ids, and classes of errors, in the order of the messages."""
    while await group.settled():
        pass
    return [result(pending) for pending in group.pendings]


def result(pending: Pending) -> object:
    return pending.outcome.id if isinstance(pending.outcome, Appended) else type(pending.outcome)


def bodies(delivered: Delivered) -> list[bytes]:
    return [new.body for new, _ in delivered]
