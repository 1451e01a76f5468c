"""A checker that finds nothing may be blind: bugs are planted in the broker, one at a time, and each is found."""

from collections.abc import Callable, Iterable, Iterator

import pytest

from persistence import Appended, Duplicate, NewMessage, Outcome, Page
from trio_broker import commit
from trio_broker.batch import Batch
from trio_broker.broker import Broker
from trio_broker.commit import Committer
from trio_broker.errors import NotApplied
from trio_broker.fanout import Fanout, Span
from trio_broker.lane import Lane
from trio_broker.message import UNAVAILABLE, Gap
from trio_broker.position import Position
from trio_broker.runs import Group, Pending, Result
from trio_broker.start import Last, Start, Until

from .simulating import simulate

FIRST = 2000
"""Beyond the seeds of test_simulation.py."""
SEEDS = 200
"""A bug is found within so many, all of one broker."""

Plant = Callable[[pytest.MonkeyPatch], None]


def withdrawn_publishes_stay_queued(patch: pytest.MonkeyPatch) -> None:
    def withdraw(self: Pending) -> bool:
        if not self.queued or self.outcomes is not None:
            return False
        self.outcomes = [NotApplied("withdrawn")] * self.count
        self._leave_group().withdrew_one()
        return True

    patch.setattr(Pending, "withdraw", withdraw)


def joining_is_one_id_too_early(patch: pytest.MonkeyPatch) -> None:
    usable = Position._usable

    def early(self: Position, page: Page, after_id: int) -> int:
        upto_id = usable(self, page, after_id)
        if self._collected and upto_id == self._collected[0].after_id:
            return max(after_id, upto_id - 1)
        return upto_id

    def join(self: Position) -> Iterator[Batch]:
        while self._collected and self._collected[0].after_id <= self._taken_id + 1:
            batch = self._collected.popleft()
            self.collected_messages -= batch.count
            self.collected_bytes -= batch.size_bytes
            if piece := batch.part(self._taken_id, self._until_id):
                self._taken_id = piece.last_id
                yield piece

    patch.setattr(Position, "_usable", early)
    patch.setattr(Position, "_join", join)


def a_collected_batch_is_dropped(patch: pytest.MonkeyPatch) -> None:
    join = Position._join
    patch.setattr(Position, "_join", lambda self: iter(list(join(self))[1:]))


def publishes_are_acknowledged_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    flush = Committer._flush

    async def eager(self: Committer, lane: Lane, part: list[Pending]) -> None:
        for run in part:
            if run.outcomes is None and run.count == 1:
                last_id = self._store.last_id(run.message.subject)
                run.complete([Appended(last_id + 1, 0)])
        await flush(self, lane, part)

    patch.setattr(Committer, "_flush", eager)


def gaps_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    count_gaps = Fanout.count_gaps

    def count_some(self: Fanout, gaps: Iterable[Gap]) -> None:
        count_gaps(self, [gap for gap in gaps if gap.reason == UNAVAILABLE])

    patch.setattr(Fanout, "count_gaps", count_some)


def publishes_are_answered_twice(patch: pytest.MonkeyPatch) -> None:
    settle = Group.settle

    def settle_twice(self: Group, pending: Pending) -> None:
        settle(self, pending)
        if self._answer is not None:
            self._answer(pending)

    patch.setattr(Group, "settle", settle_twice)


def the_last_are_one_more(patch: pytest.MonkeyPatch) -> None:
    locate = Broker.locate

    async def generous(self: Broker, subject: str, start: Start, until: Until | None) -> Span:
        return await locate(self, subject, Last(start.count + 1) if isinstance(start, Last) else start, until)

    patch.setattr(Broker, "locate", generous)


def pages_count_beyond_what_was_offered(patch: pytest.MonkeyPatch) -> None:
    def usable(self: Position, page: Page, after_id: int) -> int:
        upto_id = min(page.scanned_to, self._until_id)
        return max(after_id, min(upto_id, self._collected[0].after_id) if self._collected else upto_id)

    patch.setattr(Position, "_usable", usable)


def duplicates_are_told_as_new(patch: pytest.MonkeyPatch) -> None:
    result = commit.result_of

    def as_new(message: NewMessage, outcome: Outcome) -> Result | None:
        return Appended(*outcome) if isinstance(outcome, Duplicate) else result(message, outcome)

    patch.setattr(commit, "result_of", as_new)


def who_was_dropped_goes_on_one_id_too_far(patch: pytest.MonkeyPatch) -> None:
    rewind = Position.rewind
    patch.setattr(Position, "rewind", lambda self, delivered_id: rewind(self, delivered_id + 1))


def atomic_batches_are_cut(patch: pytest.MonkeyPatch) -> None:
    check = Broker.check
    patch.setattr(Broker, "check", lambda self, *args, **options: check(self, *args, **options)._replace(group=0))


def drain_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    async def drain(self: Committer) -> None:
        self._refusal = commit._draining

    patch.setattr(Committer, "drain", drain)


@pytest.mark.parametrize(
    ("plant", "guarantee"),
    [
        (withdrawn_publishes_stay_queued, "nothing was appended"),
        (joining_is_one_id_too_early, "nothing is lost"),
        (a_collected_batch_is_dropped, "nothing is lost"),
        (publishes_are_acknowledged_before_the_commit, "durable"),
        (gaps_are_not_counted, "gaps are counted"),
        (publishes_are_answered_twice, "answered once"),
        (the_last_are_one_more, "in order, once"),
        (pages_count_beyond_what_was_offered, "live"),
        (duplicates_are_told_as_new, "duplicates are told"),
        (who_was_dropped_goes_on_one_id_too_far, "nothing is lost"),
        (atomic_batches_are_cut, "atomic"),
        (drain_does_not_wait, "drain"),
    ],
)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, plant: Plant, guarantee: str) -> None:
    plant(monkeypatch)
    found = (violation for seed in range(FIRST, FIRST + 2 * SEEDS, 2) for violation in simulate(seed).violations)
    assert any(violation.startswith(f"{guarantee}:") for violation in found)
