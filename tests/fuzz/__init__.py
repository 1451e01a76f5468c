"""What arbitrary bytes may do to the parts that read what a peer sends: nothing but what is declared.

A target takes any bytes and raises if an invariant does not hold. `targets.py` names them; `python -m tests.fuzz` lets
atheris look for bytes that break one, guided by coverage, and needs no other tool. The tests here run every target on
its seeds and on all that was ever found (`found/`), and need no atheris.
"""

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1]
for _directory in (str(_TESTS), str(_TESTS / "rpc")):  # as pytest does, for those who run a module by its name
    if _directory not in sys.path:
        sys.path.append(_directory)
