import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_broker.errors import Overloaded
from trio_broker.service.places import Places


def take_all(places: Places, connection: object) -> int:
    """Take places for a connection until there is none; return how many it got."""
    for taken in range(1000):
        try:
            places.enter(connection)
        except Overloaded:
            return taken
    raise AssertionError("there is no end of places")


def test_one_connection_gets_half_and_each_that_comes_after_it_half_of_the_rest() -> None:
    places = Places(100)
    assert [take_all(places, connection) for connection in range(8)] == [50, 25, 13, 6, 3, 2, 1, 0]
    assert places.taken == places.most == 100


def test_connections_that_take_turns_get_the_same() -> None:
    places = Places(100)
    taken = dict.fromkeys("abc", 0)
    for _ in range(100):
        for connection in taken:
            try:
                places.enter(connection)
            except Overloaded:
                continue
            taken[connection] += 1
    assert taken == {"a": 25, "b": 25, "c": 25}


def test_even_one_place_is_of_use() -> None:
    places = Places(1)
    assert take_all(places, "a") == 1
    places.leave("a")
    assert take_all(places, "b") == 1


def test_who_finds_no_place_is_told_of_the_bound_the_setting_and_when_to_try_again() -> None:
    places = Places(10)
    take_all(places, "a")
    with pytest.raises(
        Overloaded, match=r"5 subscriptions are live, 5 of them on this.* 10 may be \(--subscribers-max\)"
    ) as refused:
        places.enter("a")
    assert refused.value.retryable
    assert refused.value.metadata == {"limit": "10"}
    assert places.refused == 2


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3))), st.integers(1, 9))
def test_whatever_happens_a_newcomer_finds_a_place_while_there_is_one_and_nothing_is_forgotten(
    script: list[tuple[bool, int]], most: int
) -> None:
    places = Places(most)
    taken = [0] * 4
    for enters, connection in script:
        if enters:
            try:
                places.enter(connection)
            except Overloaded:
                assert taken[connection] >= most - sum(taken)
            else:
                taken[connection] += 1
        elif taken[connection]:
            places.leave(connection)
            taken[connection] -= 1
        assert places.taken == sum(taken) <= most
    for connection, count in enumerate(taken):
        for _ in range(count):
            places.leave(connection)
    assert (places.taken, dict(places._taken_by)) == (0, {})
