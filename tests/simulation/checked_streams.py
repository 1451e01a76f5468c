"""What subscribers and fetches were promised, beside the log of the store.

A subscription gets every id of its subject once, from its start on, in order: as the message that has it, or not at all
if that is no longer kept, or if its policy says so. Those who asked for gaps are told of each, and why.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from persistence import Head
from trio_broker.fanout import Fanout
from trio_broker.message import DROPPED_OLDEST, LIVE_BUFFER, UNAVAILABLE, Gap, Message
from trio_broker.settling import SETTLE_MAX_S
from trio_broker.start import After, At, AtEnd, Earliest, Last, New, SlowPolicy, Start, Until

from .checked_publishes import Acknowledged
from .store import Fact, SimulatedStore
from .world import Opened, World


@dataclass(slots=True, eq=False)
class Session:
    """One subscription, as its reader sees it."""

    who: str
    subject: str
    start: Start
    until_id: int | None
    slow: SlowPolicy
    report_gaps: bool
    registered: int
    """The number of the event: before who asked for it was told."""
    seen_id: int | None
    """The last id that it was told of, or its start; None: it begins with what is published next."""
    end_id: int
    """The last id when it looked at the log; where it did not look, beyond all."""
    may_skip: bool
    """What was not kept at its start is no gap."""
    told: int
    """The number of the event when who asked for it was told."""
    opened: Opened
    start_id: int | None = None
    """Where it began in the log of what is new."""
    settled: frozenset[str] = frozenset()
    """The brokers that acknowledged before that what they had under way."""
    first_heard: int | None = None
    """The first id that was live while it listened, once there is one."""
    missed: int = 0
    """Messages that it was not given, and that were live while it listened."""
    ended: str = ""
    messages: int = 0
    """That it got."""


class CheckedStreams:
    def __init__(self, world: World, store: SimulatedStore, *, several: bool = False) -> None:
        """``several``: brokers, of which none knows when another one hears of what."""
        self._several = several
        self._world = world
        self._store = store
        self.sessions: list[Session] = []
        self._told = dict.fromkeys((UNAVAILABLE, LIVE_BUFFER, DROPPED_OLDEST), 0)
        self._holes = 0
        self._passed_over: list[tuple[Session, Fact, int]] = []

    def begin(
        self,
        who: str,
        subject: str,
        start: Start,
        until: Until | None,
        slow: SlowPolicy,
        *,
        report_gaps: bool,
    ) -> Session:
        """Note a subscription when who asked for it is told that it stands, by the task that asked for it."""
        opened = self._world.opened[who]
        heads = self._store.asked[who].heads if who in self._store.asked else []
        if not heads and isinstance(start, After):  # memory knew
            heads = [Head(1, self._store.last_heard_id(subject))]
        seen_id = until_id = None
        if heads:
            first_id, last_id = heads.pop()
            head = Head(first_id, max(last_id, opened.offered_id))  # what was offered meanwhile was there before, too
            heads.append(head)
            until_id = head.last_id if isinstance(until, AtEnd) else until
            match start:
                case New():
                    seen_id = head.last_id
                case Earliest():
                    seen_id = head.first_id - 1
                case Last(count):
                    seen_id = max(head.first_id - 1, head.last_id - count)
                case After(id_):
                    seen_id = id_
                case At(time):
                    # if it is yet to come, from now on: from when the log was looked at first
                    facts = self._store.history.get(subject, [])[: heads[0].last_id]
                    seen_id = sum(fact.time_us < round(time.timestamp() * 1_000_000) for fact in facts)
        number = self._world.note(who, "listens", subject, start, until_id, slow.name, report_gaps, seen_id)
        end_id = heads[-1].last_id if heads else sys.maxsize
        may_skip = isinstance(start, At)
        session = Session(
            who, subject, start, until_id, slow, report_gaps, opened.number, seen_id, end_id, may_skip, number, opened
        )
        if isinstance(start, New) and seen_id is not None:
            session.start_id = seen_id
            session.settled = self._settled(session)
        self.sessions.append(session)
        self._world.count(f"start: {type(start).__name__}")
        return session

    def got(self, session: Session, item: Message | Gap) -> None:
        """Check what a subscriber gets, when it does."""
        if session.ended:
            self._world.violated("ends", f"{session.who} got {item} after the end")
        if session.seen_id is None:
            first_id = self._first_heard(session)
            if first_id is None:
                self._world.violated("from now on", f"{session.who} got {item}, from before it listened")
                first_id = item.id if isinstance(item, Message) else item.first_id
            session.seen_id = first_id - 1
        if isinstance(item, Gap):
            self._got_gap(session, item)
        else:
            self._got_message(session, item)
        if session.until_id is not None and session.seen_id is not None and session.seen_id > session.until_id:
            self._world.violated("until", f"{session.who} got {item}, and {session.until_id} was to be the last")

    def end(self, session: Session, how: str) -> None:
        """Note why a subscription ended: the name of an error, ``finished`` or ``cut``."""
        self._world.note(session.who, "ends", how, session.seen_id)
        self._world.count(f"ended: {how}")
        session.ended = how
        if how == "finished":
            if session.until_id is None:
                self._world.violated("ends", f"{session.who} ended, and had no end")
            elif session.seen_id is not None and session.seen_id < session.until_id:
                self._check_hole(session, session.until_id + 1)

    def check_last_delivered(self, session: Session, last_id: int) -> None:
        """Check the last id that a subscriber is told when it was too slow: it may go on from there."""
        if last_id < (session.seen_id or 0):
            self._world.violated("resume", f"{session.who} saw {session.seen_id}, and is told {last_id}")
        elif session.seen_id is not None and last_id > session.seen_id:
            self._check_hole(session, last_id + 1, quietly=True)

    def check_found(self, who: str, subject: str, id_: int, place: int, found: str | bytes) -> None:
        """Check what a fetch was told, by the task that asked."""
        self._world.note(who, "fetched", subject, id_, found[:16])
        self._world.count(f"fetched: {found if isinstance(found, str) else 'message'}")
        truth = self._store.asked[who].found[place]
        if found != truth:
            self._world.violated("fetch", f"{subject} {id_} is {truth!r}, and {found!r} was fetched")

    def check_gaps(self, gaps: Mapping[str, int]) -> None:
        """Check at the end that every gap was counted."""
        for reason, told in self._told.items():
            if gaps[reason] < told:
                self._world.violated("gaps are counted", f"{told} {reason} were told, {gaps[reason]} counted")
        if sum(gaps.values()) < sum(self._told.values()) + self._holes:
            self._world.violated("gaps are counted", f"{gaps} are fewer than {self._told}, {self._holes}")

    def check_counts(self, fanout: Fanout) -> None:
        """Check at the end that every gap was counted, and that who kept up was given all that was live."""
        self.check_gaps(fanout.gaps)
        for session, fact, number in self._passed_over:
            if fact.heard is not None and fact.heard > number and not self._is_given_up(fact):
                self._world.violated("live", f"{session.who} went beyond {fact.id} before it was offered")
        for session in self.sessions:
            facts = self._store.history.get(session.subject, [])
            unbroken = all(fact.heard and not self._is_given_up(fact) for fact in facts)
            if isinstance(session.start, New) and not fanout.lags and unbroken:
                self._check_live(session)

    def _is_given_up(self, fact: Fact) -> bool:
        return self._store.limits().shared and fact.message.body in self._world.given_up

    def _check_live(self, session: Session) -> None:
        """Check one that began with what was live, and never left that."""
        if session.slow is SlowPolicy.DROP_OLDEST or session.until_id is not None:
            return
        self._world.count("kept up")
        if session.missed:
            self._world.violated("live", f"{session.who} missed {session.missed} messages, and never lagged")
        facts = self._store.history.get(session.subject, [])
        last_id = max((fact.id for fact in facts if (fact.heard or 0) > session.registered), default=0)
        if session.ended in ("Draining", "BrokerClosed") and (session.seen_id or 0) < last_id:
            self._world.violated("live", f"{session.who} ended at {session.seen_id}, and {last_id} was published")

    def check_acknowledged(self, acknowledged: Iterable[Acknowledged]) -> None:
        """Check at the end that who was told that a subscription stands gets all that was acknowledged after that.

        So it is for what is acknowledged by brokers that hear each other, and answer in time.
        """
        by_subject: defaultdict[str, list[Acknowledged]] = defaultdict(list)
        for each in acknowledged:
            by_subject[each.subject].append(each)
        for session in self.sessions:
            if session.start_id is None:
                continue
            self._world.count("all acknowledged before", len(session.settled) > 1)
            for each in by_subject[session.subject]:
                if each.id <= session.start_id and each.number > session.told and each.place in session.settled:
                    what = f"{each.id}, which {each.place or 'the broker'} acknowledged after it was told"
                    self._world.violated("acknowledged later", f"{session.who} began after {what}")

    def _settled(self, session: Session) -> frozenset[str]:
        """Return which brokers have acknowledged what they had under way, before who asked was told."""
        opened = session.opened
        if opened.waited_s > SETTLE_MAX_S - 0.001:
            return frozenset()
        silent = {
            teller
            for number, asker, teller in self._world.unanswered_settling
            if asker == opened.place and number > opened.number
        }
        return frozenset((opened.place, *opened.asked)) - silent

    def _first_heard(self, session: Session) -> int | None:
        """Return the first id that was live while it listened."""
        if session.first_heard is None:
            facts = self._store.history.get(session.subject, [])
            session.first_heard = next((fact.id for fact in facts if (fact.heard or 0) > session.registered), None)
        return session.first_heard

    def _got_message(self, session: Session, message: Message) -> None:
        self._world.note(session.who, "got", message.id)
        fact = self._store.fact(session.subject, message.id)
        if fact is None or message.subject != session.subject:
            self._world.violated("its subject's", f"{session.who} got {message}, which is not in the log")
        elif (fact.message.body, fact.time_us) != (message.body, message.published_us):
            self._world.violated("its subject's", f"{session.who} got {message}, and {fact} is in the log")
        session.messages += 1
        self._go_on(session, message.id, message.id)

    def _got_gap(self, session: Session, gap: Gap) -> None:
        self._world.note(session.who, "got a gap", gap.first_id, gap.last_id, gap.reason)
        self._world.count(f"gap: {gap.reason}")
        self._told[gap.reason] += 1
        if not session.report_gaps or gap.first_id > gap.last_id or gap.subject != session.subject:
            self._world.violated("gaps", f"{session.who} got {gap}")
        if gap.last_id > self._store.last_id(session.subject):
            self._world.violated("gaps", f"{session.who} got {gap}, and there is no such id")
        first = self._first_heard(session)
        for fact in self._facts(session, gap.first_id, gap.last_id + 1):
            if gap.reason == DROPPED_OLDEST:
                right = session.slow is SlowPolicy.DROP_OLDEST
            else:
                was_live = first is not None and fact.id >= first
                session.missed += was_live
                is_new = was_live or fact.id > session.end_id  # published since it began to listen
                was_offered = (fact.heard or 0) > session.registered
                right = is_new if gap.reason == LIVE_BUFFER else not was_offered or fact.number < session.registered
                right = (right or self._several) and not fact.is_kept(self._store.latest_us)
                self._pass_over(session, fact)
            if not right:
                self._world.violated("gaps", f"{session.who} got {gap} for {fact}")
        self._go_on(session, gap.first_id, gap.last_id)

    def _go_on(self, session: Session, first_id: int, last_id: int) -> None:
        """Take the next ids of a subscription."""
        assert session.seen_id is not None
        if first_id <= session.seen_id:
            self._world.violated("in order, once", f"{session.who} got {first_id} after {session.seen_id}")
        elif first_id > session.seen_id + 1:
            self._check_hole(session, first_id)
        session.seen_id = max(session.seen_id, last_id)
        session.may_skip = False

    def _check_hole(self, session: Session, next_id: int, *, quietly: bool = False) -> None:
        """Check that nothing was to be given between what was seen and ``next_id``."""
        assert session.seen_id is not None
        if session.report_gaps and not session.may_skip and not quietly:
            self._world.violated("gaps are told", f"{session.who} got {next_id} after {session.seen_id}")
        self._holes += not session.may_skip and not quietly
        first = self._first_heard(session)
        for fact in self._facts(session, session.seen_id + 1, next_id):
            session.missed += first is not None and fact.id >= first
            self._pass_over(session, fact)
            if fact.is_kept(self._store.latest_us) and session.slow is not SlowPolicy.DROP_OLDEST:
                self._world.violated("nothing is lost", f"{session.who} got no {fact.id}, which is kept")

    def _pass_over(self, session: Session, fact: Fact) -> None:
        """Note that a subscription goes on without a message that it may yet be offered."""
        if fact.heard is None and fact.ours and fact.id > session.end_id and not self._several:
            self._passed_over.append((session, fact, len(self._world.trace)))

    def _facts(self, session: Session, first_id: int, stop_id: int) -> list[Fact]:
        return list(islice(self._store.history.get(session.subject, []), max(0, first_id - 1), max(0, stop_id - 1)))
