"""The guard of the process's memory: its marks, what it does under pressure, and how the buffers share the room."""

import resource

import pytest
import trio
from trio.testing import MockClock

from metrics.limits import memory_used_bytes
from trio_broker.config import Config
from trio_broker.memory import (
    CALM_S,
    LASTS_S,
    OTHER_DESCRIPTORS,
    OTHERS_LOOKS,
    SETTLED_IDLE_S,
    SETTLED_S,
    SHORT_S,
    Guard,
    Pressure,
    Shares,
    Use,
    give_back,
    use_few_heaps,
)

LIMIT = 1000
BASE = 200
MIB = 1024 * 1024


class Scene:
    """A guard whose world is a number."""

    def __init__(self) -> None:
        self.used = BASE
        self.changes: list[Pressure] = []
        self.relieved = 0
        self.held = LIMIT
        self.guard = Guard(LIMIT, lambda: self.used, self.changes.append, self._relieve, lambda: self.held)

    def _relieve(self) -> None:
        self.relieved += 1

    def look(self, used: int) -> Pressure:
        self.used = used
        self.guard.look()
        assert self.guard.used_bytes == used
        return self.guard.pressure


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_pressure_comes_at_the_high_mark_and_goes_at_the_low_one(scene: Scene) -> None:
    assert scene.look(759) is Pressure.NONE  # 200 and seven tenths of 800 are 760
    assert scene.look(760) is Pressure.HIGH
    assert scene.look(759) is Pressure.HIGH
    assert scene.look(600) is Pressure.HIGH
    assert scene.look(599) is Pressure.NONE
    assert scene.changes == [Pressure.HIGH, Pressure.NONE]


async def test_what_is_full_stays_so_down_to_the_high_mark(scene: Scene) -> None:
    assert scene.look(880) is Pressure.FULL
    assert scene.look(760) is Pressure.FULL
    assert scene.look(759) is Pressure.HIGH
    assert scene.look(880) is Pressure.FULL
    assert scene.look(0) is Pressure.NONE
    assert scene.changes == [Pressure.FULL, Pressure.HIGH, Pressure.FULL, Pressure.NONE]


async def test_pressure_goes_when_use_stays_below_the_high_mark(scene: Scene, mock_clock: MockClock) -> None:
    scene.look(760)
    mock_clock.jump(CALM_S - 0.1)
    assert scene.look(700) is Pressure.HIGH
    mock_clock.jump(0.2)
    assert scene.look(700) is Pressure.NONE


async def test_pressure_that_lasts_is_relieved_again_and_again(scene: Scene, mock_clock: MockClock) -> None:
    scene.look(850)
    assert scene.relieved == 0, "what was freed may only have to be given back"
    scene.look(850)
    assert scene.relieved == 0
    for times in (1, 2):
        mock_clock.jump(LASTS_S)
        scene.look(850)
        assert scene.relieved == times
    mock_clock.jump(LASTS_S)
    scene.look(700)
    assert scene.relieved == 2, "it is sinking by itself"


async def test_what_the_process_just_keeps_is_where_it_begins_again(scene: Scene, mock_clock: MockClock) -> None:
    scene.look(900)
    scene.look(900)
    mock_clock.jump(SETTLED_S)
    assert scene.look(900) is Pressure.NONE
    assert scene.look(949) is Pressure.NONE
    assert scene.look(950) is Pressure.HIGH  # half of the 100 that were left
    assert scene.look(975) is Pressure.FULL
    assert scene.look(599) is Pressure.NONE
    assert scene.look(599) is Pressure.NONE
    assert scene.look(760) is Pressure.HIGH, "the first marks hold again"


async def test_use_that_grows_is_not_what_it_keeps(scene: Scene, mock_clock: MockClock) -> None:
    scene.look(770)
    for used in (780, 790, 800, 810):
        mock_clock.jump(SETTLED_S / 2)
        assert scene.look(used) is Pressure.HIGH


async def test_the_last_of_the_room_is_not_what_it_keeps_while_much_is_held(
    scene: Scene, mock_clock: MockClock
) -> None:
    for _ in range(5):
        assert scene.look(960) is Pressure.FULL
        mock_clock.jump(SETTLED_S)


@pytest.mark.parametrize("kept", [960, LIMIT, 3 * LIMIT])
async def test_a_process_that_holds_next_to_nothing_serves_again_whatever_it_keeps(
    kept: int, scene: Scene, mock_clock: MockClock
) -> None:
    scene.held = 81  # a tenth of the room is 80
    for _ in range(5):
        assert scene.look(kept) is Pressure.FULL
        mock_clock.jump(SETTLED_IDLE_S)
    scene.held = 80
    assert scene.look(kept) is Pressure.NONE
    assert scene.look(kept + 39) is Pressure.NONE
    assert scene.look(kept + 40) is Pressure.HIGH  # half of a tenth of the room
    assert scene.look(kept + 60) is Pressure.FULL
    assert scene.look(599) is Pressure.NONE
    assert scene.look(599) is Pressure.NONE
    assert scene.look(760) is Pressure.HIGH, "the first marks hold again"


async def test_how_long_nobody_has_been_accepted_is_told_once_it_is_long(scene: Scene, mock_clock: MockClock) -> None:
    scene.look(870)
    mock_clock.jump(SHORT_S)
    assert scene.guard.short_s() == 0, "clients are accepted"
    scene.look(960)
    mock_clock.jump(SHORT_S - 1)
    scene.look(970)
    assert scene.guard.short_s() == 0
    mock_clock.jump(1)
    assert scene.guard.short_s() == SHORT_S
    scene.look(870)
    scene.look(700)
    assert scene.guard.short_s() == 0


async def test_a_guard_looks_until_it_is_cancelled(scene: Scene, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.guard.run)
        scene.used = 850
        await trio.sleep(1)
        assert scene.guard.pressure is Pressure.HIGH
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("room", [0, 10 * MIB, 72 * MIB, 200 * MIB, 24_000 * MIB])
def test_each_buffer_has_room_for_its_largest_message(room: int) -> None:
    shares = Shares.of(room, 4 * MIB)
    assert shares.queue >= 4 * MIB
    assert shares.inbound // 2 >= 4 * MIB
    assert shares.backlog >= 8 * MIB
    assert shares.fetches >= 4 * MIB
    assert shares.replies // 2 >= 4 * MIB
    if room >= 72 * MIB:
        assert sum(shares) <= 0.7 * room


def test_a_queue_is_made_to_fit_and_never_made_larger() -> None:
    config = Config(queue_bytes=64 * MIB)
    assert Shares.of(72 * MIB, 4 * MIB).fit(config).queue_bytes < 16 * MIB
    assert Shares.of(24_000 * MIB, 4 * MIB).fit(config) == config


def test_what_does_not_fit_at_all_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def nothing(*_: object) -> int:
        """There is no one to tell."""
        return 0

    Guard(256 * MIB, lambda: 56 * MIB, nothing, nothing, nothing).shares(Config())
    assert "memory_small" not in capsys.readouterr().out
    Guard(64 * MIB, lambda: 56 * MIB, nothing, nothing, nothing).shares(Config())
    assert "memory_small" in capsys.readouterr().out


def test_what_others_use_of_the_same_limit_counts_too() -> None:
    own = Use(None)()
    assert own > 10 * MIB
    assert Use(lambda: 100_000 * MIB)() == 100_000 * MIB
    assert Use(lambda: 0)() >= own // 2


def test_a_process_without_descriptors_still_knows_what_it_uses() -> None:
    used = Use(memory_used_bytes)
    used()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        amounts = [used() for _ in range(2 * OTHERS_LOOKS)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert min(amounts) > 0


def test_no_more_clients_fit_than_there_are_descriptors_for(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (OTHER_DESCRIPTORS + 7, 4096))
    scene.guard.room_bytes = 2**40
    assert scene.guard.connections_max(Config()) == 7
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert scene.guard.connections_max(Config()) > 1000


def test_settings_bound_clients_and_subscriptions_as_far_as_memory_allows_more(scene: Scene) -> None:
    scene.guard.room_bytes = 10 * MIB
    assert scene.guard.connections_max(Config()) == 256
    assert scene.guard.subscribers_max(Config()) == 512
    assert scene.guard.streams_max(Config()) == 1024
    fewer = Config(connections_max=10, subscribers_max=20, streams_max=30)
    assert bounds(scene.guard, fewer) == (10, 20, 30)
    more = Config(connections_max=10**6, subscribers_max=10**6, streams_max=10**6)
    assert bounds(scene.guard, more) == (256, 512, 1024)


def bounds(guard: Guard, config: Config) -> tuple[int, int, int]:
    return guard.connections_max(config), guard.subscribers_max(config), guard.streams_max(config)


def test_memory_can_be_given_back() -> None:
    use_few_heaps()
    give_back(collect=True)
