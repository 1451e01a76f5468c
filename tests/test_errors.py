import inspect
from copy import copy

import pytest

import trio_broker
from trio_broker import errors
from trio_broker.errors import BrokerError, InvalidArgument


def subclasses(parent: type[BrokerError]) -> list[type[BrokerError]]:
    return [found for child in parent.__subclasses__() for found in (child, *subclasses(child))]


CONCRETE = [
    kind for kind in subclasses(BrokerError) if kind is not InvalidArgument and kind.__module__ == errors.__name__
]


def test_every_error_has_a_reason_of_its_own() -> None:
    reasons = [kind.reason for kind in CONCRETE]
    assert all("reason" in vars(kind) for kind in CONCRETE)
    assert len(set(reasons)) == len(reasons)
    assert all(reason == reason.upper().replace(" ", "_") for reason in reasons)


@pytest.mark.parametrize("kind", [BrokerError, InvalidArgument, *CONCRETE])
def test_every_error_says_what_it_means(kind: type[BrokerError]) -> None:
    assert vars(kind).get("__doc__")


@pytest.mark.parametrize("kind", CONCRETE)
def test_an_error_carries_its_text_and_its_details_also_when_copied(kind: type[BrokerError]) -> None:
    error = kind("what happened", last_id=7)
    for one in (error, copy(error)):
        assert type(one) is kind
        assert str(one) == "what happened"
        assert one.metadata == {"last_id": "7"}


def test_only_errors_after_which_nothing_was_applied_say_try_again() -> None:
    assert {kind.reason for kind in CONCRETE if kind("").retryable} == {
        "CLOSED",
        "DRAINING",
        "STORAGE_UNAVAILABLE",
        "OVERLOADED",
    }


def test_bad_arguments_are_value_errors_too() -> None:
    assert issubclass(InvalidArgument, ValueError)
    assert issubclass(errors.MessageTooLarge, ValueError)


def test_every_name_that_the_package_exports_is_there() -> None:
    for name in trio_broker.__all__:
        assert getattr(trio_broker, name) is not None
    assert inspect.isclass(trio_broker.Broker)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trio_broker.nonsense
