import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_broker import InvalidSubject
from trio_broker import subject as subject_module
from trio_broker.subject import RULE, check_subject


@pytest.mark.parametrize(
    "subject", ["a", "orders", "orders.created.eu", "a-b_c/d:e", "заказы.новые", "日本", "🙂", "x" * 255, "é" * 127]
)
def test_a_subject_that_keeps_the_rule_is_accepted(subject: str) -> None:
    check_subject(subject)
    check_subject(subject)  # and again, from the cache


@pytest.mark.parametrize(
    ("subject", "fault"),
    [
        ("", "it is empty"),
        (".", "empty token at character 1"),
        (".a", "empty token at character 1"),
        ("a.", "empty token at character 3"),
        ("a..b", "empty token at character 3"),
        ("ab.cd..e", "empty token at character 7"),
        ("a b", "' ' at character 2"),
        ("ab\n", r"'\n' at character 3"),
        ("\x00", r"'\x00' at character 1"),
        ("a\x7f", r"'\x7f' at character 2"),
        ("a\x85", r"'\x85' at character 2"),
        ("a\u00a0b", r"'\xa0' at character 2"),
        ("a\u2028", r"'\u2028' at character 2"),
        ("orders.*", "'*' at character 8"),
        ("orders.>", "'>' at character 8"),
        ("a\ud800", r"'\ud800' at character 2"),
        ("x" * 256, "it has 256 bytes"),
        ("é" * 128, "it has 256 bytes"),
    ],
)
def test_a_refusal_says_what_where_and_the_rule(subject: str, fault: str) -> None:
    with pytest.raises(InvalidSubject) as refused:
        check_subject(subject)
    assert fault in str(refused.value)
    assert str(refused.value).endswith(RULE)
    str(refused.value).encode()  # it travels on the wire


def test_exactly_white_space_controls_surrogates_and_the_reserved_are_forbidden() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    forbidden = set(subject_module._FORBIDDEN.findall(everything))
    expected = {c for c in everything if unicodedata.category(c) in {"Cc", "Cs", "Zs", "Zl", "Zp"} or c in "*>"}
    assert forbidden == expected
    assert {c for c in everything if c.isspace()} < forbidden


def keeps_the_rule(subject: str) -> bool:
    """Say so the slow and obvious way."""
    tokens = subject.split(".")
    allowed = all(token and not re.search(r"[\x00-\x20\x7f-\x9f\xa0*>\u3000\ud800-\udfff]", token) for token in tokens)
    return allowed and len(subject.encode()) <= 255


@given(st.text(st.sampled_from("ab.é*> \t\x00\x7f\u3000🙂"), max_size=8) | st.text("xé", max_size=260))
def test_the_check_agrees_with_the_obvious_rule(subject: str) -> None:
    try:
        check_subject(subject)
    except InvalidSubject:
        assert not keeps_the_rule(subject)
    else:
        assert keeps_the_rule(subject)


def test_a_refusal_is_short_whatever_was_sent() -> None:
    with pytest.raises(InvalidSubject) as refused:
        check_subject("\x00" * 4_000_000)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("wrong", [b"a", 1, None, ["a"]])
def test_what_is_no_str_is_a_type_error(wrong: object) -> None:
    with pytest.raises(TypeError):
        check_subject(wrong)  # type: ignore[arg-type]


def test_the_cache_is_bounded_and_holds_nothing_that_was_refused() -> None:
    subject_module._check.cache_clear()
    for number in range(10_000):
        check_subject(f"valid.{number}")
    assert subject_module._check.cache_info().currsize == 4096
    subject_module._check.cache_clear()
    for number in range(10):
        with pytest.raises(InvalidSubject):
            check_subject(f"not valid {number}")
    assert subject_module._check.cache_info().currsize == 0
