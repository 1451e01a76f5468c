"""A port of this machine whose packets get lost, by iptables: the proxy of the tests is above TCP, and loses none.

Owns:      the rules, for that port alone and for the length of a block.
Not here:  the proxy (tests/blackhole.py).
Threads:   the caller's; each rule is a process.
"""

import os
import subprocess
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from shutil import which

import pytest


def require_loss(port: int) -> None:
    """Skip the test where packets cannot be lost, or not as this user."""
    if os.geteuid() != 0 or which("iptables") is None:
        pytest.skip("needs root and iptables")
    for rule in _rules(port, 0.0):
        added = _iptables("-A", rule)
        if added.returncode:
            pytest.skip(f"iptables cannot lose packets here: {added.stderr.strip()}")
        _iptables("-D", rule)


@contextmanager
def lossy(port: int, share: float) -> Generator[None]:
    """Lose this share of the packets to and from a TCP port of the loopback interface; 0.0: do nothing."""
    with ExitStack() as stack:
        for rule in _rules(port, share) if share else ():
            added = _iptables("-A", rule)
            assert not added.returncode, added.stderr
            stack.callback(_iptables, "-D", rule)
        yield


def _rules(port: int, share: float) -> list[str]:
    return [
        f"INPUT -i lo -p tcp {end} {port} -m statistic --mode random --probability {share} -j DROP"
        for end in ("--dport", "--sport")
    ]


def _iptables(action: str, rule: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["iptables", "--wait", action, *rule.split()], capture_output=True, text=True, check=False)
