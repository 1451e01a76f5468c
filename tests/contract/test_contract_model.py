"""Every store against an obvious model: any sequence of calls gives what the model says."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from anyio.from_thread import BlockingPortal, start_blocking_portal
from contract_kit import SECOND_US, Backend, Clock, told
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from persistence import (
    KEY_KEPT_MIN_S,
    Appended,
    Conflict,
    Duplicate,
    ExpiredId,
    Head,
    InvalidId,
    Key,
    NewMessage,
    Outcome,
    Record,
    Register,
    Store,
    open_store,
)

SUBJECTS = ("a", "a.b", "ü", "東京")
REGISTERS = ("r", "r/1", "r/2", "s")

messages = st.builds(
    NewMessage,
    subject=st.sampled_from(SUBJECTS),
    body=st.binary(max_size=20),
    expiration_s=st.sampled_from([0, 1, 2, 3, 10, None]),
    headers=st.dictionaries(st.text("abcü", min_size=1, max_size=3), st.binary(max_size=3), max_size=2),
    idempotency_key=st.sampled_from(["", "", "k", "ключ"]),
    expected_last_id=st.sampled_from([None, None, None, 0, 1, 2, 3, 4]),
)


class Slot(NamedTuple):
    """One assigned id of the model."""

    record: Record
    kept: bool
    key: str
    key_expires_us: int | None


@dataclass
class Model:
    clock: Clock
    logs: dict[str, list[Slot]] = field(default_factory=dict)
    floors: dict[str, int] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    registers: dict[str, Register] = field(default_factory=dict)
    versions_used: set[int] = field(default_factory=lambda: {0})

    def append(self, message: NewMessage) -> Outcome:
        log = self.logs.get(message.subject, [])
        for slot in reversed(log):
            remembered = slot.key_expires_us is None or self.clock.now_us < slot.key_expires_us
            if message.idempotency_key and slot.key == message.idempotency_key and remembered:
                return Duplicate(slot.record.id, slot.record.time_us)
        if message.expected_last_id is not None and message.expected_last_id != len(log):
            return Conflict(len(log))
        time_us = max(self.clock.now_us, log[-1].record.time_us if log else 0)
        expires_us = key_expires_us = None
        if message.expiration_s is not None:
            expires_us = time_us + message.expiration_s * SECOND_US
            key_expires_us = time_us + max(message.expiration_s, KEY_KEPT_MIN_S) * SECOND_US
        record = Record(len(log) + 1, message.body, message.headers, time_us, expires_us)
        slot = Slot(record, message.expiration_s != 0, message.idempotency_key, key_expires_us)
        self.logs.setdefault(message.subject, []).append(slot)
        self.deleted.discard(message.subject)
        return Appended(record.id, time_us)

    def kept(self, subject: str) -> Mapping[int, Record]:
        return {
            record.id: record
            for record, kept, *_ in self.logs.get(subject, [])
            if kept and (record.expires_us is None or self.clock.now_us < record.expires_us)
            if record.id > self.floors.get(subject, 0)
        }

    def purge(self, subject: str, until_id: int) -> int:
        last_id = self.last_id(subject)
        self.floors[subject] = max(self.floors.get(subject, 0), min(until_id, last_id))
        return last_id

    def delete_subject(self, subject: str, last_id: int) -> Conflict | None:
        if last_id != self.last_id(subject):
            return Conflict(self.last_id(subject))
        self.purge(subject, last_id)
        self.deleted.add(subject)
        return None

    def last_id(self, subject: str) -> int:
        return len(self.logs.get(subject, []))

    def get(self, subject: str, id_: int) -> Record | InvalidId | ExpiredId:
        last_id = self.last_id(subject)
        if not 1 <= id_ <= last_id:
            return InvalidId(last_id)
        return self.kept(subject).get(id_, ExpiredId(last_id))


class StoreAgainstModel(RuleBasedStateMachine):
    backend: Backend
    portal: BlockingPortal

    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        self.undo = ExitStack()
        directory = self.undo.enter_context(tempfile.TemporaryDirectory())
        self.url = self.undo.enter_context(self.backend.empty_url(Path(directory), self.clock))
        self.model = Model(self.clock)
        self.open()

    def open(self) -> None:
        opening = open_store(self.url, clock=self.clock)
        self.opened: AbstractContextManager[Store] = self.portal.wrap_async_context_manager(opening)
        self.store = self.opened.__enter__()

    def teardown(self) -> None:
        self.opened.__exit__(None, None, None)
        self.undo.close()

    @precondition(lambda self: self.backend.durable)
    @rule()
    def reopen(self) -> None:
        self.opened.__exit__(None, None, None)
        self.open()

    @rule(batch=st.lists(messages, max_size=12))
    def append(self, batch: list[NewMessage]) -> None:
        outcomes = self.portal.call(self.store.append, batch)
        assert told(outcomes) == told([self.model.append(message) for message in batch])

    @rule(microseconds=st.sampled_from([1, SECOND_US - 1, SECOND_US, 2 * SECOND_US, 119 * SECOND_US, -SECOND_US]))
    def turn_the_clock(self, microseconds: int) -> None:
        if microseconds > 0 or not any(self.expiring()):  # what was swept does not come back when the clock does
            self.clock.now_us += microseconds

    def expiring(self) -> Iterator[Record]:
        return (slot.record for log in self.model.logs.values() for slot in log if slot.record.expires_us is not None)

    @rule()
    def sweep(self) -> None:
        self.portal.call(self.store.sweep)

    @rule(
        subject=st.sampled_from([*SUBJECTS, "unheard"]),
        after_id=st.integers(0, 30),
        max_messages=st.integers(1, 8),
        max_bytes=st.integers(0, 60),
    )
    def read(self, subject: str, after_id: int, max_messages: int, max_bytes: int) -> None:
        kept = self.model.kept(subject)
        last_id = self.model.last_id(subject)

        def ask() -> object:
            return self.store.read(subject, after_id, max_messages=max_messages, max_bytes=max_bytes)

        page = self.portal.call(ask)
        assert page.last_id == last_id
        assert list(page.records) == [kept[id_] for id_ in sorted(kept) if after_id < id_ <= page.scanned_to]
        assert len(page.records) <= max_messages
        assert len(page.records) <= 1 or sum(map(_size_bytes, page.records)) <= max_bytes
        assert page.scanned_to > after_id or page.scanned_to >= last_id

    @rule(keys=st.lists(st.builds(Key, st.sampled_from([*SUBJECTS, "unheard"]), st.integers(-1, 40)), max_size=8))
    def get(self, keys: list[Key]) -> None:
        assert self.portal.call(self.store.get, keys) == [self.model.get(*key) for key in keys]

    @rule(subject=st.sampled_from([*SUBJECTS, "unheard"]), until_id=st.integers(0, 40))
    def purge(self, subject: str, until_id: int) -> None:
        until_id = min(until_id, self.before_the_first_key_for_ever(subject))
        assert self.portal.call(self.store.purge, subject, until_id) == self.model.purge(subject, until_id)

    @rule(subject=st.sampled_from([*SUBJECTS, "unheard"]), stale=st.booleans())
    def delete_subject(self, subject: str, stale: bool) -> None:
        last_id = self.model.last_id(subject)
        if self.before_the_first_key_for_ever(subject) < last_id:
            return
        answer = self.portal.call(self.store.delete_subject, subject, last_id + stale)
        assert answer == self.model.delete_subject(subject, last_id + stale)

    def before_the_first_key_for_ever(self, subject: str) -> int:
        """What may be purged: of keys that are remembered for ever it is not told when they are forgotten then."""
        log = self.model.logs.get(subject, [])
        return next((slot.record.id - 1 for slot in log if slot.key and slot.key_expires_us is None), len(log))

    @invariant()
    def heads_are_right(self) -> None:
        for subject in SUBJECTS:
            last_id = self.model.last_id(subject)
            expected = Head(min(self.model.kept(subject), default=last_id + 1), last_id)
            assert self.portal.call(self.store.head, subject) == expected

    @rule(after=st.sampled_from(["", *SUBJECTS]), limit=st.integers(1, 5))
    def subjects(self, after: str, limit: int) -> None:
        names = self.portal.call(lambda: self.store.subjects(after, limit=limit))
        listed = self.model.logs.keys() - self.model.deleted
        assert names == sorted((name for name in listed if name > after), key=str.encode)[:limit]

    @rule(name=st.sampled_from(REGISTERS), value=st.binary(max_size=3), stale=st.booleans())
    def compare_and_set(self, name: str, value: bytes, stale: bool) -> None:
        current = self.model.registers.get(name, Register(b"", 0)).version
        version = current + 1 if stale else current
        new_version = self.portal.call(lambda: self.store.compare_and_set(name, value, version=version))
        if stale:
            assert new_version is None
        else:
            assert new_version > max(self.model.versions_used)
            self.model.versions_used.add(new_version)
            self.model.registers[name] = Register(value, new_version)

    @rule(name=st.sampled_from(REGISTERS), stale=st.booleans())
    def delete(self, name: str, stale: bool) -> None:
        register = self.model.registers.get(name)
        version = (register.version if register else 0) + stale
        deleted = self.portal.call(lambda: self.store.delete(name, version=version))
        assert deleted == (register is not None and not stale)
        if deleted:
            del self.model.registers[name]

    @rule(prefix=st.sampled_from(["", "r", "r/", "x"]))
    def list_registers(self, prefix: str) -> None:
        expected = sorted((name, r) for name, r in self.model.registers.items() if name.startswith(prefix))
        assert self.portal.call(self.store.list, prefix) == expected
        for name in REGISTERS:
            assert self.portal.call(self.store.load, name) == self.model.registers.get(name)


def _size_bytes(record: Record) -> int:
    return len(record.body) + sum(len(name.encode()) + len(value) for name, value in record.headers.items())


def test_any_sequence_of_calls_gives_what_the_model_says(backend: Backend) -> None:
    with start_blocking_portal("trio") as portal:
        machine = type(f"Model_{backend.name}", (StoreAgainstModel,), {"backend": backend, "portal": portal})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=25,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
