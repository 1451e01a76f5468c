"""The wheel of deadlines, against a list of them."""

from hypothesis import given
from hypothesis import strategies as st

from trio_broker.rpc.deadlines import TICK_S, Deadlines


class Call:
    deadline = None
    bucket = 0


START = 123_456.789


def test_a_call_is_due_within_a_tick_after_its_deadline_and_not_before():
    deadlines = Deadlines(START)
    call = Call()
    ends = deadlines.add(call, START + 1)
    assert START + 1 < ends <= START + 1 + TICK_S + 1e-6
    assert list(deadlines.due(START + 1 - 1e-6)) == []
    assert deadlines.next_tick() == ends
    assert list(deadlines.due(ends)) == [call]
    assert not deadlines


def test_a_deadline_that_has_passed_is_due_at_the_next_tick():
    deadlines = Deadlines(START)
    call = Call()
    ends = deadlines.add(call, 0.0)
    assert START < ends <= START + TICK_S
    assert list(deadlines.due(ends)) == [call]


def test_a_call_may_be_forgotten_while_others_are_due():
    deadlines = Deadlines(START)
    calls = [Call() for _ in range(10)]
    ends = max(deadlines.add(call, START + number) for number, call in enumerate(calls))
    for number, call in enumerate(deadlines.due(ends)):
        assert call is calls[number]
        deadlines.discard(call)
    assert not deadlines


@given(
    st.floats(0, 1e8),
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.floats(0, 30)),
            st.tuples(st.just("discard"), st.integers(0, 30)),
            st.tuples(st.just("wait"), st.floats(0, 10)),
        ),
        max_size=60,
    ),
)
def test_against_a_list(now, steps):
    deadlines = Deadlines(now)
    waiting: list[Call] = []
    for step, value in steps:
        if step == "add":
            waiting.append(Call())
            deadlines.add(waiting[-1], now + value)
        elif step == "discard" and value < len(waiting):
            deadlines.discard(waiting.pop(value))
        elif step == "wait":
            now += value
            due = list(deadlines.due(now))
            assert len(due) == len(set(due))
            assert all(call.deadline <= now + 1e-6 for call in due)
            waiting = [call for call in waiting if call not in due]
            assert all(call.deadline > now - TICK_S - 1e-6 for call in waiting)
        assert bool(deadlines) == bool(waiting)
        if waiting:
            assert deadlines.next_tick() <= min(call.deadline for call in waiting) + TICK_S + now * 1e-9 + 1e-6
    for call in waiting:
        deadlines.discard(call)
    assert not deadlines
