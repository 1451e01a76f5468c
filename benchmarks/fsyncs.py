"""Is group commit real? Count the fsyncs of a broker on SQLite beside its publishes.

Owns:      running a broker under strace, which is far too slow for anything else to be measured meanwhile.
"""

import shutil
import tempfile
from pathlib import Path

from benchmarks.loads import BrokerLoad, fresh_subject, last_id
from benchmarks.servers import SCRATCH, Place, broker, running


def count_fsyncs(seconds: float) -> str:
    """Let 100 callers publish for ``seconds`` and say how many publishes shared an fsync.

    Raises:
        RuntimeError: strace is missing, or the load failed.
    """
    if shutil.which("strace") is None:
        raise RuntimeError("counting fsyncs needs strace")
    with tempfile.TemporaryDirectory(dir=SCRATCH) as directory:
        trace = Path(directory) / "trace"
        # -D: the server stays our child; --seccomp-bpf: only these two system calls are slowed down
        strace = ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-e", "trace=fsync,fdatasync", f"--output={trace}"]
        command = broker("sqlite:///{directory}/broker.db")(Place(Path(directory)))
        subject = fresh_subject()
        with running([*strace, *command]) as server:
            before = fsyncs_in(trace)
            measured = BrokerLoad("publish", subject=subject).run(server, seconds)
            publishes, fsyncs = last_id(server, subject), fsyncs_in(trace) - before
    if measured.problem:
        raise RuntimeError(measured.problem)
    return f"{publishes:,} publishes by 100 callers, {fsyncs:,} fsyncs: {publishes / fsyncs:.1f} publishes per fsync"


def fsyncs_in(trace: Path) -> int:
    """Count the calls (one that was interrupted by another thread's has a second line, without its arguments)."""
    return sum("sync(" in line for line in trace.read_text().splitlines())
