"""Run seeds by hand: ``python -m tests.simulation 17`` replays one and prints its trace; ``0:500`` runs many.

``--digest`` prints what the traces of the seeds come to, which is the same in every process.
"""

import sys
from collections import Counter

from .simulating import simulate
from .world import text


def main(seeds: str, option: str = "") -> int:
    """Return how many seeds found something wrong."""
    first, _, stop = seeds.partition(":")
    found = 0
    counts: Counter[str] = Counter()
    for seed in range(int(first), int(stop or int(first) + 1)):
        report = simulate(seed)
        counts += report.counts
        found += bool(report.violations)
        if option == "--digest":
            print(seed, report.digest)
        elif not stop:
            print(text(report.trace))
        if report.violations:
            print(report)
    if stop and not option:
        print("\n".join(f"{count:8} {what}" for what, count in sorted(counts.items())))
    return found


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
