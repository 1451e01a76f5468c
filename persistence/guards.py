"""Idempotency keys and expected last ids: what of a batch is appended.

Owns:      the rule, the same for every store; for how long a key is remembered.
Not here:  where a store keeps keys, and how it makes sure that nobody appends between looking and appending.
Threads:   any: pure functions.
"""

from collections.abc import Mapping, Sequence

from persistence.facade import KEY_KEPT_MIN_S, Appended, Conflict, Duplicate, NewMessage, Outcome


def key_kept_s(expiration_s: int | None) -> int | None:
    """Return for how many seconds the key of a message with this expiration is remembered; None: for good."""
    return None if expiration_s is None else max(expiration_s, KEY_KEPT_MIN_S)


def keys_of(messages: Sequence[NewMessage]) -> list[str]:
    """Return the idempotency keys of messages, each once, in order."""
    return [*dict.fromkeys(message.idempotency_key for message in messages if message.idempotency_key)]


def judge(messages: Sequence[NewMessage], last_id: int, time_us: int, known: Mapping[str, Duplicate]) -> list[Outcome]:
    """Return what becomes of the messages of one subject, one after another, in their order.

    ``last_id`` is the subject's before them, ``time_us`` that of what is appended of them, ``known`` what was appended
    before with their keys. A key goes before an expected last id: who repeats a publish that was appended hears so.
    """
    known = dict(known)
    outcomes: list[Outcome] = []
    for message in messages:
        key = message.idempotency_key
        if key in known:
            outcomes.append(known[key])
        elif message.expected_last_id not in (None, last_id):
            outcomes.append(Conflict(last_id))
        else:
            last_id += 1
            outcomes.append(Appended(last_id, time_us))
            if key:
                known[key] = Duplicate(last_id, time_us)
    return outcomes
