"""``python -m tests.fuzz --seconds 60``: look for bytes that break an invariant, guided by coverage.

Each target gets its share of the time, in a process of its own, and goes on from what earlier runs kept in
``build/fuzz``. Bytes that break something are written to a file; its name is printed, and how to play it again. That
input, in ``tests/fuzz/found``, is a test from then on. Ends with 1 if there was one.
"""

import argparse
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from .seeds import SEEDS
from .targets import SHARES, TARGETS

KEPT = Path("build/fuzz")
INPUT_MAX_BYTES = 4096
INPUT_MAX_S = 10
"""Playing one input takes a millisecond; one that takes so long has found something."""
MEMORY_MAX_MIB = 1024
LEEWAY_S = 120
"""Beyond its time a process that has not ended is killed: it has to import, and to play what was kept."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together (60)")
    parser.add_argument("--target", choices=TARGETS, help="this one only")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="play one input on --target; needs no atheris")
    parser.add_argument("--search", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay and not options.target:
        parser.error("--replay needs --target: which target the input is for")
    if options.seconds < 1:
        parser.error(f"--seconds must be at least 1, not {options.seconds}")
    if options.replay:
        TARGETS[options.target](options.replay.read_bytes())
        print(f"{options.replay}: nothing is wrong")
        return 0
    if find_spec("atheris") is None:
        parser.error("atheris is not installed: `make fuzz` does that, on Linux on x86_64; its wheels are for no other")
    if options.search:
        return _search(options.target, options.seconds)
    chosen = {options.target: 1.0} if options.target else SHARES
    began = time.monotonic()
    failed = [name for name, share in chosen.items() if not _run(name, max(1, round(options.seconds * share)))]
    print(
        f"{len(chosen)} targets in {time.monotonic() - began:.0f} s; broken: {', '.join(failed) or 'none'}", flush=True
    )
    return 1 if failed else 0


def _run(name: str, seconds: int) -> bool:
    """Search in a process of its own; print what it says in the end; say whether it found nothing."""
    kept, found = KEPT / name, KEPT / "found" / name
    kept.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (kept / f"seed-{number}").write_bytes(seed)
    before = set(found.iterdir())
    command = [sys.executable, "-m", "tests.fuzz", "--search", "--target", name, "--seconds", str(seconds)]
    log = KEPT / f"{name}.log"
    with log.open("wb") as output:
        try:
            code = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=seconds + LEEWAY_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    said = log.read_text(errors="replace").splitlines()
    wanted = ("stat::number", "stat::average", "stat::peak")
    for line in said:
        if line.startswith(wanted) or " DONE " in line or (code and not line.startswith(("#", "INFO", "WARNING"))):
            print(f"{name}: {line}")
    for path in sorted(set(found.iterdir()) - before):
        print(f"{name}: found {path}\n  play it again: {sys.executable} -m tests.fuzz --target {name} --replay {path}")
    return code == 0


def _search(name: str, seconds: int) -> int:
    """Let atheris call the target. Does not return."""
    import atheris

    # what was imported by now is not instrumented: the targets' modules are taken in again
    for module in [each for each in sys.modules if each.startswith(("trio_broker.", "tests.fuzz."))]:
        if not module.startswith(("trio_broker._proto", "tests.fuzz.__main__")):
            del sys.modules[module]
    with atheris.instrument_imports(include=["trio_broker.rpc", "trio_broker.client"]):
        from .targets import TARGETS as INSTRUMENTED

    arguments = [
        *[sys.argv[0], str(KEPT / name), f"-artifact_prefix={KEPT / 'found' / name}/", f"-max_total_time={seconds}"],
        *[f"-max_len={INPUT_MAX_BYTES}", f"-timeout={INPUT_MAX_S}", f"-rss_limit_mb={MEMORY_MAX_MIB}"],
        *["-print_final_stats=1", "-use_value_profile=1", "-len_control=10", "-close_fd_mask=0"],
    ]
    atheris.Setup(arguments, INSTRUMENTED[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
