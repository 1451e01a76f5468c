"""Several writers on the same subjects: ids are in commit order, and nobody waits for each other in a circle."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack

import trio
from postgres_kit import Outside, ids, message

from persistence import Store, open_store

WRITERS = 4
ROUNDS = 12
SUBJECTS = [f"subject.{n}" for n in range(10)]


async def append(store: Store, subjects: Sequence[str], got: dict[str, list[int]]) -> None:
    for round_ in range(ROUNDS):
        batch = [message(subject) for subject in subjects for _ in range(round_ % 3 + 1)]
        for new, id_ in zip(batch, ids(await store.append(batch)), strict=True):
            got[new.subject].append(id_)


async def follow(store: Store, subject: str, ids_seen: list[int], ended: trio.Event) -> None:
    """Page a log from its beginning while others append to it, each page from where the one before ended."""
    while True:
        was_last = ended.is_set()
        page = await store.read(subject, ids_seen[-1] if ids_seen else 0, max_messages=7, max_bytes=1000)
        ids_seen += [record.id for record in page.records]
        if was_last and page.scanned_to >= page.last_id:
            return


async def test_a_reader_that_follows_while_commits_overtake_each_other_sees_every_id_once_and_in_order(
    postgres_url: str, outside: Outside
) -> None:
    got: dict[str, list[int]] = defaultdict(list)
    seen: dict[str, list[int]] = defaultdict(list)
    ended = trio.Event()
    async with AsyncExitStack() as stores, trio.open_nursery() as readers:
        opened = [await stores.enter_async_context(open_store(postgres_url)) for _ in range(WRITERS)]
        outside.do(
            "CREATE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF random() < 0.2 THEN PERFORM pg_sleep(0.02); END IF; RETURN NULL; END $$"
        )
        outside.do(
            "CREATE TRIGGER dawdle AFTER INSERT ON trio_broker.messages FOR EACH STATEMENT EXECUTE FUNCTION dawdle()"
        )
        for subject in SUBJECTS:
            readers.start_soon(follow, opened[0], subject, seen[subject], ended)
        async with trio.open_nursery() as writers:
            for number, store in enumerate(opened):
                writers.start_soon(append, store, SUBJECTS[number:] + SUBJECTS[:number], got)
        ended.set()
    for subject in SUBJECTS:
        count = WRITERS * ROUNDS * 2
        assert sorted(got[subject]) == seen[subject] == [*range(1, count + 1)]


async def test_opposite_orders_of_subjects_lead_to_no_deadlock(postgres_url: str, outside: Outside) -> None:
    got: dict[str, list[int]] = defaultdict(list)
    async with open_store(postgres_url) as one, open_store(postgres_url) as two:
        for part in range(3):  # in each the subjects are new at first
            names = [f"{name}.{part}" for name in SUBJECTS]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(append, one, names, got)
                nursery.start_soon(append, two, names[::-1], got)
    assert outside.do("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]
    assert all(sorted(found) == [*range(1, 2 * ROUNDS * 2 + 1)] for found in got.values())
