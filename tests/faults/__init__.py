"""Faults that happen to several real brokers on one real PostgreSQL, and the one oracle that they are held to.

docs/FAULTS.md says which fault is tested where, here and elsewhere. `clients.py` publishes, subscribes and resumes;
`oracle.py` holds what they were told against what is stored; `cluster.py` starts, kills and stops the brokers. Trials
that take minutes, run by hand from the root of the checkout:

    python -m tests.faults.rolling_kill --minutes 10
    python -m tests.faults.soak --minutes 60

``TRIO_BROKER_FAULT_SECONDS`` is how long each fault of the suite lasts that may last as long as one likes.
"""

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1]
for _directory in (str(_TESTS), str(_TESTS / "e2e")):  # as pytest does, for those who run a module by its name
    if _directory not in sys.path:
        sys.path.append(_directory)
