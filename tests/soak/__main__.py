"""``python -m tests.soak --minutes 30``: hostile and ordinary clients at once, and what stays behind.

One broker with SQLite is attacked in plaintext, another by those who try TLS; each serves ordinary clients, which are
in processes of their own. First all of it goes on for a while, so that what is made once is made; then everybody
leaves, and what the brokers hold is the measure. After the stated time everybody leaves again, and both must be back
there: connections, calls and tasks the same, open files and threads no more, memory `MEMORY_SLACK_MIB` more at most. No
call of an ordinary client may have failed, and no broker may have logged an error. Ends with 1 otherwise.

What was sampled is in ``build/soak``, as a table and as a picture.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import trustme
from e2e_broker import SAFETY_S, BrokerProcess, eventually, sqlite_url

from .hostile import ATTACKS, TLS_ATTACKS, Attacker
from .samples import Sample, look, write

ATTACKERS = {"plaintext": 8, "tls": 3}
WARM_UP_SHARE, WARM_UP_S = 0.1, 120.0
"""The first part: so much of the time, and no more."""
SAMPLE_S = 5.0
MEMORY_SLACK_MIB = 16.0
"""Beyond where it was: the C library gives back what it likes, and the cache may fill."""
FLAGS = ["--cache-bytes", "4MiB"]
DIRECTORY = Path("build/soak")


class Ordinary:
    """The process of the ordinary clients."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.ordinary", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.calls = 0
        self.p99_ms = 0.0
        self.failures: list[str] = []
        self.said_all = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            self.calls += said.get("calls", 0)
            self.p99_ms = said.get("p99_ms", self.p99_ms)
            if "failures" in said:
                self.failures, self.calls, self.said_all = said["failures"], said["calls_in_all"], True

    def leave(self) -> None:
        """Let the clients end; afterwards `failures` is all there was."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait(2 * SAFETY_S) or not self._wait_said():
            self.failures.append("the clients' process did not end as it should")

    def _wait_said(self) -> bool:
        self._reader.join(SAFETY_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self.said_all


class Trial:
    """One broker, its clients, and its samples."""

    def __init__(self, name: str, broker: BrokerProcess, *authority: str) -> None:
        self.name = name
        self.broker = broker
        self._authority = authority
        self.samples: list[Sample] = []
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self.calls = 0
        self._answered = 0

    @contextmanager
    def at_work(self, dice: random.Random) -> Iterator[Self]:
        """Ordinary clients and attackers for the length of the block."""
        over = threading.Event()
        self.ordinary = Ordinary(self.broker.address, *self._authority)
        self._answered = 0
        attacks = TLS_ATTACKS if self._authority else ATTACKS
        threads = []
        for _ in range(ATTACKERS[self.name]):
            attacker = Attacker(self.broker.address, over, random.Random(dice.random()))
            threads.append(threading.Thread(target=attacker.run, args=(attacks, self.done)))
            threads[-1].start()
        try:
            yield self
        finally:
            over.set()
            for thread in threads:
                thread.join(SAFETY_S)
            self.ordinary.leave()
            self.calls += self.ordinary.calls
            self.failures += self.ordinary.failures

    def sample(self, at_s: float) -> None:
        attacks = sum(count for name, count in self.done.items() if "," not in name)
        calls = self.ordinary.calls
        sample = look(self.broker, at_s, answered=calls - self._answered, p99_ms=self.ordinary.p99_ms, attacks=attacks)
        self._answered = calls
        self.samples.append(sample)

    def at_rest(self, at_s: float) -> Sample:
        """Wait until nobody is connected; look."""
        eventually(lambda: look(self.broker, at_s).connections, 0)
        eventually(self.broker.subscribers, 0)
        sample = look(self.broker, at_s)
        self.samples.append(sample)
        return sample


def compare(before: Sample, after: Sample) -> list[str]:
    """Say what is not where it was."""
    exact = ("connections", "calls", "tasks", "inbound_bytes", "outbound_bytes")
    wrong = [name for name in exact if getattr(after, name) != getattr(before, name)]
    wrong += [name for name in ("descriptors", "threads") if getattr(after, name) > getattr(before, name)]
    if after.memory_mib > before.memory_mib + MEMORY_SLACK_MIB:
        wrong.append("memory_mib")
    return [f"{name} was {getattr(before, name)} and is {getattr(after, name)}" for name in wrong]


def work(trials: Sequence[Trial], dice: random.Random, began: float, seconds: float) -> None:
    """Let all go on for so long, and sample."""
    ends = time.monotonic() + seconds
    with ExitStack() as stack:
        for trial in trials:
            stack.enter_context(trial.at_work(dice))
        while (left := ends - time.monotonic()) > 0:
            time.sleep(min(SAMPLE_S, left))
            for trial in trials:
                trial.sample(time.monotonic() - began)


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Make an authority, and a certificate of it; return its file, the chain's and the key's."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    ca, chain, key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    authority.cert_pem.write_to_path(str(ca))
    issued.private_key_pem.write_to_path(str(key))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(chain), append=True)
    return ca, chain, key


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="without the warm-up (30)")
    parser.add_argument("--seed", type=int, default=11, help="of the order of attacks (11)")
    options = parser.parse_args()
    dice = random.Random(options.seed)
    began = time.monotonic()
    wrong: list[str] = []
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        ca, chain, key = certificates(folders[1])
        plain = stack.enter_context(BrokerProcess(sqlite_url(folders[0]), *FLAGS))
        tls_flags = ["--tls-cert", str(chain), "--tls-key", str(key)]
        tls = stack.enter_context(BrokerProcess(sqlite_url(folders[1]), *FLAGS, *tls_flags))
        trials = [Trial("plaintext", plain), Trial("tls", tls, str(ca))]
        work(trials, dice, began, min(WARM_UP_S, WARM_UP_SHARE * options.minutes * 60))
        before = [trial.at_rest(time.monotonic() - began) for trial in trials]
        work(trials, dice, began, options.minutes * 60)
        for trial, was in zip(trials, before, strict=True):
            now = trial.at_rest(time.monotonic() - began)
            write(trial.samples, DIRECTORY, trial.name)
            found = compare(was, now) + trial.failures
            print(f"{trial.name}: {trial.calls} ordinary calls; attacks: {dict(sorted(trial.done.items()))}")
            print(f"{trial.name}: at rest before: {was._asdict()}\n{trial.name}: at rest after: {now._asdict()}")
            trial.broker.stop()  # ends well, and has logged no error
            wrong += [f"{trial.name}: {each}" for each in found]
    print("\n".join(wrong) or "all is where it was")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
