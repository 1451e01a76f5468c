"""What a subject may be called. The one place that knows.

Owns:      the rule, and the words in which a refusal explains it.
Not here:  who may use a subject; matching of several subjects (``*`` and ``>`` are kept free for it).
Threads:   any; no function here is a checkpoint.
"""

import re
from functools import lru_cache

from trio_broker.errors import InvalidSubject

SUBJECT_MAX_BYTES = 255
RULE = (
    f"a subject is 1-{SUBJECT_MAX_BYTES} bytes of UTF-8: tokens separated by single dots, "
    "without white space, control characters, '*' or '>'"
)

_CACHED_SUBJECTS = 4096
_SHOWN_CHARACTERS = 80

# \s is all of Unicode's white space (Zs, Zl, Zp); the two ranges are Cc; the last are halves of surrogate pairs
_FORBIDDEN = re.compile(r"[\s\x00-\x1f\x7f-\x9f*>\ud800-\udfff]")


def check_subject(subject: str) -> None:
    """Return if ``subject`` keeps the rule.

    Raises:
        InvalidSubject: with what is wrong, where, and the rule.
        TypeError: it is not a ``str``.
    """
    _check(subject)


def is_prefix(text: str) -> bool:
    """Say whether a subject can begin with ``text``, as far as its characters go."""
    return not _FORBIDDEN.search(text)


@lru_cache(_CACHED_SUBJECTS)  # only what returns is cached, so the cache never holds what a client got wrong
def _check(subject: str) -> None:
    if not isinstance(subject, str):
        raise TypeError(f"a subject is a str, not {type(subject).__name__}")
    fault = _fault(subject)
    if fault is not None:
        raise InvalidSubject(f"subject {_shown(subject)}: {fault}; {RULE}")


def _fault(subject: str) -> str | None:
    """Say what is wrong, counting characters from 1."""
    if not subject:
        return "it is empty"
    if found := _FORBIDDEN.search(subject):
        return f"{found[0]!r} at character {found.start() + 1}"
    if (size := len(subject.encode())) > SUBJECT_MAX_BYTES:
        return f"it has {size} bytes"
    position = 1
    for token in subject.split("."):
        if not token:
            return f"empty token at character {position}"
        position += len(token) + 1
    return None


def _shown(subject: str) -> str:
    if len(subject) <= _SHOWN_CHARACTERS:
        return repr(subject)
    return f"{subject[:_SHOWN_CHARACTERS]!r}..."
