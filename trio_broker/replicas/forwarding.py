"""Leave appending to a subject to one replica, where several that append to it get into each other's way.

Owns:      which replica that is; asking it; what becomes of messages when it does not answer.
Not here:  the other side (service.py), connections (links.py), appending (persistence/).
Threads:   the trio thread only.

On Cassandra an append is conditional on the subject's head: of two brokers that append at once one has to try again,
and both are slower than one alone. So each subject is left to one of the replicas that are heard, by rendezvous hashing
(Thaler and Ravishankar, 1998): all that see the same replicas choose the same one, and one that comes or goes changes
the choice of its own subjects only. Nothing depends on it: any replica may append to any subject.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import structlog
import trio
from google.protobuf.message import DecodeError

from persistence import Appended, Conflict, Duplicate, Failed, NewMessage, Outcome, Rejected
from persistence.errors import OutcomeUnknown, StoreError, StoreFull, StoreUnavailable
from trio_broker._proto import replicas_pb2 as pb
from trio_broker.commit import Append
from trio_broker.errors import BrokerError, InvalidArgument, MessageTooLarge
from trio_broker.replicas.links import Link
from trio_broker.storage import NotAnswered

PATH = "/broker.Replicas/Append"
PATIENCE_S = 5.0
"""How long another replica may take for an append."""

OWNERS_MAX = 10_000
"""So many are remembered."""
_NOT_ANSWERED = "another replica was asked to append, and did not answer"
_REFUSALS = frozenset({"PERMISSION_DENIED", "NOT_FOUND", "UNIMPLEMENTED"})
"""Statuses of calls of which nothing was done."""

log = structlog.get_logger()


def owner_of(subject: str, replicas: Sequence[str]) -> str:
    """Return which of these replicas a subject is left to."""
    return max(replicas, key=lambda id_: blake2b(f"{id_} {subject}".encode(), digest_size=8).digest())


class Forwarding:
    """Appends in place of the store: to subjects that are left to others by asking those."""

    def __init__(
        self, id_: str, append: Append, links: Callable[[], Mapping[str, Link]], greeting: Callable[[str], pb.Greeting]
    ) -> None:
        """``append`` is the store's; ``links`` has those to the other replicas, by their ids."""
        self.forwarded = 0
        """Messages that other replicas have answered for."""
        self.refused = 0
        """Those that were left to others, and had to be appended here."""
        self._id = id_
        self._append = append
        self._links = links
        self._greeting = greeting
        self.changes: Callable[[], object] = tuple
        """Called before a subject is left to another replica than it was."""
        self._told: frozenset[str] = frozenset()
        self._heard: tuple[str, ...] = ()
        self._owners: dict[str, str] = {}  # among those

    def take_told(self) -> frozenset[str]:
        """Return the subjects of which others have told all replicas what the last `append` returned."""
        told, self._told = self._told, frozenset()
        return told

    def is_left(self, subject: str) -> bool:
        """Say whether a subject is left to another replica now."""
        return self._owner(subject) != self._id

    def _owner(self, subject: str) -> str:
        heard = tuple(id_ for id_, link in self._links().items() if link.connected)
        if heard != self._heard:
            self.changes()
            self._heard = heard
            self._owners.clear()
        elif len(self._owners) > OWNERS_MAX:
            self._owners.clear()
        owner = self._owners.get(subject)
        if owner is None:
            owner = self._owners[subject] = owner_of(subject, (self._id, *heard))
        return owner

    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        """Do as `Store.append`. Whoever calls asks `take_told` at once. A checkpoint."""
        links = self._links()
        places: dict[str, list[int]] = {}
        for place, message in enumerate(batch):
            places.setdefault(self._owner(message.subject), []).append(place)
        mine = places.pop(self._id, [])  # it was left to one that is not heard any more
        if not places:
            return await self._append(batch)
        outcomes: list[Outcome | None] = [None] * len(batch)
        unanswered: set[int] = set()
        async with trio.open_nursery() as nursery:
            for owner, theirs in places.items():
                nursery.start_soon(self._ask, owner, links[owner], batch, theirs, outcomes, unanswered)
            if mine:
                await self._append_here(batch, mine, outcomes)
        _fail_overtaken(batch, outcomes, unanswered)
        left = [place for place, outcome in enumerate(outcomes) if outcome is None]
        told = {batch[place].subject for theirs in places.values() for place in theirs}
        told -= {batch[place].subject for place in left}
        if left:
            self.refused += len(left)
            await self._append_here(batch, left, outcomes)
            for place in unanswered:
                outcomes[place] = _after_silence(batch[place], outcomes[place])
        self._told = frozenset(told)  # last: another lane may have asked meanwhile
        return [outcome for outcome in outcomes if outcome is not None]

    async def _append_here(
        self, batch: Sequence[NewMessage], places: Sequence[int], outcomes: list[Outcome | None]
    ) -> None:
        """Append some of a batch to the store; whatever that raises, what became of the others is known."""
        try:
            found = await self._append([batch[place] for place in places])
        except StoreError as error:
            found = [Failed(error)] * len(places)
        except Exception as error:
            log.exception("append_failed", messages=len(places))  # a bug in the store must not stop the broker
            found = [Failed(OutcomeUnknown(f"the store failed unexpectedly: {error}"))] * len(places)
        for place, outcome in zip(places, found, strict=True):
            outcomes[place] = outcome

    async def _ask(
        self,
        owner: str,
        link: Link,
        batch: Sequence[NewMessage],
        places: Sequence[int],
        outcomes: list[Outcome | None],
        unanswered: set[int],
    ) -> None:
        """Ask another replica to append some of a batch; leave out what it did not, for certain.

        Left out, and noted in ``unanswered``, is also what has a key: the store knows whether it was appended.
        """
        request = pb.AppendRequest(
            greeting=self._greeting(owner), messages=[_appending(batch[place]) for place in places]
        )
        why = f"no answer within {PATIENCE_S:g} s"
        with trio.move_on_after(PATIENCE_S):
            try:
                response = pb.AppendResponse.FromString(await link.ask(PATH, request.SerializeToString(), PATIENCE_S))
            except BrokerError as error:
                if _did_nothing(error):
                    return
                why = str(error)
            except DecodeError as error:
                why = f"its answer cannot be read: {error}"
            else:
                if len(response.results) == len(places):
                    for place, result in zip(places, response.results, strict=True):
                        outcomes[place] = _outcome(result)
                    self.forwarded += sum(outcomes[place] is not None for place in places)
                    return
                why = f"it has answered for {len(response.results)} of {len(places)} messages"
        log.warning("append_not_answered", replica=owner, why=why)
        link.lose(f"an append was not answered: {why}")  # until it answers again nothing more is left to it
        for place in places:
            if batch[place].idempotency_key:
                unanswered.add(place)
            else:
                outcomes[place] = Failed(NotAnswered(_NOT_ANSWERED))


def _did_nothing(error: BrokerError) -> bool:
    """Say whether a call was never sent, or was refused as a whole: nothing was appended."""
    return error.retryable or isinstance(error, InvalidArgument | MessageTooLarge) or error.reason in _REFUSALS


def _fail_overtaken(batch: Sequence[NewMessage], outcomes: list[Outcome | None], unanswered: set[int]) -> None:
    """Fail what was not appended, and of whose subject something that comes after it was, or may be: it is too late."""
    overtaken: set[str] = set()
    for place in reversed(range(len(batch))):
        subject = batch[place].subject
        outcome = outcomes[place]
        if isinstance(outcome, Appended) or (isinstance(outcome, Failed) and isinstance(outcome.error, OutcomeUnknown)):
            overtaken.add(subject)
        elif outcome is None and subject in overtaken and place not in unanswered:
            outcomes[place] = Failed(StoreUnavailable("another replica appended what follows, and could not this"))


def _after_silence(message: NewMessage, outcome: Outcome | None) -> Outcome | None:
    """Return what is known of a message of which another replica said nothing, once it was tried here by its key.

    Where that failed, the other one may have appended it, or may do so yet.
    """
    match outcome:
        case Failed(StoreUnavailable() | StoreFull()):
            return Failed(NotAnswered(_NOT_ANSWERED))
        case Conflict(last_id) if last_id < (message.expected_last_id or 0):
            return Failed(NotAnswered(_NOT_ANSWERED))
    return outcome


def _appending(message: NewMessage) -> pb.Appending:
    subject, body, expiration_s, headers, key, expected_last_id, _ = message
    return pb.Appending(
        subject=subject,
        body=body,
        lifetime=-1 if expiration_s is None else expiration_s,
        headers=dict(headers),
        idempotency_key=key,
        expected_last_id=expected_last_id,
    )


def _outcome(result: pb.AppendResult) -> Outcome | None:
    """Return what became of a message; None: nothing was appended, and another replica may."""
    match result.WhichOneof("result"):
        case "appended":
            return Appended(result.appended.id, result.appended.time_us)
        case "duplicate":
            return Duplicate(result.duplicate.id, result.duplicate.time_us)
        case "conflict":
            return Conflict(result.conflict)
        case "rejected":
            return Rejected(result.rejected)
        case "full":
            return Failed(StoreFull(result.full))
        case "unavailable":
            return None
        case _:
            return Failed(OutcomeUnknown(result.unknown or "another replica's answer was not understood"))
