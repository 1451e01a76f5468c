"""Hostile and ordinary clients against one real broker for as long as one likes: does anything stay behind?

`hostile.py` has the attacks, `ordinary.py` the clients that must not notice them, `samples.py` what is looked at.
`python -m tests.soak --minutes 30` runs them; docs/SECURITY.md says what came of it. Faults of a database, and what
they do to several brokers, are those of `tests/faults`.
"""

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1]
for _directory in (str(_TESTS), str(_TESTS / "e2e")):  # as pytest does, for those who run a module by its name
    if _directory not in sys.path:
        sys.path.append(_directory)
