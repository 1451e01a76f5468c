"""Every target on its seeds, and on what was ever found; and the targets do notice."""

from pathlib import Path

import pytest

from trio_broker.rpc.call import Call
from trio_broker.rpc.hpack import Decoder
from trio_broker.rpc.outbound import Outbound

from . import server
from .__main__ import main
from .choices import Choices, Script
from .seeds import SEEDS
from .targets import SHARES, TARGETS

FOUND = Path(__file__).with_name("found")
"""A file for each input that once broke a target: ``TARGET-what-was-wrong``."""


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_break_nothing(name: str) -> None:
    for seed in SEEDS[name]:
        for cut in range(len(seed) + 1):
            TARGETS[name](seed[:cut])


@pytest.mark.parametrize("path", sorted(FOUND.iterdir()), ids=lambda path: path.name)
def test_what_was_found_once_is_mended(path: Path) -> None:
    TARGETS[path.name.partition("-")[0]](path.read_bytes())


def test_every_target_gets_its_share_of_the_time() -> None:
    assert SHARES.keys() == TARGETS.keys() == SEEDS.keys()
    assert sum(SHARES.values()) == pytest.approx(1)


def test_an_input_is_played_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(iter(FOUND.glob("server-*")))
    monkeypatch.setattr("sys.argv", ["fuzz", "--target", "server", "--replay", str(path)])
    assert main() == 0
    assert capsys.readouterr().out == f"{path}: nothing is wrong\n"


@pytest.mark.parametrize(("flags", "told"), [(["--replay", "x"], "--replay needs --target"), (["--seconds", "0"], "1")])
def test_wrong_flags_are_told(
    flags: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fuzz", *flags])
    with pytest.raises(SystemExit):
        main()
    assert told in capsys.readouterr().err


def test_choices_are_what_a_script_wrote_and_then_zeros() -> None:
    choices = Choices(Script().choose(7).number(1000, 2).piece(b"abc").data)
    assert (choices.below(5), choices.number(2), choices.piece()) == (2, 1000, b"abc")
    assert not choices.left
    assert (choices.below(5), choices.number(2), choices.piece()) == (0, 0, b"")


def broken_by_seeds(name: str) -> int:
    """How many seeds of a target fail."""
    failed = 0
    for seed in SEEDS[name]:
        try:
            TARGETS[name](seed)
        except Exception:  # noqa: BLE001 # whatever a planted bug leads to
            failed += 1
    return failed


def test_bytes_that_stay_counted_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    on_closed = Call.on_closed

    def forget(call: Call) -> None:
        call.held = 0
        on_closed(call)

    monkeypatch.setattr(Call, "on_closed", forget)
    assert broken_by_seeds("server")


def test_a_window_that_is_exceeded_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    send_all = Outbound._send_all

    def send_and_forget(outbound: Outbound, stream: server.Call, size: int) -> None:
        send_all(outbound, stream, size)
        outbound.send_window += size

    monkeypatch.setattr(Outbound, "_send_all", send_and_forget)
    assert broken_by_seeds("server")


def test_a_call_that_ends_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    on_closed = Call.on_closed

    def close_twice(call: Call) -> None:
        on_closed(call)
        on_closed(call)

    monkeypatch.setattr(Call, "on_closed", close_twice)
    assert broken_by_seeds("server")


def test_a_table_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "_evict", lambda decoder: None)
    assert broken_by_seeds("header_blocks")
