"""Groups: messages of one subject that are appended together, or none of them is."""

from contract_kit import START_US, message, read_all, told

from persistence import Appended, Conflict, Duplicate, Head, Rejected, Store


async def test_a_group_without_guards_is_appended_like_other_messages(store: Store) -> None:
    batch = [message(group=1), message("b", group=1), message(group=1), message()]
    assert told(await store.append(batch)) == told(
        [Appended(1, START_US), Appended(1, START_US), Appended(2, START_US), Appended(3, START_US)]
    )


async def test_a_conflict_keeps_its_whole_group_out_and_nobody_else(store: Store) -> None:
    await store.append([message(body=b"before")])
    batch = [
        message(body=b"1"),
        message(body=b"2", group=7),
        message("b", group=7),
        message(body=b"3", group=7, after=1),
        message(body=b"4", group=7),
        message(body=b"5", group=8, after=2),
        message(body=b"6", group=8, after=3),
    ]
    assert told(await store.append(batch)) == told(
        [
            Appended(2, START_US),
            Conflict(2, of_neighbour=True),
            Appended(1, START_US),
            Conflict(2),
            Conflict(2, of_neighbour=True),
            Appended(3, START_US),
            Appended(4, START_US),
        ]
    )
    assert [record.body for record in await read_all(store, "orders")] == [b"before", b"1", b"5", b"6"]


async def test_the_messages_of_a_group_whose_own_place_is_not_as_they_expect_are_at_fault(store: Store) -> None:
    await store.append([message()])
    repeated = [message(group=1, after=1), message(group=1, after=1), message(group=1, after=3)]
    assert told(await store.append(repeated)) == told(
        [Conflict(1, of_neighbour=True), Conflict(1), Conflict(1, of_neighbour=True)]
    )
    behind = [message(group=2, after=0), message(group=2, after=1), message(group=2)]
    assert told(await store.append(behind)) == told([Conflict(1), Conflict(1), Conflict(1, of_neighbour=True)])


async def test_keys_of_a_group_that_is_kept_out_are_not_used(store: Store) -> None:
    await store.append([message(key="old")])
    batch = [
        message(key="old", group=1),
        message(key="new", group=1),
        message(key="new", group=1),
        message(after=9, group=1),
        message(key="new"),
    ]
    assert told(await store.append(batch)) == told(
        [Duplicate(1, START_US), *[Conflict(1, of_neighbour=True)] * 2, Conflict(1), Appended(2, START_US)]
    )


async def test_a_group_that_is_repeated_is_all_duplicates(store: Store) -> None:
    batch = [message(key="1", group=1, after=0), message(key="2", group=1, after=1)]
    assert told(await store.append(batch)) == told([Appended(1, START_US), Appended(2, START_US)])
    assert told(await store.append(batch)) == told([Duplicate(1, START_US), Duplicate(2, START_US)])


async def test_a_conflicting_group_of_a_new_subject_leaves_no_trace(store: Store) -> None:
    outcomes = await store.append([message("new", group=1), message("new", group=1, after=5), message("old")])
    assert told(outcomes) == told([Conflict(0, of_neighbour=True), Conflict(0), Appended(1, START_US)])
    assert await store.subjects() == ["old"]
    assert await store.head("new") == Head(1, 0)


async def test_a_rejected_message_has_its_whole_group_rejected(store: Store) -> None:
    batch = [
        message(group=1),
        message("b", group=1),
        message(group=1, expiration_s=-1),
        message(group=1, key="k"),
        message(group=2, key="k"),
    ]
    outcomes = await store.append(batch)
    assert [type(outcome) for outcome in outcomes] == [Rejected, Appended, Rejected, Rejected, Appended]
    assert told(outcomes[4:]) == told([Appended(1, START_US)])
    outcomes = await store.append([message("c", group=3), message("c", group=3, expiration_s=-1)])
    assert [type(outcome) for outcome in outcomes] == [Rejected, Rejected]
    assert await store.subjects() == ["b", "orders"]
