"""A Cassandra node of the tests' own: the jars that Maven Central has of a release, run by Java 17.

Owns:      the jars, fetched once into .cache/; a node's directory and ports; starting, stopping, killing and freezing
           it; its log.
Not here:  keyspaces (cassandra_keyspaces.py), several nodes (cassandra_cluster.py), who shares which (conftest.py).
Threads:   one per running node, which reads its log to the end. Every method blocks: a start for some 5 s, and
           some 550 MB are taken while it runs.

It keeps what it acknowledges, also when it is killed (``commitlog_sync: batch``).
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

from cassandra.cluster import NoHostAvailable
from cassandra_keyspaces import connected

VERSION = "5.0.4"

SAFETY_S = 120
"""What hangs fails after this long; nothing that works comes near."""

_FILES = Path(__file__).parent / "cassandra_node"
_CACHE = Path(__file__).parents[1] / ".cache"
_SETTINGS = {
    "cluster_name": "trio-broker-tests",
    "num_tokens": 1,
    "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
    "endpoint_snitch": "SimpleSnitch",  # datacenter1
    "commitlog_sync": "batch",
    "storage_compatibility_mode": "NONE",  # rows may expire after 2038; the default is CASSANDRA_4, which refuses that
    "auto_snapshot": False,  # a dropped keyspace leaves nothing
}
_DIRECTORIES = ("commitlog_directory", "saved_caches_directory", "hints_directory", "cdc_raw_directory")
_STARTED = "Startup complete"


class Ports:
    """Two free ports, kept from everybody else until `close`, also while no node listens there.

    They are bound on every address and never listened on. With SO_REUSEADDR, which Cassandra sets too, a node may
    still bind them on its address.
    """

    def __init__(self) -> None:
        self._kept = [_bind_free_port(), _bind_free_port()]
        self.cql, self.storage = [kept.getsockname()[1] for kept in self._kept]

    def close(self) -> None:
        for kept in self._kept:
            kept.close()


class CassandraServer:
    """A running node; it answers queries when the ``with`` block begins, and nothing is left of it after.

    Args:
        address: where it listens, for clients and for other nodes; nowhere else.
        seed: the address of a node whose cluster it joins; otherwise it makes one.
        ports: shared with that node; otherwise it has its own.
        place: where its directory is made; otherwise where temporary files are.
        jvm: options for Java, over those in cassandra_node/jvm.args.
        settings: of cassandra.yaml, over those above; such as ``commitlog_sync="periodic"``.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        *,
        seed: str = "",
        ports: Ports | None = None,
        place: Path | None = None,
        jvm: Sequence[str] = (),
        **settings: object,
    ) -> None:
        self.address = address
        self._seed = seed or address
        self.log: deque[str] = deque(maxlen=5000)
        """What it has logged, the oldest lines dropped."""
        self._given_ports = ports
        self._place = place
        self._jvm = jvm
        self._settings = _SETTINGS | settings
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._logged = threading.Condition()
        self._started = self._ended = False

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self.directory = Path(tempfile.mkdtemp(prefix="trio-broker-cassandra-", dir=self._place))
            undo.callback(shutil.rmtree, self.directory)
            undo.callback(_end_watch, _watch(self.directory))
            self.ports = self._given_ports or Ports()
            if self._given_ports is None:
                undo.callback(self.ports.close)
            (self.directory / "tmp").mkdir()
            (self.directory / "cassandra.yaml").write_text(json.dumps(self._yaml()))  # of which JSON is a part
            undo.callback(self._end)
            self.start()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._undo.close()

    @property
    def pid(self) -> int:
        """Of its one process."""
        return self._running().pid

    @property
    def is_running(self) -> bool:
        """It was started and neither stopped nor killed since; it may be frozen."""
        return self._process is not None

    def url(self, keyspace: str = "") -> str:
        """The URL of a store in a keyspace of this node alone. Where passwords are asked for, it is the superuser's."""
        login = "cassandra:cassandra@" if "authenticator" in self._settings else ""
        return f"cassandra://{login}{self.address}:{self.ports.cql}/{keyspace}?replication_factor=1"

    def start(self) -> None:
        """Start it and wait until it answers a query, what it has to recover included."""
        assert self._process is None, "it runs already"
        self._started = self._ended = False
        self._process = subprocess.Popen(
            java_command("service.CassandraDaemon", jvm=self._jvm),
            cwd=self.directory,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},  # none of the JAVA_* variables of a developer
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is not for it
        )
        (self.directory / "pid").write_text(str(self._process.pid))
        self._reader = threading.Thread(target=self._read, args=[self._process.stdout], name="cassandra-log")
        self._reader.start()
        with self._logged:
            assert self._logged.wait_for(lambda: self._started or self._ended, SAFETY_S), self._tail()
            assert self._started, self._tail()
        self._wait_until_it_answers()

    def stop(self) -> None:
        """Stop it as an operator does: its clients are told and cut off, and all is flushed. It takes some 3 s."""
        self._running().terminate()
        self._wait_ended()

    def restart(self) -> None:
        """Stop it, unless it was killed, and start it again, on the same ports."""
        if self._process is not None:
            self.stop()
        self.start()

    def kill9(self) -> None:
        """Kill it; return when it is gone. What was not on disk is lost."""
        self._running().kill()
        self._wait_ended()

    def freeze(self) -> None:
        """Stop it where it is (SIGSTOP): connections stay open, and nothing answers once this returns."""
        self._running().send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let it go on."""
        self._running().send_signal(signal.SIGCONT)

    def revive(self) -> None:
        """Make it run, however it was left: killed, stopped or frozen."""
        if self._process is None:
            self.start()
        else:
            self.thaw()

    def wait_for_log(self, at_most_s: float) -> None:
        """Wait until it logs something, and no longer than that."""
        with self._logged:
            assert not self._ended, self._tail()
            self._logged.wait(at_most_s)

    @contextmanager
    def frozen(self) -> Generator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def _yaml(self) -> dict[str, Any]:
        seeds = {"seeds": f"{self._seed}:{self.ports.storage}"}
        settings: dict[str, Any] = {
            "listen_address": self.address,
            "storage_port": self.ports.storage,
            "rpc_address": self.address,
            "native_transport_port": self.ports.cql,
            "seed_provider": [
                {"class_name": "org.apache.cassandra.locator.SimpleSeedProvider", "parameters": [seeds]},
            ],
            "data_file_directories": ["data"],
        }
        settings |= {name: name.removesuffix("_directory") for name in _DIRECTORIES}
        settings |= self._settings
        if settings["commitlog_sync"] == "periodic":
            settings.setdefault("commitlog_sync_period", "10s")  # cassandra.yaml as it comes says so
        return settings

    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "it does not run"
        return self._process

    def _wait_until_it_answers(self) -> None:
        """It says that it has started a moment before there are roles to log in with."""
        until = time.monotonic() + SAFETY_S
        while True:
            try:
                with connected(self.url()) as session:
                    session.execute("SELECT release_version FROM system.local")
            except NoHostAvailable:
                assert time.monotonic() < until, self._tail()
                self.wait_for_log(0.05)  # nothing tells when
            else:
                return

    def _end(self) -> None:
        if self._process is not None:
            self.kill9()

    def _wait_ended(self) -> None:
        assert self._process is not None
        assert self._reader is not None
        self._process.wait(SAFETY_S)
        (self.directory / "pid").unlink()
        self._reader.join(SAFETY_S)
        self._process = None

    def _tail(self) -> str:
        return "\n".join(["it ended, or did not start:", *list(self.log)[-40:]])

    def _read(self, log: Any) -> None:
        with log:
            for line in log:
                with self._logged:
                    self.log.append(line.rstrip())
                    self._started = self._started or _STARTED in line
                    self._logged.notify_all()
        with self._logged:
            self._ended = True
            self._logged.notify_all()


MISSING = "Cassandra needs Java 17 (JAVA_HOME, PATH or /usr/lib/jvm) and, to be fetched once, Maven (mvn)"


def is_there() -> bool:
    """Whether a node can be run; otherwise say `MISSING`."""
    return find_java() is not None and (_jars().exists() or shutil.which("mvn") is not None)


@cache
def find_java() -> str | None:
    """The program of a Java 17; a later one does not run Cassandra 5.0."""
    home = os.environ.get("JAVA_HOME")
    candidates = [Path(home, "bin/java")] if home else []
    candidates += [Path("java"), *sorted(Path("/usr/lib/jvm").glob("*17*/bin/java"))]
    for java in filter(None, map(shutil.which, candidates)):
        asked = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
        if 'version "17' in asked.stderr:
            return java
    return None


def fetch_jars() -> Path:
    """The directory of the jars of a node: some 66 MB, fetched from Maven Central where they are not there yet."""
    jars = _jars()
    if not jars.exists():
        _CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as fetching:
            command = ["mvn", "--quiet", "--batch-mode", "--strict-checksums", "--file", _FILES / "pom.xml"]
            command += ["dependency:copy-dependencies", f"-Dcassandra.version={VERSION}"]
            fetched = subprocess.run(
                [*command, f"-DoutputDirectory={fetching}/jars"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            assert fetched.returncode == 0, fetched.stdout
            try:
                Path(fetching, "jars").rename(jars)  # whole, or not at all
            except OSError:
                assert jars.exists()  # somebody else was faster
    return jars


def java_command(program: str, *arguments: str | Path, jvm: Sequence[str] = ()) -> list[str | Path]:
    """What runs one of Cassandra's programs in the directory of a node, which is to be the current one."""
    java, jars = find_java(), fetch_jars()
    assert java is not None, MISSING
    agent = next(jars.glob("jamm-*.jar"))  # measures how much memory objects take
    options = [
        f"@{_FILES / 'jvm.args'}",
        f"-javaagent:{agent}",
        f"-Dlogback.configurationFile={_FILES / 'logback.xml'}",
    ]
    return [java, *options, *jvm, "-cp", f"{jars}/*", f"org.apache.cassandra.{program}", *arguments]


def _jars() -> Path:
    return _CACHE / f"cassandra-{VERSION}"


def _watch(directory: Path) -> subprocess.Popen[bytes]:
    """Start a process that ends the node, and removes what is left of it, when this one dies without doing so."""
    script = 'read _; kill -KILL $(cat "$0/pid"); rm -rf "$0"'
    return subprocess.Popen(["sh", "-c", script, directory], stdin=subprocess.PIPE, start_new_session=True)


def _end_watch(watch: subprocess.Popen[bytes]) -> None:
    watch.kill()
    watch.communicate()


def _bind_free_port() -> socket.socket:
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("", 0))
    return kept
