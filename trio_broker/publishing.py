"""Publishing many messages at once: a batch from its checked messages to its results.

Owns:      `Publishing`: which messages of a batch form a run, what an atomic batch may hold,
           whose result is whose.
Not here:  checks of single messages (trio_broker/broker.py), the queue and the store (trio_broker/commit.py).
Threads:   the trio thread only.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import cast

from persistence import NewMessage
from trio_broker.commit import Committer
from trio_broker.errors import Aborted, BrokerError, InvalidBatch, MessageTooLarge, OutcomeUnknown
from trio_broker.runs import Pending, Result, Run, size_bytes

BATCH_MESSAGES_MAX = 10_000
"""Messages of one batch, or of one request of a stream."""


class Publishing:
    """A batch on its way to the store."""

    __slots__ = ("_done", "_is_plain", "_pendings", "_places", "_results", "_unsettled")

    def __init__(
        self,
        committer: Committer,
        checked: Sequence[NewMessage | BrokerError],
        source: Hashable,
        *,
        atomic: bool,
        done: Callable[[], None],
        caller: object = None,
    ) -> None:
        """Hand over what passed its check; an error stands for a message that did not.

        ``done`` is called once `results` has them all: perhaps before this returns, else in the committer's stretch.
        The messages of an atomic batch have one number for their group, see `Committer.next_group`. ``caller``: for
        the runs, see `Pending.caller`.
        """
        self._done = done
        self._is_plain = not atomic and set(map(type, checked)) <= {NewMessage}
        self._results: list[Result | None] = []
        if not self._is_plain:
            self._results = [each if isinstance(each, BrokerError) else None for each in checked]
        self._places: list[Sequence[int]] = []
        runs = self._by_subject(committer, checked) if atomic else self._in_order(committer, checked)
        self._unsettled = len(runs) + 1  # until all are known
        group = committer.hand_over_runs(runs, source, [caller] * len(runs), self._settled)
        self._pendings = group.pendings
        self._one_less()

    def results(self) -> list[Result]:
        """Return one for each message, in order."""
        if self._is_plain:
            return [outcome for pending in self._pendings for outcome in pending.outcomes or ()]
        results = self._results
        for pending, places in zip(self._pendings, self._places, strict=True):
            assert pending.outcomes is not None, "all are settled"
            for place, outcome in zip(places, pending.outcomes, strict=True):
                results[place] = outcome
        return [result for result in results if result is not None]

    def withdraw(self) -> bool:
        """Take back what the store has not been given. True: that is all of it, nothing was or will be appended."""
        withdrawn = [pending.withdraw() for pending in self._pendings]
        return all(back or _is_refused(pending) for back, pending in zip(withdrawn, self._pendings, strict=True))

    def _settled(self, _pending: Pending) -> None:
        self._one_less()

    def _one_less(self) -> None:
        self._unsettled -= 1
        if not self._unsettled:
            self._done()

    def _in_order(self, committer: Committer, checked: Sequence[NewMessage | BrokerError]) -> list[Run]:
        if self._is_plain:
            return committer.cut(cast("Sequence[NewMessage]", checked))
        places = [place for place, each in enumerate(checked) if not isinstance(each, BrokerError)]
        runs = committer.cut([each for each in checked if not isinstance(each, BrokerError)])
        begin = 0
        for messages, _ in runs:
            self._places.append(places[begin : begin + len(messages)])
            begin += len(messages)
        return runs

    def _by_subject(self, committer: Committer, checked: Sequence[NewMessage | BrokerError]) -> list[Run]:
        messages: dict[str, list[NewMessage]] = {}
        places: dict[str, list[int]] = {}
        for place, each in enumerate(checked):
            if not isinstance(each, BrokerError):
                messages.setdefault(each.subject, []).append(each)
                places.setdefault(each.subject, []).append(place)
        runs: list[Run] = []
        for subject, mine in messages.items():
            size = sum(map(size_bytes, mine))
            if error := _too_much(committer, subject, len(mine), size):
                for place in places[subject]:
                    self._results[place] = error
            else:
                runs.append((mine, size))
                self._places.append(places[subject])
        return runs


def abort_others(checked: list[NewMessage | BrokerError], subjects: Sequence[str]) -> None:
    """Let each message of an atomic batch fail of whose subject another one has failed its check.

    ``subjects`` are those of all messages, in order.
    """
    failed = {subject for subject, each in zip(subjects, checked, strict=True) if isinstance(each, BrokerError)}
    if failed:
        for place, each in enumerate(checked):
            if not isinstance(each, BrokerError) and each.subject in failed:
                checked[place] = Aborted(
                    f"another message of the batch to {each.subject!r} was refused; nothing was appended of them"
                )


def check_count(messages: int) -> None:
    """Refuse a batch of too many messages.

    Raises:
        InvalidBatch: with the limit.
    """
    if messages > BATCH_MESSAGES_MAX:
        text = f"more than {BATCH_MESSAGES_MAX} messages at once"  # how many is not known of large requests
        raise InvalidBatch(text, limit=BATCH_MESSAGES_MAX)


def _too_much(committer: Committer, subject: str, messages: int, size: int) -> BrokerError | None:
    """Say why messages cannot be appended together, if so."""
    if messages > (most := committer.atomic_messages_max):
        text = f"an atomic batch with {messages} messages to {subject!r}; at most {most} of one subject are accepted"
        return InvalidBatch(text, limit=most)
    if messages > 1 and size > (limit := committer.atomic_bytes_max):
        text = f"an atomic batch with {size} bytes for {subject!r}; at most {limit} of one subject are accepted"
        return MessageTooLarge(text, size=size, limit=limit)
    return None


def _is_refused(pending: Pending) -> bool:
    """Say whether it is known that nothing of a run was appended."""
    return pending.outcomes is not None and all(
        isinstance(outcome, BrokerError) and not isinstance(outcome, OutcomeUnknown) for outcome in pending.outcomes
    )
